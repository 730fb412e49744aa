"""The whole proof of an architecture, on tiny random models with odd settings: what `make parity` and the tests run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from triune.exchange.architecture import Architecture
from triune.exchange.exporting import to_huggingface
from triune.exchange.files import WEIGHTS
from triune.exchange.importing import Foreign, model_of, read_foreign
from triune.exchange.mapping import TensorMapping, to_ours
from triune.exchange.parity import Difference, Parity, prove, quiet_transformers, tolerance
from triune.exchange.probe import ask_ours, ask_theirs, random_probe
from triune.models.factory import Transformer

STEPS = 20
_NOTHING = 1e-6  # of the largest gradient: what is below it on both sides is rounding
LOSS_TOLERANCE = 1e-4  # of the issue: rounding grows from step to step, as each starts where the last one ended


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model of `transformers`.

    Args:
        name: what is odd about it.
        model: name of its class.
        settings: arguments of the class's config.
        prepare: changes the random model, where its config can't say what is to be tried (a table that is not tied).
        warning: part of a warning that `from_pretrained` gives for such a model whoever saved it; empty where there must be none.
        saving: arguments of `save_pretrained`.
    """

    name: str
    model: str
    settings: Mapping[str, Any]
    prepare: Callable[[Any], None] = field(default=lambda model: None)
    warning: str = ""
    saving: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the proof of a case measured.

    Args:
        case: its name.
        architecture: model_type.
        parameters: numbers in the model.
        allowed: tolerance of one forward or backward pass.
        parity: hidden states, logits, loss and greedy tokens.
        gradients: by our names.
        steps: losses (ours, theirs) of each optimizer step.
        tensors: in the exported file.
        unequal: tensors of it that are not byte-equal to those imported.
        complaints: what `from_pretrained` said of the exported directory, beyond the case's own warning.
    """

    case: str
    architecture: str
    parameters: int
    allowed: float
    parity: Parity
    gradients: dict[str, Difference]
    steps: list[tuple[float, float]]
    tensors: int
    unequal: list[str]
    complaints: list[str]

    @property
    def worst_state(self) -> float:
        """Largest relative difference of a hidden state."""
        return max(value.relative for one in self.parity.compared for value in one.states.values())

    @property
    def worst_logits(self) -> float:
        """Largest relative difference of the logits; 0 without a head."""
        return max(one.logits.relative if one.logits else 0.0 for one in self.parity.compared)

    @property
    def worst_gradient(self) -> float:
        """Largest relative difference of a gradient."""
        return max((value.relative for value in self.gradients.values()), default=0.0)

    @property
    def worst_loss(self) -> float:
        """Largest difference of the losses of a step."""
        return max((abs(ours - theirs) for ours, theirs in self.steps), default=0.0)

    def problems(self) -> list[str]:
        """What is not as it must be; empty where all is."""
        found = [
            f"gradient of {name}: {value}" for name, value in self.gradients.items() if not value.within(self.allowed)
        ]
        for one in (
            self.parity.compared
        ):  # tiny models enlarge no rounding: what `prove` would forgive a trained one, it must not here
            problem = replace(one, rounding={}).problem(self.allowed)
            found += [] if problem is None else [problem]
        if not self.worst_loss <= LOSS_TOLERANCE:
            found.append(f"after {STEPS} steps the losses are {self.worst_loss:.2g} apart")
        found += [f"{name}: exported otherwise than imported" for name in self.unequal]
        return [*found, *(f"from_pretrained: {line}" for line in self.complaints)]


def run(case: Case, place: Path) -> Proof:
    """Import, compare, differentiate, train, export and open a case, in the empty directory `place`.

    Raises UserError where the import or the parity of the forward pass fails.
    """
    theirs = peer(case)
    with quiet_transformers():
        theirs.save_pretrained(place / "theirs", **case.saving)
    found = read_foreign(place / "theirs")
    ours, target = model_of(found), found.architecture
    _freeze_buffers(ours, theirs, target.mapping(ours.config))
    parity = prove(ours, theirs, target, ids=found.ids, what=case.name)
    to_huggingface(ours, place / "exported", architecture=target.model_type, ids=found.ids, labels=found.labels)
    before, after = load_file(place / "theirs" / WEIGHTS), load_file(place / "exported" / WEIGHTS)
    return Proof(
        case=case.name,
        architecture=target.model_type,
        parameters=sum(parameter.numel() for parameter in ours.parameters()),
        allowed=tolerance(ours.config),
        parity=parity,
        gradients=_gradients(ours, theirs, found),
        steps=_train(ours, theirs, found),
        tensors=len(after),
        unequal=sorted(name for name in {*before, *after} if not _same_bytes(before.get(name), after.get(name))),
        complaints=opened(place / "exported", target, found, allowed=case.warning),
    )


def peer(case: Case) -> Any:
    """The random model of a case, in eval mode, with weights so large that every part of it shows in the output."""
    import transformers

    made = getattr(transformers, case.model)
    torch.manual_seed(0)
    with quiet_transformers():
        config = made.config_class(**case.settings)
        config._attn_implementation = "eager"
        model = made(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2).add_(1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0)
        case.prepare(model)
    return model


def opened(directory: Path, target: Architecture, found: Foreign, *, allowed: str = "") -> list[str]:
    """Every warning of `from_pretrained` on a directory, by the Auto class; and what it could not place."""
    import transformers

    auto = getattr(transformers, target.classes(found.config).auto)
    with _heard() as lines:
        _, info = auto.from_pretrained(directory, local_files_only=True, output_loading_info=True)
    misplaced = [f"{kind}: {sorted(names)}" for kind, names in info.items() if names]
    return [line for line in lines if not (allowed and allowed in line)] + misplaced


def _freeze_buffers(ours: Transformer, theirs: nn.Module, mapping: TensorMapping) -> None:
    """What is a buffer there (BART's bias of the scores) does not learn; here it is a parameter, and must not either."""
    buffers = {name for name, _ in theirs.named_buffers()}
    held = {entry.ours for entry in mapping.entries if all(part.names[0] in buffers for part in entry.theirs)}
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(name not in held)


def _gradients(ours: Transformer, theirs: nn.Module, found: Foreign) -> dict[str, Difference]:
    """Differences of the gradients of one loss, theirs rearranged as ours; none for a model without a head."""
    loss, their_loss = _losses(ours, theirs, found, seed=0)
    if loss is None or their_loss is None:
        return {}
    loss.backward()
    their_loss.backward()
    mapping = found.architecture.mapping(ours.config)
    held = {**dict(theirs.named_buffers()), **dict(theirs.named_parameters())}
    rearranged = to_ours(mapping, _copied(mapping, {name: _gradient(tensor) for name, tensor in held.items()}))
    pairs = {name: (_gradient(p), rearranged[name]) for name, p in ours.named_parameters() if p.requires_grad}
    # a softmax over tokens does not see what is added to all of them: the bias of the scores of an answer's ends has the gradient 0,
    # which either side rounds its own way
    nothing = _NOTHING * max(float(one.norm()) for pair in pairs.values() for one in pair)
    result = {
        name: Difference.between(*pair)
        for name, pair in pairs.items()
        if max(float(one.norm()) for one in pair) > nothing
    }
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)
    return result


