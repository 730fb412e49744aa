#!/usr/bin/env bash
# Training on a GPU, in one command, on a machine that has a CUDA device, this checkout, and torch >= 2.11 with Triton:
#
#     jobs/bench/train_gpu.sh [--models gpt2-small ...]     arguments go to train_gpu.py; PYTHON picks the interpreter
#
# Needs torch, numpy and pyyaml. The table is written to jobs/bench/results/<device>-training.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD/platform${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"

"$python" -c 'import torch; print("torch", torch.__version__)' ||
	{ echo "train_gpu.sh: $python has no torch; name another interpreter with PYTHON=..." >&2; exit 2; }
exec "$python" jobs/bench/train_gpu.py "$@"
