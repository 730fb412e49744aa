"""What both sides of a parity check are asked, and how each answers. Legend: B batch, T length, S source length, M width, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.architecture import Architecture, TokenIds
from triune.exchange.task_heads import kind_of
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig, PatchInput
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.factory import Transformer
from triune.models.heads import ClassHead
from triune.models.stack import Stack

SENTENCE = "The river that runs through the city is wide, and on a summer evening people sit at its banks and talk."
_LONGEST = 256  # tokens of a random row: every position of a short model, and enough of a long one


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Rows of ids, padded on the right, or images, with what is to be predicted.

    Args:
        name: for the record.
        inputs: [B, T] ids, or [B, C, height, width] images.
        lengths: real positions of each row.
        targets: [B, T] ids or classes, [B] where a row has one class, or numbers; those of weight 0 do not count. As `ClassHead.loss`.
        weights: 0 or 1, of the shape of the targets.
        token_types: [B, T] segments, or None.
        source: [B, S] what an encoder beside the decoder reads, or None.
        source_lengths: real tokens of each row of the source.
        values: [B, L] yes or no of each label, or numbers, of each row, or None.
    """

    name: str
    inputs: Tensor
    lengths: list[int]
    targets: Tensor
    weights: Tensor
    token_types: Tensor | None = None
    source: Tensor | None = None
    source_lengths: list[int] | None = None
    values: Tensor | None = None

    @property
    def layout(self) -> SequenceLayout:
        """Where each token belongs."""
        return SequenceLayout.from_lengths(self.lengths, max(self.lengths))

    @property
    def source_layout(self) -> SequenceLayout | None:
        """Where each token of the source belongs."""
        if self.source is None or self.source_lengths is None:
            return None
        return SequenceLayout.from_lengths(self.source_lengths, self.source.shape[1])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model makes of a probe; values at padding are left out.

    Args:
        states: hidden states [tokens, M] by name, from the embeddings to the last.
        logits: [tokens, V], or None without a head.
        loss: mean over the predicted tokens, with its gradient, or None without a head.
    """

    states: dict[str, Tensor]
    logits: Tensor | None
    loss: Tensor | None


def random_probe(config: ModelConfig, ids: TokenIds, *, seed: int = 0, longest: int = _LONGEST) -> Probe:
    """Three rows of random ids, the first as long as the model (or `longest`) allows, the others padded.

    Ids of special tokens are left out, but as padding: RoBERTa counts positions by its pad, BART pools at its eos. Without a pad
    theirs finds the last token of no row that is padded, so that a decoder's classifier is then asked of one row.
    """
    draw = torch.Generator().manual_seed(seed)
    if isinstance(config.input, PatchInput):
        return _images(config, config.input, draw)
    assert config.vocabulary is not None
    special = {i for i in (ids.pad, ids.bos, ids.eos, ids.decoder_start) if i is not None}
    usable = torch.tensor([i for i in range(int(config.vocabulary)) if i not in special] or [0])
    length = min(int(config.context), longest)
    lengths = [length, max(2, 2 * length // 3), max(2, length // 4)]

    def rows(width: int, counts: Sequence[int]) -> Tensor:
        drawn = usable[torch.randint(len(usable), (len(counts), width), generator=draw)]
        return drawn.where(_real(counts, width), torch.tensor(ids.pad or 0))

    if isinstance(config.head, ClassHeadConfig):
        lengths = lengths[:1] if config.head.pool == "last" and ids.pad is None else lengths
        return _labelled(config, config.head, rows(length, lengths), lengths, ids, draw)
    inputs = rows(length, lengths)
    real = _real(lengths, length)
    if config.family == "decoder":
        return _next_token("random", inputs, lengths)
    targets = rows(length, lengths)
    weights = real if config.family == "encoder_decoder" else real & (torch.rand(real.shape, generator=draw) < 0.5)
    weights[:, 0] = True
    source_length = max(2, length - 3)
    source_lengths = [max(2, source_length // 3), source_length, max(2, source_length // 2)]
    types = torch.randint(config.token_types, inputs.shape, generator=draw) if config.token_types > 1 else None
    across = config.family == "encoder_decoder"
    return Probe(
        name="random",
        inputs=inputs,
        lengths=lengths,
        targets=targets,
        weights=weights.float(),
        token_types=types if config.family == "encoder" else None,
        source=rows(source_length, source_lengths) if across else None,
        source_lengths=source_lengths if across else None,
    )


def sentence_probe(config: ModelConfig, tokenizer: Tokenizer) -> Probe | None:
    """A real sentence as the family reads one; None where there is nothing in it that the model could read or predict."""
    if config.vocabulary is None or isinstance(config.head, ClassHeadConfig):
        return None
    known = tokenizer.vocabulary
    text = tokenizer.encode_batch([SENTENCE])[0].tolist()[: int(config.context) - 2]
    if not text or max(text) >= int(config.vocabulary):
        return None
    framed = torch.tensor([[known.opening, *text, known.closing]])
    if config.family == "decoder":
        return _next_token("sentence", framed, [framed.shape[1]])
    weights = torch.ones(framed.shape)
    if config.family == "encoder":
        return Probe(name="sentence", inputs=framed, lengths=[framed.shape[1]], targets=framed, weights=weights)
    inputs = torch.tensor([[known.decoder_start, *text]])
    source = framed[:, 1:]
    return Probe(
        name="sentence",
        inputs=inputs,
        lengths=[inputs.shape[1]],
        targets=source,
        weights=weights[:, 1:],
        source=source,
        source_lengths=[source.shape[1]],
    )


def ask_ours(model: Transformer, probe: Probe, target: Architecture) -> Answer:
    """Our answer; hidden states are taken by hooks, so that the forward pass is the one that trains and generates."""
    around: dict[str, Any] = {"layout": probe.layout}
    if probe.source is not None:
        around |= {"source": probe.source, "source_layout": probe.source_layout}
    elif probe.token_types is not None:
        around |= {"token_types": probe.token_types}
    with _recorded(model, target) as states:
        hidden = model(probe.inputs, **around)
    real, source_real = ~probe.layout.padding, None if probe.source_layout is None else ~probe.source_layout.padding
    kept = {name: state[source_real if name.startswith("encoder ") else real] for name, state in states.items()}
    pooled = isinstance(model.head, ClassHead) and model.head.pool != "none"
    around = {"layout": probe.layout} if isinstance(model.head, ClassHead) else {}
    if target.classes(model.config).bare:
        scores = model.head.logits(hidden, **around) if isinstance(model.head, ClassHead) else None
        return Answer(states=kept | {"the stack": hidden[real]}, logits=scores, loss=None)
    logits = model.head.logits(hidden, **around)
    if probe.values is not None:
        around["values"] = probe.values.to(hidden.dtype)
    out = model.head.loss(hidden, probe.targets, probe.weights, **around)
    return Answer(states=kept, logits=logits if pooled else _of_tokens(logits, real), loss=out.total / out.weight)


def ask_theirs(model: nn.Module, probe: Probe, target: Architecture, config: ModelConfig) -> Answer:
    """Their answer, from their own forward pass with labels."""
    real = ~probe.layout.padding
    around: dict[str, Any] = {"output_hidden_states": True, "return_dict": True}
    head = config.head
    # one score a token knows no label to skip
    labels = probe.targets if kind_of(head) is None and not isinstance(head, HeadConfig) else _labels(probe)
    if probe.source_layout is not None:
        source_real = ~probe.source_layout.padding
        around |= {"input_ids": probe.source, "attention_mask": source_real.long()}
        around |= {"decoder_input_ids": probe.inputs, "decoder_attention_mask": real.long()}
    elif isinstance(config.input, PatchInput):
        around["pixel_values"] = probe.inputs
    else:
        around |= {"input_ids": probe.inputs, "attention_mask": real.long()}
        if probe.token_types is not None:
            around["token_type_ids"] = probe.token_types
        if config.family == "decoder" and isinstance(head, HeadConfig):  # they shift by themselves
            labels = probe.inputs.where(real, -100)
    around |= target.arguments(config, real)
    bare, span = target.classes(config).bare, kind_of(head) == "span"
    out = model(**around, **({} if bare or span else {"labels": labels}))
    if bare or span:
        scores = _bare_scores(out, config) if bare else torch.stack([out.start_logits, out.end_logits], -1)[real]
    else:
        scores = out.logits if kind_of(head) == "sequence" else _of_tokens(out.logits, real)
    if probe.source_layout is not None:
        states = _named("encoder ", out.encoder_hidden_states, source_real)
        states |= _named("decoder ", out.decoder_hidden_states, real)
    else:
        states = _named("", out.hidden_states, real)
    if bare:
        states["the stack"] = out.last_hidden_state[real]
    loss = _span_loss(out.start_logits, out.end_logits, probe, real) if span else None if bare else out.loss
    return Answer(states=states, logits=scores, loss=loss)


def greedy_prompts(probe: Probe) -> list[tuple[list[int], list[int] | None]]:
    """A prompt of each row (and its source), so short that a continuation fits."""
    sources = [None] * len(probe.lengths) if probe.source is None else probe.source.tolist()
    lengths = probe.source_lengths or [0] * len(probe.lengths)
    shares = [max(1, length // 2) for length in probe.lengths] if probe.source is None else [1] * len(probe.lengths)
    return [
        (row[:share], None if source is None else source[:length])
        for row, share, source, length in zip(probe.inputs.tolist(), shares, sources, lengths, strict=True)
    ]


@torch.no_grad()
def greedy_theirs(model: Any, prompt: list[int], source: list[int] | None, count: int) -> list[int]:
    """The `count` tokens that their `generate` writes after a prompt, each the likeliest; whatever the model's own settings of
    generation (beams, lengths, forced tokens) say."""
    import transformers

    kept = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=0,
        decoder_start_token_id=prompt[0],  # their cache has a layer too few where a T5 has the longer decoder (5.23)
    )
    try:
        if source is None:
            ids = torch.tensor([prompt])
            written = model.generate(ids, attention_mask=torch.ones_like(ids))
        else:
            ids = torch.tensor([source])
            start = torch.tensor([prompt])
            written = model.generate(ids, attention_mask=torch.ones_like(ids), decoder_input_ids=start)
    finally:
        model.generation_config = kept
    return written[0, len(prompt) :].tolist()


@contextmanager
def _recorded(model: Transformer, target: Architecture) -> Iterator[dict[str, Tensor]]:
    """Hidden states of a forward pass, named as `_named` names theirs."""
    states: dict[str, Tensor] = {}
    stacks: dict[str, Stack] = (
        {"encoder ": model.encoder, "decoder ": model.decoder}
        if isinstance(model, EncoderDecoder)
        else {"": model.stack}
    )
    handles = []

    def keep(name: str) -> Any:
        return lambda module, inputs, output: states.__setitem__(name, output)

    for prefix, stack in stacks.items():
        first, *_ = stack.blocks
        handles.append(first.register_forward_pre_hook(_keep_input(states, f"{prefix}embeddings")))
        for layer, block in enumerate(stack.blocks):
            handles.append(block.register_forward_hook(keep(f"{prefix}layer {layer}")))
        if target.last_state == "normed":  # the stack's own output takes the place of its last block's
            handles.append(stack.register_forward_hook(keep(f"{prefix}layer {len(stack.blocks) - 1}")))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _keep_input(states: dict[str, Tensor], name: str) -> Any:
    return lambda module, inputs: states.__setitem__(name, inputs[0])


def _named(prefix: str, states: Sequence[Tensor], real: Tensor) -> dict[str, Tensor]:
    return {
        f"{prefix}{'embeddings' if layer == 0 else f'layer {layer - 1}'}": state[real]
        for layer, state in enumerate(states)
    }


def _next_token(name: str, inputs: Tensor, lengths: list[int]) -> Probe:
    """Each token predicts the next one of its row."""
    length = inputs.shape[1]
    weights = _real([count - 1 for count in lengths], length).float()
    return Probe(name=name, inputs=inputs, lengths=lengths, targets=inputs.roll(-1, dims=1), weights=weights)


def _images(config: ModelConfig, image: PatchInput, draw: torch.Generator) -> Probe:
    """Two images of noise; every position is real."""
    inputs = torch.randn(2, image.channels, image.image, image.image, generator=draw)
    lengths = [image.positions] * 2
    assert isinstance(config.head, ClassHeadConfig)
    targets, weights = _classes(config.head, _real(lengths, image.positions), draw)
    return Probe(name="random", inputs=inputs, lengths=lengths, targets=targets, weights=weights.float())


def _labelled(
    config: ModelConfig, head: ClassHeadConfig, inputs: Tensor, lengths: list[int], ids: TokenIds, draw: torch.Generator
) -> Probe:
    """Rows of text with what a task's head is to find in them.

    An encoder-decoder's encoder reads them, ending in eos, by which theirs finds the end of a text, and its decoder reads them shifted
    right (`Task.read`).
    """
    real = _real(lengths, inputs.shape[1])
    source, types = None, None
    if config.family == "encoder_decoder":
        if ids.eos is None:
            raise UserError(
                "an encoder-decoder's head of a task needs eos, by which transformers finds the end of a text: give the tokenizer"
            )
        ends = torch.tensor(lengths).unsqueeze(1) - 1
        source = inputs.scatter(1, ends, ids.eos)
        start = next(one for one in (ids.decoder_start, ids.pad, 0) if one is not None)
        inputs = torch.cat([torch.full_like(source[:, :1], start), source[:, :-1]], 1).where(
            real, torch.tensor(ids.pad or 0)
        )
    elif config.family == "encoder" and config.token_types > 1:
        types = torch.randint(config.token_types, inputs.shape, generator=draw)
    values, rows = None, len(lengths)
    if head.problem == "span":
        targets, weights = _spans(lengths, inputs.shape[1], draw)
    elif head.problem == "single_label":
        targets, weights = _classes(head, real, draw)
    else:
        targets, weights = torch.arange(rows), torch.ones(rows)
        values = torch.randn(rows, head.labels, generator=draw)
        values = (values > 0).float() if head.problem == "multi_label" else values
    return Probe(
        name="random",
        inputs=inputs,
        lengths=lengths,
        targets=targets,
        weights=weights.float(),
        token_types=types,
        source=source,
        source_lengths=None if source is None else lengths,
        values=values,
    )


def _spans(lengths: list[int], width: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A start and an end of each row, as `ClassHead.loss` has them: ([B, T] 1, 2 or 3, [B, T] halves)."""
    targets, weights = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width)
    for row, length in enumerate(lengths):
        for number, place in enumerate(torch.randint(length, (2,), generator=draw).sort().values.tolist()):
            targets[row, place] += number + 1
            weights[row, place] += 0.5
    return targets, weights


