"""What an architecture of Hugging Face is to triune: settings read and written, tensors mapped, classes named.

Each lives in a file of its own, `architectures/<model_type>.py`, as a value named `ARCHITECTURE`; the file's presence registers it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError, nearest
from triune.exchange import architectures
from triune.exchange.mapping import TensorMapping
from triune.models.config import ClassHeadConfig, Family, HeadConfig, ModelConfig

if TYPE_CHECKING:
    from triune.exchange.task_heads import Tasks

_OBJECTIVES: dict[Family, str] = {"encoder": "masked", "decoder": "causal", "encoder_decoder": "span_corruption"}
_MISSING: Any = object()


class Settings:
    """A `config.json` of theirs, read key by key. Keys that nobody asks for do not count.

    Args:
        values: the JSON object.
        place: file, for messages.
        names: tensors beside it, for what a config leaves open (T5's tied head).
    """

    def __init__(self, values: Mapping[str, Any], *, place: Path | str, names: frozenset[str] = frozenset()) -> None:
        self.values = values
        self.place = place
        self.names = names

    def whole(self, key: str, default: int | None = _MISSING) -> int:
        """A whole number; a null is the default."""
        return self._typed(
            key, default, "a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)
        )

    def number(self, key: str, default: float | None = _MISSING) -> float:
        """A number; a null is the default."""
        return self._typed(
            key, default, "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)
        )

    def flag(self, key: str, default: bool | None = _MISSING) -> bool:
        """True or false; a null is the default."""
        return self._typed(key, default, "true or false", lambda value: isinstance(value, bool))

    def choice(self, key: str, choices: Mapping[Any, Any], default: Any = _MISSING) -> Any:
        """Ours for each value that theirs may have; UserError that lists them for another value."""
        value = self._typed(key, default, "a word", lambda value: isinstance(value, str | bool | int | float))
        if value not in choices:
            raise self.refusal(key, value, f"triune can do {', '.join(map(str, choices))}")
        return choices[value]

    def only(self, key: str, value: Any, *, default: Any = _MISSING) -> None:
        """Refuse any other value than the one that triune computes; an absent key is the default, which is `value` unless given."""
        held = self.values.get(key, value if default is _MISSING else default)
        if held != value:
            raise self.refusal(key, held, f"triune can do {value!r} only")

    def section(self, key: str) -> Settings:
        """A JSON object inside; empty where it is absent or null."""
        values = self.values.get(key) or {}
        if not isinstance(values, Mapping):
            raise self.refusal(key, values, "it must be a JSON object")
        return Settings(values, place=f"{self.place}: {key}", names=self.names)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def refusal(self, key: str, value: Any, why: str) -> UserError:
        """An error that names file, key and value."""
        return UserError(f"{self.place}: {key} is {value!r}, but {why}")

    def _typed(self, key: str, default: Any, what: str, fits: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise UserError(f"{self.place}: has no {key!r}, which must be {what}")
            return default
        if not fits(value):
            raise self.refusal(key, value, f"it must be {what}")
        return value


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids that a config and a generation config name; None where there is none.

    Args:
        pad: fills rows.
        bos: begins a text.
        eos: ends one.
        decoder_start: what a decoder beside an encoder starts from.
    """

    pad: int | None = None
    bos: int | None = None
    eos: int | None = None
    decoder_start: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> TokenIds:
        """The ids of a tokenizer's roles."""
        if tokenizer is None:
            return cls()
        known = tokenizer.vocabulary
        return cls(pad=known.pad, bos=known.bos, eos=known.eos, decoder_start=known.decoder_start)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> TokenIds:
        """The ids that a `config.json` names; of several ends the first."""

        def one(key: str) -> int | None:
            value = values.get(key)
            return value[0] if isinstance(value, list) and value else value if isinstance(value, int) else None

        pad, bos = one("pad_token_id"), one("bos_token_id")
        start = one("decoder_start_token_id")
        return cls(pad=pad, bos=bos, eos=one("eos_token_id"), decoder_start=pad if start is None else start)

    def named(self) -> dict[str, int | None]:
        """As `config.json` spells them. None is written too: a key left out would be the class's own default."""
        return {"pad_token_id": self.pad, "bos_token_id": self.bos, "eos_token_id": self.eos}


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Classes of `transformers` for a model.

    Args:
        auto: the Auto class that a person opens it with.
        concrete: the class itself, which `architectures` in config.json names.
        bare: it has no head, and its tensors no prefix.
    """

    auto: str
    concrete: str
    bare: bool = False


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of Hugging Face, both ways.

    Args:
        model_type: as their config.json names it; the file is called the same.
        family: which arrangement of ours it is.
        read_config: their settings as ours; UserError for one that ours can't do, naming key and value.
        write_config: our settings as theirs, without `model_type`, `architectures` and the ids of `TokenIds.named` (one that is written
            stands in where no tokenizer names it: RoBERTa's pad_token_id). What theirs has no word for is left out, and found by
            reading back: see `triune.exchange.obstacles`.
        mapping: which tensor is which, in a model of these settings.
        classes: their classes for a model of these settings.
        heads: kinds of `model.head` that it has.
        prefix: what the names of tensors begin with in the class with a head, and not in the bare one (`bert.`).
        objective: kind of objective that an imported model is trained on by default; empty is the family's.
        last_state: whether their last hidden state is after the stack's final norm, or before it.
        twin: it computes the same as another one from the same settings; an export takes it only where it is asked for (camembert).
        extra: more keys for config.json and generation_config.json that depend on the ids of special tokens.
        arguments: more arguments of their forward pass, for a model of these settings and the real ones of tokens [B, T] (Longformer's
            global ones): without them theirs computes something else.
        tasks: its classes with the heads of tasks; `triune.exchange.task_heads.with_tasks` sets it.
        caveat: from their config, what a person must know who takes one model for the other, beyond what the proof asks; else empty.
    """

    model_type: str
    family: Family
    read_config: Callable[[Settings], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    mapping: Callable[[ModelConfig], TensorMapping]
    classes: Callable[[ModelConfig], Classes]
    heads: tuple[str, ...] = ("vocabulary",)
    prefix: str = ""
    objective: str = ""
    last_state: Literal["normed", "block"] = "normed"
    twin: bool = False
    extra: Callable[[TokenIds], dict[str, Any]] = lambda ids: {}
    arguments: Callable[[ModelConfig, Tensor], dict[str, Any]] = lambda config, real: {}
    tasks: Tasks | None = None
    caveat: Callable[[Mapping[str, Any]], str] = lambda values: ""

    @property
    def trained_by(self) -> str:
        """Kind of objective that an imported model is trained on by default."""
        return self.objective or _OBJECTIVES[self.family]

    def generates(self, config: ModelConfig) -> bool:
        """Whether a model of these settings writes text."""
        return self.family != "encoder" and isinstance(config.head, HeadConfig)

    def config_json(self, config: ModelConfig, ids: TokenIds) -> dict[str, Any]:
        """The whole `config.json` of a model of ours; classes have the names LABEL_0, LABEL_1, ..."""
        head = {"architectures": [self.classes(config).concrete], "model_type": self.model_type}
        written = self.write_config(config)
        named = {key: value for key, value in ids.named().items() if value is not None or key not in written}
        return head | written | named | self.extra(ids) | {"dtype": "float32"}


def known() -> list[str]:
    """Every `model_type` there is, in alphabetical order; none is imported."""
    return sorted(
        module.name.replace("__", "-")
        for module in pkgutil.iter_modules(architectures.__path__)
        if not module.name.startswith("_")
    )


def architecture(model_type: str, *, place: object = "--architecture") -> Architecture:
    """The architecture of that `model_type`; UserError with the nearest one where there is none."""
    if model_type not in known():
        raise UserError(
            f"{place}: model_type {model_type!r} is no architecture that triune knows{nearest(model_type, known())} "
            f"It knows {', '.join(known())}"
        )
    module = importlib.import_module(f"{architectures.__name__}.{model_type.replace('-', '__')}")
    found: Architecture = module.ARCHITECTURE
    return found


def vocabulary_head(config: ModelConfig) -> HeadConfig:
    """`model.head` of an architecture whose `heads` are ("vocabulary",)."""
    assert isinstance(config.head, HeadConfig)
    return config.head


def class_head(config: ModelConfig) -> ClassHeadConfig:
    """`model.head` of an architecture whose `heads` are ("classes",)."""
    assert isinstance(config.head, ClassHeadConfig)
    return config.head
