"""Sequence to sequence from both families: layout, cuts, what is written and measured, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_text_cases import alone_and_packed, learn, model_for, pair, predictions, task_of, tokenizer

from triune.errors import UserError
from triune.objectives.batch import Segment
from triune.objectives.build import build
from triune.objectives.config import TranslationObjective
from triune.objectives.seeding import generator
from triune.objectives.task_config import SequenceToSequenceTask

FAMILIES = ("decoder", "encoder_decoder")
TEXTS = st.text(st.sampled_from("abc dé.\n"), min_size=1, max_size=12).filter(str.strip)


def ids(text: str) -> list[int]:
    return tokenizer().encode_batch([text])[0].tolist()


def whole(example) -> list[int]:
    """A decoder's row with the last target, which it does not read."""
    assert example.inputs[1:].tolist() == example.targets[:-1].tolist()
    return [*example.inputs.tolist(), int(example.targets[-1])]


# ---- layout ---------------------------------------------------------------------------------------------------------


@given(TEXTS, TEXTS)
@settings(max_examples=25, deadline=None)
def test_a_decoder_reads_source_separator_and_target_and_learns_the_target_alone(text, target):
    task = task_of(SequenceToSequenceTask(prefix="en: ", separator=" = "), "decoder")
    [one] = task.encode([pair(text, target)], training=True)
    known = tokenizer().vocabulary
    start = [known.bos, *ids("en: " + text), *ids(" = ")]
    assert whole(one.example) == [*start, *ids(target), known.eos]
    assert one.prompt.tolist() == start
    learned = one.example.targets[one.example.weights > 0].tolist()
    assert learned == [*ids(target), known.eos]
    assert set(one.example.weights.tolist()) <= {0.0, 1.0}
    assert one.example.positions.tolist() == list(range(len(one.example.inputs)))


