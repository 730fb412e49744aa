"""Entities of tags: golden cases, and F1 as seqeval gives it (its own answers for random tags are kept here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triune.objectives.entities import entities, entity_measures, has_entities, word_accuracy

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "seqeval_cases.json").read_text())

A, B = ("A", 0, 0), ("B", 1, 1)


@pytest.mark.parametrize(("tags", "expected"), [
    ("O O", []),
    ("B-A I-A O", [("A", 0, 1)]),
    ("B-A B-A", [A, ("A", 1, 1)]),
    ("I-A I-A O I-B", [("A", 0, 1), ("B", 3, 3)]),  # IOB1
    ("I-A B-A", [A, ("A", 1, 1)]),  # IOB1: B where two of a type meet
    ("B-A I-B", [A, B]),  # another type: another entity
    ("O I-A", [("A", 1, 1)]),
    ("B-A I-A E-A S-B", [("A", 0, 2), ("B", 3, 3)]),  # IOBES
    ("E-A E-A", [A, ("A", 1, 1)]),
    ("S-A I-A", [A, ("A", 1, 1)]),
    ("B-A I-A L-A U-B U-B", [("A", 0, 2), ("B", 3, 3), ("B", 4, 4)]),  # BILOU
    ("B-A-B I-A-B", [("A-B", 0, 1)]),
    ("B I O B", [("", 0, 1), ("", 3, 3)]),  # chunks without a type
    ("", []),
])  # fmt: skip
def test_entities_by_hand(tags: str, expected: list[Any]) -> None:
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["scheme"])
def test_seqeval_finds_the_same(case: dict[str, Any]) -> None:
    """Written by seqeval 1.2.2: `get_entities` of each text, and precision, recall and F1 of all."""
    for tags, expected in zip(case["truth"], case["entities"], strict=True):
        assert [list(one) for one in entities(tags)] == expected
    found = {measure.name: measure.value for measure in entity_measures(case["truth"], case["given"])}
    assert found == pytest.approx(
        {"entity F1": case["f1"], "entity precision": case["precision"], "entity recall": case["recall"]}, rel=1e-12
    )
    assert word_accuracy(case["truth"], case["given"]).value == pytest.approx(case["accuracy"], rel=1e-12)


def test_nothing_there_and_nothing_found_is_0() -> None:
    for truth, given in (([["O"]], [["O"]]), ([["B-A"]], [["O"]]), ([["O"]], [["B-A"]])):
        assert [measure.value for measure in entity_measures(truth, given)] == [0, 0, 0]
        for measure in entity_measures(truth, given):
            assert np.isfinite(measure.interval(resamples=10)).all()


@pytest.mark.parametrize(("labels", "expected"), [
    (["O", "B-PER", "I-PER"], True),
    (["I-NP", "O"], True),
    (["B", "I", "O"], True),
    (["B-A", "I-A", "L-A", "U-A", "O"], True),
    (["NOUN", "VERB", "O"], False),
    (["O", "PER"], False),
    (["IN", "B", "O"], False),
    (["S", "O"], False),
    (["B-PER", "I-PER", "X"], False),
    ([], False),
])  # fmt: skip
def test_which_tags_mark_entities(labels: list[str], expected: bool) -> None:
    assert has_entities(labels) is expected