def _train(ours: Transformer, theirs: nn.Module, found: Foreign) -> list[tuple[float, float]]:
    """Losses of both over steps of AdamW on the same batches; dropout is off, since each side draws its own."""
    # at its first step Adam divides a gradient by itself: one that is rounding alone (some 1e-8 here) would move its weight by a whole
    # step, on each side its own way; with an epsilon above rounding it hardly moves
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-6)
        for model in (ours, theirs)
    ]
    losses = []
    for step in range(STEPS):
        pair = _losses(ours, theirs, found, seed=step)
        if pair[0] is None or pair[1] is None:
            return []
        for loss, optimizer in zip(pair, optimizers, strict=True):
            assert loss is not None
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        losses.append((pair[0].item(), pair[1].item()))
    return losses


def _losses(ours: Transformer, theirs: nn.Module, found: Foreign, *, seed: int) -> tuple[Tensor | None, Tensor | None]:
    probe, target = random_probe(ours.config, found.ids, seed=seed), found.architecture
    return ask_ours(ours, probe, target).loss, ask_theirs(theirs, probe, target, ours.config).loss


def _copied(mapping: TensorMapping, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name for entry in mapping.entries for part in entry.theirs for name in part.names}
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _same_bytes(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bytes(one.contiguous().view(torch.uint8).numpy()) == bytes(other.contiguous().view(torch.uint8).numpy())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Lines that `transformers` logs at warning level or above, and Python's warnings, from here on."""
    import transformers.utils.logging as theirs

    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, ear, level = logging.getLogger("transformers"), Ear(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity_warning()
    theirs.warning_once.cache_clear()  # what was said once, perhaps unheard, is to be said again
    kept, logger.handlers = logger.handlers, [ear]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lines
        lines += [str(warning.message) for warning in caught]
    finally:
        logger.handlers = kept
        theirs.set_verbosity(level)
        theirs.enable_progress_bar()
