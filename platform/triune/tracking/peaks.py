"""Peak matrix throughput of devices, for MFU.

The figures are the manufacturers' dense ones, in FLOP/s of one device: without structured sparsity (data sheets often print the
sparse figure, twice as large) and, for half precision, with fp32 accumulation, which is what training uses.
Sources: NVIDIA's data sheets of H100, H200, A100, A10, A30, A40, L4, L40, L40S, V100 and T4, its Blackwell (DGX/HGX B200),
Ada (RTX 4090) and GA102 (RTX 3090, RTX A6000) architecture papers; AWS' A10G page; AMD's Instinct MI250X and MI300X data sheets.
"""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass

import torch

# name pattern -> TFLOP/s by precision; the first pattern that matches counts, so the special stands before the general
_TERA: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bGB200\b", {"bf16": 2500, "fp16": 2500, "tf32": 1250, "fp32": 80}),
    (r"\bB200\b", {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75}),
    (r"\bH200 NVL\b", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60}),
    (r"\bG?H200\b", {"bf16": 989.5, "fp16": 989.5, "tf32": 494.7, "fp32": 67}),
    (r"\bH100 PCIe\b", {"bf16": 756.5, "fp16": 756.5, "tf32": 378, "fp32": 51}),
    (r"\bH100 NVL\b", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60}),
    (r"\bH[18]00\b", {"bf16": 989.5, "fp16": 989.5, "tf32": 494.7, "fp32": 67}),
    (r"\bA[18]00\b", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    (r"\bA10G\b", {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 35}),
    (r"\bA10\b", {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    (r"\bA30\b", {"bf16": 165, "fp16": 165, "tf32": 82, "fp32": 10.3}),
    (r"\bA40\b", {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"\bRTX A6000\b", {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"\bL40S\b", {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6}),
    (r"\bL40\b", {"bf16": 181, "fp16": 181, "tf32": 90.5, "fp32": 90.5}),
    (r"\bL4\b", {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    (r"\bRTX 4090\b(?! [DL])", {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    (r"\bRTX 3090\b(?! Ti)", {"bf16": 71.2, "fp16": 71.2, "tf32": 35.6, "fp32": 35.6}),
    (r"\bV100-PCIE\b", {"fp16": 112, "fp32": 14}),
    (r"\bV100-SXM", {"fp16": 125, "fp32": 15.7}),
    (r"\bT4\b", {"fp16": 65, "fp32": 8.1}),
    (r"\bMI300X\b", {"bf16": 1307.4, "fp16": 1307.4, "tf32": 653.7, "fp32": 163.4}),
    # a device is one of the card's two dies
    (r"\bMI250X\b", {"bf16": 191.5, "fp16": 191.5, "fp32": 47.9}),
)
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
_CPU_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
_MATMUL = 1024  # rows and columns of the measured product: large enough that starting it costs nothing
_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What MFU is measured against.

    Args:
        flops: FLOP/s of one device.
        label: where the figure is from, for people.
    """

    flops: float
    label: str


def known(device_name: str, precision: str) -> float | None:
    """Dense peak in FLOP/s of the device called `device_name` (torch.cuda.get_device_name), or None where it isn't listed.

    `precision` is one of PRECISIONS; "tf32" is fp32 inputs on tensor cores.
    """
    for pattern, tera in _TERA:
        if re.search(pattern, device_name, re.IGNORECASE):
            return tera[precision] * 1e12 if precision in tera else None
    return None


def device_peak(device: torch.device, precision: str) -> Peak | None:
    """Peak of `device` at the precision of its matrix products; on a CPU, what one matrix product reaches here and now.

    fp32 on a GPU counts as tf32 where torch is allowed to use it. None for a GPU that isn't listed, or another kind of device.
    """
    if device.type == "cpu":
        return measured(precision, torch.get_num_threads())
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest" and torch.version.cuda:
        precision = "tf32"
    name = torch.cuda.get_device_name(device)
    flops = known(name, precision)
    return None if flops is None else Peak(flops=flops, label=f"the dense {precision} peak of {name}")


@functools.cache
def measured(precision: str, threads: int) -> Peak:
    """The fastest of the matrix products of 1024 x 1024 that fit in 0.2 s on this CPU; kept for the life of the process.

    A processor's nominal peak says little (clock and instruction set vary with the load), while this ceiling is what the
    best code could reach. Other work on the machine lowers it, and so raises the MFU. `threads` keys the memo.
    """
    matrix = torch.ones(_MATMUL, _MATMUL, dtype=_CPU_DTYPES[precision])  # [N, N]; ones leave the random state alone
    out = torch.empty_like(matrix)
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    with torch.inference_mode():
        while (start := time.perf_counter()) < end:
            torch.mm(matrix, matrix, out=out)
            best = min(best, time.perf_counter() - start)
    return Peak(flops=2 * _MATMUL**3 / best, label=f"a measured {precision} matmul ceiling")
