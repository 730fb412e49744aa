"""Settings of a model: one tree for the three families. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from triune.attention.config import AttentionConfig
from triune.units import Count

Family = Literal["encoder", "decoder", "encoder_decoder"]


@dataclass(frozen=True, kw_only=True)
class SinusoidalPosition:
    """Fixed sine/cosine table added to the embeddings (Vaswani et al. 2017, 3.5).

    Args:
        kind: the variant.
        base: wavelength base of the geometric progression.
        layout: order of the columns: interleaved is sine, cosine, sine, ... (2017), halves all sines, then all cosines (Marian, Pegasus).
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: float = 10000.0
    layout: Literal["interleaved", "halves"] = "interleaved"


@dataclass(frozen=True, kw_only=True)
class LearnedPosition:
    """A trained table of one vector a position, added to the embeddings (BERT, GPT-2).

    Args:
        kind: the variant.
        offset: rows before position 0 (RoBERTa and BART keep 2).
    """

    kind: Literal["learned"] = "learned"
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class RotaryPosition:
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021).

    Args:
        kind: the variant.
        base: base of the geometric progression of wavelengths, or one a layer (a list, repeated to the depth).
        fraction: share of each head's width that is turned (GPT-NeoX: 0.25).
        scaling: how positions beyond the trained length are handled: none, linear (Chen et al. 2023), ntk, yarn (Peng et al. 2023), llama3.
        factor: how many times longer than `original_context` the context is, for `scaling`.
        original_context: context the base was trained at, for `scaling`; null is the model's context divided by factor.
    """

    kind: Literal["rotary"] = "rotary"
    base: float | list[float] = 10000.0
    fraction: float = 1.0
    scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    factor: float = 1.0
    original_context: int | None = None


@dataclass(frozen=True, kw_only=True)
class AlibiPosition:
    """A penalty on the scores, linear in the distance, with one slope a head (Press et al. 2022).

    Args:
        kind: the variant.
    """

    kind: Literal["alibi"] = "alibi"


@dataclass(frozen=True, kw_only=True)
class T5Position:
    """A learned bias a head and bucket of relative distance, shared by the layers of a stack (Raffel et al. 2020, 2.1).

    Args:
        kind: the variant.
        buckets: number of distance buckets.
        max_distance: distance from which all keys share the last bucket.
    """

    kind: Literal["t5"] = "t5"
    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True, kw_only=True)
class NoPosition:
    """No position information (NoPE: Kazemnejad et al. 2023).

    Args:
        kind: the variant.
    """

    kind: Literal["none"] = "none"


PositionConfig = SinusoidalPosition | LearnedPosition | RotaryPosition | AlibiPosition | T5Position | NoPosition


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Normalisation and where it stands.

    Args:
        kind: layer (Ba et al. 2016) or rms (Zhang & Sennrich 2019).
        placement: post is LayerNorm(x + Sublayer(x)) (2017), pre is x + Sublayer(norm(x)), sandwich is x + norm(Sublayer(norm(x))).
        epsilon: added to the variance.
        bias: a learned shift beside the scale (layer only).
        embedding: normalise the embeddings before the first block (BERT, BART).
        final: normalise after the last block; null is yes for pre and sandwich, no for post.
        skip_first: leave out the attention norm of the first block (ModernBERT, whose embeddings are normalised already).
    """

    kind: Literal["layer", "rms"] = "layer"
    placement: Literal["post", "pre", "sandwich"] = "pre"
    epsilon: float = 1e-5
    bias: bool = True
    embedding: bool = False
    final: bool | None = None
    skip_first: bool = False


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """The position-wise network of each block.

    Args:
        kind: relu (2017), gelu (exact), gelu_tanh (GPT-2), silu (Marian's swish), relu_squared (So et al. 2021), swiglu, geglu, geglu_tanh (Shazeer 2020).
        width: inner width; null is 4 x the model's width, for a gated kind 8/3 x, rounded up to a multiple of 64.
        dropout: probability of dropping an inner activation in training.
        chunk: positions of a row that pass at once, recomputed in the backward pass: less memory, one more forward pass of the network (Kitaev et al. 2020); null is all, none recomputed.
    """

    kind: Literal["relu", "gelu", "gelu_tanh", "silu", "relu_squared", "swiglu", "geglu", "geglu_tanh"] = "gelu"
    width: int | None = None
    dropout: float = 0.0
    chunk: int | None = None

    @property
    def gated(self) -> bool:
        """Whether one half of the up projection gates the other."""
        return self.kind in ("swiglu", "geglu", "geglu_tanh")

    def inner_width(self, width: int) -> int:
        """Inner width in a model of `width`, with null resolved."""
        if self.width is not None:
            return self.width
        return -(-8 * width // (3 * 64)) * 64 if self.gated else 4 * width


@dataclass(frozen=True, kw_only=True)
class InitializationConfig:
    """How weights start.

    Args:
        kind: xavier (2017: uniform Glorot), normal (BERT: normal of `std`), depth_scaled (GPT-2: normal of `std`, residual outputs divided by sqrt(2 x layers)), t5 (by fan-in, Raffel et al. 2020), mup (width-scaled against `base_width`: Yang et al. 2022).
        std: standard deviation of normal, depth_scaled and mup (at `base_width`).
        base_width: width at which mup equals normal.
    """

    kind: Literal["xavier", "normal", "depth_scaled", "t5", "mup"] = "depth_scaled"
    std: float = 0.02
    base_width: int = 256


@dataclass(frozen=True, kw_only=True)
class TokenInput:
    """Ids, each looked up in a table.

    Args:
        kind: the variant.
    """

    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True, kw_only=True)
