"""What a model gives for encoded examples: in their order, whatever shares a batch, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from triune.inference import outputs as module
from triune.inference.outputs import outputs
from triune.models.factory import build
from triune.objectives.batch import Example, Vocabulary, collate
from triune.objectives.task import Encoded

torch.set_num_threads(1)

FP32 = 2e-5  # sums of 32 products in fp32 in another order
LENGTHS = [3, 11, 1, 7, 7, 12]
VOCABULARY = Vocabulary(size=64, pad=0, bos=1, eos=2)


@cache
def model(family: str, **head: Any) -> Any:
    torch.manual_seed(0)
    return build({"family": family, "vocabulary": 64, "context": 32, "width": 32, "layers": 2, "heads": 2, "dropout": 0.5},
                 **({"head": {"kind": "classes", **head}} if head else {})).train()  # fmt: skip


def encoded(length: int, number: int, family: str = "encoder", predicted: int = 1) -> Encoded:
    draw = np.random.default_rng(number)
    weights = np.zeros(length, np.float32)
    weights[-min(predicted, length) :] = 1
    own, place = np.zeros(length, np.int32), np.arange(length, dtype=np.int32)
    example = Example(
        inputs=draw.integers(3, 64, length), targets=draw.integers(3, 64, length), weights=weights, documents=own, positions=place,
    )  # fmt: skip
    if family == "encoder_decoder":
        longer = length + 2
        example = replace(
            example,
            source=draw.integers(3, 64, longer),
            source_documents=np.zeros(longer, np.int32),
            source_positions=np.arange(longer, dtype=np.int32),
        )
    return Encoded(example=example, record=number)


def asking(output: str) -> Any:
    return SimpleNamespace(output=output, vocabulary=VOCABULARY)


def hidden(one: Encoded, model: Any) -> Any:
    """[T, M] of an example alone, unpadded."""
    batch = collate([one.example], pad=0, length=None, multiple_of=1)
    model.eval()
    with torch.no_grad():
        found = model(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout)
    model.train()
    return found


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_scores_are_those_of_each_example_alone_in_order(family: str, batch_tokens: int) -> None:
    net = model(family, labels=3, pool="last")
    rows = [encoded(length, n, family, predicted=2) for n, length in enumerate(LENGTHS)]
    found = outputs(net, asking("scores"), rows, batch_tokens=batch_tokens)
    assert net.training  # the mode is given back, and dropout was off
    for one, scores in zip(rows, found, strict=True):
        chosen = torch.from_numpy(one.example.weights > 0)
        expected = net.head._scored(hidden(one, net)[0][chosen]).detach()
        assert scores.shape == (min(2, len(one.example.inputs)), 3)
        assert scores == pytest.approx(expected.numpy(), abs=FP32)


def test_positions_are_the_scores_of_every_token_without_padding() -> None:
    net = model("encoder", labels=2, pool="none", problem="span", transform=False)
    rows = [encoded(length, n) for n, length in enumerate(LENGTHS)]
    for one, scores in zip(rows, outputs(net, asking("positions"), rows), strict=True):
        assert scores.shape == (len(one.example.inputs), 2)
        assert scores == pytest.approx(net.head._scored(hidden(one, net))[0].detach().numpy(), abs=FP32)


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_likelihoods_are_those_of_the_targets(family: str) -> None:
    net = model(family)
    rows = [encoded(length, n, family, predicted=3) for n, length in enumerate(LENGTHS)]
    for one, found in zip(rows, outputs(net, asking("likelihoods"), rows), strict=True):
        chosen = one.example.weights > 0
        scores = net.head.logits(hidden(one, net)[0]).log_softmax(-1).detach().numpy()
        expected = [scores[place, one.example.targets[place]] for place in np.flatnonzero(chosen)]
        assert found == pytest.approx(np.array(expected), abs=FP32)


def test_vectors_are_one_a_document() -> None:
    net = model("encoder", labels=0, pool="mean", problem="match", transform=False)
    rows = [encoded(length, n) for n, length in enumerate(LENGTHS)]
    split = rows[3].example  # two documents: 4 and 3 tokens
    documents = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)
    positions = np.array([0, 1, 2, 3, 0, 1, 2], np.int32)
    rows[3] = replace(rows[3], example=replace(split, documents=documents, positions=positions))
    found = outputs(net, asking("vectors"), rows)
    assert [vectors.shape for vectors in found] == [(1, 32)] * 3 + [(2, 32)] + [(1, 32)] * 2
    state = hidden(rows[3], net)[0]
    expected = torch.stack([state[:4].mean(0), state[4:].mean(0)])
    assert found[3] == pytest.approx(expected.numpy(), abs=FP32)


def test_the_longest_goes_first_and_a_batch_has_no_more_than_its_tokens() -> None:
    rows = [encoded(length, n) for n, length in enumerate(LENGTHS)]
    batches = list(module._batches(rows, 22))
    assert batches == [[5], [1, 3], [4, 0, 2]]
    both = [encoded(length, n, "encoder_decoder") for n, length in enumerate(LENGTHS)]  # its source is longer by 2
    assert list(module._batches(both, 26)) == [[5], [1, 3], [4, 0], [2]]


def test_nothing_to_ask_is_nothing_given() -> None:
    assert outputs(model("encoder", labels=3, pool="last"), asking("scores"), []) == []


def test_a_task_that_writes_is_asked_behind_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def generate(net: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
        asked.append({"prompts": prompts, **settings})
        return [[len(prompt)] for prompt in prompts]

    monkeypatch.setattr(module, "generate", generate)
    rows = [encoded(4, 0, "encoder_decoder"), replace(encoded(6, 1, "encoder_decoder"), prompt=np.array([1, 9]))]
    found = outputs(model("encoder_decoder"), asking("text"), rows, writing={"beams": 3, "max_new_tokens": 99})
    assert found == [[1], [2]]
    [told] = asked
    assert told["prompts"] == [[1, 9], rows[0].example.inputs[:1].tolist()]  # the longest row first
    assert told["sources"] == [row.example.source.tolist() for row in rows[::-1]]  # type: ignore[union-attr]
    assert (told["beams"], told["max_new_tokens"], told["eos"], told["pad"]) == (3, 30, 2, 0)  # 32 tokens of context
