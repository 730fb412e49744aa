"""What a model costs, in closed form from its settings: parameters, FLOPs, memory. Imports no torch.

Legend: V vocabulary, M model width, H heads, K key/value heads, D head width, F inner width, T row length, S source length.

Conventions. A multiply-add is 2 FLOPs. The backward pass is twice the forward pass: one product for the gradient of the
input, one for that of the weight. Matrix products count, those of attention for the pairs that its pattern keeps; what is
element-wise does not (softmax, norms, activations, dropout, rotary turns, biases, lookups), nor does what activation
checkpointing recomputes: these are the FLOPs the model needs, as MFU has them. A row is one document without padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from triune.attention.patterns import Pattern
from triune.attention.routed.patterns import Routed
from triune.models.checks import layer_patterns
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig, PatchInput, RotaryPosition, T5Position
from triune.models.inventory import Reader, projected, scores, weights

OptimizerKind = Literal["adamw", "muon", "adafactor"]


class _Bytes(NamedTuple):
    """Of one number: a weight, its gradient, a sum of the optimizer, the residual stream; what products read; a dropout mask."""

    kept: int
    computed: int
    mask: int = 1


#: By Lightning's precision.
_BYTES = {
    "64-true": _Bytes(8, 8),
    "32-true": _Bytes(4, 4),
    "bf16-mixed": _Bytes(4, 2),
    "16-mixed": _Bytes(4, 2),
    "bf16-true": _Bytes(2, 2),
    "16-true": _Bytes(2, 2),
}

#: Most rows of a chunk of logits on a CPU: the fewest at which products run at full speed (measured: 1.2 times that of 64).
CPU_ROWS = 256
#: Most bytes of a chunk's logits, as fp32; the probabilities beside them take as many.
CHUNK_BYTES = {"cpu": 64 * 2**20, "other": 512 * 2**20}


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by part; shared ones count once.

    `embedding` are the input tables (tokens, positions, token types); the rest is `non_embedding` (Kaplan et al. 2020).
    """

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parts.values())

    @property
    def embedding(self) -> int:
        """Parameters of the input tables."""
        return self.parts.get("token embedding", 0) + self.parts.get("positions and types", 0)

    @property
    def non_embedding(self) -> int:
        """Parameters beside the input tables."""
        return self.total - self.embedding


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of the forward pass of one row, by part, and its tokens (the source's included)."""

    parts: Mapping[str, float]
    tokens: int

    @property
    def forward(self) -> float:
        """Forward pass of a row."""
        return sum(self.parts.values())

    @property
    def training(self) -> float:
        """Forward and backward pass of a row."""
        return 3 * self.forward

    @property
    def forward_per_token(self) -> float:
        """Forward pass, a token of the row."""
        return self.forward / self.tokens

    @property
    def training_per_token(self) -> float:
        """Forward and backward pass, a token of the row."""
        return self.training / self.tokens


def parameters(config: ModelConfig) -> ParameterCount:
    """Parameters by part."""
    parts: dict[str, int] = {}
    for weight in weights(config):
        parts[weight.part] = parts.get(weight.part, 0) + weight.size
    return ParameterCount(parts=parts)


def flops(config: ModelConfig, length: int, *, source_length: int | None = None, predicted_share: float = 1.0) -> Flops:
    """FLOPs of one row.

    Args:
        config: the model.
        length: tokens of the row (the target's, in an encoder_decoder).
        source_length: tokens that the encoder of an encoder_decoder reads.
        predicted_share: share of the row's positions that pass through the vocabulary, or through the classes of each token
            (masked modelling: its rate).
    """
    source = _source_length(config, source_length)
    class_token = isinstance(config.input, PatchInput) and config.input.class_token
    readers: dict[Reader, float] = {
        "source": source,
        "target": length,
        "predicted": length * predicted_share,
        "patches": length - class_token,
        "row": 1,
        "nothing": 0,
    }
    parts: dict[str, float] = {}
    for weight in weights(config):
        if readers[weight.reader]:
            parts[weight.part] = parts.get(weight.part, 0) + 2 * weight.size * readers[weight.reader]
    if config.tie_embeddings and isinstance(config.head, HeadConfig):
        entries, width = scores(config)
        parts["head"] = parts.get("head", 0) + 2 * entries * width * readers["predicted"]
    pair = 4 * config.resolved_head_width  # one product with the key, one with the value
    parts["attention scores"] = pair * _pairs(config, length, source)
    return Flops(parts=parts, tokens=length + source)


def flops_per_token(
    config: ModelConfig, length: int, *, source_length: int | None = None, predicted_share: float = 1.0
) -> float:
    """FLOPs of training (forward and backward), a token of the row; see `flops`."""
    return flops(config, length, source_length=source_length, predicted_share=predicted_share).training_per_token


def flops_per_token_palm(config: ModelConfig, length: int) -> float:
    """6 N + 12 layers H D T, the convention of published MFU (Chowdhery et al. 2022, appendix B), for comparison.

    N leaves out tables that are only looked up (positions, and the tokens' where the vocabulary has its own). It counts
    all pairs of a row and the vocabulary at every position, so a causal or masked model needs less. ValueError for an
    encoder_decoder, for which it is not defined.
    """
    if config.family == "encoder_decoder":
        raise ValueError("6 N + 12 layers H D T is not defined for an encoder_decoder; use flops_per_token")
    count = parameters(config)
    tied = config.tie_embeddings and isinstance(config.head, HeadConfig)
    multiplied = count.non_embedding + (count.parts["token embedding"] if tied else 0)
    return 6.0 * multiplied + 12.0 * config.layers * config.heads * config.resolved_head_width * length


def _source_length(config: ModelConfig, source_length: int | None) -> int:
    if (config.family == "encoder_decoder") != bool(source_length):
        raise ValueError(f"source_length is {source_length}, but the family is {config.family}")
    return source_length or 0


def _pairs(config: ModelConfig, length: int, source: int) -> int:
    """Query-key pairs that all heads of all layers keep in a row."""
    if config.family != "encoder_decoder":
        patterns = layer_patterns(config, config.layers, decoder=config.family == "decoder")
        return _kept(config, patterns, length)
    layers = config.resolved_decoder_layers
    read = layer_patterns(config, config.layers, decoder=False)
    written = layer_patterns(config, layers, decoder=True, cross=True)
    inside = _kept(config, read, source) + _kept(config, written, length)
    return inside + config.heads * layers * length * source


def _kept(config: ModelConfig, patterns: Sequence[Pattern | Routed], length: int) -> int:
    """Pairs of self-attention in rows of `length`; each pattern is counted once, however many layers have it."""
    parts = Counter(part for pattern in patterns for part in pattern.heads() * (config.heads // len(pattern.heads())))
    return sum(layers * part.kept(length, length) for part, layers in parts.items())


# ---- memory -----------------------------------------------------------------------------------------------------------


def chunk_rows(rows: int, vocabulary: int, *, device: str, itemsize: int) -> int:
    """Rows of hidden states that pass through the vocabulary at once where `loss_chunk` is null.

    As many as keep the chunk's logits within `CHUNK_BYTES` as fp32 (but 32), on a CPU at most `CPU_ROWS` and, in 16-bit
    products, whose sums over chunks cost a pass of their own, four times as many; then even out the chunks.

    Args:
        rows: tokens in all.
        vocabulary: V.
        device: type of the device ("cpu", "cuda").
        itemsize: bytes of a number in the products.
    """
    most = max(CHUNK_BYTES.get(device, CHUNK_BYTES["other"]) // (4 * vocabulary), 32)
    if device == "cpu":
        most = min(most, CPU_ROWS if itemsize >= 4 else 4 * CPU_ROWS)
    chunks = max(-(-rows // most), 1)
    return max(-(-rows // chunks), 1)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one training step on one device, by part, at its peak: the end of the forward pass and what is then recomputed."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


def memory(
    config: ModelConfig,
    *,
    batch: int,
    length: int,
    source_length: int | None = None,
    predicted_share: float = 1.0,
    precision: str = "32-true",
    optimizer: OptimizerKind = "adamw",
    device: str = "cpu",
) -> Memory:
    """Memory of one training step without sharding.

    Activations are what attention that stores no scores keeps for the backward pass; a backend that makes scores or masks
    adds them. Allocator slack and libraries are not counted.

    Args:
        config: the model.
        batch: rows of a micro-batch.
        length: tokens of a row.
        source_length: tokens of a row that the encoder of an encoder_decoder reads.
        predicted_share: share of the positions that pass through the vocabulary.
        precision: Lightning's precision ("32-true", "bf16-mixed", ...).
        optimizer: kind of the optimizer.
        device: type of the device, which the chunks of the loss depend on.
    """
    if precision not in _BYTES:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(_BYTES)}")
    sizes = _BYTES[precision]
    if device == "cpu":  # whose dropout keeps a factor for each number, not a bit
        sizes = sizes._replace(mask=sizes.computed)
    kept, computed, _ = sizes
    source = _source_length(config, source_length)
    found = weights(config)
    size = sum(weight.size for weight in found)
    pooled = isinstance(config.head, ClassHeadConfig) and config.head.pool != "none"
    rows = batch if pooled else round(batch * length * predicted_share)
    vocabulary, width = scores(config)
    chunk = config.loss_chunk or chunk_rows(rows, max(1, vocabulary), device=device, itemsize=computed)
    matrices = sum(weight.size for weight in found if weight.in_block and len(weight.shape) == 2)
    return Memory(
        parts={
            "parameters": size * kept,
            "gradients": size * kept,
            "optimizer": optimizer_numbers(config, optimizer) * kept,
            "copies of weights": 0 if kept == computed else matrices * computed,
            "activations": batch * _activations(config, length, source, sizes),
            # two buffers of a chunk, and the gradients of hidden states and vocabulary
            "loss": 2 * min(chunk, rows) * vocabulary * 4 + rows * width * kept + vocabulary * width * 4,
        }
    )


def optimizer_numbers(config: ModelConfig, kind: OptimizerKind) -> int:
    """Numbers that an optimizer remembers.

    AdamW: two moments. Muon: one momentum for the blocks' matrices, AdamW's two for the rest. Adafactor: a row and a column
    for a matrix, the whole second moment for a vector.
    """
    if kind == "adamw":
        return 2 * sum(weight.size for weight in weights(config))
    if kind == "muon":
        return sum((1 if w.in_block and len(w.shape) == 2 else 2) * w.size for w in weights(config))
    return sum(sum(w.shape) for w in weights(config))


def key_value_bytes_per_token(config: ModelConfig, itemsize: int = 2) -> int:
    """Bytes that a decoder's cache keeps for each token of a row; in an encoder_decoder also for each token of its source.

    Until windows are full: see `key_value_bytes`.
    """
    layers = config.resolved_decoder_layers if config.family == "encoder_decoder" else config.layers
    return layers * projected(config)[1] * itemsize


def key_value_bytes(config: ModelConfig, length: int, itemsize: int = 2, *, source_length: int | None = None) -> int:
    """Bytes that a decoder's cache keeps for a row of `length` tokens: of a window, no more than the window.

    The bytes in use; buffers may have room for more tokens (`new_cache`), but never for more than a window. In an
    encoder_decoder `source_length` tokens of memory come on top.
    """
    cross = config.family == "encoder_decoder"
    layers = config.resolved_decoder_layers if cross else config.layers
    numbers = layers * _source_length(config, source_length) * projected(config)[1]
    for pattern in layer_patterns(config, layers, decoder=True, cross=cross):
        first, last = pattern.retained()
        numbers += (length if last is None else min(length, first + max(last, 1))) * projected(config, pattern)[1]
    return numbers * itemsize


class _Kept(NamedTuple):
    """Bytes a token that a stack keeps for the backward pass, and those that it recomputes there, one layer at a time."""

    held: int
    recomputed: int


def _activations(config: ModelConfig, length: int, source: int, sizes: _Bytes) -> int:
    """Bytes of a row kept for the backward pass, from the embeddings to the final norm, and what is recomputed at a time."""
    if config.family != "encoder_decoder":
        return length * sum(_tower(config, config.layers, length, sizes))
    layers = config.resolved_decoder_layers
    read = _tower(config, config.layers, source, sizes)
    written = _tower(config, layers, length, sizes, cross=True)
    memory = sizes.computed * projected(config)[1]  # its keys and values in a layer
    again = config.reversible or config.activation_checkpointing
    held = (
        source * (read.held + sizes.computed * config.width + (0 if again else layers * memory)) + length * written.held
    )
    return held + max(source * read.recomputed, length * written.recomputed + (source * memory if again else 0))


def _tower(config: ModelConfig, layers: int, length: int, sizes: _Bytes, *, cross: bool = False) -> _Kept:
    """Bytes a token of a stack."""
    kept, computed, mask = sizes
    query, key_value = projected(config)
    attention = computed * (query + key_value + query) + 4 * config.heads  # q, k, v, result; log-sum-exp
    if isinstance(config.position, RotaryPosition):
        attention += computed * (query + key_value // 2)  # turned queries and keys
    if isinstance(config.position, T5Position):
        attention += 4 * config.heads * length  # a bias that learns keeps the scores
    attention *= 1 + config.attention.global_projections  # queries, keys, values and results of two calls
    crossing = computed * (query + query) + 4 * config.heads
    feed_forward, chunk = _feed_forward(config, length, sizes)
    dropped = mask * config.width if config.dropout else 0
    # a branch keeps what its norm and its first product read, and its dropout mask
    branch = kept * config.width * (2 if config.norm.placement == "sandwich" else 1) + computed * config.width + dropped
    within = [attention, feed_forward, *([crossing] if cross else [])]
    if config.reversible:  # two wide streams, whatever the depth, and one branch at a time
        return _Kept(2 * max(kept, 4) * config.width + dropped, branch + max(*within, chunk))
    block = (
        len(within) * branch + sum(within) - (kept * config.width if config.parallel else 0)
    )  # one input for two norms
    if config.activation_checkpointing:
        return _Kept(kept * config.width * (layers + 1), block + chunk)
    return _Kept(kept * config.width + dropped + layers * block, chunk)


def _feed_forward(config: ModelConfig, length: int, sizes: _Bytes) -> tuple[int, int]:
    """Bytes a token that the inner activations of a layer keep, and those of the one chunk that is recomputed at a time."""
    inner = config.feed_forward.inner_width(config.width)
    whole = sizes.computed * inner * (4 if config.feed_forward.gated else 2)
    if config.feed_forward.dropout:
        whole += sizes.mask * inner
    chunk = config.feed_forward.chunk
    return (whole, 0) if chunk is None or length <= chunk else (0, whole * chunk // length)
