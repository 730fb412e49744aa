#!/usr/bin/env bash
# Attention on a GPU, in one command, on a machine that has a CUDA device, this checkout, torch >= 2.11 with Triton, and numpy:
#
#     jobs/bench/attention_gpu.sh [--lengths 4096 8192 ...]     arguments go to attention_gpu.py; PYTHON picks the interpreter
#
# First the tests against the reference, which compile some eighty kernels, unless SKIP_TESTS is set or pytest is missing; then
# the table, written to jobs/bench/results/<device>-attention.md. Ends with the tests' status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD/platform${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"

"$python" -c 'import torch; print("torch", torch.__version__)' ||
	{ echo "attention_gpu.sh: $python has no torch; name another interpreter with PYTHON=..." >&2; exit 2; }
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
	{ echo "attention_gpu.sh: torch sees no CUDA device here, and this job is about one" >&2; exit 2; }

tests=0
if [ -n "${SKIP_TESTS:-}" ]; then
	echo "attention_gpu.sh: SKIP_TESTS is set, so nothing is tested against the reference" >&2
elif "$python" -c 'import pytest' 2>/dev/null; then
	# --noconftest: the suite's fixtures need packages that a bare machine lacks
	"$python" -m pytest --noconftest -p no:cacheprovider -m gpu tests/gpu || tests=$?
else
	echo "attention_gpu.sh: pytest is not installed, so nothing is tested against the reference" >&2
fi
"$python" jobs/bench/attention_gpu.py "$@"
exit "$tests"
