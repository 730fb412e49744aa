"""How a run ended, and what one would cost: the numbers behind the final report and the plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triune.data.baselines import Counts, most_frequent_share
from triune.data.module import TextDataModule
from triune.data.prepare import Prepared
from triune.models.factory import Transformer
from triune.objectives.batch import Vocabulary
from triune.tracking.report import FinalReport, Sample, Score
from triune.tracking.throughput import Throughput


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The figures of a finished run, as `report.json` keeps them.

    Args:
        steps: optimizer steps of the whole run.
        validation: the last validation's metrics by name.
        baselines: metric -> baseline -> value, over the same predicted tokens.
        report: what the terminal shows.
        ended_early: whether the run ended before its last step because more training did not help.
    """

    steps: int
    validation: dict[str, float]
    baselines: dict[str, dict[str, float]]
    report: FinalReport
    ended_early: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """What `as_dict` gave."""
        shown = dict(values["report"])
        shown["scores"] = [Score(**score) for score in shown["scores"]]
        shown["samples"] = [Sample(**sample) for sample in shown["samples"]]
        return cls(**{**values, "report": FinalReport(**shown)})


def baselines(
    data: TextDataModule, prepared: Prepared, *, bytes_per_token: float | None
) -> dict[str, dict[str, float]]:
    """What counting reaches on exactly the tokens that the validation predicts.

    Where each token is predicted from those before it: bits per byte of a unigram and a modified Kneser-Ney bigram of
    the training tokens. Else: the accuracy of always answering the most frequent target.

    Args:
        data: whose validation rows are scored.
        prepared: whose training shards are counted.
        bytes_per_token: of the validation split, where bits per byte is defined, else None.
    """
    contexts, targets = _predicted(data)
    vocabulary = prepared.tokenizer.vocabulary
    found = {"accuracy": {"most frequent token": most_frequent_share(targets)}}
    if bytes_per_token is not None:
        counts = Counts.of([shards for shards, _ in prepared.train], vocabulary)
        bits = math.log(2) * bytes_per_token
        found["bits_per_byte"] = {
            name: float(-model.log_probabilities(contexts, targets).mean()) / bits
            for name, model in (("unigram", counts.unigram()), ("bigram", counts.bigram()))
        }
    return found


@torch.no_grad()
def text_accuracy(model: Transformer, data: TextDataModule, vocabulary: Vocabulary) -> Score | None:
    """Accuracy on the validation targets that are text, beside always answering the most frequent of them.

    Where targets hold sentinels, a model that has learnt nothing but the form of a target is right a quarter of the
    time; this leaves the special tokens out. None where targets hold no sentinel.
    """
    special = torch.zeros(int(model.config.vocabulary or 0), dtype=torch.bool)
    special[list(vocabulary.special)] = True
    hits, targets, sentinels = 0, [], False
    for batch in data.validation_loader():
        scores = model.head.logits(
            model(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout)
        )
        counted = batch.weights > 0
        sentinels = sentinels or bool(np.isin(batch.targets[counted].numpy(), vocabulary.sentinels).any())
        text = counted & ~special[batch.targets]
        hits += int((scores.argmax(-1) == batch.targets)[text].sum())
        targets.append(batch.targets[text].numpy())
    found = np.concatenate(targets)
    if not sentinels or not len(found):
        return None
    return Score(
        name="accuracy, text alone",
        value=hits / len(found),
        baselines={"most frequent token": most_frequent_share(found)},
        higher_is_better=True,
    )


def _predicted(data: TextDataModule) -> tuple[np.ndarray, np.ndarray]:
    """([n], [n]) each input token beside the target at its position, where validation counts it."""
    contexts, targets = [], []
    for batch in data.validation_loader():
        counted = batch.weights > 0
        contexts.append(batch.inputs[counted].numpy())
        targets.append(batch.targets[counted].numpy())
    return np.concatenate(contexts), np.concatenate(targets)


def outcome(
    *,
    title: str,
    model: str,
    validation: dict[str, float],
    counted: dict[str, dict[str, float]],
    text: Score | None,
    steps: int,
    throughput: Throughput,
    mfu_against: str | None,
    samples: Sequence[Sample],
    directory: Path,
    wandb: str | None,
    following: Sequence[tuple[str, str]],
) -> Outcome:
    """Put the figures of a finished run together.

    Args:
        title: what ended.
        model: one line about the model.
        validation: the last validation's metrics by name.
        counted: what `baselines` found.
        text: what `text_accuracy` found.
        steps: optimizer steps of the whole run.
        throughput: the run's clock.
        mfu_against: what the MFU is measured against.
        samples: what the model wrote.
        directory: the run directory.
        wandb: the run's page, or the command that uploads it.
        following: (what it does, command) of the next steps.
    """
    scores = []
    if "validation/bits_per_byte" in validation:
        scores.append(
            Score(
                name="bits per byte",
                value=validation["validation/bits_per_byte"],
                baselines=counted.get("bits_per_byte", {}),
            )
        )
    accuracy = Score(
        name="accuracy",
        value=validation["validation/accuracy"],
        baselines=counted["accuracy"],
        higher_is_better=True,
    )
    loss = Score(name="loss, nats/token", value=validation["validation/loss"])
    perplexity = Score(name="perplexity", value=validation["validation/perplexity"])
    report = final_figures(
        title=title,
        model=model,
        scores=[loss, *scores, accuracy, *([text] if text else []), perplexity],
        steps=steps,
        throughput=throughput,
        mfu_against=mfu_against,
        samples=samples,
        directory=directory,
        wandb=wandb,
        following=following,
    )
    return Outcome(steps=steps, validation=validation, baselines=counted, report=report)


def final_figures(
    *,
    title: str,
    model: str,
    scores: Sequence[Score],
    steps: int,
    throughput: Throughput,
    mfu_against: str | None,
    samples: Sequence[Sample],
    directory: Path,
    wandb: str | None,
    following: Sequence[tuple[str, str]],
) -> FinalReport:
    """What the terminal shows at the end; arguments as `outcome`, with the scores as they are to be shown."""
    rate = throughput.overall
    return FinalReport(
        title=title,
        model=model,
        scores=scores,
        steps=steps,
        tokens=throughput.tokens,
        seconds=throughput.seconds,
        tokens_per_second=rate.tokens_per_second if rate else None,
        mfu=rate.mfu if rate else None,
        mfu_against=mfu_against,
        samples=list(samples),
        run_directory=str(directory),
        wandb=wandb,
        next=list(following),
    )
