"""Settings of training: optimizer, schedule and the run itself. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from triune.units import Count, Interval


def _interval(text: str) -> Interval:
    return field(default_factory=lambda: Interval.parse(text))


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); decay on matrices only.

    Args:
        kind: the variant.
        learning_rate: peak learning rate.
        betas: decay of the two moments.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled decay of matrices (never of biases, norms or embeddings of positions).
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for the blocks' matrices (Jordan et al. 2024), AdamW for the rest.

    Args:
        kind: the variant.
        learning_rate: peak learning rate of the matrices.
        momentum: decay of the momentum.
        weight_decay: decoupled decay of the matrices.
        adamw_learning_rate: peak learning rate of embeddings, head, biases and norms.
        betas: AdamW's betas.
        epsilon: AdamW's epsilon.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: float = 2e-2
    momentum: float = 0.95
    weight_decay: float = 0.1
    adamw_learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adam with a factored second moment (Shazeer & Stern 2018): little memory.

    Args:
        kind: the variant.
        learning_rate: peak learning rate.
        weight_decay: decoupled decay of matrices.
    """

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: float = 1e-2
    weight_decay: float = 0.0


OptimizerConfig = AdamW | Muon | Adafactor


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot:
    """Linear warm-up, then decay with the inverse square root of the step (Vaswani et al. 2017, 5.3).

    Args:
        kind: the variant.
        warmup: length of the warm-up.
    """

    kind: Literal["inverse_square_root"] = "inverse_square_root"
    warmup: Interval = _interval("4000 steps")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warm-up, then linear decay to `final` of the peak.

    Args:
        kind: the variant.
        warmup: length of the warm-up.
        final: share of the peak learning rate at the end.
    """

    kind: Literal["linear"] = "linear"
    warmup: Interval = _interval("0.05")
    final: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final` of the peak.

    Args:
        kind: the variant.
        warmup: length of the warm-up.
        final: share of the peak learning rate at the end.
    """

    kind: Literal["cosine"] = "cosine"
    warmup: Interval = _interval("0.05")
    final: float = 0.1


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up, a plateau, then linear decay (Hu et al. 2024).

    Args:
        kind: the variant.
        warmup: length of the warm-up.
        decay: length of the decay at the end.
        final: share of the peak learning rate at the end.
    """

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    warmup: Interval = _interval("0.05")
    decay: Interval = _interval("0.2")
    final: float = 0.0


ScheduleConfig = InverseSquareRoot | Linear | Cosine | WarmupStableDecay


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, batch, validation and checkpoints of a run.

    Args:
        tokens: tokens to train on in all, rows' padding included; `trainer.max_steps` overrides it.
        epochs: passes over the labelled data, in place of `tokens` (supervised tasks).
        batch_tokens: tokens of one optimizer step over all devices, by accumulation where needed.
        batch_rows: rows of one optimizer step, in place of `batch_tokens`.
        micro_batch: rows of one forward pass on one device; null is as many as fit in 16,384 tokens.
        validate_every: span between two validations.
        validate_tokens: tokens of one validation, the same each time.
        checkpoint_every: span between two checkpoints; the last step always writes one.
        keep: step checkpoints kept, beside `last` and the best.
        gradient_clip: largest norm of the gradient; 0 clips nothing.
        best: validation metric by which the best checkpoint is chosen, such as macro_f1 or loss; null is a supervised task's own, else the loss.
        patience: validations without a new best after which the run ends (early stopping); null trains to the end.
        average: decay of an exponential moving average of the weights, validated and saved in its place; 0 is none.
        compile: compile the inner model with torch.compile.
        seed: seed of the weights, the order of rows, the corruption and dropout.
        directory: where runs are written.
    """

    tokens: Count = Count(10_000_000)
    epochs: float | None = None
    batch_tokens: Count = Count(8192)
    batch_rows: int | None = None
    micro_batch: int | None = None
    validate_every: Interval = _interval("0.25")
    validate_tokens: Count = Count(100_000)
    checkpoint_every: Interval = _interval("0.25")
    keep: int = 2
    gradient_clip: float = 1.0
    best: str | None = None
    patience: int | None = None
    average: float = 0.0
    compile: bool = False
    seed: int = 1
    directory: str = "runs"


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What the weights start from: a run directory, a checkpoint, a `model/` directory of ours, or a directory of Hugging Face's.

    Args:
        from_: weights for the whole model, of its own family or (encoder, decoder) another; null starts afresh. Written `from` in YAML.
        encoder: weights for the encoder of an encoder_decoder; null with `decoder` set starts it afresh.
        decoder: weights for its decoder; null with `encoder` set starts it afresh.
        fresh: take shape and tokenizer of `from` only and draw the weights anew: the baseline from scratch of a fine-tuning.
        layers: layers of the source that the model's start from: spread evenly, first or last (a deeper model has new ones at the other end), or a list of one a layer (counted from 0, null is new); null is all, as many as there are.
        decoder_layers: the same for the decoder of an encoder_decoder; null is `layers`.
        cross_attention: what it starts from where the source of the decoder has none: fresh, or the decoder's self_attention.
        embeddings: which of `encoder` and `decoder` the shared token table is of, where both are given.
        vocabulary: with another tokenizer than the source's: kept refuses it, joined carries the rows of tokens that both know.
    """

    from_: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    fresh: bool = False
    layers: Literal["spread", "first", "last"] | list[int | None] | None = None
    decoder_layers: Literal["spread", "first", "last"] | list[int | None] | None = None
    cross_attention: Literal["fresh", "self_attention"] = "fresh"
    embeddings: Literal["encoder", "decoder"] = "encoder"
    vocabulary: Literal["kept", "joined"] = "kept"

    @property
    def sources(self) -> dict[str, str]:
        """Option -> where its weights are, of those that are set."""
        named = {"init.from": self.from_, "init.encoder": self.encoder, "init.decoder": self.decoder}
        return {option: path for option, path in named.items() if path is not None}
