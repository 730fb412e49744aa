"""A model that enlarges rounding is told from one that computes something else: by its own answer in fp64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from triune.errors import UserError
from triune.exchange.importing import model_of, read_foreign
from triune.exchange.parity import Difference, prove, quiet_transformers


@pytest.fixture
def sharp(tmp_path: Path):
    """A T5 with scores so large that exp enlarges their rounding (in training they grow, since nothing scales them)."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=67, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    with quiet_transformers():
        theirs = transformers.T5ForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.normal_(0, 0.2).add_(1.0 if parameter.ndim == 1 else 0.0)
                if name.endswith("q.weight"):
                    parameter.mul_(10)
        theirs.save_pretrained(tmp_path)
    found = read_foreign(tmp_path)
    return model_of(found), theirs, found


def test_rounding_that_the_model_enlarges_is_no_difference(sharp):
    ours, theirs, found = sharp
    parity = prove(ours, theirs, found.architecture, ids=found.ids, what="it")
    one = parity.compared[0]
    assert replace(one, rounding={}).problem(parity.tolerance) is not None  # more than any model may round
    assert one.rounding.keys() == {*one.states, "logits"}
    assert "rounding" in parity.as_json(direction="import", files={})["probes"][0]


def test_a_mistake_is_one_in_such_a_model_too(sharp):
    ours, theirs, found = sharp
    with torch.no_grad():
        ours.encoder.blocks[0].feed_forward.down.weight[0, 0] += 1e-2
    with pytest.raises(UserError, match="the hidden state after encoder layer 0 is off by"):
        prove(ours, theirs, found.architecture, ids=found.ids, what="it")


def difference(relative: float, single: float) -> Difference:
    return Difference(max_absolute=0, mean_absolute=0, mean_relative=0, relative=relative, max_relative=single)


@pytest.mark.parametrize(
    ("found", "rounding", "fine"),
    [
        (difference(3e-5, 3e-5), None, False),
        (difference(3e-5, 3e-5), difference(1e-5, 1e-5), True),
        (difference(5e-5, 5e-5), difference(1e-5, 1e-5), False),  # more than four times
        (difference(1e-6, 3e-4), difference(1e-6, 1e-4), True),  # one number
        (difference(1e-6, 5e-4), difference(1e-6, 1e-4), False),
        (difference(2e-3, 2e-3), difference(1.0, 1.0), False),  # so much that nothing is said any more
        (difference(float("inf"), float("inf")), difference(float("inf"), float("inf")), False),
    ],
)
def test_what_measured_rounding_allows(found, rounding, fine):
    assert found.within(1e-5, rounding) is fine
