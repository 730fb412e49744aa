"""`triune generate` on tiny random models: streaming, files, infilling, and what it says to bad input."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.cli import main
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.exchange.model_directory import save_model
from triune.inference import beam_search, fill, generate
from triune.models.factory import build
from triune.training.samples import with_special
from triune.training.weights import load_model
from triune.training.writing import Writer

FAMILIES = ("decoder", "encoder", "encoder_decoder")
TEXTS = {"decoder": "the old", "encoder": "the <mask> dog <mask>", "encoder_decoder": "the <extra_id_0> dog"}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    text = ["the old dog sees a young cat", "où est la gare? 駅はどこ 🙂", "a cat and a dog under the house."] * 20
    return train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=400, sentinels=4), text)


@pytest.fixture(scope="module")
def directories(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory of each family, with weights so large that texts differ."""
    torch.set_num_threads(1)
    made = {}
    for family in FAMILIES:
        torch.manual_seed(1)
        model = build(
            {"family": family, "vocabulary": words.size + 3, "context": 48, "width": 32, "layers": 2, "heads": 4},
            tie_embeddings=False,
            **({"position": {"kind": "learned"}} if family == "decoder" else {}),
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.4)
        made[family] = tmp_path_factory.mktemp("models") / family
        save_model(model, words, made[family], objective="test")
    return made


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is read from disk once for all tests: that takes longer than they do."""
    monkeypatch.setattr("triune.training.writing.load_model", _read)


_read = cache(load_model)


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--temperature=0", "--min_new_tokens=5"], ["--seed=4", "--min_p=0.1"]])
def test_the_stream_is_the_whole_text(
    directories: dict[str, Path], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = (directories["decoder"], "--prompt=the old", "--max_new_tokens=20", *options)
    streamed = said(capsys, *given)
    assert streamed == said(capsys, *given, "--no-stream")
    assert streamed.startswith("the old")
    assert len(streamed) > 20


def test_a_decoder_says_what_generate_gives(
    directories: dict[str, Path], words: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = _read(str(directories["decoder"]))
    known = words.vocabulary
    prompt = [known.opening, *with_special(words, "the old")]
    row = generate(model, [prompt], max_new_tokens=15, eos=known.closing)[0]
    shown = [i for i in prompt + row if i < words.size and i not in (known.bos, known.eos, known.pad)]
    out = said(capsys, directories["decoder"], "--prompt=the old", "--temperature=0", "--max_new_tokens=15")
    assert out == words.decode(shown, skip_special_tokens=False) + "\n"


def test_stop_texts_cut_the_answer(directories: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    given = (directories["decoder"], "--prompt=the old", "--temperature=0", "--max_new_tokens=20")
    whole = said(capsys, *given)[len("the old") : -1]
    stop = whole[6:8]
    for stream in ("--stream", "--no-stream"):
        out = said(capsys, *given, stream, "--stop", "nothing of the kind", "--stop", stop)
        assert out == "the old" + whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gets_a_line_for_each_prompt(
    directories: dict[str, Path], family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [TEXTS[family], TEXTS[family] + " and a cat", "a cat " + TEXTS[family]]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt": texts[0], "id": 7}, texts[1], {"prompt": texts[2]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    greedy = [] if family == "encoder" else ["--temperature=0", "--max_new_tokens=10"]
    assert said(capsys, directories[family], "--input", file, "--output", out, "--batch_size=2", *greedy) == ""
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["prompt"] for record in found] == texts
    assert found[0]["id"] == 7
    for record in found:
        alone = said(capsys, directories[family], "--prompt", record["prompt"], "--no-stream", *greedy)
        assert alone == (record["prompt"] if family == "decoder" else "") + record["text"] + "\n"
    plain = tmp_path / "in.txt"
    plain.write_text("\n".join(texts) + "\n")
    printed = said(capsys, directories[family], "--input", plain, *greedy)
    assert [json.loads(line)["text"] for line in printed.splitlines()] == [record["text"] for record in found]


def test_searches_and_draws_give_several_texts(
    directories: dict[str, Path], words: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.txt"
    file.write_text("the old\na cat\n")
    given = (directories["decoder"], "--input", file, "--max_new_tokens=8")
    searched = [json.loads(line) for line in said(capsys, *given, "--beams=3", "--n_best=2").splitlines()]
    model, _ = _read(str(directories["decoder"]))
    prompts = [[words.vocabulary.opening, *with_special(words, text)] for text in ("the old", "a cat")]
    found = beam_search(model, prompts, beams=3, n_best=2, max_new_tokens=8, eos=words.vocabulary.closing)
    assert [record["scores"] for record in searched] == [[one.score for one in row] for row in found]
    assert all(record["text"] == record["texts"][0] != record["texts"][1] for record in searched)
    drawn = [json.loads(line) for line in said(capsys, *given, "--n_best=3", "--temperature=2").splitlines()]
    assert len({text for record in drawn for text in record["texts"]}) == 6


def test_an_encoder_fills_masks(
    directories: dict[str, Path], words: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    known = words.vocabulary
    row = [known.opening, *with_special(words, TEXTS["encoder"]), known.closing]
    model, _ = _read(str(directories["encoder"]))
    for option, one_by_one in (([], False), (["--one_by_one"], True)):
        read = list(row)
        for blank in fill(model, [row], mask=known.mask, pad=known.pad, one_by_one=one_by_one)[0]:
            read[blank.position] = blank.ids[0]
        shown = [i for i in read if i < words.size and i not in (known.bos, known.eos, known.pad)]
        out = said(capsys, directories["encoder"], "--prompt", TEXTS["encoder"], *option)
        assert out == words.decode(shown, skip_special_tokens=False) + "\n"
    best = said(capsys, directories["encoder"], "--prompt", TEXTS["encoder"], "--n_best=3").splitlines()
    assert [line[:4] for line in best] == ["[1, ", "[2, ", "[3, "]


def test_spans_stand_in_the_text(
    directories: dict[str, Path], words: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = words.vocabulary.sentinels[:2]
    answer = [first, *with_special(words, " old"), second, *with_special(words, " cat"), words.vocabulary.closing]
    monkeypatch.setattr("triune.training.writing.continue_rows", lambda *_, **__: [answer])
    out = said(capsys, directories["encoder_decoder"], "--prompt", "the<extra_id_0> dog and a<extra_id_1>.")
    assert out == "the old dog and a cat.\n"


def test_an_encoder_decoder_without_gaps_streams_what_it_writes(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = (directories["encoder_decoder"], "--prompt=the old dog", "--max_new_tokens=9")
    assert said(capsys, *given) == said(capsys, *given, "--no-stream") == said(capsys, *given, "--seed=9")


def test_the_default_length_keeps_to_a_learned_table(directories: dict[str, Path]) -> None:
    writer = Writer(*_read(str(directories["decoder"])), {})
    [task] = writer.tasks(["the old dog"])
    assert writer.config([task]).max_new_tokens == 48 + 1 - len(task.prompt)
    assert writer.config([task]).seed == 1


MISTAKES: list[tuple[str, list[str], str]] = [
    ("decoder", ["--prompt=x", "--input=in.txt"], "--prompt and --input: give one of them; in.txt would hold the prompts"),
    ("decoder", ["--output=o.jsonl"], "--output: o.jsonl is for the answers to a file of prompts; add --input, or leave it out"),
    ("decoder", ["--input=gone.txt"], "--input: gone.txt can't be read: No such file or directory"),
    ("decoder", ["--input=empty.txt"], "--input: empty.txt is empty; write one prompt a line"),
    ("decoder", ["--input=bytes.txt"], "--input: bytes.txt can't be read: it is no UTF-8 text (invalid start byte)"),
    ("decoder", ["--input=json.jsonl"], "--input: json.jsonl, line 2 is no JSON: Expecting value"),
    ("decoder", ["--input=key.jsonl"], "--input: key.jsonl, line 1 has 'text', 'id', but it must be a text or an object with a text 'prompt'"),
    ("decoder", ["--input=in.txt", "--stream"], "--stream: for one --prompt; answers to a file come batch by batch"),
    ("decoder", ["--input=in.txt", "--output=no/o.jsonl"], "--output: no/o.jsonl can't be written: No such file or directory"),
    ("decoder", ["--beams=2", "--stream"], "--stream: a search knows its text at the end only (--beams)"),
    ("decoder", ["--beams=2", "--temperature=1"], "beams is 2 and temperature 1, but beam search draws nothing: set temperature to 0, or beams to 1"),
    ("decoder", ["--beams=2", "--n_best=3"], "n_best is 3, but a search over 2 beams finds no more: raise beams"),
    ("decoder", ["--temperature=0", "--n_best=3"], "n_best is 3, but the best token each time makes one text: set beams, or a temperature above 0"),
    ("decoder", ["--stop="], "stop is ('',), but it must be texts of at least one character"),
    ("decoder", ["--min_new_tokens=5", "--max_new_tokens=4"], "min_new_tokens is 5, but it must be from 0 to max_new_tokens"),
    ("decoder", ["--top_p=0"], "top_p is 0, but it must be above 0 and at most 1 (all)"),
    ("decoder", ["--one_by_one"], "--one_by_one: for the masks of an encoder; this model is a decoder"),
    ("decoder", ["--max_new_tokens=60"], "max_new_tokens is 60, but after a prompt of 1 tokens the model's position table, model.context = 48, has room for 48: ask for fewer, or shorten the prompt"),
    ("encoder", ["--prompt=the dog"], "--prompt: 'the dog' has nothing to fill; write <mask> where a word is missing"),
    ("encoder", ["--prompt=<mask>", "--top_k=3"], "--top_k: an encoder fills masks and writes nothing after them; it knows --n_best and --one_by_one"),
    ("encoder", ["--prompt=<mask>", "--n_best=2", "--one_by_one"], "--n_best: 2, but --one_by_one fills masks in one way: leave one of them out"),
    ("encoder", ["--prompt=<mask>", "--stream"], "--stream: an encoder fills all masks at once"),
    ("encoder_decoder", ["--prompt=<extra_id_0>", "--stream"], "--stream: spans are put into the text at the end"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_mistakes(
    family: str,
    arguments: list[str],
    message: str,
    directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\n")
    Path("empty.txt").write_text("")
    Path("bytes.txt").write_bytes(b"\xff")
    Path("json.jsonl").write_text('"a"\nb\n')
    Path("key.jsonl").write_text('{"text": "a", "id": 1}\n')
    assert main(["generate", str(directories[family]), *arguments]) == 2
    assert capsys.readouterr().err == f"triune: {message}\n"
