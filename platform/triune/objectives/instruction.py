"""Replies in conversations: instruction tuning (Wei et al. 2022; Ouyang et al. 2022), with the loss on replies only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from triune.errors import UserError
from triune.objectives.assemble import continued, next_token
from triune.objectives.batch import Example
from triune.objectives.chat import TEMPLATES, Part, Reply, Template
from triune.objectives.measures import Measure, ratio
from triune.objectives.record import Field, Message, Record
from triune.objectives.task import Encoded, Output, Task
from triune.objectives.task_config import TASK_FAMILIES, InstructionTask

_LARGEST_EXPONENT = 700.0  # exp overflows a double just above


@dataclass(frozen=True)
class Exchange:
    """A reply and what was said since the one before it, as ids.

    `given` [g] int64 is read, `written` [w] int64 is the reply with what ends it, `text` is the reply alone. An encoder-decoder learns
    `target` [t] int64, the text and the closing token; a decoder learns `written`.
    """

    given: np.ndarray
    written: np.ndarray
    target: np.ndarray
    text: str

    def __len__(self) -> int:
        return len(self.given) + len(self.written)


@dataclass(frozen=True, kw_only=True)
class ReplyPrompt:
    """What to write a reply to.

    Args:
        record: number of the conversation.
        prompt: ids that writing starts from.
        source: ids that an encoder-decoder's encoder reads.
        conversation: the text up to the reply.
        reply: the reply that the conversation has there.
    """

    record: int
    prompt: np.ndarray
    source: np.ndarray | None
    conversation: str
    reply: str


class Instruction(Task):
    """Learns the assistant's turns of conversations as a template writes them (`objectives/chat.py`).

    A conversation is one document of a decoder, read once and learned at all its replies. One longer than a row is read in several
    windows that begin and end between exchanges: each reply is learned in exactly one, behind half a row of what was said before it, or
    more. (Behind all that fits would take a row for each reply.) An encoder-decoder learns one example for each reply: its
    encoder reads the latest exchanges that fit, its decoder writes the text of the reply.

    Encoded are each stretch that is given and each reply by itself: writing a reply starts from exactly the ids that training has
    before it. A conversation without a reply gives no row.
    """

    kind = "instruction"
    families = frozenset(TASK_FAMILIES[kind])
    fields: ClassVar[tuple[Field, ...]] = (
        Field(name="messages", kind="messages", meaning="the turns of a conversation, each with its role and text"),
    )
    output: ClassVar[Output] = "likelihoods"
    measures_perplexity = True

    config: InstructionTask

    def head(self) -> Mapping[str, Any] | None:
        return None

    def _check(self) -> None:
        config = self.config
        if not 1 <= config.reply_length <= self.context // 2:
            raise UserError(
                f"objective.reply_length: {config.reply_length} tokens are not between 1 and half a row of {self.context} "
                "(data.rows.length), whose other half is for what the reply is to"
            )
        if config.learn == "all" and config.template == "tokenizer":
            raise UserError(
                "objective.learn: all needs to know where the user's turns begin, which a tokenizer's template does not tell; "
                "set learn to assistant, or template to chatml"
            )
        if self.family == "decoder" and not all(map(len, self.text.encode_batch(list(self.template.stop)))):
            raise UserError(
                f"objective.template: '{config.template}' ends a reply with {self.template.stop[0]!r}, which this tokenizer has no "
                "token for, so that no reply would end; set chatml"
            )

    @cached_property
    def template(self) -> Template:
        """How turns become text."""
        return TEMPLATES[self.config.template](self.text)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a reply in what the model writes; an encoder-decoder's end with the closing token alone."""
        return () if self.family == "encoder_decoder" else self.template.stop

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a reply in what the model writes."""
        return frozenset([self.vocabulary.closing, *(() if self.family == "encoder_decoder" else self.template.ends)])

    # ---- rows --------------------------------------------------------------------------------------------------

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        conversations = self._exchanges(records)
        if training and records and not any(conversations):
            who = "assistant" if self.config.learn == "assistant" else "second"
            raise UserError(
                f"{records[0].where}: it has no {who} turn, nor has any of the {len(records):,} conversations, so there is no reply to "
                "learn; roles are system, user and assistant (see objective.learn)"
            )
        rows = self._pairs if self.family == "encoder_decoder" else self._windows
        return [
            Encoded(example=example, record=number, prompt=prompt)
            for number, exchanges in enumerate(conversations)
            for example, prompt in rows(exchanges)
        ]

    def _exchanges(self, records: Sequence[Record]) -> list[list[Exchange]]:
        """The replies to learn of each conversation, none for one without."""
        replies = [self._replies(record) for record in records]
        parts = [part for conversation in replies for reply in conversation for part in self._parts(reply)]
        ids = iter(self._ids(parts))
        return [
            [Exchange(next(ids), next(ids), next(ids), reply.text) for reply in conversation]
            for conversation in replies
        ]

    def _replies(self, record: Record) -> list[Reply]:
        messages: list[Message] = record.fields["messages"]
        if not messages:
            raise UserError(f"{record.where}: the conversation has no message; give it some, or leave the record out")
        if self.config.learn == "all":
            learned = [number > 0 and message.role != "system" for number, message in enumerate(messages)]
        else:
            learned = [message.role == "assistant" for message in messages]
        try:
            return self.template.replies(messages, learned)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from error

    def _parts(self, reply: Reply) -> tuple[tuple[Part, ...], ...]:
        target = (reply.text, self.vocabulary.closing) if self.family == "encoder_decoder" else ()
        return reply.given, reply.written, target

    def _ids(self, stretches: Sequence[tuple[Part, ...]]) -> list[np.ndarray]:
        """[n] int64 of each stretch of parts."""
        encoded = iter(self.text.encode_batch([part for parts in stretches for part in parts if isinstance(part, str)]))
        none = np.zeros(0, np.int64)
        return [
            np.concatenate([none, *(next(encoded) if isinstance(part, str) else [part] for part in parts)]).astype(
                np.int64
            )
            for parts in stretches
        ]

    def _windows(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[Example, np.ndarray]]:
        """Rows of a decoder, and what the first reply of each is written from."""
        before = np.array(self._before, np.int64)
        room = self.context + 1 - len(before)
        fitted = [_fitted(exchange, room) for exchange in exchanges]
        for start, first, stop in windows([len(exchange) for exchange in fitted], room):
            ids, learned = [before], [np.zeros(len(before), bool)]
            for number in range(start, stop):
                given, written = fitted[number].given, fitted[number].written
                ids += [given, written]
                learned += [np.zeros(len(given), bool), np.full(len(written), number >= first)]
            row, mask = np.concatenate(ids), np.concatenate(learned)
            yield continued(row, mask), row[: int(mask.argmax())]

    def _pairs(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[Example, np.ndarray]]:
        """Rows of an encoder and its decoder, one a reply, and what it is written from."""
        start = self.vocabulary.decoder_start
        for number, exchange in enumerate(exchanges):
            source = self._source(exchanges[: number + 1])
            target = exchange.target[: self.context]
            row = next_token(target, np.array([len(target)]), start=start, source=(source, np.array([len(source)])))
            yield row, np.array([start])

    def _source(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """What an encoder reads to reply to the last exchange."""
        frame = self.text.frame(self.family)
        return frame(_history(exchanges, frame.room(self.context))).ids

    @cached_property
    def _before(self) -> tuple[int, ...]:
        """What a decoder's row starts with."""
        return self.text.frame(self.family).before if self.template.framed else ()

    # ---- results -----------------------------------------------------------------------------------------------

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        """The negative log-likelihood of a conversation's replies, in nats, and their tokens; 0 and 0 where there is none."""
        sums = np.zeros((len(records), 2))
        for one, likelihoods in zip(encoded, outputs, strict=True):
            sums[one.record] += -np.sum(likelihoods, dtype=np.float64), len(likelihoods)
        return [{"nll": float(nll), "tokens": int(tokens)} for nll, tokens in sums]

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        statistics = np.array([[one["nll"], one["tokens"]] for one in predictions], np.float64).reshape(-1, 2)
        return [
            Measure(name="reply perplexity", statistics=statistics, combine=_perplexity, higher_is_better=False),
        ]

    def reply_prompts(self, records: Sequence[Record], count: int) -> list[ReplyPrompt]:
        """What to write a reply to: up to the last reply of each of the first `count` conversations that have one, with
        `objective.reply_length` tokens of a row left free. `stop` and `ends` say where a reply is over."""
        prompts: list[ReplyPrompt] = []
        for number, record in enumerate(records):
            if len(prompts) == count:
                break
            if exchanges := self._exchanges([record])[0]:
                prompts.append(self._reply_prompt(number, exchanges))
        return prompts

    def _reply_prompt(self, number: int, exchanges: Sequence[Exchange]) -> ReplyPrompt:
        if self.family == "encoder_decoder":
            source = self._source(exchanges)
            prompt, shown = np.array([self.vocabulary.decoder_start]), source
        else:
            before = np.array(self._before, np.int64)
            room = self.context - self.config.reply_length - len(before)
            source, prompt = None, np.concatenate([before, _history(exchanges, room)])
            shown = prompt
        return ReplyPrompt(
            record=number,
            prompt=prompt,
            source=source,
            conversation=self.text.decode(shown).strip(),
            reply=exchanges[-1].text,
        )

    def describe(self, records: Sequence[Record]) -> str:
        """How many replies there are and how long, and what is left out or cut."""
        conversations = self._exchanges(records)
        lengths = np.array([len(exchange.written) for exchanges in conversations for exchange in exchanges])
        if not len(lengths):
            return ""
        lines = [
            f"{len(records):,} conversations with {len(lengths):,} replies; tokens of a reply: {int(np.median(lengths)):,} (median), "
            f"{int(lengths.max()):,} (longest)"
        ]
        if silent := sum(not exchanges for exchanges in conversations):
            lines.append(f"{silent:,} conversations have no reply and are left out")
        if cut := sum(self._loses(exchange) for exchanges in conversations for exchange in exchanges):
            lines.append(f"{cut:,} replies are too long for a row of {self.context} tokens and lose their end")
        return "\n".join([*lines, *filter(None, [self.template.describe()])])

    def _loses(self, exchange: Exchange) -> bool:
        """Whether the reply is cut."""
        if self.family == "encoder_decoder":
            return len(exchange.target) > self.context
        return len(_fitted(exchange, self.context + 1 - len(self._before)).written) < len(exchange.written)


