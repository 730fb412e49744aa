"""A model with a task's head opens without triune: `transformers.pipeline` gives the labels and scores that the task itself predicts.

Texts of different lengths, batched with padding there and one by one here; pairs too, with BERT's segments and without. Scores are
probabilities of two fp32 computations whose logits differ by 1e-5 of their size at most (`exchange.parity.tolerance`): 1e-4 of a
probability. There is no question-answering pipeline in transformers 5, so that its class is asked for the scores of starts and ends.
"""

import json
import subprocess
import sys

import pytest
import torch

from triune.attention.layout import SequenceLayout
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.exchange.exporting import to_huggingface
from triune.exchange.task_heads import head_for
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.models.factory import build
from triune.objectives.record import Record
from triune.objectives.task_config import (
    ClassificationTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)
from triune.objectives.tasks import build_task
from triune.tree import construct

TEXTS = [
    "the river",
    "the river that runs through the city is wide, and on a summer evening people sit at its banks",
    "people talk and talk",
    "a city of wide rivers, and of narrow ones",
    "sit!",
]
PAIRS = [(TEXTS[1], TEXTS[2]), (TEXTS[0], TEXTS[3]), (TEXTS[4], TEXTS[0])]
SHAPE = {"vocabulary": 320, "context": 64, "width": 32, "layers": 2, "heads": 4}
FAMILIES = {
    "bert": {
        "family": "encoder",
        "position": {"kind": "learned"},
        "norm": {"placement": "post", "embedding": True},
        "token_types": 2,
    },
    "llama": {
        "family": "decoder",
        "bias": False,
        "norm": {"kind": "rms"},
        "feed_forward": {"kind": "swiglu"},
    },
    "t5": {
        "family": "encoder_decoder",
        "bias": False,
        "norm": {"kind": "rms"},
        "position": {"kind": "t5"},
        "attention": {"scale": 1.0},
        "feed_forward": {"kind": "relu"},
    },
}
NAMES = ["news", "späm", "O"]
#: name -> (architecture, task, pairs of texts)
CASES = {
    "bert one class": ("bert", ClassificationTask(labels=NAMES), False),
    "bert pairs": ("bert", ClassificationTask(labels=NAMES), True),
    "bert pairs with segments": ("bert", ClassificationTask(labels=NAMES), True),
    "bert several classes": ("bert", ClassificationTask(labels=NAMES, multi_label=True), False),
    "bert a number": ("bert", RegressionTask(), False),
    "bert tokens": ("bert", TokenClassificationTask(labels=NAMES, label_pieces="all"), False),
    "bert answers": ("bert", QuestionAnsweringTask(), True),
    "llama one class": ("llama", ClassificationTask(labels=NAMES), False),
    "llama several classes": ("llama", ClassificationTask(labels=NAMES, multi_label=True), False),
    "llama pairs": ("llama", ClassificationTask(labels=NAMES), True),
    "llama tokens": ("llama", TokenClassificationTask(labels=NAMES, label_pieces="all"), False),
    "t5 one class": ("t5", ClassificationTask(labels=NAMES), False),
    "t5 pairs": ("t5", ClassificationTask(labels=NAMES), True),
    "t5 a number": ("t5", RegressionTask(), False),
}
THERE = """
import json, sys
sys.path = [entry for entry in sys.path if "platform" not in entry]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
try:
    import triune
except ImportError:
    pass
else:
    raise SystemExit("triune is on the path")
import torch, transformers
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
found = {}
for name, (place, pipeline, asked) in json.load(open(sys.argv[1])).items():
    if pipeline == "answers":
        words = transformers.AutoTokenizer.from_pretrained(place)
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(place)
        given = words([a for a, b in asked], [b for a, b in asked], padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model(**given)
        scores = torch.stack([out.start_logits, out.end_logits], -1)
        found[name] = [row[mask > 0].tolist() for row, mask in zip(scores, given["attention_mask"])]
        continue
    if pipeline == "token-classification":
        pipe = transformers.pipeline(pipeline, model=place, batch_size=3, ignore_labels=[])
        found[name] = [{one["index"]: (one["entity"], float(one["score"])) for one in row} for row in pipe(asked)]
        continue
    pipe = transformers.pipeline(pipeline, model=place, batch_size=3, top_k=None)
    asked = [{"text": one[0], "text_pair": one[1]} if isinstance(one, list) else one for one in asked]
    found[name] = [{one["label"]: one["score"] for one in row} for row in pipe(asked)]
print(json.dumps(found))
"""
PIPELINES = {"TokenClassificationTask": "token-classification", "QuestionAnsweringTask": "answers"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One trained here, and the same with BERT's own frame, whose second text is segment 1."""
    plain = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=310, sentinels=4), TEXTS * 3)
    place = tmp_path_factory.mktemp("tokenizer")
    plain.save(place)
    definition = json.loads((place / "tokenizer.json").read_text())
    special = {token: plain.tokens[token] for token in ("<s>", "</s>")}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [_piece("<s>"), _text("A"), _piece("</s>")],
        "pair": [_piece("<s>"), _text("A"), _piece("</s>"), _text("B", 1), _piece("</s>", 1)],
        "special_tokens": {t: {"id": t, "ids": [number], "tokens": [t]} for t, number in special.items()},
    }
    (place / "tokenizer.json").write_text(json.dumps(definition))
    return {"plain": plain, "segments": Tokenizer.load(place)}


def _piece(token, segment=0):
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _text(name, segment=0):
    return {"Sequence": {"id": name, "type_id": segment}}


