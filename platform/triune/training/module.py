"""The one LightningModule: model + objective + optimizer, for all three families."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric

from triune.errors import UserError
from triune.models.class_head import ClassHead
from triune.models.factory import Transformer
from triune.models.loss import LossOutput
from triune.objectives.base import Objective
from triune.objectives.batch import Batch
from triune.tracking.progress import TrainingStatus
from triune.tracking.sums import DeviceSums
from triune.tracking.throughput import Throughput
from triune.training.config import OptimizerConfig
from triune.training.optimizers import build_optimizer

_LEAST_WEIGHT = 1e-8  # a step that predicts nothing has loss 0, not 0/0
_LARGEST_EXPONENT = 700.0  # exp overflows a double just above


class TransformerModule(LightningModule):
    """Trains a model on an objective; one Lightning batch is one optimizer step.

    A batch is the list of micro-batches of one step on this rank. The loss of a step is the weighted mean over all
    predicted tokens of all micro-batches and ranks, so that accumulation and the number of devices do not change it.
    Optimization is manual: the step normalises by the step's own token count and clips by itself (Lightning 2.6's
    clipping refuses fused AdamW under bf16-mixed).

    Randomness (dropout, stochastic depth) is a function of (seed, step, rank): a resumed run draws what an
    uninterrupted one would have, with no generator state to save.

    Args:
        model: Encoder, Decoder or EncoderDecoder.
        objective: what it learns to predict; its config carries label smoothing and z-loss.
        optimizer: settings of the optimizer.
        schedule: step, from 0, to the share of the peak learning rate.
        total_steps: optimizer steps of the whole run.
        rows_per_step: rows of one optimizer step over all ranks.
        row_tokens: tokens of a row.
        gradient_clip: largest norm of the gradient; 0 clips nothing.
        seed: seed of dropout.
        log_every: optimizer steps between two log lines.
        throughput: host-side clock of tokens and steps.
        description: what each checkpoint says of itself: the model's config, the tokenizer's fingerprint, the W&B run.
        bytes_per_token: of the validation split, where bits per byte is defined, else None.
        compile: train and validate through torch.compile; what is generated between stays eager, because decoding
            changes its shapes at every token.
        layer_decay: learning rate of a block as a share of that of the block above it.
    """

    def __init__(
        self,
        *,
        model: Transformer,
        objective: Objective,
        optimizer: OptimizerConfig,
        schedule: Callable[[int], float],
        total_steps: int,
        rows_per_step: int,
        row_tokens: int,
        gradient_clip: float,
        seed: int,
        log_every: int,
        throughput: Throughput,
        description: dict[str, Any],
        bytes_per_token: float | None = None,
        compile: bool = False,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        # a function, not a module: the model keeps its tensors' names
        self._compiled = torch.compile(model.forward) if compile else None
        self.objective = objective
        self.optimizer_config = optimizer
        self.layer_decay = layer_decay
        self.schedule = schedule
        self.total_steps = total_steps
        self.rows_per_step = rows_per_step
        self.row_tokens = row_tokens
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.log_every = log_every
        self.throughput = throughput
        self.description = description
        self.sums = DeviceSums()
        self.bytes_per_token = bytes_per_token
        self.status = TrainingStatus(total_steps=total_steps)
        self.validation_loss = MeanMetric().set_dtype(torch.float64)
        self.validation_accuracy = MeanMetric().set_dtype(torch.float64)
        self.validation: dict[str, float] = {}  # the newest validation's metrics
        self.validated_step = -1

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped once an optimizer step."""
        optimizer = build_optimizer(self.optimizer_config, self.model, layer_decay=self.layer_decay)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)]

    def loss(self, batch: Batch, *, smooth: bool = True) -> LossOutput:
        """Weighted sums over one micro-batch; `smooth=False` leaves label smoothing and z-loss out (validation)."""
        hidden = self.hidden(batch)
        config = self.objective.config
        # a head of classes pools, and may learn more than one class
        classes = isinstance(self.model.head, ClassHead)
        around: dict[str, Any] = {"layout": batch.layout, "values": batch.values} if classes else {}
        return self.model.head.loss(
            hidden,
            batch.targets,
            batch.weights,
            label_smoothing=config.label_smoothing if smooth else 0.0,
            z_loss=config.z_loss if smooth else 0.0,
            selected=batch.predicted,
            **around,
        )

    def hidden(self, batch: Batch) -> Tensor:
        """[B, T, M] what the model makes of a batch."""
        forward = self._compiled or self.model
        types: dict[str, Any] = {} if batch.token_types is None else {"token_types": batch.token_types}
        return forward(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout, **types)

    # ---- training -----------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """The clock of training starts."""
        self.throughput.start()

    def training_step(self, batch: Sequence[Batch], batch_idx: int) -> None:
        """One optimizer step over the micro-batches of this rank."""
        step = self.trainer.global_step
        torch.manual_seed(_mix(self.seed, step, self.global_rank))
        optimizer = cast("LightningOptimizer", self.optimizers())
        local = torch.stack([micro.weights.sum() for micro in batch]).sum()
        weight = self._sum_over_ranks(local.clone()).clamp_min(_LEAST_WEIGHT)
        for index, micro in enumerate(batch):
            with self._no_sync(last=index == len(batch) - 1):
                output = self.loss(micro)
                # DDP averages gradients over ranks; the product with the world size makes that the sum it must be
                self.manual_backward(output.total * (self.trainer.world_size / weight))
            self.sums.add(total=output.total, correct=output.correct, weight=output.weight)
        norm = self._clip(optimizer)
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
        # before any checkpoint of this step is written: it must hold the next row's position
        self.trainer.datamodule.advance(self.rows_per_step)  # type: ignore[attr-defined]
        self.throughput.count(sum(micro.tokens for micro in batch) * self.trainer.world_size)
        if (step + 1) % self.log_every == 0 or step + 1 == self.total_steps:
            self._log_step(step + 1, norm, learning_rate)

    def _no_sync(self, *, last: bool) -> Any:
        """Hold back the gradient all-reduce on all but the last micro-batch of a step."""
        wrapped = self.trainer.strategy.model
        return nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()  # type: ignore[union-attr, operator]

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            dist.all_reduce(value)
        return value

    def _clip(self, optimizer: Any) -> Tensor:
        """Clip to `gradient_clip`; the norm before clipping, on the device."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # fp16: gradients are scaled until here
            scaler.unscale_(optimizer.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip or math.inf)

    def _log_step(self, step: int, norm: Tensor, learning_rate: float) -> None:
        """Read the device once and say how the steps since the last log line went."""
        self.sums.add(norm=norm / self.trainer.world_size)  # every rank has the same: summed over ranks it is itself
        sums = self.sums.read(self._sum_over_ranks)
        weight = max(sums["weight"], _LEAST_WEIGHT)
        loss = sums["total"] / weight
        if not math.isfinite(loss):
            raise UserError(
                f"train/loss is {loss} at step {step}: training diverged. Lower optimizer.learning_rate, lengthen "
                "schedule.warmup or lower run.gradient_clip, and start again with RESTART=1"
            )
        rate = self.throughput.mark()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        metrics = {
            "train/loss": loss,
            **self._perplexity("train", loss),
            "train/accuracy": sums["correct"] / weight,
            "train/grad_norm": sums["norm"],
            "train/learning_rate": learning_rate,
            "progress/epoch": data.rows_seen / data.rows,
            "progress/seconds": self.throughput.seconds,
        }
        if rate is not None:
            metrics["train/tokens_per_second"] = rate.tokens_per_second
            if rate.mfu is not None:
                metrics["train/mfu"] = rate.mfu
        if self.device.type == "cuda":
            metrics["memory/peak"] = torch.cuda.max_memory_allocated(self.device)
        self.log_now(metrics, step)
        self.status.loss = loss
        self.status.learning_rate = learning_rate
        self.status.tokens_per_second = metrics.get("train/tokens_per_second")

    def log_now(self, metrics: dict[str, float], step: int) -> None:
        """Straight to the loggers: `self.log` would cost a millisecond at every step (measured) for lines that are rare."""
        metrics = {**metrics, "progress/tokens": step * self.rows_per_step * self.row_tokens}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resume needs beside weights, optimizer and data position, and what the weights are."""
        checkpoint["triune"] = {
            **self.description,
            "sums": self.sums.state_dict(),
            "throughput": self.throughput.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of the log line that was begun."""
        self.sums.load_state_dict(checkpoint["triune"]["sums"], self.device)
        self.throughput.load_state_dict(checkpoint["triune"]["throughput"])

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Stop the clock of training and forget the last validation."""
        self.throughput.pause()
        self.validation_loss.reset()
        self.validation_accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the means, weighted by predicted tokens."""
        output = self.loss(batch, smooth=False)
        weight = output.weight.clamp_min(_LEAST_WEIGHT)
        self.validation_loss.update(output.nll / weight, output.weight)
        self.validation_accuracy.update(output.correct / weight, output.weight)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all ranks."""
        loss = float(self.validation_loss.compute())
        metrics = {
            "validation/loss": loss,
            **self._perplexity("validation", loss),
            "validation/accuracy": float(self.validation_accuracy.compute()),
        }
        if self.bytes_per_token is not None:
            metrics["validation/bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        self.validation = metrics
        self.validated_step = self.trainer.global_step
        # through Lightning too, so that its callbacks (EarlyStopping) can watch them
        self.log_dict(metrics, logger=False)
        self.status.validation_loss = loss
        self.log_now(metrics, self.trainer.global_step)

    def _perplexity(self, part: str, loss: float) -> dict[str, float]:
        """exp of the loss, where that is a likelihood of tokens."""
        if not self.objective.measures_perplexity:
            return {}
        return {f"{part}/perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}

    def on_validation_end(self) -> None:
        """The clock of training goes on, after the callbacks' samples and checkpoint."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.throughput.resume()


def _mix(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed from (seed, step, rank): distinct for all steps below 2^31 and ranks below 2^20."""
    return ((seed & 0xFFF) << 51) ^ (rank << 31) ^ step
