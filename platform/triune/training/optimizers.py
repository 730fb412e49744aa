"""Optimizers: torch's own AdamW, Muon and Adafactor over parameter groups that say what decays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triune.training.config import Adafactor, AdamW, Muon, OptimizerConfig


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices yes; biases, norms, slopes and position tables no."""
    return parameter.ndim >= 2 and not any(table in name for table in ("position", "relative"))


def orthogonalised(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves this parameter: matrices inside blocks; tables and the head belong to AdamW (Jordan et al. 2024).

    So do the two factors of an adapter: of their product, which is the update, Muon would know nothing.
    """
    return parameter.ndim == 2 and "blocks." in name and ".lora_" not in name


_BLOCK = re.compile(r"(.*?)blocks\.(\d+)\.")


def layer_shares(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Share of the learning rate of each parameter, by its distance from the top of its stack: layer_decay ** distance.

    The head and a stack's final norm are at distance 0, its last block at 1, the one below at 2, ..., and all that the first block
    reads (tables of tokens, positions and distances, their norm) one below the first block of the deepest stack. Discriminative
    rates are ULMFiT's (Howard & Ruder 2018, 3.2: each layer's divided by 2.6 for the one below), as powers ELECTRA's (Clark et al.
    2020) and BEiT's, which count as here. Each stack of an encoder-decoder is counted from its own top: the encoder's last block
    is read by the decoder's last one.

    Args:
        names: all parameters of the model, of which blocks are numbered.
        layer_decay: share from block to block, above 0 and at most 1.
    """
    names = list(names)
    depths: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.match, names)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    bottom = max(depths.values(), default=0) + 1

    def distance(name: str) -> int:
        if match := _BLOCK.match(name):
            return depths[match[1]] - int(match[2])
        return 0 if name.startswith(("head.", *(f"{stack}norm." for stack in depths))) else bottom

    return {name: layer_decay ** distance(name) for name in names}


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _groups(
    named: Iterable[tuple[str, nn.Parameter]],
    shares: Mapping[str, float],
    *,
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Option dictionaries for a torch optimizer: for each share of the learning rate, the largest first, decayed and not."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((shares[name], decays(name, parameter)), []).append(parameter)
    return [
        {"params": groups[share, decayed], "lr": learning_rate * share, "weight_decay": weight_decay * decayed}
        for share, decayed in sorted(groups, reverse=True)
    ]


def build_optimizer(config: OptimizerConfig, model: nn.Module, *, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`.

    AdamW is torch's fused kernel. Muon (Jordan et al. 2024) moves the blocks' matrices and AdamW all the rest, as one
    optimizer with one state, so that schedules, checkpoints and Lightning's step count see a single one.

    Args:
        config: which optimizer.
        model: parameters that do not train are left out.
        layer_decay: learning rate of each block as a share of that of the block above; see `layer_shares`.
    """
    named = _named(model)
    shares = layer_shares([name for name, _ in model.named_parameters()], layer_decay)
    if isinstance(config, Muon):
        return MuonWithAdamW(named, config, shares)
    groups = _groups(named, shares, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    if isinstance(config, AdamW):
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
    assert isinstance(config, Adafactor)
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the blocks' matrices, fused AdamW for every other parameter, behind one `torch.optim.Optimizer`.

    Both are torch's own; they share this optimizer's state and groups, so `state_dict` is the ordinary one.

    Args:
        named: (name, parameter) pairs.
        config: learning rates, momentum and decay.
        shares: share of the learning rate by name; None is all of it for all.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: Muon,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        named = list(named)
        shares = {name: 1.0 for name, _ in named} if shares is None else shares
        matrices = [(n, p) for n, p in named if orthogonalised(n, p)]
        rest = [(n, p) for n, p in named if not orthogonalised(n, p)]
        self._parts: list[torch.optim.Optimizer] = []
        decay = config.weight_decay
        if matrices:
            groups = _groups(matrices, shares, learning_rate=config.learning_rate, weight_decay=decay)
            self._parts.append(torch.optim.Muon(groups, lr=config.learning_rate, momentum=config.momentum))
        if rest:
            rate = config.adamw_learning_rate
            groups = _groups(rest, shares, learning_rate=rate, weight_decay=decay)
            self._parts.append(torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.epsilon, fused=True))
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