def records_of(config, *, pairs):
    """What the task reads of the same texts, without labels."""
    if isinstance(config, QuestionAnsweringTask):
        return [Record("here", {"question": question, "context": context}) for question, context in PAIRS]
    if isinstance(config, TokenClassificationTask):
        return [Record("here", {"words": text.split(" ")}) for text in TEXTS]
    label = {"score": 0.0} if isinstance(config, RegressionTask) else {}
    if pairs:
        return [Record("here", {"text": text, "pair": pair} | label) for text, pair in PAIRS]
    return [Record("here", {"text": text} | label) for text in TEXTS]


@torch.no_grad()
def ask(model, task, encoded):
    """The scores of each row, alone: of the positions that the task marks, or of all."""
    found = []
    for one in encoded:
        row = one.example
        layout = SequenceLayout.from_lengths([len(row.inputs)], len(row.inputs))
        around = {"layout": layout}
        if row.source is not None:
            count = len(row.source)
            around |= {"source": torch.tensor(row.source)[None]}
            around |= {"source_layout": SequenceLayout.from_lengths([count], count)}
        elif row.token_types is not None:
            around["token_types"] = torch.tensor(row.token_types)[None]
        hidden = model(torch.tensor(row.inputs)[None], **around)
        weights = torch.ones(1, len(row.inputs)) if task.output == "positions" else torch.tensor(row.weights)[None]
        found.append(model.head.scores(hidden, weights, layout))
    return found


def answer_of(task, encoded, outputs, records):
    """Our predictions in the form in which the pipeline gives its own."""
    if task.kind == "question_answering":
        return [scores.tolist() for scores in outputs]
    if task.kind == "token_classification":
        places = [one.example.weights.nonzero()[0] for one in encoded]  # a token of white space alone is of no word
        chances = [scores.softmax(-1) for scores in outputs]
        return [
            {str(place): [NAMES[int(one.argmax())], float(one.max())] for place, one in zip(row, scores, strict=True)}
            for row, scores in zip(places, chances, strict=True)
        ]
    if task.kind == "regression":
        return [{"LABEL_0": float(scores)} for scores in outputs]
    return [one["scores"] for one in task.predict(encoded, [scores.numpy() for scores in outputs], records)]


@pytest.fixture(scope="module")
def both(tokenizers, tmp_path_factory):
    """case -> (our answers, theirs), theirs from one process without triune."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("exported")
    ours, asked = {}, {}
    for name, (architecture, config, pairs) in CASES.items():
        words = tokenizers["segments" if "segments" in name else "plain"]
        shape = construct(ModelConfig, SHAPE | FAMILIES[architecture], "model")
        task = build_task(
            config,
            words,
            64,
            family=shape.family,
            labels=getattr(config, "labels", None),
            token_types=shape.token_types > 1,
        )
        wanted = dict(task.head())
        twin = head_for(shape, None, wanted["problem"], wanted["labels"], pool=wanted["pool"])
        model = spread(build(with_head(shape, wanted | twin)).eval())
        labels = getattr(config, "labels", None)
        directory = place / name.replace(" ", "_")
        assert to_huggingface(model, directory, words, labels=labels).architecture == architecture
        records = records_of(config, pairs=pairs)
        encoded = task.encode(records, training=False)
        assert len(encoded) == len(records)
        ours[name] = answer_of(task, encoded, ask(model, task, encoded), records)
        asked[name] = (
            str(directory),
            PIPELINES.get(type(config).__name__, "text-classification"),
            PAIRS if pairs else TEXTS,
        )
    (place / "asked.json").write_text(json.dumps(asked))
    (place / "there.py").write_text(THERE)
    there = subprocess.run(
        [sys.executable, "-I", str(place / "there.py"), str(place / "asked.json")],
        capture_output=True, text=True, cwd=place, check=False,
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    return ours, json.loads(there.stdout.splitlines()[-1]), place


def with_head(shape, settings):
    import dataclasses

    return dataclasses.replace(shape, head=construct(ClassHeadConfig, settings, "model.head"))


def spread(model):
    """Weights so large that texts get different answers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_without_triune_predicts_the_same(name, both):
    ours, theirs, _ = both
    here, there = ours[name], theirs[name]
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        if "answers" in name:
            torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=1e-4, atol=1e-4)
        elif "tokens" in name:
            assert {place: other[place][0] for place in one} == {place: label for place, (label, _) in one.items()}
            for place, (_, score) in one.items():
                assert other[place][1] == pytest.approx(score, abs=1e-4)
        else:
            assert other == pytest.approx(one, abs=1e-4)
    distinct = {json.dumps(one) for one in here}
    assert len(distinct) == len(here)  # not one answer to all


def test_labels_and_the_frame_are_in_the_exported_files(both, tokenizers):
    from transformers import AutoConfig, AutoTokenizer

    _, _, place = both
    config = AutoConfig.from_pretrained(place / "llama_several_classes")
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: number for number, name in enumerate(NAMES)}
    assert (config.problem_type, config.num_labels) == ("multi_label_classification", 3)
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert config.pad_token_id == tokenizers["plain"].vocabulary.pad
    for case, words, family in (
        ("bert_pairs", "plain", "encoder"),
        ("bert_pairs_with_segments", "segments", "encoder"),
        ("t5_pairs", "plain", "encoder_decoder"),
        ("llama_one_class", "plain", "decoder"),
    ):
        opened, tokenizer = AutoTokenizer.from_pretrained(place / case), tokenizers[words]
        first, second = tokenizer.encode_batch(list(PAIRS[0]))
        frame = tokenizer.frame(family)
        pair = opened(*PAIRS[0])
        assert pair.input_ids == frame(first, second).ids.tolist()
        assert opened(PAIRS[0][0]).input_ids == frame(first).ids.tolist()
        assert pair.get("token_type_ids", [0] * len(pair.input_ids)) == frame(first, second).token_types.tolist()
