"""Several runs that differ in their seed alone, summed up. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from triune.tracking.report import FinalReport, SeedScore, SeedsReport


@dataclass(frozen=True, kw_only=True)
class Summary(SeedsReport):
    """What `<name>-seeds.json` keeps."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def summary(reports: Sequence[FinalReport], *, title: str) -> Summary:
    """Mean and sample standard deviation of each metric over the runs (0 for one run)."""
    scores = []
    for place, score in enumerate(reports[0].scores):
        values = [report.scores[place].value for report in reports]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        scores.append(SeedScore(name=score.name, mean=statistics.fmean(values), deviation=deviation, values=values))
    return Summary(title=title, scores=scores, runs=[report.run_directory for report in reports])