class PatchInput:
    """Images, cut into square patches of which each is one position (Dosovitskiy et al. 2021, 3.1).

    Args:
        kind: the variant.
        image: height and width of an image, in pixels.
        patch: height and width of a patch, in pixels; a divisor of `image`.
        channels: numbers a pixel.
        class_token: a learned vector before the patches, at position 0.
    """

    kind: Literal["patches"] = "patches"
    image: int = 224
    patch: int = 16
    channels: int = 3
    class_token: bool = True

    @property
    def positions(self) -> int:
        """Positions that an image fills: its patches, and the class token."""
        return (self.image // self.patch) ** 2 + self.class_token


InputConfig = TokenInput | PatchInput


@dataclass(frozen=True, kw_only=True)
class TokenDropoutConfig:
    """Mask tokens as dropped ones: their vectors are 0, the others' times (1 - rate) / (1 - share of masks in the document) (ESM-2: Lin et al. 2023).

    Args:
        mask: id of the mask token; must be set.
        rate: share of the tokens that the mask replaces in training.
    """

    mask: int | None = None
    rate: float = 0.12


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What turns hidden states into scores over the vocabulary.

    Args:
        kind: the variant.
        transform: dense + activation + norm before the vocabulary (BERT's masked-LM head).
        transform_bias: a bias in that dense layer.
        activation: of that dense layer.
        bias: a bias over the vocabulary.
        scale: multiply hidden states before the tied vocabulary: null is 1; T5 uses width**-0.5.
    """

    kind: Literal["vocabulary"] = "vocabulary"
    transform: bool = False
    transform_bias: bool = True
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu"
    bias: bool = False
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassHeadConfig:
    """What turns hidden states into scores of a few classes: of a row (ViT, sentence classification) or of each token (ELECTRA's discriminator).

    Args:
        kind: the variant.
        labels: number of classes; 1 is a yes-or-no score, 0 is none: the head gives the vector that it pools (an encoder to be read from).
        problem: what is learned: one class of several (single_label), each class yes or no (multi_label), numbers (regression), the start and end of a span of the row (span, of 2 labels), or which vector matches which (match, without labels).
        pool: what stands for a row: its first token, its last, the mean of all, or none: each token has scores of its own.
        transform: dense + activation before the scores.
        transform_bias: a bias in that dense layer.
        activation: of that dense layer.
        norm: a norm after that activation (ModernBERT).
        bias: a bias of the scores.
        dropout: probability of dropping what is multiplied with the classes, in training.
        scale: what cosine similarities are multiplied by (match).
    """

    kind: Literal["classes"] = "classes"
    labels: int = 2
    problem: Literal["single_label", "multi_label", "regression", "span", "match"] = "single_label"
    pool: Literal["first", "last", "mean", "none"] = "first"
    transform: bool = False
    transform_bias: bool = True
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "tanh"
    norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    scale: float = 20.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A transformer of one of three families made of one block.

    Args:
        family: encoder (both ways), decoder (left to right) or encoder_decoder.
        input: what the model reads: tokens, or images in patches (encoder only).
        vocabulary: entries of the embedding table; null is the tokenizer's, rounded up to a multiple of 64.
        context: longest row, in tokens, of training and (with learned positions) of the model at all.
        width: width of the residual stream.
        embedding_width: width of the tables of tokens, positions and token types, projected to `width` (ELECTRA); null is `width`.
        layers: blocks (of the encoder, in an encoder_decoder).
        decoder_layers: blocks of an encoder_decoder's decoder; null is `layers`.
        heads: query heads.
        key_value_heads: key and value heads, a divisor of `heads` (1 is multi-query); null is `heads`.
        head_width: width of a head; null is width / heads.
        attention: how positions attend to one another.
        position: how positions are told apart.
        norm: normalisation and where it stands.
        feed_forward: the position-wise network.
        parallel: attention and feed-forward read the same hidden states, and both are added: x + attention(norm(x)) + feed_forward(norm'(x)) (GPT-NeoX).
        head: what turns hidden states into scores.
        initialization: how weights start.
        bias: biases in the linear layers of the blocks.
        qkv_bias: biases of queries, keys and values; null is `bias`.
        tie_embeddings: share the input embeddings with the output vocabulary.
        scale_embeddings: multiply embeddings by the square root of their width (2017, 3.4).
        token_types: rows of a segment embedding (BERT: 2); 0 for none.
        token_dropout: mask tokens as dropped ones (ESM-2; encoder only); null is not.
        dropout: probability of dropping an embedding or a sublayer's output in training.
        stochastic_depth: probability of dropping the last block's branches in training, growing linearly with depth (Huang et al. 2016).
        activation_checkpointing: recompute each block's activations in the backward pass.
        reversible: two residual streams, whose activations are recomputed from the last ones: memory flat in depth (Kitaev et al. 2020). Another function than one stream with the same weights.
        loss_chunk: rows of hidden states that pass through the vocabulary at once; null chooses by memory.
    """

    family: Family = "decoder"
    input: InputConfig = field(default_factory=TokenInput)
    vocabulary: Count | None = None
    context: Count = field(default=Count(512))
    width: int = 256
    embedding_width: int | None = None
    layers: int = 4
    decoder_layers: int | None = None
    heads: int = 4
    key_value_heads: int | None = None
    head_width: int | None = None
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    position: PositionConfig = field(default_factory=RotaryPosition)
    norm: NormConfig = field(default_factory=NormConfig)
    feed_forward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    parallel: bool = False
    head: HeadConfig | ClassHeadConfig = field(default_factory=HeadConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)
    bias: bool = True
    qkv_bias: bool | None = None
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    token_types: int = 0
    token_dropout: TokenDropoutConfig | None = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    activation_checkpointing: bool = False
    reversible: bool = False
    loss_chunk: int | None = None

    @property
    def resolved_embedding_width(self) -> int:
        """Width of the tables of tokens, positions and token types, with null resolved."""
        return self.width if self.embedding_width is None else self.embedding_width

    @property
    def vocabulary_width(self) -> int:
        """Width of what is multiplied with the output vocabulary: a transform leads back to that of the embeddings."""
        transform = isinstance(self.head, HeadConfig) and self.head.transform
        return self.resolved_embedding_width if transform else self.width

    @property
    def resolved_head_width(self) -> int:
        """Width of a head, with null resolved."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def resolved_key_value_heads(self) -> int:
        """Key and value heads, with null resolved."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def resolved_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases, with null resolved."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def resolved_decoder_layers(self) -> int:
        """Blocks of an encoder_decoder's decoder, with null resolved."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    @property
    def final_norm(self) -> bool:
        """Whether each stack ends with a norm, with null resolved."""
        return self.norm.placement != "post" if self.norm.final is None else self.norm.final
