"""`transformers`' Longformer against ours with the same weights, in fp32: outputs and all gradients.

Its window of w is window(w / 2, w / 2); its global tokens are global_tokens(...) or marks in the layout. It has separate
projections for what global tokens ask (query, key and value); ours shares the local ones, so theirs get the same weights,
and the gradient of ours is the sum of both of theirs. Tolerances: test_models_parity.py for outputs, sparse_peers.py for gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sparse_peers import OURS, SHAPE, V, backward, gradients, mapped, same_gradients, tied
from test_models_parity import close, load, peer
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.models.factory import build

CONTEXT, PAD, WINDOW = 96, 1, 8
PROJECTIONS = ("query", "key", "value")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def their_model(window: int | list[int] = WINDOW, shared: bool = True) -> Any:
    """Longformer, whose global projections equal the local ones where `shared`."""
    config = transformers.LongformerConfig(
        **SHAPE, attention_window=window, max_position_embeddings=CONTEXT + PAD + 1, pad_token_id=PAD,
        layer_norm_eps=1e-12,
    )  # fmt: skip
    model = peer(transformers.LongformerModel, config)
    with torch.no_grad():
        for layer in model.encoder.layer if shared else ():
            for name in PROJECTIONS:
                attention = layer.attention.self
                getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())
    return model


def our_model(theirs: Any, pattern: str | list[str], backend: str = "reference") -> Any:
    """An encoder with the weights of theirs; positions begin after the padding's number, as in RoBERTa."""
    model = build(
        {}, **OURS, context=CONTEXT, position={"kind": "learned", "offset": PAD + 1},
        attention={"pattern": pattern, "backend": backend},
    ).eval()  # fmt: skip
    load(model, tied(mapped(theirs.state_dict())))
    return model


def batch(lengths: list[int], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids padded on the right, their mask and token types."""
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, V, mask.shape).masked_fill(mask == 0, PAD)
    return ids, mask, torch.randint(0, 2, mask.shape)


def summed(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the global projections added to those of the local ones."""
    total = dict(grads)
    for name, gradient in grads.items():
        for projection in PROJECTIONS:
            if f".{projection}_global." in name:
                local = name.replace(f".{projection}_global.", f".{projection}.")
                total[local] = total[local] + gradient
    return total


def without_padding(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of padding left out: theirs pass no gradient (padding_idx), and their place for its position has none in ours."""
    kept = dict(expected)
    kept["embedding.weight"][PAD] = 0
    return kept


@pytest.mark.parametrize("lengths", [[40, 40], [43, 43], [43, 21], [8, 5]], ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
def test_first_tokens_global(lengths: list[int], tokens: int) -> None:
    """Rows that are a multiple of the window, that theirs has to pad, that are padded already, and of one window."""
    theirs = their_model()
    ours = our_model(theirs, f"window({WINDOW // 2}, {WINDOW // 2}) | global_tokens(first={tokens})")
    ids, mask, types = batch(lengths, max(lengths))
    marks = torch.zeros_like(mask)
    marks[:, :tokens] = 1
    answer = theirs(ids, attention_mask=mask, global_attention_mask=marks, token_type_ids=types).last_hidden_state
    hidden = ours(ids, SequenceLayout.from_lengths(lengths, max(lengths)), token_types=types)
    real = mask.bool()
    close(hidden[real], answer.detach()[real])
    backward(hidden, answer, real)
    same_gradients(ours, without_padding(mapped(summed(gradients(theirs)))))


def test_marks_of_each_row() -> None:
    """Global tokens anywhere, another number of them in each row, none in one; one mark on padding, which nobody heeds."""
    theirs = their_model()
    ours = our_model(theirs, f"window({WINDOW // 2}, {WINDOW // 2})")
    lengths = [45, 30, 37]
    ids, mask, types = batch(lengths, 45)
    marks = torch.zeros_like(mask)
    marks[0, [0, 9, 10, 44]] = 1
    marks[2, [20, 40]] = 1  # 40 is padding
    answer = theirs(ids, attention_mask=mask, global_attention_mask=marks, token_type_ids=types).last_hidden_state
    real = mask.bool()
    layout = SequenceLayout.from_arrays(
        np.where(real.numpy(), 0, -1), np.where(real.numpy(), np.arange(45), 0), landmarks=marks.bool().numpy()
    )
    hidden = ours(ids, layout, token_types=types)
    close(hidden[real], answer.detach()[real])
    backward(hidden, answer, real)
    same_gradients(ours, without_padding(mapped(summed(gradients(theirs)))))


def test_a_window_for_each_layer_and_no_global_token() -> None:
    theirs = their_model([4, 12])
    ours = our_model(theirs, ["window(2, 2)", "window(6, 6)"])
    ids, mask, types = batch([29], 29)
    with torch.no_grad():
        answer = theirs(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        close(ours(ids, token_types=types), answer)


def test_a_global_projection_of_its_own_changes_global_tokens_alone() -> None:
    """Where definitions part: theirs trains three projections more, which only the outputs of global tokens read.

    One layer deep, all other tokens stay equal; the global ones do not.
    """
    theirs = their_model(shared=False)
    ours = our_model(theirs, f"window({WINDOW // 2}, {WINDOW // 2}) | global_tokens(first=2)")
    theirs.encoder.layer, ours.stack.blocks = theirs.encoder.layer[:1], ours.stack.blocks[:1]
    ids, mask, types = batch([40], 40)
    marks = torch.zeros_like(mask)
    marks[:, :2] = 1
    with torch.no_grad():
        answer = theirs(ids, attention_mask=mask, global_attention_mask=marks, token_type_ids=types).last_hidden_state
        hidden = ours(ids, token_types=types)
    close(hidden[:, 2:], answer[:, 2:])
    assert float((hidden - answer)[:, :2].abs().amax(-1).min()) > 0.1


def test_what_dispatch_takes() -> None:
    theirs = their_model()
    pattern = f"window({WINDOW // 2}, {WINDOW // 2}) | global_tokens(first=1)"
    ids, mask, types = batch([43, 21], 43)
    marks = torch.zeros_like(mask)
    marks[:, 0] = 1
    with torch.no_grad():
        answer = theirs(ids, attention_mask=mask, global_attention_mask=marks, token_type_ids=types).last_hidden_state
        hidden = our_model(theirs, pattern, backend="auto")(
            ids, SequenceLayout.from_lengths([43, 21], 43), token_types=types
        )
    close(hidden[mask.bool()], answer[mask.bool()])
