"""Each architecture against `transformers`, on the cases of jobs/parity/cases: hidden states, logits, loss, every gradient, 20 steps
of training, and the way back.

The tolerance of one pass is `triune.exchange.parity.tolerance`, derived there; that of the losses is `proof.LOSS_TOLERANCE`.
"""

import sys
from pathlib import Path

import pytest
import torch

from triune.exchange.architecture import known
from triune.exchange.proof import run

JOBS = Path(__file__).resolve().parents[2] / "jobs" / "parity"
sys.path.insert(0, str(JOBS))
try:
    from all_cases import all_cases
finally:
    sys.path.remove(str(JOBS))

CASES = all_cases()


@pytest.mark.parametrize(
    ("model_type", "case"),
    [pytest.param(name, case, id=f"{name}: {case.name}") for name, cases in CASES.items() for case in cases],
)
def test_equals_transformers_and_comes_back(model_type, case, tmp_path):
    torch.set_num_threads(1)
    proof = run(case, tmp_path)
    assert proof.architecture == model_type
    assert proof.problems() == []
    assert proof.tensors > 0


def test_every_architecture_has_cases():
    assert sorted(CASES) == known()
