"""`triune generate`: what a saved model makes of a person's texts, one on the terminal as it comes, or a file of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.carried import Carried
from triune.exchange.model_directory import Saved
from triune.inference.beam import beam_search
from triune.inference.config import GenerationConfig
from triune.inference.filling import fill, filled, fillings
from triune.inference.generation import generate as continue_rows
from triune.inference.generation import stream as continue_row
from triune.inference.spans import restored
from triune.inference.text import Spelling, Stops, cut
from triune.models.config import LearnedPosition
from triune.models.encoder import Encoder
from triune.models.factory import Transformer
from triune.training.samples import Task, with_special
from triune.training.weights import load_model, tokenizer_of

_NEW = 100  # tokens to write where nothing else is asked for
_SAMPLING = {"temperature": 0.8, "top_k": 50, "seed": 1}  # of a decoder, likewise
_BEFORE = 8  # tokens of the prompt that tell how the first new one is spelled


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model made of one text.

    Args:
        texts: best first.
        scores: of each text: of a search its score in nats a token (`Hypothesis`), of filled masks their probability; else none.
    """

    texts: list[str]
    scores: list[float] = field(default_factory=list)


class Writer:
    """A saved model that answers texts: a decoder goes on, an encoder fills masks, an encoder-decoder writes what it was trained to.

    Args:
        model: in evaluation.
        saved: where it lies.
        settings: fields of `GenerationConfig` that a person chose; for an encoder only `n_best`.
        one_by_one: see `fill`.

    Raises UserError for settings that do not fit the family or one another.
    """

    def __init__(
        self, model: Transformer, saved: Saved, settings: Mapping[str, Any], *, one_by_one: bool = False
    ) -> None:
        self.model = model
        self.settings = dict(settings)
        self.one_by_one = one_by_one
        self.family = model.config.family
        self.tokenizer: Tokenizer = tokenizer_of(saved)
        self.vocabulary = self.tokenizer.vocabulary
        self.carried = Carried.read(saved.path)
        self.ends = self._ends()
        self.hidden = {self.vocabulary.pad, self.vocabulary.bos, self.vocabulary.eos, *self.ends}
        self._check()

    def tasks(self, texts: Sequence[str]) -> list[Task]:
        """Ids of each text; UserError where an encoder's text has no mask to fill."""
        known = self.vocabulary
        if self.family == "encoder_decoder":
            opening = self.carried.opening(known.decoder_start)
            return [Task(prompt=opening, source=[*with_special(self.tokenizer, text), known.closing]) for text in texts]
        if self.family == "decoder":
            return [Task(prompt=[known.opening, *with_special(self.tokenizer, text)]) for text in texts]
        rows = [with_special(self.tokenizer, text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if known.mask not in row:
                mask = self.tokenizer.roles.mask
                raise UserError(f"--prompt: {text!r} has nothing to fill; write {mask} where a word is missing")
        return [Task(prompt=[known.opening, *row, known.closing]) for row in rows]

    def answers(self, texts: Sequence[str], *, number: int = 0) -> list[Answer]:
        """One for each text, of all texts together; `number` is that of the batch, of which the seed of sampling depends."""
        work = self.tasks(texts)
        if isinstance(self.model, Encoder):
            return self._fill([task.prompt for task in work])
        config = self.config(work)
        if config.seed is not None:
            config = dataclasses.replace(config, seed=config.seed + number)
        if config.beams > 1:
            return self._search(work, config)
        copies = [task for task in work for _ in range(config.n_best)]
        rows = continue_rows(self.model, **self._given(copies, config), config=dataclasses.replace(config, n_best=1))
        found = [self._text(task, row, config) for task, row in zip(copies, rows, strict=True)]
        return [Answer(texts=found[i : i + config.n_best]) for i in range(0, len(found), config.n_best)]

    def pieces(self, text: str) -> Iterator[str]:
        """What the model writes for one text, in pieces as they become certain. `streams` says whether it can."""
        assert not isinstance(self.model, Encoder)
        work = self.tasks([text])
        config = self.config(work)
        spelling = Spelling(self.decode, config.stop, self._before(work[0]))
        for [token] in continue_row(self.model, **self._given(work, config), config=config):
            assert token is not None
            if piece := spelling.push(token):
                yield piece
        yield spelling.rest()

    def streams(self, text: str) -> str:
        """Why the answer to a text can't come in pieces; empty where it can."""
        if self.family == "encoder":
            return "an encoder fills all masks at once"
        if self.settings.get("beams", 1) > 1:
            return "a search knows its text at the end only (--beams)"
        if self.settings.get("n_best", 1) > 1:
            return "several texts are written at once (--n_best)"
        if self._has_spans(self.tasks([text])[0]):
            return "spans are put into the text at the end"
        return ""

    def config(self, work: Sequence[Task]) -> GenerationConfig:
        """What was chosen, over what suits the family and the room in the model."""
        chosen: dict[str, Any] = {"max_new_tokens": _NEW}
        if isinstance(self.model.config.position, LearnedPosition):
            room = int(self.model.config.context) + 1 - max(len(task.prompt) for task in work)
            chosen["max_new_tokens"] = max(1, min(_NEW, room))
        if self.family == "decoder" and self.settings.get("beams", 1) == 1:
            chosen |= _SAMPLING
        return GenerationConfig(**chosen | self.settings)

    def decode(self, ids: Sequence[int]) -> str:
        """Text with masks and sentinels, without the borders of documents and entries that only round up the vocabulary."""
        shown = [i for i in ids if i not in self.hidden and i < self.tokenizer.size]
        return self.tokenizer.decode(shown, skip_special_tokens=False)

    def _check(self) -> None:
        if self.family == "encoder":
            for name in self.settings:
                if name != "n_best":
                    raise UserError(
                        f"--{name}: an encoder fills masks and writes nothing after them; it knows --n_best and --one_by_one"
                    )
            if self.one_by_one and self.settings.get("n_best", 1) > 1:
                raise UserError(
                    f"--n_best: {self.settings['n_best']}, but --one_by_one fills masks in one way: leave one of them out"
                )
            return
        if self.one_by_one:
            raise UserError(f"--one_by_one: for the masks of an encoder; this model is a {self.family}")
        self.config([Task(prompt=[0])])

    def _ends(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's, and those that the model's own settings of generation name."""
        named = self.carried.generation.get("eos_token_id")
        return frozenset([self.vocabulary.closing, *(named if isinstance(named, list) else [named] if named else [])])

    def _given(self, work: Sequence[Task], config: GenerationConfig) -> dict[str, Any]:
        """The arguments of generation, but for the config."""
        sources = [task.source for task in work if task.source is not None] or None
        # rows of one batch have different texts before them, which matter for the first characters only
        ending = Stops(self.decode, config.stop) if config.stop else None
        prompts = [task.prompt for task in work]
        return {
            "prompts": prompts,
            "sources": sources,
            "eos": self.ends,
            "pad": self.vocabulary.pad,
            "ending": ending,
        }

    def _search(self, work: Sequence[Task], config: GenerationConfig) -> list[Answer]:
        assert not isinstance(self.model, Encoder)
        found = beam_search(self.model, config=config, **self._given(work, config))
        return [
            Answer(
                texts=[self._text(task, one.ids, config) for one in beams],
                scores=[one.score for one in beams],
            )
            for task, beams in zip(work, found, strict=True)
        ]

    def _fill(self, rows: Sequence[list[int]]) -> list[Answer]:
        assert isinstance(self.model, Encoder)
        assert self.vocabulary.mask is not None
        count = self.settings.get("n_best", 1)
        blanks = fill(
            self.model,
            rows,
            mask=self.vocabulary.mask,
            pad=self.vocabulary.pad,
            candidates=count,
            one_by_one=self.one_by_one,
        )
        answers = []
        for row, places in zip(rows, blanks, strict=True):
            ways = fillings(places, count)
            chosen = [
                [dataclasses.replace(blank, ids=[token]) for blank, token in zip(places, ids, strict=True)]
                for ids, _ in ways
            ]
            texts = [self.decode(filled([row], [one])[0]) for one in chosen]
            answers.append(Answer(texts=texts, scores=[probability for _, probability in ways]))
        return answers

    def _text(self, task: Task, row: Sequence[int], config: GenerationConfig) -> str:
        """What a row says: after a prompt, in the gaps of a source, or by itself."""
        if self._has_spans(task):
            assert task.source is not None
            return cut(self.decode(restored(task.source, row, self.vocabulary.sentinels, self.ends)), config.stop)
        before = self._before(task)
        text = self.decode([*before, *row])[len(self.decode(before)) :]
        return cut(text, config.stop)

    def _has_spans(self, task: Task) -> bool:
        return task.source is not None and not set(self.vocabulary.sentinels).isdisjoint(task.source)

    def _before(self, task: Task) -> list[int]:
        """The last tokens that the answer goes on from; none for an answer of its own."""
        return [] if task.source is not None else task.prompt[-_BEFORE:]


def generate(
    run_directory: str,
    *,
    prompt: str | None = None,
    input: str | None = None,
    output: str | None = None,
    batch_size: int = 8,
    stream: bool | None = None,
    one_by_one: bool = False,
    **settings: Any,
) -> int:
    """Answer one text on the terminal, or all texts of a file; the exit code.

    Args:
        run_directory: a run, a `model/` directory or one of Hugging Face's.
        prompt: the text; None is the empty one.
        input: a file of prompts: .jsonl (objects with "prompt", whose other fields are kept, or texts), else one a line.
        output: a .jsonl file for the answers; None is the terminal.
        batch_size: prompts of a file that are answered together.
        stream: print the answer as it comes; None does where it can.
        one_by_one: see `fill`.
        settings: fields of `GenerationConfig`; None is the default.

    Raises UserError for everything a user can mend.
    """
    if prompt is not None and input is not None:
        raise UserError(f"--prompt and --input: give one of them; {input} would hold the prompts")
    if input is None and output is not None:
        raise UserError(f"--output: {output} is for the answers to a file of prompts; add --input, or leave it out")
    records = None if input is None else read_prompts(Path(input))
    if input is not None and stream:
        raise UserError("--stream: for one --prompt; answers to a file come batch by batch")
    chosen = {name: value for name, value in settings.items() if value is not None}
    if "stop" in chosen:
        chosen["stop"] = tuple(_unescaped(text) for text in chosen["stop"])
    model, saved = load_model(run_directory)
    writer = Writer(model, saved, chosen, one_by_one=one_by_one)
    if records is not None:
        _answer_file(writer, records, output, batch_size)
    else:
        _answer(writer, prompt or "", stream)
    return 0


def _answer(writer: Writer, text: str, stream: bool | None) -> None:
    """Print the answer to one text; a decoder's stands behind its prompt."""
    obstacle = writer.streams(text)
    if stream and obstacle:
        raise UserError(f"--stream: {obstacle}")
    shown = writer.decode(writer.tasks([text])[0].prompt) if writer.family == "decoder" else ""
    if stream is not False and not obstacle:
        sys.stdout.write(shown)
        for piece in writer.pieces(text):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return
    [answer] = writer.answers([text])
    if len(answer.texts) == 1:
        print(shown + answer.texts[0])
        return
    for number, found in enumerate(answer.texts):
        score = f", {answer.scores[number]:.4f}" if answer.scores else ""
        print(f"[{number + 1}{score}] {shown}{found}")


def _answer_file(writer: Writer, records: Sequence[dict[str, Any]], output: str | None, batch_size: int) -> None:
    """Write a line for each prompt, batch by batch."""
    with ExitStack() as opened:
        try:
            file = sys.stdout if output is None else opened.enter_context(Path(output).open("w", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--output: {output} can't be written: {error.strerror}") from error
        for number, start in enumerate(range(0, len(records), batch_size)):
            batch = records[start : start + batch_size]
            for record, answer in zip(
                batch, writer.answers([one["prompt"] for one in batch], number=number), strict=True
            ):
                found: dict[str, Any] = {**record, "text": answer.texts[0]}
                if len(answer.texts) > 1:
                    found["texts"] = answer.texts
                if answer.scores:
                    found["scores"] = answer.scores
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
            file.flush()


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Objects with a "prompt", one a line of the file; UserError where it can't be read, with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no UTF-8 text ({error.reason})"
        raise UserError(f"--input: {path} can't be read: {reason}") from error
    if not lines:
        raise UserError(f"--input: {path} is empty; write one prompt a line")
    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in lines]
    return [_record(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"--input: {path}, line {number} is no JSON: {error.msg}") from error
    if isinstance(found, str):
        return {"prompt": found}
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        there = f"has {', '.join(map(repr, found))}" if isinstance(found, dict) else f"is a {type(found).__name__}"
        raise UserError(
            f"--input: {path}, line {number} {there}, but it must be a text or an object with a text 'prompt'"
        )
    return found


def _unescaped(text: str) -> str:
    """A stop text as a shell passes it: \\n is a line end and \\t a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