@given(TEXTS, TEXTS)
@settings(max_examples=25, deadline=None)
def test_an_encoder_decoder_reads_what_translation_of_pairs_does(text, target):
    task = task_of(SequenceToSequenceTask(), "encoder_decoder")
    [one] = task.encode([pair(text, target)], training=True)
    pretraining = build(TranslationObjective(), tokenizer().vocabulary, 64)
    segment = Segment(np.array(ids(text) + ids(target)), split=len(ids(text)))
    expected = pretraining([segment], generator(0, epoch=0, row=0))
    for name in one.example.__dataclass_fields__:
        ours, theirs = getattr(one.example, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or ours.tolist() == theirs.tolist(), name
    assert one.prompt.tolist() == [tokenizer().vocabulary.decoder_start]


def test_the_prefix_stands_before_the_source_in_an_encoder_too():
    task = task_of(SequenceToSequenceTask(prefix="to b: "), "encoder_decoder")
    [one] = task.encode([pair("a", "b")], training=True)
    assert one.example.source.tolist() == [*ids("to b: a"), tokenizer().vocabulary.eos]


# ---- cuts -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(8, 30))
@settings(max_examples=25, deadline=None)
def test_a_decoders_row_gives_way_at_the_sources_end_and_then_at_the_targets(source, target, context):
    task = task_of(SequenceToSequenceTask(separator="="), "decoder", context=context)
    text, wanted = "x" * source, "y" * target  # a token a letter
    [one] = task.encode([pair(text, wanted)], training=True)
    full = task.text.decode(whole(one.example), skip_special_tokens=False)
    room = context + 1 - 3  # <s>, = and </s>
    if source + target <= room:
        assert full == f"<s>{text}={wanted}</s>"
    elif target <= room:
        assert full == f"<s>{'x' * (room - target)}={wanted}</s>"
    else:
        assert full == f"<s>={'y' * (room + 1)}"  # what is cut does not learn to end
    assert len(one.example.inputs) <= context


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_each_side_of_an_encoder_decoder_is_cut_by_itself(source, target):
    task = task_of(SequenceToSequenceTask(), "encoder_decoder", context=16)
    [one] = task.encode([pair("x" * source, "y" * target)], training=True)
    assert task.text.decode(one.example.source, skip_special_tokens=False) == "x" * min(source, 15) + "</s>"
    learned = task.text.decode(one.example.targets, skip_special_tokens=False)
    assert learned == ("y" * target + "</s>" if target <= 15 else "y" * 16)


@pytest.mark.parametrize(("length", "kept"), [(None, 16), (10, 10)])
def test_a_prompt_leaves_room_to_write_and_knows_nothing_of_the_target(length, kept):
    task = task_of(SequenceToSequenceTask(separator="=", target_length=length), "decoder", context=32)
    one, other = task.encode([pair("x" * 50, "y"), pair("x" * 50, "y" * 20)], training=False)
    assert len(one.prompt) == 32 - kept
    assert one.prompt.tolist() == other.prompt.tolist()
    assert task.text.decode(one.prompt, skip_special_tokens=False).endswith("x=")


def test_the_reference_is_measured_whole_where_its_row_is_cut():
    task = task_of(SequenceToSequenceTask(metric="exact_match"), "encoder_decoder", context=8)
    record = pair("a", "y" * 20)
    [measure] = task.measures([{"text": "y" * 8}], [record])
    assert measure.value == 0
    assert task.measures([{"text": "y" * 20}], [record])[0].value == 1


def test_it_is_told_what_is_cut():
    task = task_of(SequenceToSequenceTask(separator="="), "decoder", context=16)
    told = task.describe([pair("x", "y"), pair("x" * 14, "yy"), pair("x", "y" * 30)])
    assert told.splitlines() == [
        "3 pairs; tokens of a source 1, 14, of a target 2, 30 (median, longest)",
        "1 targets are longer than a row of 16 tokens leaves room for, and lose their end",
        "2 sources are longer than a row of 16 tokens leaves room for, and lose their end",
        "1 sources lose their end when their text is written, because a row keeps 8 tokens for it; objective.target_length sets how many",
    ]
    assert task.describe([pair("x", "y")]).count("\n") == 0


# ---- what is written ------------------------------------------------------------------------------------------------


@given(TEXTS)
@settings(max_examples=25, deadline=None)
def test_written_ids_become_their_text_without_what_stands_behind_the_closing(text):
    task = task_of(SequenceToSequenceTask(), "decoder")
    known = tokenizer().vocabulary
    records = [pair("a", text)]
    encoded = task.encode(records, training=False)
    for behind in ([], [known.eos], [known.eos, known.pad, 40]):
        assert task.predict(encoded, [np.array(ids(text) + behind)], records) == [{"text": text.strip()}]


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("bleu", ["BLEU", "chrF"]),
        ("rouge", ["ROUGE-1", "ROUGE-2", "ROUGE-L"]),
        ("exact_match", ["exact match"]),
    ],
)
def test_the_metric_says_what_is_measured_and_a_copy_of_the_source_is_the_baseline(metric, names):
    task = task_of(SequenceToSequenceTask(metric=metric), "decoder")
    same, other = pair("the cat sat on it", "the cat sat on it"), pair("one", "two")
    assert [measure.name for measure in task.measures([{"text": "a"}], [same])] == names
    assert task.baseline([], [same]) == dict.fromkeys(names, 1.0)
    assert task.baseline([], [other])[names[0]] == 0.0


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_to_turn_letters_round(family):
    task = task_of(SequenceToSequenceTask(separator="=", metric="exact_match"), family, context=16)
    records = [pair(a + b, b + a) for a in "cdefg" for b in "hijkl"]
    model = model_for(task)
    before = task.measures(predictions(model, task, records), records)[0].value
    learn(model, task, records, steps=110)
    assert before == 0
    assert task.measures(predictions(model, task, records), records)[0].value == 1
    assert task.measures(predictions(model, task, records, beams=3, length_penalty=1.0), records)[0].value == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_rows_alone(family):
    task = task_of(SequenceToSequenceTask(), family)
    alone, packed = alone_and_packed(task, [pair("one two", "three"), pair("the cat", "sat"), pair("a", "on the mat")])
    np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-12)  # fp64: sums of values near 1 in another order


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pair("a", "  "), "pairs.csv:2: the target is '  ', which holds no token to learn"),
        (pair(" ", "b"), "pairs.csv:2: the text is ' ', which holds no token to read"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_blank_text_is_refused_in_training_with_its_place(record, message, family):
    task = task_of(SequenceToSequenceTask(), family)
    with pytest.raises(UserError) as caught:
        task.encode([pair("a", "b", "pairs.csv:1"), record], training=True)
    assert str(caught.value).startswith(message)
    assert len(task.encode([record], training=False)) == 1


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        (SequenceToSequenceTask(beams=0), "decoder", "objective.beams: 0 is below 1"),
        (SequenceToSequenceTask(target_length=0), "decoder", "objective.target_length: 0 tokens are not between 1 and"),
        (SequenceToSequenceTask(target_length=65), "encoder_decoder", "objective.target_length: 65 tokens"),
        (SequenceToSequenceTask(separator=""), "decoder", "objective.separator: '' is no token of this tokenizer"),
        (SequenceToSequenceTask(label_smoothing=1.0), "decoder", "objective.label_smoothing: 1.0 is a share"),
        (
            SequenceToSequenceTask(),
            "encoder",
            "objective.kind: 'sequence_to_sequence' works from a model of family decoder or",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, family, message):
    with pytest.raises(UserError) as caught:
        task_of(config, family)
    assert str(caught.value).startswith(message)


def test_a_tokenizer_without_line_ends_needs_another_separator():
    with pytest.raises(UserError, match=r"objective.separator"):
        task_of(SequenceToSequenceTask(), "decoder", text=tokenizer("wordpiece"))
    task_of(SequenceToSequenceTask(separator="?"), "decoder", text=tokenizer("wordpiece"))
    task_of(SequenceToSequenceTask(separator=""), "encoder_decoder")


def test_a_row_must_have_room():
    with pytest.raises(UserError, match=r"data.rows.length: a row of 2 tokens has no room"):
        task_of(SequenceToSequenceTask(), "decoder", context=2)