def windows(sizes: Sequence[int], room: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop) of each row: it holds exchanges start..stop-1 and learns those from `first`, each in one row.

    The first to be learned in a row has the exchanges before it that fit into half of the room, and one at least where it fits; then
    follow as many as have room, and what they leave goes to the past again.

    Args:
        sizes: tokens of each exchange, at most `room`.
        room: tokens that fit into a row.
    """
    first = 0
    while first < len(sizes):
        start, used = first, sizes[first]
        while start > 0 and used + sizes[start - 1] <= room:
            past = used - sizes[first]
            if past > 0 and past + sizes[start - 1] > room // 2:
                break
            start -= 1
            used += sizes[start]
        stop = first + 1
        while stop < len(sizes) and used + sizes[stop] <= room:
            used += sizes[stop]
            stop += 1
        while start > 0 and used + sizes[start - 1] <= room:
            start -= 1
            used += sizes[start]
        yield start, first, stop
        first = stop


def _fitted(exchange: Exchange, room: int) -> Exchange:
    """The exchange in at most `room` tokens: each side has half of them, and what the other leaves. What is given loses its
    beginning, the reply its end."""
    if len(exchange) <= room:
        return exchange
    written = exchange.written[: max(room // 2, room - len(exchange.given))]
    return replace(exchange, given=_last(exchange.given, room - len(written)), written=written)


def _history(exchanges: Sequence[Exchange], room: int) -> np.ndarray:
    """[n] what stands before the last exchange's reply, in at most `room` tokens: whole exchanges before it as far as they fit."""
    *past, last = exchanges
    stretches = [_last(last.given, room)]
    used = len(stretches[0])
    for exchange in reversed(past):
        used += len(exchange)
        if used > room:
            break
        stretches += [exchange.written, exchange.given]
    return np.concatenate(stretches[::-1])


def _last(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[len(ids) - min(len(ids), count) :]


def _perplexity(sums: np.ndarray) -> np.ndarray:
    """[..., 2] nats and tokens -> [...]; 0 where there is no token."""
    nats = ratio(sums[..., 0], sums[..., 1])
    return np.where(sums[..., 1] > 0, np.exp(np.minimum(nats, _LARGEST_EXPONENT)), 0.0)