def _span_loss(starts: Tensor, ends: Tensor, probe: Probe, real: Tensor) -> Tensor:
    """Their loss of starts and ends [B, T], over the tokens of each row alone: their own counts padding in, so that a row's loss
    depends on the others of its batch."""
    scores = torch.stack([starts, ends], 1).masked_fill(~real.unsqueeze(1), -torch.inf)  # [B, 2, T]
    places = torch.stack([probe.targets & 1, probe.targets >> 1], 1).argmax(2)  # [B, 2]
    return F.cross_entropy(scores.flatten(0, 1), places.flatten())


def _labels(probe: Probe) -> Tensor:
    """What theirs takes as labels: numbers, or classes with -100 where none is asked for."""
    return probe.targets.where(probe.weights > 0, -100) if probe.values is None else probe.values


def _classes(head: ClassHeadConfig, real: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random classes, of every real token or of each row, and their weights."""
    weights = real if head.pool == "none" else torch.ones(len(real), dtype=torch.bool)
    return torch.randint(max(2, head.labels), weights.shape, generator=draw), weights


def _bare_scores(out: Any, config: ModelConfig) -> Tensor | None:
    """What their bare class gives where a head of ours without labels gives what it pools."""
    if not isinstance(config.head, ClassHeadConfig):
        return None
    pooled: Tensor = out.pooler_output if config.head.transform else out.last_hidden_state[:, 0]
    return pooled


def _of_tokens(logits: Tensor, real: Tensor) -> Tensor:
    """Scores of the real tokens, [tokens, V] (of one class [tokens, 1]); those of whole rows, [B, L], stay."""
    if logits.shape[:2] != real.shape:
        return logits
    return logits[real].unsqueeze(-1) if logits.ndim == 2 else logits[real]


def _real(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
