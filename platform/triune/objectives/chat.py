"""Chat templates: a conversation as text, parted into what a model is given and what it learns to reply.

A template writes parts: texts, and the ids of special tokens. So no text of a message can pass for a marker. Texts that stand
together are encoded together; a reply begins a text of its own, because writing one starts there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from triune.errors import UserError
from triune.objectives.record import Message
from triune.objectives.text import TextEncoder

Part = str | int  # a text, or the id of a special token
_NUL = "\0"  # no source lets it through, so it stands in no text


@dataclass(frozen=True)
class Reply:
    """A turn to learn, or a part of one that the template writes by itself.

    Args:
        given: everything since the reply before it, up to where this one begins.
        written: the reply and what ends it.
        text: the reply alone.
    """

    given: tuple[Part, ...]
    written: tuple[Part, ...]
    text: str


class Template(ABC):
    """A way to write conversations.

    Args:
        text: the tokenizer.
    """

    #: texts that end a reply in what a model writes
    stop: tuple[str, ...] = ()
    #: whether the tokenizer's own tokens stand before a conversation; else the template writes all there is
    framed: bool = True

    def __init__(self, text: TextEncoder) -> None:
        self.text = text

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a reply in what a model writes."""
        return ()

    @abstractmethod
    def replies(self, messages: Sequence[Message], learned: Sequence[bool]) -> list[Reply]:
        """The turns to learn, in order, with what stands between them. UserError where the template can't write them."""

    def describe(self) -> str:
        """What a person should know of this template with this tokenizer; may be empty."""
        return ""


@dataclass(frozen=True)
class _Turn:
    number: int  # of the message that it is of
    header: tuple[Part, ...]
    body: tuple[Part, ...]
    text: str
    behind: tuple[Part, ...] = ()


class _ByTurns(Template):
    """A template that writes each turn without a look at the others."""

    @abstractmethod
    def turns(self, messages: Sequence[Message]) -> list[_Turn]:
        """The conversation, turn by turn."""

    def replies(self, messages: Sequence[Message], learned: Sequence[bool]) -> list[Reply]:
        given: list[Part] = []
        found = []
        for turn in self.turns(messages):
            given += turn.header
            if learned[turn.number]:
                found.append(Reply(merged(given), merged(turn.body), turn.text))
                given = [*turn.behind]
            else:
                given += turn.body + turn.behind
        return found


class Speakers(_ByTurns):
    """ "A: " before what the user says and "B: " before what the assistant does, a line for each line of a message, as the demo corpus
    has it (`data.corpora`), so that a model pretrained there knows it. A line of the assistant is a reply of its own; white space
    counts once; what the system says has no speaker.

    The blank behind the colon goes with the reply, as byte-level BPE and SentencePiece join it to the first word; the line end goes
    with the line, and after the last line the closing token stands in its place, as at the end of a document.
    """

    stop = ("\n",)

    def turns(self, messages: Sequence[Message]) -> list[_Turn]:
        lines = [
            (number, message.role, " ".join(line.split()))
            for number, message in enumerate(messages)
            for line in message.text.split("\n")
            if line.strip()
        ]
        speakers = {"user": "A:", "assistant": "B:"}
        turns = []
        for place, (number, role, line) in enumerate(lines, 1):
            end: Part = "\n" if place < len(lines) else self.text.vocabulary.closing
            header, body = ((speakers[role],), f" {line}") if role in speakers else ((), line)
            turns.append(_Turn(number, header, (body, end), line))
        return turns


class ChatMarkup(_ByTurns):
    """ChatML, `<|im_start|>role`, a line end, the text, `<|im_end|>` and a line end, as OpenAI and Qwen have it.

    A marker that the vocabulary has is one token; one that it lacks is spelled in the pieces of its text, which costs room and lets
    a message that spells it pass for it.
    """

    start, end = "<|im_start|>", "<|im_end|>"
    stop = (end,)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(part for part in [self._marker(self.end)] if isinstance(part, int))

    def turns(self, messages: Sequence[Message]) -> list[_Turn]:
        start, end = self._marker(self.start), self._marker(self.end)
        return [
            _Turn(number, (start, f"{message.role}\n"), (message.text, end), message.text, ("\n",))
            for number, message in enumerate(messages)
        ]

    def describe(self) -> str:
        spelled = [marker for marker in (self.start, self.end) if isinstance(self._marker(marker), str)]
        if not spelled:
            return ""
        pieces = max(map(len, self.text.encode_batch(spelled)))
        return (
            f"the tokenizer has no token {' and no token '.join(spelled)}: each is spelled in up to {pieces} pieces; "
            "a tokenizer that has them as special tokens leaves more room to the text"
        )

    def _marker(self, marker: str) -> Part:
        return self.text.tokens.get(marker, marker)


class TokenizerTemplate(Template):
    """The chat template that comes with a Hugging Face tokenizer. A reply is what the template adds behind its own prompt for one;
    white space that it sets behind the token that ends a reply is not learned."""

    framed = False

    @cached_property
    def ends(self) -> tuple[int, ...]:  # type: ignore[override]
        probe = [Message("user", "a"), Message("assistant", "b")]
        last = self.replies(probe, [False, True])[-1].written[-1]
        return (last,) if isinstance(last, int) else ()

    def replies(self, messages: Sequence[Message], learned: Sequence[bool]) -> list[Reply]:
        plain = [{"role": message.role, "content": self._disarmed(message.text)} for message in messages]
        seen, found = "", []
        for number, message in enumerate(messages):
            if not learned[number]:
                continue
            before = self.text.render_chat(plain[:number], reply=True)
            until = self.text.render_chat(plain[: number + 1], reply=False)
            if not (before.startswith(seen) and until.startswith(before)):
                raise UserError(
                    f"objective.template: the tokenizer's chat template writes the turns before turn {number + 1} another way "
                    "once it is there, so that replies can't be learned in one pass; set chatml"
                )
            written = self._parts(until[len(before) :])
            behind = (
                written[-1] if len(written) > 1 and isinstance(written[-1], str) and not written[-1].strip() else ""
            )
            found.append(Reply(self._parts(before[len(seen) :]), written[:-1] if behind else written, message.text))
            seen = until.removesuffix(str(behind))
        return found

    def _disarmed(self, text: str) -> str:
        """The text, in which special tokens are spelled so that `_parts` takes them for text."""
        return self._special.sub(lambda found: found[0][0] + _NUL + found[0][1:], text)

    def _parts(self, rendered: str) -> tuple[Part, ...]:
        parts: list[Part] = []
        for place, part in enumerate(self._special.split(rendered)):
            if part:
                parts.append(self.text.tokens[part] if place % 2 else part.replace(_NUL, ""))
        return tuple(parts)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """One group: the spelling of any special token, of two that begin alike the longer."""
        spellings = [token for token, number in self.text.tokens.items() if number in self.text.vocabulary.special]
        return re.compile("(" + "|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) + ")")


TEMPLATES: dict[str, type[Template]] = {
    "speakers": Speakers,
    "chatml": ChatMarkup,
    "tokenizer": TokenizerTemplate,
}


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with texts that stand together as one."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
