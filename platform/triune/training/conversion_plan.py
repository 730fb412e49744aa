"""From the settings of trained weights to those of a new model: what each of its tensors is made of.

A dense checkpoint becomes a sparse, longer one by its new settings alone: patterns change which pairs are computed, not the
tensors, and positions are carried to the longer context (Beltagy et al. 2020, section 5). The way back works too. Because the
block is one, a stack of any family may start from one of any other (Rothe et al. 2020), deeper and shallower ones too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from triune.errors import UserError
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.training.config import InitConfig
from triune.training.conversion import Conversion, Fate, Left, Origin, few, shown
from triune.training.conversion_rows import PartRows, Rows
from triune.training.conversion_settings import Setting, changed_settings, check_settings, layers_text
from triune.training.outline import Outline, Shape, dense
from triune.training.token_rows import TokenRows
from triune.training.towers import Join, Source, is_whole, joins, source_of

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_AFRESH = InitConfig()


def plan_conversion(
    sources: Sequence[Source],
    model: ModelConfig,
    init: InitConfig = _AFRESH,
    tokens: Mapping[str, TokenRows] = MappingProxyType({}),
) -> Conversion:
    """What becomes of trained weights in a `model`; nothing is copied, and no weight is read.

    Args:
        sources: trained weights, one for each option that names some.
        model: settings of the model that starts from them; `vocabulary` is set.
        init: which layers, and what of that which no source has.
        tokens: option -> rows of that source's vocabulary that the model's are; none takes all as they are.

    Raises:
        UserError: families, layers or settings that do not fit together, or tensors that do not fit.
    """
    plan = _Plan(sources, model, init, tokens)
    for source in sources:
        check_settings(source, model, whole=plan.whole)
    return plan.conversion()


class _Plan:
    """Where each tensor of a model comes from."""

    def __init__(
        self, sources: Sequence[Source], model: ModelConfig, init: InitConfig, tokens: Mapping[str, TokenRows]
    ) -> None:
        self.sources = {source.option: source for source in sources}
        self.model = model
        self.init = init
        self.tokens = tokens
        self.whole = is_whole(sources, model)
        self.joins = joins(sources, model, init)
        self.table, self.head = source_of(self.sources, init)
        self.ours = {name: join for join in self.joins for name in (join.tower.stack, join.tower.input)}

    @cached_property
    def keeps_head(self) -> bool:
        """Whether the source's head must be the model's. A head of classes is a task's own: what it does not share starts anew."""
        return self.whole and not isinstance(self.model.head, ClassHeadConfig)

    @cached_property
    def new(self) -> Outline:
        """What the model is made of."""
        return Outline.of(self.model)

    @cached_property
    def old(self) -> dict[str, Outline]:
        """Option -> what its weights are made of."""
        return {option: Outline.of(source.model) for option, source in self.sources.items()}

    def conversion(self) -> Conversion:
        """The whole plan; UserError that lists what does not fit."""
        fates: list[Fate] = []
        problems: dict[str, dict[str, str]] = {}
        for name, after in self.new.shapes.items():
            fate = self._fate(name, after)
            if isinstance(fate, Fate):
                fates.append(fate)
            else:
                problems.setdefault(fate.option, {})[name] = f"{name}: {self._shown(fate)} there, {shown(after)} here"
        used = {fate.origin for fate in fates} | {fate for of in problems.values() for fate in of}
        left = []
        for option, outline in self.old.items():
            for name, shape in outline.shapes.items():
                if Origin(option, name) in used:
                    continue
                if self._may_stay(Origin(option, name)):
                    left.append(Left(Origin(option, name), shape))
                elif name not in problems.get(option, {}):
                    problems.setdefault(option, {})[name] = f"{name}: {shown(shape)} there, none here"
        for option, found in problems.items():
            raise UserError(self._misfit(option, found))
        settings = [*self._stacks(), *self._patterns()]
        for source in self.sources.values():
            settings += changed_settings(source, self.model, whole=self.keeps_head)
        return Conversion(sources=[*self.sources.values()], fates=fates, left=left, settings=settings)

    def _shown(self, origin: Origin) -> str:
        return shown(self.old[origin.option].shapes.get(origin.name))

    def _fate(self, name: str, after: Shape) -> Fate | Origin:
        """What happens to a tensor, or the one of the source that should have fitted it."""
        wanted = [*self._origins(name)]
        for origin in wanted:
            before = self.old[origin.option].shapes.get(origin.name)
            rows = self._rows(name, origin) if before is not None else None
            if before is not None and _fits(before, after, rows):
                return Fate(
                    name=name, before=before, after=after, rows=rows, origin=origin, note=self._note(name, origin)
                )
        reason = self._may_be_fresh(name)
        if reason is None or any(self._shown(origin) != "none" for origin in wanted if not self._in_head(name)):
            return wanted[0] if wanted else Origin(self.table, name)
        return Fate(name=name, before=None, after=after, note=reason)

    # Where a tensor comes from

    def _origins(self, name: str) -> Iterator[Origin]:
        """Tensors of the sources that may stand for one of the model's, the best first; they need not exist."""
        module, _, rest = name.partition(".")
        join = self.ours.get(module)
        if join is not None and module == join.tower.input:
            yield Origin(join.option, f"{join.origin.input}.{rest}")
        elif join is not None:
            for inner in self._in_stack(join, rest):
                yield Origin(join.option, f"{join.origin.stack}.{inner}")
        elif module == "embedding":
            yield Origin(self.table, name)
        elif module == "head" and self.head is not None:
            source = self.sources[self.head].model
            if self.keeps_head or type(source.head) is type(self.model.head):
                yield Origin(self.head, name)
            both = source.tie_embeddings and isinstance(source.head, HeadConfig)
            if not self.whole and name == "head.weight" and name in self.new.tokens and both:
                yield Origin(self.head, "embedding.weight")

    def _in_stack(self, join: Join, rest: str) -> Iterator[str]:
        match = _BLOCK.fullmatch(rest)
        if match is None:
            yield rest
            return
        layer, part = join.layers[int(match[1])], match[2]
        if layer is None:
            return
        if not part.startswith("cross_") or join.origin.cross:
            yield f"blocks.{layer}.{part}"
        elif self.init.cross_attention == "self_attention":
            yield f"blocks.{layer}.{_self_attention(part)}"
        if part.startswith("attention.global_"):
            yield f"blocks.{layer}.{part.replace('global_', '', 1)}"

    def _rows(self, name: str, origin: Origin) -> Rows | None:
        """How the rows of a tensor that may have more or fewer of them are chosen; None takes all as they are."""
        old = self.old[origin.option]
        if name in self.new.tables and origin.name in old.tables:
            table = dataclasses.replace(self.new.tables[name], before=old.tables[origin.name].before)
            return None if table.before == table.after else table
        if name in self.new.tokens and origin.name in old.tokens:
            return self.tokens.get(origin.option)
        was = old.projections.get(origin.name)
        if ".cross_attention." in name and was is not None and was.branches == 1:
            if ".cross_attention.query." in name:
                return PartRows(0, was.query, "queries")
            return PartRows(was.query, was.query + 2 * was.key, "keys and values")
        now = self.new.projections.get(name)
        return now if now is not None and now != was == dataclasses.replace(now, branches=1) else None

    def _note(self, name: str, origin: Origin) -> str:
        if ".cross_" in name and ".cross_" not in origin.name:
            words = "from the layer's self-attention"
        elif ".global_query_key_value." in name and ".global_" not in origin.name:
            words = "from the layer's own (Beltagy et al. 2020, 3.1)"
        elif name == "head.weight" != origin.name:
            words = f"from {origin.name}, which was both"
        else:
            return f"from {origin.option}" if len(self.sources) > 1 else ""
        return f"{words} ({origin.option})" if len(self.sources) > 1 else words

    # What may have no counterpart

    def _in_head(self, name: str) -> bool:
        return not self.keeps_head and name.startswith("head.")

    def _may_be_fresh(self, name: str) -> str | None:
        """Why a tensor that no source has is drawn anew; None where it must not be."""
        module, _, rest = name.partition(".")
        join, match = self.ours.get(module), _BLOCK.fullmatch(rest)
        if self._in_head(name):
            return "a part of the head"
        if join is None and module != "embedding" and module != "head":
            return "nothing stands for this stack"
        if join is not None and match is not None:
            layer, part = join.layers[int(match[1])], match[2]
            if layer is None:
                return "a new layer"
            if part.startswith("cross_") and not join.origin.cross and self.init.cross_attention == "fresh":
                return "cross-attention"
            if layer == 0 and "_residual.norm_before." in part and self.sources[join.option].model.norm.skip_first:
                return "a norm that the source's first layer lacks"
        return "a part of the pattern" if name not in self._dense else None

    @cached_property
    def _dense(self) -> Mapping[str, Shape]:
        return Outline.of(dense(self.model)).shapes

    def _may_stay(self, origin: Origin) -> bool:
        """Whether a tensor of a source that nothing is made of may be left out."""
        module, _, rest = origin.name.partition(".")
        joined = [
            join
            for join in self.joins
            if join.option == origin.option and module in (join.origin.stack, join.origin.input)
        ]
        if module == "head":
            return not self.keeps_head
        if module == "embedding":
            return origin.option != self.table
        if not joined:
            return True
        match = _BLOCK.fullmatch(rest)
        if match is None:
            return False
        layer, part = int(match[1]), match[2]
        lacks_norm = self.model.norm.skip_first and part.startswith("attention_residual.norm_before.")
        return layer not in joined[0].layers or lacks_norm or (part.startswith("cross_") and not joined[0].tower.cross)

    def _misfit(self, option: str, problems: Mapping[str, str]) -> str:
        """Why the tensors do not fit: the pattern's own projections, or just other shapes."""
        place, shapes = self.sources[option].place, self.old[option].shapes
        origins = {name: next((origin.name for origin in self._origins(name)), name) for name in problems}
        if all(self._dense.get(name, ...) == shapes.get(origins[name]) for name in problems):
            text = ", ".join(dict.fromkeys(text for texts in self.new.patterns.values() for text in texts))
            head = (
                f"model.attention.pattern: {text} has other projections than the weights of {place}, and none of theirs can "
                "stand for its own; train it from the start, or take a pattern with queries, keys and values of their own"
            )
        else:
            head = f"{option}: the weights of {place} do not fit `model:`; give the same shape"
        return "\n  ".join([head, few(list(problems.values()))])

    # What has no tensors

    def _stacks(self) -> Iterator[Setting]:
        """A line for each stack that is not all of the same stack of the source."""
        for join in self.joins:
            seen = {
                "encoder": "trained where each token saw those before and after it",
                "decoder": "trained where each token saw those before it",
            }
            if self.whole and join.layers == tuple(range(join.origin.layers)):
                continue
            told = "as it was" if join.tower.role == join.origin.role else seen[join.origin.role]
            of = f" ({join.option})" if len(self.sources) > 1 else ""
            yield Setting(f"layers of {join.tower.stack}", f"{join.told} in {join.origin.stack}{of}", told)

    def _patterns(self) -> Iterator[Setting]:
        """One line a stack and pair of patterns."""
        for join in self.joins:
            old, new = self.old[join.option].patterns[join.origin.stack], self.new.patterns[join.tower.stack]
            pairs: dict[tuple[str, str], list[int]] = {}
            for place, layer in enumerate(join.layers):
                if layer is not None:
                    pairs.setdefault((old[layer], new[place]), []).append(place)
            for (was, now), places in pairs.items():
                change = was if was == now else f"{was} -> {now}"
                meaning = "as it was" if was == now else "other pairs of tokens"
                yield Setting(f"pattern of {join.tower.stack}, {layers_text(places)}", change, meaning)


def _self_attention(part: str) -> str:
    """The part of self-attention that one of cross-attention starts from: `cross_attention.query.weight` from all three projections."""
    part = part.replace("cross_attention.", "attention.").replace("cross_residual.", "attention_residual.")
    return re.sub(r"^attention\.(query|key_value)\.", "attention.query_key_value.", part)


def _fits(before: Shape, after: Shape, rows: Rows | None) -> bool:
    """Whether a tensor has the shape of the model's, or but for its rows, which are chosen."""
    return before == after if rows is None else before[1:] == after[1:]
