"""What the machine can do fast, known in one place."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether bf16 products beat fp32 on this CPU: with AMX tiles, four times and more.

    AVX-512's bf16 instructions alone are not enough: torch's bf16 products measured half as fast as its fp32 ones there.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that we support
    return bool(capabilities().get("amx_bf16") if capabilities else torch.cpu._is_amx_tile_supported())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@cache
def has_triton() -> bool:
    """Whether torch.compile can make GPU kernels here."""
    return importlib.util.find_spec("triton") is not None
