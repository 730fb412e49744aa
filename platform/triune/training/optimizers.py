"""Optimizers: torch's own AdamW, Muon and Adafactor over parameter groups that say what decays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from triune.training.config import Adafactor, AdamW, Muon, OptimizerConfig


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices yes; biases, norms, slopes and position tables no."""
    return parameter.ndim >= 2 and not any(table in name for table in ("position", "relative"))


def orthogonalised(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves this parameter: matrices inside blocks; tables and the head belong to AdamW (Jordan et al. 2024)."""
    return parameter.ndim == 2 and "blocks." in name


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _groups(named: Iterable[tuple[str, nn.Parameter]], **options: Any) -> list[dict[str, Any]]:
    """Two groups, decayed and not, as option dictionaries for a torch optimizer; empty ones are left out."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        (decayed if decays(name, parameter) else plain).append(parameter)
    weight_decay = options.pop("weight_decay")
    groups = [
        {"params": decayed, "weight_decay": weight_decay, **options},
        {"params": plain, "weight_decay": 0.0, **options},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`.

    AdamW is torch's fused kernel. Muon (Jordan et al. 2024) moves the blocks' matrices and AdamW all the rest, as one
    optimizer with one state, so that schedules, checkpoints and Lightning's step count see a single one.
    """
    named = _named(model)
    if isinstance(config, AdamW):
        groups = _groups(named, weight_decay=config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
    if isinstance(config, Adafactor):
        groups = _groups(named, weight_decay=config.weight_decay)
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    assert isinstance(config, Muon)
    return MuonWithAdamW(named, config)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the blocks' matrices, fused AdamW for every other parameter, behind one `torch.optim.Optimizer`.

    Both are torch's own; they share this optimizer's state and groups, so `state_dict` is the ordinary one.

    Args:
        named: (name, parameter) pairs.
        config: learning rates, momentum and decay.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: Muon) -> None:
        named = list(named)
        matrices = [(n, p) for n, p in named if orthogonalised(n, p)]
        rest = [(n, p) for n, p in named if not orthogonalised(n, p)]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    [p for _, p in matrices],
                    lr=config.learning_rate,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                )
            )
        if rest:
            groups = _groups(rest, weight_decay=config.weight_decay)
            self._parts.append(
                torch.optim.AdamW(
                    groups, lr=config.adamw_learning_rate, betas=config.betas, eps=config.epsilon, fused=True
                )
            )
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Point both parts at this optimizer's groups and state (torch replaces them when it loads a state)."""
        start = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups = self.param_groups[start : start + size]
            part.state = self.state
            start += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore groups and state, for both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
