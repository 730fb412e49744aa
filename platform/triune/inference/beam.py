"""Beam search. Legend: B prompts, K beams, C = (1 + number of eos, at least 2) K candidates, V vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triune.inference.config import GenerationConfig, resolved
from triune.inference.generation import Ending, Prefill, ended, scores_of
from triune.inference.logits import Shaping
from triune.inference.packed import packed
from triune.inference.rows import answering
from triune.models.decoder import Decoder
from triune.models.encoder_decoder import EncoderDecoder


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A text that a search found.

    Args:
        ids: without the prompt; with the eos where it ended in one.
        score: log-probability / length^length_penalty, in nats; the length counts the eos.
    """

    ids: list[int]
    score: float


def beam_search(
    model: Decoder | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | None = None,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    eos: int | Collection[int] | None = None,
    pad: int = 0,
    ending: Ending | None = None,
    **settings: Any,
) -> list[list[Hypothesis]]:
    """The `n_best` likeliest texts that a search over `beams` rows finds for each prompt, best first.

    The search is that of `transformers` (`num_beams`), tokens and scores alike: each step takes the C likeliest continuations
    of a prompt's beams; those among the best K that end compete for its K complete texts, and the best K that do not end go on.
    A prompt is read once, before it has beams; the keys of an encoder's memory are never moved. Arguments and errors as `generate`.
    """
    config = resolved(config, settings)
    start = Prefill(model, prompts, config, sources=sources, eos=eos, pad=pad)
    rows = len(prompts) * config.beams
    with answering(model) as device, packed(model, rows=rows, tokens=config.max_new_tokens):
        search = _Search(config, len(prompts), start.ends, ending, device)
        shaping = Shaping(config, [row for row in prompts for _ in range(config.beams)], start.ends, device)
        first, cache = start.run()
        spread = torch.arange(len(prompts), device=device).repeat_interleave(config.beams)  # [B K]
        scores = first.index_select(0, spread)
        cache.reorder(spread)
        while True:
            parents = search.step(shaping(scores.log_softmax(dim=-1)))  # [B K]
            if search.done:
                return search.best(config.n_best)
            shaping.reorder(parents)
            shaping.wrote(search.tokens)
            cache.reorder(parents, memory=False)  # beams of one prompt share what it attends to
            scores = scores_of(model, model(search.tokens.unsqueeze(1), cache=cache))


class _Search:
    """The open beams and the complete texts of B prompts.

    Args:
        config: of the search.
        prompts: B.
        ends: ids that end a row.
        ending: see `generate`.
        device: of the scores.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompts: int,
        ends: Collection[int],
        ending: Ending | None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.ends = ends
        self.ending = ending
        self.beams = config.beams
        self.candidates = max(2, 1 + len(ends)) * config.beams
        self.length = 0
        self.rows: list[list[list[int]]] = [[[] for _ in range(self.beams)] for _ in range(prompts)]
        self.complete: list[list[Hypothesis]] = [[] for _ in range(prompts)]  # at most K each, best first
        self.improving = [True] * prompts  # whether open beams may still win
        self.closed = False  # no candidate can go on
        self.device = device
        #: [B, K] log-probability of each open beam; all begin alike, so that only one of them may count
        self.scores = torch.full((prompts, self.beams), -torch.inf, device=device)
        self.scores[:, 0] = 0.0
        self.tokens: Tensor  # [B K] the last token of each open beam

    def step(self, log_probabilities: Tensor) -> Tensor:
        """Scores [B K, V] of the next tokens -> the beam [B K] that each new open beam goes on from."""
        vocabulary = log_probabilities.shape[-1]
        sums = (log_probabilities.view(*self.scores.shape, vocabulary) + self.scores.unsqueeze(-1)).flatten(
            1
        )  # [B, K V]
        best = sums.topk(min(self.candidates, sums.shape[-1]), dim=-1)
        self.length += 1
        parents, tokens, scores = [], [], []
        self.closed = True
        for prompt, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            open_beams = self._divide(prompt, values, [divmod(place, vocabulary) for place in places])
            parents += [prompt * self.beams + parent for parent, _, _ in open_beams]
            tokens += [token for _, token, _ in open_beams]
            scores.append([score for _, _, score in open_beams])
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        self.scores = torch.tensor(scores, device=self.device)
        return torch.tensor(parents, dtype=torch.int64, device=self.device)

    def _divide(self, prompt: int, values: list[float], places: list[tuple[int, int]]) -> list[tuple[int, int, float]]:
        """Candidates, best first, into complete texts and K (beam, token, log-probability) that go on."""
        before, going, over = self.rows[prompt], [], []
        full = self.config.early_stopping is True and len(self.complete[prompt]) == self.beams
        taking = self.improving[prompt] and not full
        for rank, (value, (beam, token)) in enumerate(zip(values, places, strict=True)):
            row = [*before[beam], token]
            last = self.length == self.config.max_new_tokens
            if not (last or ended(row, self.ends, self.ending, self.config.min_new_tokens)):
                going.append((beam, token, value, row))
                self.closed = False
                continue
            over.append((beam, token, -torch.inf, row))
            if taking and rank < self.beams and value > -torch.inf:
                self._add(prompt, row, value)
        kept = [*going, *over][: self.beams]
        self.rows[prompt] = [row for _, _, _, row in kept]
        self.improving[prompt] = self.improving[prompt] and self._may_win(prompt, kept[0][2])
        return [(beam, token, value) for beam, token, value, _ in kept]

    def _add(self, prompt: int, row: list[int], log_probability: float) -> None:
        """A complete text, where it is among the best K."""
        complete = self.complete[prompt]
        complete.append(Hypothesis(ids=row, score=log_probability / self.length**self.config.length_penalty))
        complete.sort(key=lambda found: -found.score)  # stable: of equals the earlier stays
        del complete[self.beams :]

    def _may_win(self, prompt: int, best: float) -> bool:
        """Whether the best open beam could get among the complete texts, by the heuristic that early_stopping names."""
        complete = self.complete[prompt]
        if len(complete) < self.beams:
            return True
        longest = self.config.early_stopping == "never" and self.config.length_penalty > 0
        length = self.config.max_new_tokens if longest else self.length
        return best / length**self.config.length_penalty > complete[-1].score

    @property
    def done(self) -> bool:
        """Whether nothing can be gained any more, for any prompt."""
        full = all(len(complete) == self.beams for complete in self.complete)
        return self.closed or not any(self.improving) or (self.config.early_stopping is True and full)

    def best(self, count: int) -> list[list[Hypothesis]]:
        """The `count` best texts of each prompt."""
        return [complete[:count] for complete in self.complete]
