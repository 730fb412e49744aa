"""Number format and threads: what the machine is fast at."""

from __future__ import annotations

import torch

from triune.attention.hardware import cpu_multiplies_bfloat16


def fast_bfloat16(accelerator: str) -> bool:
    """Whether products in bfloat16 are faster than in float32 here: a GPU with native bf16, or a CPU with AMX tiles."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator == "cpu" and cpu_multiplies_bfloat16()


def default_precision(accelerator: str) -> tuple[str, str]:
    """Lightning's precision for this machine and one clause that says why."""
    if fast_bfloat16(accelerator):
        return "bf16-mixed", f"bf16-mixed precision: this {accelerator.upper()} multiplies bfloat16 fast"
    return "32-true", f"fp32 precision: this {accelerator.upper()} has no fast bfloat16 products"
