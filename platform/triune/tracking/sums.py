"""Running sums that stay on the device until a log line asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class DeviceSums:
    """Named scalar sums over the steps between two log lines.

    `add` launches device work and reads nothing, so the host never waits for the device; `read` waits once, for all of them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add scalar tensors to the sums of their names; they keep no graph alive."""
        for name, value in values.items():
            value = value.detach()
            # the first is copied: a caller may reuse its tensor
            self._sums[name] = (
                self._sums[name].add_(value) if name in self._sums else value.to(torch.float32, copy=True)
            )

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The sums as Python numbers, and start again from zero: one wait for the device.

        `reduce` (an all-reduce over ranks) sees them as one fp32 vector, in the order of their names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        vector = torch.stack([self._sums[name] for name in names])  # [names]
        self._sums = {}
        if reduce is not None:
            vector = reduce(vector)
        return dict(zip(names, vector.tolist(), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, for the checkpoint: a continued run logs the same numbers as one that was never stopped."""
        return {name: value.clone() for name, value in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Go on from a checkpoint's sums, on `device`."""
        self._sums = {name: value.to(device, copy=True) for name, value in state.items()}
