"""Names of linear layers in an architecture of Hugging Face, with the rows of ours that each of them is, for the files of adapters.

Legend: O width out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from triune.adapters.config import AdapterConfig
from triune.adapters.low_rank import AdaptedLinear
from triune.errors import UserError
from triune.exchange.architecture import Architecture, TokenIds
from triune.exchange.mapping import Entry, Part, TensorMapping, Transposed, Viewed
from triune.exchange.obstacles import choose
from triune.models.factory import Transformer

#: ends of the names of an adapter's tensors
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_TASKS = {
    "AutoModel": "FEATURE_EXTRACTION",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}
#: architectures whose modules are not called as in their files (`transformers/conversion_mapping.py`)
_RENAMED = ("vit",)


@dataclass(frozen=True)
class Piece:
    """A module of theirs, and the rows of a layer of ours that it is."""

    module: str
    part: Part
    start: int

    def cut(self, layer: AdaptedLinear) -> dict[str, Tensor]:
        """Its tensors, by the ends of their names."""
        found = {A: layer.lora_a.detach(), B: self.to_theirs(layer.lora_b.detach())}
        if layer.lora_magnitude is not None:
            found[MAGNITUDE] = self.to_theirs(layer.lora_magnitude.detach())
        return found

    def rows(self, ours: Tensor) -> Tensor:
        """Its rows of a tensor of ours."""
        return ours[self.start :] if self.part.rows is None else ours.narrow(0, self.start, self.part.rows)

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Rows of ours [O, ...] in their order. A transposed matrix is one in PEFT too (`fan_in_fan_out`), its factors are not."""
        rows = self.rows(ours)
        return rows if isinstance(self.part.reshape, Transposed) else self.part.reshape.to_theirs(rows)

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Rows of theirs in our order."""
        return theirs if isinstance(self.part.reshape, Transposed) else self.part.reshape.to_ours(theirs)


@dataclass(frozen=True)
class Names:
    """Names of modules as an architecture has them.

    Args:
        entries: by our names; None is our own names.
        dropped: what is left out at their beginning (the bare class's).
        task: PEFT's word for what the model does.
        parent: where its class comes from.
        concrete: its class.
    """

    entries: Mapping[str, Entry] | None = None
    dropped: str = ""
    task: str | None = None
    parent: str = "triune"
    concrete: str = ""

    def entry(self, ours: str) -> Entry:
        """The entry of a tensor of ours."""
        return Entry(ours, (Part((ours,)),)) if self.entries is None else self.entries[ours]

    def holds(self, layer: str) -> bool:
        """Whether the architecture has this layer."""
        return self.entries is None or f"{layer}.weight" in self.entries

    def pieces(self, layer: str) -> list[Piece]:
        """The modules of theirs that are a linear layer of ours."""
        found, start = [], 0
        for part in self.entry(f"{layer}.weight").theirs:
            if isinstance(part.reshape, Viewed):
                raise UserError(
                    f"adapter of {layer}: {part.names[0]} is a convolution there, which triune has no adapter files for; leave "
                    "it out of adapter.targets, or merge the adapters and export the model"
                )
            module = part.names[0].removeprefix(self.dropped).removesuffix(".weight")
            found.append(Piece(module, part, start))
            start += part.rows or 0
        return found

    def only(self, ours: Iterable[str]) -> TensorMapping:
        """The mapping of these tensors alone."""
        return TensorMapping(entries=tuple(self.entry(name) for name in ours))

    def rename(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the names of the class that is opened."""
        return {name.removeprefix(self.dropped): tensor for name, tensor in theirs.items()}

    def settings(self, config: AdapterConfig, modules: Mapping[str, tuple[int, float]], *, base: str) -> dict[str, Any]:
        """`adapter_config.json` but for `modules_to_save`."""
        usual = (config.rank, config.scale)
        others = {name: setting for name, setting in modules.items() if setting != usual}
        strength = {
            name: scale * (rank**0.5 if config.rank_stabilised else rank) for name, (rank, scale) in others.items()
        }
        transposed = self.entries is not None and any(
            isinstance(part.reshape, Transposed) for entry in self.entries.values() for part in entry.theirs
        )
        return {
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": base,
            "auto_mapping": {"base_model_class": self.concrete, "parent_library": self.parent},
            "r": config.rank,
            "lora_alpha": config.alpha,
            "use_rslora": config.rank_stabilised,
            "use_dora": config.kind == "dora",
            "lora_dropout": config.dropout,
            "rank_pattern": {re.escape(name): rank for name, (rank, _) in others.items()},
            "alpha_pattern": {re.escape(name): alpha for name, alpha in strength.items()},
            "target_modules": list(self._targets(modules)),
            "fan_in_fan_out": transposed,
            "bias": "none",
            "inference_mode": True,
        }

    def _targets(self, modules: Mapping[str, Any]) -> Iterator[str]:
        """What follows the layer's number, where all modules of theirs that end so are meant; else whole names."""
        if self.entries is None:
            yield from modules
            return
        names = [part.names[0].removeprefix(self.dropped) for entry in self.entries.values() for part in entry.theirs]
        others = {name.removesuffix(".weight") for name in names if name.endswith(".weight")} - set(modules)
        ends = {name: re.split(r"\.\d+\.", name)[-1] for name in modules}
        taken = {end for end in ends.values() if any(other.endswith(f".{end}") for other in others)}
        yield from dict.fromkeys(name if end in taken else end for name, end in ends.items())


OWN = Names()


def names_for(model: Transformer, wanted: str | None, ids: TokenIds | None) -> Names:
    """Names of the wanted architecture, of the one that the model exports to, or our own where there is none."""
    own = replace(OWN, concrete=type(model).__name__)
    if wanted in _RENAMED:
        raise UserError(
            f"adapter: transformers 5 calls the modules of {wanted} otherwise than its files do, so that an adapter would fit some "
            "versions only; leave the architecture out to write it under our own names, or merge the adapters and export the model"
        )
    try:
        target: Architecture = choose(model.config, wanted, ids)
    except UserError:
        if wanted is not None:
            raise
        return own
    if target.model_type in _RENAMED:
        return own
    classes = target.classes(model.config)
    return Names(
        entries={entry.ours: entry for entry in target.mapping(model.config).entries},
        dropped=target.prefix if classes.bare else "",
        task=_TASKS.get(classes.auto),
        parent=f"transformers.models.{target.model_type.replace('-', '_')}",
        concrete=classes.concrete,
    )
