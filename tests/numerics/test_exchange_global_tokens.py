"""What the cases of jobs/parity can't say of Longformer and BigBird: marks of each row, models trained here, rows too long for parity.

The tolerance is `triune.exchange.parity.tolerance`, derived there.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.exchange import from_huggingface, to_huggingface
from triune.exchange.architecture import TokenIds
from triune.exchange.importing import model_of, read_foreign
from triune.exchange.parity import Difference, prove, quiet_transformers, tolerance
from triune.exchange.proof import Case, peer
from triune.models.factory import build

PAD = 1
SHAPE = {
    "vocab_size": 67,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
}
LONGFORMER = SHAPE | {"max_position_embeddings": 60, "attention_window": 6, "pad_token_id": PAD}
BIG_BIRD = SHAPE | {"max_position_embeddings": 48, "block_size": 4, "num_random_blocks": 1, "pad_token_id": 0}
OURS = {
    "family": "encoder",
    "vocabulary": 67,
    "context": 58,
    "width": 30,
    "layers": 2,
    "heads": 5,
    "token_types": 1,
    "position": {"kind": "learned", "offset": PAD + 1},
    "norm": {"placement": "post", "embedding": True},
    "head": {"transform": True, "bias": True},
    "initialization": {"kind": "normal", "std": 0.2},
    "attention": {"pattern": "window(3, 3) | global_tokens(first=2)"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(model: str, settings: dict[str, object], place: Path) -> transformers.PreTrainedModel:
    theirs = peer(Case(name="", model=model, settings=settings))
    with quiet_transformers():
        theirs.save_pretrained(place)
    return theirs


def test_longformer_with_marks_of_each_row(tmp_path: Path) -> None:
    """Global tokens anywhere, another number of them in each row, none in one: landmarks here, `global_attention_mask` there."""
    theirs = saved("LongformerForMaskedLM", LONGFORMER, tmp_path)
    ours, config = from_huggingface(tmp_path)
    real = torch.arange(47) < torch.tensor([47, 31, 40])[:, None]
    ids = torch.randint(3, 67, real.shape).where(real, torch.tensor(PAD))
    marks = torch.zeros_like(real)
    marks[0, [0, 9, 10, 46]] = True
    marks[2, 20] = True
    documents, positions = np.where(real.numpy(), 0, -1), np.where(real.numpy(), np.arange(47), 0)
    layout = SequenceLayout.from_arrays(documents, positions, landmarks=marks.numpy())
    with torch.no_grad():
        hidden = ours(ids, layout)
        answer = theirs(ids, attention_mask=real.long(), global_attention_mask=marks.long(), output_hidden_states=True)
        unmarked = theirs(ids, attention_mask=real.long()).logits
    allowed = tolerance(config)
    assert Difference.between(hidden[real], answer.hidden_states[-1][real]).within(allowed)
    assert Difference.between(ours.head.logits(hidden)[real], answer.logits[real]).within(allowed)
    assert not Difference.between(unmarked[real], answer.logits[real]).within(100 * allowed)


@pytest.mark.parametrize("own", [False, True], ids=["shared projections", "projections of their own"])
def test_a_longformer_trained_here(tmp_path: Path, own: bool) -> None:
    """Its first tokens are global: the config remembers it, the file holds global projections either way, and it comes back whole."""
    torch.manual_seed(1)
    ours = build(OURS, **{"attention.global_projections": own})
    parity = to_huggingface(ours, tmp_path / "out", architecture="longformer", ids=TokenIds(pad=PAD))
    assert parity.caveat == "its first 2 tokens are global: call it with a global_attention_mask that is 1 there"
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["attention_window"] == [6, 6]
    assert values["triune"] == {"global_tokens": 2, "global_projections": own}
    with quiet_transformers():
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    ids = torch.randint(3, 67, (2, 50))
    marks = torch.zeros_like(ids)
    marks[:, :2] = 1
    with torch.no_grad():
        logits = ours.eval().head.logits(ours(ids))
        marked = theirs(ids, attention_mask=torch.ones_like(ids), global_attention_mask=marks).logits
        unmarked = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    assert Difference.between(logits, marked).within(tolerance(ours.config))
    assert not Difference.between(logits, unmarked).within(0.01), "who calls it there must mark the tokens"
    back, config = from_huggingface(tmp_path / "out")
    assert config.attention.global_projections is own
    assert set(config.attention.pattern or []) == {"window(3, 3) | global_tokens(first=2)"}
    for name, value in ours.named_parameters():
        assert torch.equal(back.get_parameter(name), value), name


def test_global_projections_trained_there_are_not_dropped_in_silence(tmp_path: Path) -> None:
    ours = build(OURS)
    to_huggingface(ours, tmp_path / "out", architecture="longformer", ids=TokenIds(pad=PAD))
    with quiet_transformers():
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)
        theirs.longformer.encoder.layer[1].attention.self.query_global.weight.data += 0.01
        theirs.save_pretrained(tmp_path / "trained")
    with pytest.raises(UserError, match=r"layer\.1.*query_global\.weight are one tensor by config\.json"):
        from_huggingface(tmp_path / "trained")


def test_block_sparse_rows_beyond_full_attention_are_no_parity(tmp_path: Path) -> None:
    """Beyond (5 + 2 x 1) x 4 tokens theirs leaves out what ours sees; set to `original_full` it is ours again."""
    theirs = saved("BigBirdForMaskedLM", BIG_BIRD | {"attention_type": "block_sparse"}, tmp_path)
    found = read_foreign(tmp_path)
    ours = model_of(found)
    with pytest.raises(UserError, match="do not compute the same: on the random probe, the hidden state after layer 0"):
        prove(ours, theirs, found.architecture, ids=found.ids, what=tmp_path)
    ids = torch.randint(3, 67, (2, 48))
    with torch.no_grad(), quiet_transformers():
        logits = ours.head.logits(ours(ids))
        short = theirs(ids[:, :28]).logits  # from here on theirs stays with full attention
        assert Difference.between(ours.head.logits(ours(ids[:, :28])), short).within(tolerance(found.config))
        assert Difference.between(logits, theirs(ids).logits).within(tolerance(found.config))
    prove(ours, theirs, found.architecture, ids=found.ids, what=tmp_path)


def test_what_block_sparse_parity_does_not_say_is_said(tmp_path: Path) -> None:
    sparse = BIG_BIRD | {"attention_type": "block_sparse", "max_position_embeddings": 28}
    theirs = saved("BigBirdForMaskedLM", sparse, tmp_path)
    found = read_foreign(tmp_path)
    parity = prove(model_of(found), theirs, found.architecture, ids=found.ids, what=tmp_path)
    assert "rows of up to 28 tokens" in parity.caveat
    assert parity.as_json(direction="import", files={})["caveat"] == parity.caveat
    full = found.architecture.caveat(sparse | {"attention_type": "original_full"})
    assert full == ""


@pytest.mark.parametrize(
    ("model", "settings"),
    [("LongformerModel", LONGFORMER | {"triune": {"global_tokens": 1}}),
     ("BigBirdModel", BIG_BIRD | {"attention_type": "original_full"})],
    ids=["longformer", "big_bird"],
)  # fmt: skip
def test_a_file_without_head_is_read_and_its_pooler_left_out(tmp_path: Path, model: str, settings: dict) -> None:
    theirs = saved(model, settings, tmp_path / "theirs")
    found = read_foreign(tmp_path / "theirs")
    ours = model_of(found)
    parity = prove(ours, theirs, found.architecture, ids=found.ids, what=tmp_path)
    assert parity.compared[0].logits is None
    to_huggingface(ours, tmp_path / "out", architecture=found.architecture.model_type, ids=found.ids)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert {name for name in before if not name.startswith("pooler.")} == after.keys()
    assert all(torch.equal(before[name], value) for name, value in after.items())
