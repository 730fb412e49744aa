"""Continuing text token by token. Legend: B rows, T length, V vocabulary, M model width."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from triune.errors import UserError
from triune.inference.config import GenerationConfig, resolved
from triune.inference.logits import Shaping, choose
from triune.inference.packed import packed
from triune.inference.rows import evaluating, padded
from triune.models.class_head import ClassHead
from triune.models.config import LearnedPosition, ModelConfig
from triune.models.decoder import Decoder
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.layers.cache import KeyValueCache

#: whether a row ends with what it has written so far
Ending = Callable[[list[int]], bool]


def generate(
    model: Decoder | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | None = None,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    eos: int | Collection[int] | None = None,
    pad: int = 0,
    ending: Ending | None = None,
    **settings: Any,
) -> list[list[int]]:
    """What the model writes after each prompt, without the prompt; it ends with an eos where the model ended there.

    All rows are decoded together over one key/value cache. Without sampling a row is the same in any batch, up to the
    rounding of sums. With `beams` it is the best text of a search (`beam_search` gives more of them, with their scores).

    Args:
        model: a decoder, or an encoder_decoder with `sources`.
        prompts: ids to continue, at least one a row (in an encoder_decoder: what its decoder starts with).
        config: how tokens are chosen; None is greedy decoding.
        sources: ids that the encoder of an encoder_decoder reads, one list a prompt.
        eos: id, or ids, that end a row.
        pad: any id of the vocabulary, for the room beside short rows; it is never attended to.
        ending: asked after each token whether the row ends with what it has written; `Stops` asks for stop texts.
        settings: fields of the config, in place of its own (`max_new_tokens=20`).

    Raises UserError where an argument, a prompt or the length does not fit the model.
    """
    config = resolved(config, settings)
    if config.n_best > 1:
        raise UserError(f"n_best is {config.n_best}, but generate gives one text a prompt: use beam_search or complete")
    if config.beams > 1:
        from triune.inference.beam import beam_search

        found = beam_search(model, prompts, config, sources=sources, eos=eos, pad=pad, ending=ending)
        return [best[0].ids for best in found]
    rows: list[list[int]] = [[] for _ in prompts]
    for step in stream(model, prompts, config, sources=sources, eos=eos, pad=pad, ending=ending):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


def stream(
    model: Decoder | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | None = None,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    eos: int | Collection[int] | None = None,
    pad: int = 0,
    ending: Ending | None = None,
    **settings: Any,
) -> Iterator[list[int | None]]:
    """The next token of each row, step by step; None for a row that has ended. Arguments and errors as `generate`, without beams.

    The model is in evaluation until the iterator is exhausted or closed; gradients are off inside a step only.
    """
    config = resolved(config, settings)
    if config.beams > 1:
        raise UserError(f"beams is {config.beams}, but a search knows its text only at the end: stream with beams=1")
    return _steps(Prefill(model, prompts, config, sources=sources, eos=eos, pad=pad), config, ending)


class Prefill:
    """Checked arguments, and what the model makes of the prompts: the state in which decoding begins.

    Args and errors: see `generate`.
    """

    def __init__(
        self,
        model: Decoder | EncoderDecoder,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        sources: Sequence[Sequence[int]] | None,
        eos: int | Collection[int] | None,
        pad: int,
    ) -> None:
        _check(model, prompts, sources)
        self.model = model
        self.prompts = prompts
        self.sources = sources
        self.pad = pad
        self.ends = frozenset(() if eos is None else (eos,) if isinstance(eos, int) else eos)
        self.device = next(model.parameters()).device
        self.inputs, self.layout = padded(prompts, what="prompts", pad=pad, side="left", device=self.device)  # [B, T]
        _check_room(model.config, self.inputs.shape[1], config.max_new_tokens)
        self.capacity = self.inputs.shape[1] + config.max_new_tokens

    @torch.no_grad()
    def run(self) -> tuple[Tensor, KeyValueCache]:
        """Scores [B, V] of the first token to write, and the cache that the next steps use."""
        cache = self.model.new_cache(len(self.prompts), capacity=self.capacity)
        given = {} if self.sources is None else self._memory(self.sources)
        hidden = self.model(self.inputs, self.layout, cache=cache, **given)  # [B, T, M]
        return scores_of(self.model, hidden), cache

    def _memory(self, sources: Sequence[Sequence[int]]) -> dict[str, object]:
        """What the encoder makes of the sources, as arguments of the first decoding step."""
        assert isinstance(self.model, EncoderDecoder)
        source, layout = padded(sources, what="sources", pad=self.pad, side="right", device=self.device)
        return {"memory": self.model.encode(source, layout), "source_layout": layout}


def scores_of(model: Decoder | EncoderDecoder, hidden: Tensor) -> Tensor:
    """[B, T, M] -> the scores [B, V] of what follows the last token, fp32."""
    return model.head.logits(hidden[:, -1]).float()


def _steps(prefilled: Prefill, config: GenerationConfig, ending: Ending | None) -> Iterator[list[int | None]]:
    model, ends = prefilled.model, prefilled.ends
    generator = None if config.seed is None else torch.Generator(prefilled.device).manual_seed(config.seed)
    shaping = Shaping(config, prefilled.prompts, ends, prefilled.device)
    rows: list[list[int]] = [[] for _ in prefilled.prompts]
    going = [True] * len(rows)
    with evaluating(model), packed(model, rows=len(rows), tokens=config.max_new_tokens):
        scores, cache = prefilled.run()
        while True:
            with torch.no_grad():  # not around the yield: the mode would be the caller's too
                tokens = choose(
                    shaping(scores),
                    temperature=config.temperature,
                    top_k=config.top_k,
                    top_p=config.top_p,
                    min_p=config.min_p,
                    generator=generator,
                )  # [B]
                shaping.wrote(tokens)
            step: list[int | None] = []
            for row, token in enumerate(tokens.tolist()):
                step.append(token if going[row] else None)
                if going[row]:
                    rows[row].append(token)
                    going[row] = not ended(rows[row], ends, ending, config.min_new_tokens)
            yield step
            if shaping.written == config.max_new_tokens or not any(going):
                return
            with torch.no_grad():
                scores = scores_of(model, model(tokens.unsqueeze(1), cache=cache))


def ended(row: list[int], ends: Collection[int], ending: Ending | None, least: int = 0) -> bool:
    """Whether a row that has written `row` is complete."""
    return row[-1] in ends or (ending is not None and len(row) >= least and ending(row))


def _check(
    model: object,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None,
) -> None:
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UserError(f"an {type(model).__name__} does not write text: use fill for its masks, or a decoder")
    if isinstance(model.head, ClassHead):
        raise UserError("this model does not write text: its head scores classes; measure it with `triune evaluate`")
    if isinstance(model, EncoderDecoder) != (sources is not None):
        raise UserError("sources: an encoder_decoder needs the ids that its encoder reads; a decoder takes none")
    if sources is not None and len(sources) != len(prompts):
        raise UserError(f"sources: {len(sources)} were given for {len(prompts)} prompts; give one for each")


def _check_room(config: ModelConfig, length: int, new: int) -> None:
    """Only a learned position table ends; the last token written is not read any more."""
    if isinstance(config.position, LearnedPosition) and length + new - 1 > config.context:
        raise UserError(
            f"max_new_tokens is {new}, but after a prompt of {length} tokens the model's position table, "
            f"model.context = {config.context}, has room for {max(config.context - length + 1, 0)}: ask for fewer, or shorten the prompt"
        )
