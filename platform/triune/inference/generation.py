"""Continuing text token by token. Legend: B batch, T length, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triune.errors import UserError
from triune.inference.rows import answering, padded
from triune.models.config import LearnedPosition, ModelConfig
from triune.models.decoder import Decoder
from triune.models.encoder_decoder import EncoderDecoder


def generate(
    model: Decoder | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sources: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos: int | None = None,
    pad: int = 0,
    seed: int | None = None,
) -> list[list[int]]:
    """What the model writes after each prompt, without the prompt; it ends with `eos` where the model ended there.

    All rows are decoded together over one key/value cache. Without sampling a row is the same in any batch, up to the
    rounding of sums.

    Args:
        model: a decoder, or an encoder_decoder with `sources`.
        prompts: ids to continue, at least one a row (in an encoder_decoder: what its decoder starts with).
        max_new_tokens: most ids to write in each row.
        sources: ids that the encoder of an encoder_decoder reads, one list a prompt.
        temperature: what scores are divided by before sampling; 0 always takes the best.
        top_k: sample among the k best only (Fan et al. 2018); 0 is all.
        top_p: sample among the fewest that hold this share of the probability (Holtzman et al. 2020); 1 is all.
        eos: id that ends a row.
        pad: any id of the vocabulary, for the room beside short rows; it is never attended to.
        seed: of the sampling; the same seed and rows give the same text. None draws from torch's default generator.

    Raises UserError where an argument, a prompt or the length does not fit the model.
    """
    _check(model, prompts, sources, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    with answering(model) as device:
        inputs, layout = padded(prompts, what="prompts", pad=pad, side="left", device=device)  # [B, T]
        _check_room(model.config, inputs.shape[1], max_new_tokens)
        cache = model.new_cache(len(prompts), capacity=inputs.shape[1] + max_new_tokens)
        given = {} if sources is None else _memory(model, sources, pad=pad, device=device)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        written: list[Tensor] = []  # each [B]
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # [B]
        hidden = model(inputs, layout, cache=cache, **given)  # [B, T, M]
        while len(written) < max_new_tokens:
            scores = model.head.logits(hidden[:, -1]).float()  # [B, V]
            token = choose(scores, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)  # [B]
            written.append(token)
            if eos is not None:
                finished |= token == eos
                if bool(finished.all()):
                    break
            if len(written) < max_new_tokens:
                hidden = model(token.unsqueeze(1), cache=cache)
        return [_until(row, eos) for row in torch.stack(written, dim=1).tolist()]


def choose(
    scores: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[B, V] logits -> [B] ids: the best at temperature 0, else drawn from what top-k and then top-p leave."""
    if temperature == 0:
        return scores.argmax(dim=-1)
    scores = keep_top_p(keep_top_k(scores / temperature, top_k), top_p)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """[B, V] logits with all but the `count` best at minus infinity (of equals, one); 0 keeps all."""
    if count == 0 or count >= scores.shape[-1]:
        return scores
    best = scores.topk(count, dim=-1)
    return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values)


def keep_top_p(scores: Tensor, share: float) -> Tensor:
    """[B, V] logits with all but the fewest best that hold at least `share` of the probability at minus infinity."""
    if share >= 1:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # held by those that are better
    return torch.empty_like(scores).scatter(-1, order, ordered.masked_fill(before >= share, -torch.inf))


def _memory(
    model: Decoder | EncoderDecoder, sources: Sequence[Sequence[int]], *, pad: int, device: torch.device
) -> dict[str, object]:
    """What the encoder makes of the sources, as arguments of the first decoding step."""
    assert isinstance(model, EncoderDecoder)
    source, layout = padded(sources, what="sources", pad=pad, side="right", device=device)
    return {"memory": model.encode(source, layout), "source_layout": layout}


def _until(row: list[int], eos: int | None) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


def _check(
    model: object,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UserError(f"an {type(model).__name__} does not write text: use fill for its masks, or a decoder")
    if isinstance(model, EncoderDecoder) != (sources is not None):
        raise UserError("sources: an encoder_decoder needs the ids that its encoder reads; a decoder takes none")
    if sources is not None and len(sources) != len(prompts):
        raise UserError(f"sources: {len(sources)} were given for {len(prompts)} prompts; give one for each")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, but it must be at least 1")
    if temperature < 0:
        raise UserError(f"temperature is {temperature:g}, but it must be 0 (always the best) or above")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}, but it must be 0 (all) or above")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p:g}, but it must be above 0 and at most 1 (all)")


def _check_room(config: ModelConfig, length: int, new: int) -> None:
    """Only a learned position table ends; the last token written is not read any more."""
    if isinstance(config.position, LearnedPosition) and length + new - 1 > config.context:
        raise UserError(
            f"max_new_tokens is {new}, but after a prompt of {length} tokens the model's position table, "
            f"model.context = {config.context}, has room for {max(config.context - length + 1, 0)}: ask for fewer, or shorten the prompt"
        )
