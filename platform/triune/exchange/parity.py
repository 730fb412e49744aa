"""The proof that travels with weights: both models on the same probes, number by number. Legend: B batch, T length, M width."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.architecture import Architecture, TokenIds
from triune.exchange.probe import (
    Answer,
    Probe,
    ask_ours,
    ask_theirs,
    greedy_prompts,
    greedy_theirs,
    random_probe,
    sentence_probe,
)
from triune.inference.generation import generate
from triune.models.config import LearnedPosition, ModelConfig
from triune.models.factory import Transformer

_GREEDY = 16  # tokens written after each prompt
#: What the roundings of both sides may come to, in those of ours: twice for two that add up, and as much again for the other's order
_ROUNDINGS = 4
#: The most that a model may enlarge rounding by before a comparison says nothing any more
_LARGEST = 1e-3


def tolerance(config: ModelConfig) -> float:
    """The largest relative difference (RMS of the difference over RMS of theirs) that rounding explains.

    Both sides do the same fp32 operations in another order, each rounding by up to 2^-24 = 6e-8 of its result, some 3e-8 in the
    RMS. A block has two or three branches of about 10 roundings in a row, which sums over some hundred terms and the division by a norm
    enlarge a few times; roundings of different operations do not know of one another, so that 4 blocks come to about
    sqrt(4 x 30) x 3e-8 x 5 = 1.6e-6 forward, and as much again backward. Measured on random models of 2 to 5 layers: 2e-7 to 2e-6
    forward, to 5e-6 backward. 1e-5 leaves room and is far below what any mistake makes. Beyond 4 layers it grows as the sum does,
    with the square root of the depth. A trained model may enlarge rounding more (scores of some hundred, as T5's unscaled ones, make
    exp multiply it by as much): `prove` then measures by how much.
    """
    layers = config.layers + (config.resolved_decoder_layers if config.family == "encoder_decoder" else 0)
    return 1e-5 * max(1.0, math.sqrt(layers / 4))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one tensor of ours is from theirs. NaN anywhere makes all of it infinite.

    Args:
        max_absolute: largest difference.
        mean_absolute: mean difference.
        max_relative: largest difference, over the RMS of theirs, or over the number itself where that is larger: trained models keep a few
            numbers of some hundred times the RMS (SmolLM2: 23,000 where the RMS is 75), which are rounded as their own size asks.
        mean_relative: mean difference, over the RMS of theirs.
        relative: RMS of the difference, over the RMS of theirs.
    """

    max_absolute: float
    mean_absolute: float
    max_relative: float
    mean_relative: float
    relative: float

    @classmethod
    def between(cls, ours: Tensor, theirs: Tensor) -> Difference:
        """The difference of two tensors of one shape."""
        if ours.shape != theirs.shape:
            raise ValueError(f"ours is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
        gap = (ours.detach().double() - theirs.detach().double()).abs()
        if not bool(torch.isfinite(gap).all()):
            return cls(**dict.fromkeys((field.name for field in fields(cls)), math.inf))
        scale = max(_rms(theirs.detach().double()), 1e-30)
        sizes = theirs.detach().double().abs().clamp(min=scale)
        return cls(
            max_absolute=gap.max().item(),
            mean_absolute=gap.mean().item(),
            max_relative=(gap / sizes).max().item(),
            mean_relative=gap.mean().item() / scale,
            relative=_rms(gap) / scale,
        )

    def within(self, allowed: float, rounding: Difference | None = None) -> bool:
        """Whether rounding explains it: as a whole, and, so that no single number hides in a large tensor, each to ten times that.

        Ten, since the largest of 10^6 normal numbers stands at 5 deviations, and a large one near it in a sum is rounded more.

        Args:
            allowed: what rounding comes to in any model.
            rounding: what it was measured to come to in this one, where that is known; it may allow more.
        """
        whole, single = allowed, 10 * allowed
        if rounding is not None:
            whole = max(whole, min(_ROUNDINGS * rounding.relative, _LARGEST))
            single = max(single, min(_ROUNDINGS * rounding.max_relative, 10 * _LARGEST))
        return self.relative <= whole and self.max_relative <= single

    def __str__(self) -> str:
        if math.isinf(self.relative):
            return "NaN or infinite"
        return f"off by {self.relative:.2g} of its RMS (one number by {self.max_relative:.2g})"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Both answers to one probe.

    Args:
        probe: its name.
        states: each hidden state's difference, in the order of the computation.
        logits: of the scores; None without a head.
        loss: ours and theirs; None without a head.
        rounding: our fp32 answer beside our own in fp64, by the name of the state and "logits"; empty where nobody had to ask.
    """

    probe: str
    states: dict[str, Difference]
    logits: Difference | None
    loss: tuple[float, float] | None
    rounding: dict[str, Difference] = field(default_factory=dict)

    @classmethod
    def of(cls, probe: Probe, ours: Answer, theirs: Answer) -> Compared:
        """Compare what both sides made of a probe."""
        if ours.states.keys() != theirs.states.keys():
            raise ValueError(f"hidden states {list(ours.states)} and {list(theirs.states)}")
        logits, loss = None, None
        if ours.logits is not None and theirs.logits is not None:
            logits = Difference.between(ours.logits, theirs.logits)
        if ours.loss is not None and theirs.loss is not None:
            loss = (float(ours.loss), float(theirs.loss))
        states = {name: Difference.between(state, theirs.states[name]) for name, state in ours.states.items()}
        return cls(probe=probe.name, states=states, logits=logits, loss=loss)

    def problem(self, allowed: float) -> str | None:
        """Where a difference first goes beyond `allowed`, from the embeddings up; None where none does."""
        named = dict(self.states) if self.logits is None else {**self.states, "logits": self.logits}
        for name, value in named.items():
            if not value.within(allowed, self.rounding.get(name)):
                place = "the logits" if value is self.logits else f"the hidden state after {name}"
                return (
                    f"on the {self.probe} probe, {place} is {value}, {allowed:.2g} is allowed; what comes before agrees"
                )
        if self.loss is not None and not abs(self.loss[0] - self.loss[1]) <= allowed * max(1.0, abs(self.loss[1])):
            return f"on the {self.probe} probe, the loss is {self.loss[0]:.8g} here and {self.loss[1]:.8g} there"
        return None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A whole proof, as `parity.json` holds it.

    Args:
        architecture: model_type.
        tolerance: largest relative difference allowed.
        compared: one a probe.
        greedy: tokens that agree, of how many, in the likeliest continuations; None for families that write no text.
        caveat: where the two part all the same, or what a caller of theirs must do; empty where there is nothing to say.
    """

    architecture: str
    tolerance: float
    compared: list[Compared]
    greedy: tuple[int, int] | None
    caveat: str = ""

    def problem(self) -> str | None:
        """Why this is no proof, or None."""
        for compared in self.compared:
            found = compared.problem(self.tolerance)
            if found is not None:
                return found
        if self.greedy is not None and self.greedy[0] < self.greedy[1]:
            return f"of {self.greedy[1]} tokens written greedily {self.greedy[0]} agree, though logits do"
        return None

    def as_json(self, *, direction: str, files: dict[str, str]) -> dict[str, Any]:
        """The JSON object: `files` are SHA-256 sums of the weights it speaks of."""
        return {
            "architecture": self.architecture,
            "direction": direction,
            "versions": {name: version(name) for name in ("triune", "torch", "transformers", "safetensors")},
            "tolerance": self.tolerance,
            **({"caveat": self.caveat} if self.caveat else {}),
            "probes": [_flat(compared) for compared in self.compared],
            "greedy": None if self.greedy is None else {"agreed": self.greedy[0], "tokens": self.greedy[1]},
            "files": files,
        }


def prove(
    ours: Transformer,
    theirs: nn.Module,
    target: Architecture,
    *,
    ids: TokenIds,
    tokenizer: Tokenizer | None = None,
    what: object,
) -> Parity:
    """Ask both models, in eval mode, and compare.

    Raises UserError where they differ, saying in which layer first; `what` names the weights in it.
    """
    caveat = target.caveat(theirs.config.to_dict())  # type: ignore[union-attr, operator]
    probes = [random_probe(ours.config, ids)]
    if tokenizer is not None and (sentence := sentence_probe(ours.config, tokenizer)) is not None:
        probes.append(sentence)
    with torch.no_grad(), quiet_transformers():
        compared = [
            Compared.of(probe, ask_ours(ours, probe, target), ask_theirs(theirs, probe, target, ours.config))
            for probe in probes
        ]
    written = None
    allowed = tolerance(ours.config)
    if any(one.problem(allowed) is not None for one in compared):
        compared = _with_rounding(compared, ours, probes, target)
    if target.generates(ours.config) and all(one.problem(allowed) is None for one in compared):
        written = _greedy(ours, theirs, probes[0])
    parity = Parity(
        architecture=target.model_type,
        tolerance=allowed,
        compared=compared,
        greedy=written,
        caveat=caveat,
    )
    problem = parity.problem()
    if problem is not None:
        raise UserError(f"{what}: triune and transformers do not compute the same: {problem}. Nothing was written.")
    return parity


@torch.no_grad()
def _with_rounding(
    compared: list[Compared], ours: Transformer, probes: list[Probe], target: Architecture
) -> list[Compared]:
    """The same, with what rounding comes to in this very model: our fp32 answers beside those of its copy in fp64.

    A mistake leaves both of them where they are; only a model that enlarges every rounding has them far apart.
    """
    exact = copy.deepcopy(ours).double()
    found = []
    for one, probe in zip(compared, probes, strict=True):
        wide = replace(probe, inputs=probe.inputs.double()) if probe.inputs.is_floating_point() else probe
        answer = Compared.of(probe, ask_ours(ours, probe, target), ask_ours(exact, wide, target))
        logits = {} if answer.logits is None else {"logits": answer.logits}
        found.append(replace(one, rounding={**answer.states, **logits}))
    return found


def load_theirs(directory: Path, target: Architecture, config: ModelConfig, **options: Any) -> nn.Module:
    """The yardstick: the model of `transformers` in a directory, in fp32 and eval mode; never from a pickle, never with its code."""
    import transformers

    with quiet_transformers():
        made = getattr(transformers, target.classes(config).concrete)
        options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True} | options
        model: nn.Module = made.from_pretrained(directory, **options)
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of `transformers` while its models are only a yardstick."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _greedy(ours: Transformer, theirs: nn.Module, probe: Probe) -> tuple[int, int]:
    """(tokens that agree before the first that does not, tokens in all) over the prompts of a probe."""
    agreed = total = 0
    for prompt, source in greedy_prompts(probe):
        room = int(ours.config.context) - len(prompt) if isinstance(ours.config.position, LearnedPosition) else _GREEDY
        count = max(1, min(_GREEDY, room))
        sources = None if source is None else [source]
        here = generate(ours, [prompt], sources=sources, max_new_tokens=count)[0]  # type: ignore[arg-type]
        with quiet_transformers():
            there = greedy_theirs(theirs, prompt, source, count)
        agreed += _common(here, there)
        total += count
    return agreed, total


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _flat(compared: Compared) -> dict[str, Any]:
    loss = compared.loss
    return {
        "probe": compared.probe,
        "logits": None if compared.logits is None else asdict(compared.logits),
        "hidden_states": {name: asdict(value) for name, value in compared.states.items()},
        **(
            {"rounding": {name: asdict(value) for name, value in compared.rounding.items()}}
            if compared.rounding
            else {}
        ),
        "loss": None if loss is None else {"ours": loss[0], "theirs": loss[1], "difference": abs(loss[0] - loss[1])},
    }


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
