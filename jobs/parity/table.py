"""Runs every registered architecture's cases and writes docs/parity.md: `make parity`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from all_cases import all_cases

from triune.errors import UserError
from triune.exchange.proof import LOSS_TOLERANCE, STEPS, Case, Proof, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
_HEAD = """# Parity with transformers

Each row is a tiny random model of `transformers` with odd settings, imported, compared in fp32, trained beside the original and exported
again. `make parity` writes this page (jobs/parity/); `tests/numerics/test_exchange_parity.py` asserts the same of the same cases.

- **states, logits, gradients**: the RMS of the difference over the RMS of theirs, of the worst tensor; padding is in the batch, and the
  longest positions are used. Allowed is 1e-5 (no single number beyond ten times that), from the fifth layer on times sqrt(layers / 4), as
  rounding grows.
- **greedy**: tokens that both write, of how many. A dash where the family writes no text.
- **{steps} steps**: the largest difference of the losses of {steps} steps of AdamW. Allowed is {loss:.0e}.
- **back**: tensors of the exported file that are byte-equal to the imported one's, of how many, and what `from_pretrained` said: "silent"
  is no warning, nothing missing, nothing left over. A star: a warning that every such model gets, whoever saved it.

{versions}; written on {today}.

| architecture | case | numbers | states | logits | gradients | greedy | {steps} steps | back |
|---|---|---:|---:|---:|---:|---:|---:|---|
"""


def main() -> int:
    """Print and write the table; the exit code is 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", help="only these (nothing is written then)")
    chosen = parser.parse_args().architectures
    torch.set_num_threads(1)
    rows, failures = [], []
    for name, cases in all_cases().items():
        for case in cases if not chosen or name in chosen else []:
            row, problems = _row(name, case)
            print(row, flush=True)
            rows.append(row)
            failures += [f"{name}, {case.name}: {problem}" for problem in problems]
    if not chosen:
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        head = _HEAD.format(steps=STEPS, loss=LOSS_TOLERANCE, versions=packages, today=date.today())
        PAGE.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def _row(name: str, case: Case) -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory() as place:
        try:
            proof = run(case, Path(place))
        except UserError as error:
            return f"| {name} | {case.name} | | | | | | | {error} |", [str(error)]
    return _cells(proof, case), proof.problems()


def _cells(proof: Proof, case: Case) -> str:
    greedy = proof.parity.greedy
    steps = f"{proof.worst_loss:.1e}" if proof.steps else "-"
    said = "; ".join(proof.complaints) or ("silent*" if case.warning else "silent")
    cells = [
        proof.architecture,
        case.name,
        f"{proof.parameters:,}",
        f"{proof.worst_state:.1e}",
        f"{proof.worst_logits:.1e}" if proof.steps else "-",
        f"{proof.worst_gradient:.1e}" if proof.gradients else "-",
        f"{greedy[0]} of {greedy[1]}" if greedy else "-",
        steps,
        f"{proof.tensors - len(proof.unequal)} of {proof.tensors}, {said}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
