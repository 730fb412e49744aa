"""Greedy and beam search against `transformers`' `generate`, token for token and score for score, on the same weights.

The models are tiny and random, with weights so large that scores differ by far more than rounding, and with the end's score
raised until some rows end by themselves and some do not. Scores: fp32 sums of up to 10 log-probabilities of some nats each, in
another order of sums inside the model: 1e-4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import BartConfig, GPT2Config, LlamaConfig, MarianConfig, MistralConfig, Qwen2Config, T5Config

from triune.exchange.importing import model_of, read_foreign
from triune.exchange.parity import quiet_transformers
from triune.inference import beam_search, generate

EOS, PAD, NEW = 2, 0, 10
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16]]
SOURCES = [[5, 6, 7, 8, EOS], [9, EOS], [10, 11, 12, 13, 14, 15, EOS]]
IDS = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD}
SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SEQ2SEQ = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS),
    "llama": LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=4, **IDS),
    "qwen2": Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, **IDS),
    "mistral": MistralConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, sliding_window=4, head_dim=8, **IDS
    ),
    "t5": T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=PAD, **IDS
    ),
    "bart": BartConfig(**SEQ2SEQ, decoder_start_token_id=EOS, forced_eos_token_id=None, **IDS),
    "marian": MarianConfig(
        **SEQ2SEQ, decoder_start_token_id=PAD, forced_eos_token_id=None, scale_embedding=True, **IDS
    ),
}
DECODERS = ("gpt2", "llama", "qwen2", "mistral")
#: what the table's row of EOS is multiplied with, so that some rows end early
RAISED = {"gpt2": -4.0, "llama": 1.3, "qwen2": 2.5, "mistral": 2.0, "t5": 3.0, "bart": 2.5, "marian": -0.95}


class Pair(NamedTuple):
    """The same weights twice."""

    name: str
    ours: Any
    theirs: Any

    def write(self, rows: int = 3, **options: Any) -> list[list[int]]:
        """Ours, of the first `rows` prompts or sources."""
        return generate(self.ours, **self.given(slice(rows)), max_new_tokens=NEW, **options)

    def given(self, rows: slice) -> dict[str, Any]:
        start = [self.theirs.config.decoder_start_token_id] if self.name not in DECODERS else []
        if not start:
            return {"prompts": PROMPTS[rows], "eos": EOS, "pad": PAD}
        return {"prompts": [start] * len(SOURCES[rows]), "sources": SOURCES[rows], "eos": EOS, "pad": PAD}

    def their(self, rows: slice, **options: Any) -> tuple[list[list[int]], list[float]]:
        """Theirs: ids after the prompt up to the end, and scores of a search."""
        texts, side = (PROMPTS, "left") if self.name in DECODERS else (SOURCES, "right")
        ids, mask = padded(texts[rows], side)
        settings = {
            "max_new_tokens": NEW,
            "do_sample": False,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "forced_eos_token_id": None,
            "bad_words_ids": None,
            "no_repeat_ngram_size": 0,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        with quiet_transformers(), torch.no_grad():
            found = self.theirs.generate(ids, attention_mask=mask, **{**settings, **options})
        written = found.sequences[:, ids.shape[1] if side == "left" else 1 :].tolist()
        scores = (
            found.sequences_scores.tolist()
            if "sequences_scores" in found and found.sequences_scores is not None
            else []
        )
        return [until(row) for row in written], scores


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        room, real = [PAD] * (width - len(row)), [1] * len(row)
        ids.append(room + row if side == "left" else row + room)
        mask.append([0] * len(room) + real if side == "left" else real + [0] * len(room))
    return torch.tensor(ids), torch.tensor(mask)


def until(row: list[int]) -> list[int]:
    return row[: row.index(EOS) + 1] if EOS in row else row


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A random model of theirs, and what exchange makes of it."""
    torch.set_num_threads(1)
    config = CONFIGS[request.param]
    made = {
        "gpt2": "GPT2LMHeadModel",
        "t5": "T5ForConditionalGeneration",
        "bart": "BartForConditionalGeneration",
        "marian": "MarianMTModel",
    }
    name = made.get(request.param, f"{type(config).__name__.removesuffix('Config')}ForCausalLM")
    torch.manual_seed(0)
    with quiet_transformers():
        theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if not parameter.requires_grad:  # Marian's sines
                continue
            parameter.normal_(0, 0.3)
            if parameter.ndim == 1 and "norm" in key.lower() and key.endswith("weight"):
                parameter.add_(1.0)
        table = theirs.get_output_embeddings().weight
        table[EOS] *= RAISED[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with quiet_transformers():
        theirs.save_pretrained(folder)
    return Pair(request.param, model_of(read_foreign(folder)), theirs)


def test_greedy_text_is_theirs_batched_and_not(pair: Pair) -> None:
    together = pair.write()
    assert together == pair.their(slice(3))[0]
    assert together == [pair.their(slice(row, row + 1))[0][0] for row in range(3)]


SEARCHES: list[dict[str, Any]] = [
    {"beams": 2},
    {"beams": 4, "n_best": 4},
    {"beams": 3, "n_best": 2, "length_penalty": 0.0},
    {"beams": 3, "n_best": 3, "length_penalty": 2.0},
    {"beams": 3, "n_best": 3, "length_penalty": -1.0},
    {"beams": 3, "n_best": 3, "early_stopping": True},
    {"beams": 3, "n_best": 3, "early_stopping": "never", "length_penalty": 1.5},
    {"beams": 3, "n_best": 2, "repetition_penalty": 1.5, "min_new_tokens": 3},
]
THEIR_NAMES = {"beams": "num_beams", "n_best": "num_return_sequences"}


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))
def test_beams_are_theirs_with_their_scores(pair: Pair, search: dict[str, Any]) -> None:
    theirs = {THEIR_NAMES.get(name, name): value for name, value in search.items()}
    for rows in (slice(3), slice(0, 1)) if len(search) < 2 or "repetition_penalty" in search else (slice(3),):
        if "repetition_penalty" in search and pair.name in DECODERS and rows == slice(3):
            continue  # theirs counts the padding on the left as tokens that the row holds
        found = beam_search(pair.ours, **pair.given(rows), max_new_tokens=NEW, **search)
        ids, scores = pair.their(rows, **theirs)
        assert [beam.ids for row in found for beam in row] == ids
        torch.testing.assert_close([beam.score for row in found for beam in row], scores, rtol=1e-4, atol=1e-4)


def test_the_best_of_a_search_is_what_generate_gives(pair: Pair) -> None:
    found = beam_search(pair.ours, **pair.given(slice(3)), max_new_tokens=NEW, beams=3)
    assert pair.write(beams=3) == [beams[0].ids for beams in found]


def test_penalty_and_least_length_are_theirs(pair: Pair) -> None:
    for row in range(3):
        one = slice(row, row + 1)
        options = {"repetition_penalty": 1.7, "min_new_tokens": 4}
        ours = generate(pair.ours, **pair.given(one), max_new_tokens=NEW, **options)
        assert ours == pair.their(one, **options)[0]


def test_some_rows_end_and_some_do_not(pair: Pair) -> None:
    """So that the tests above see both."""
    lengths = {
        len(beam.ids)
        for row in beam_search(pair.ours, **pair.given(slice(3)), max_new_tokens=NEW, beams=4, n_best=4)
        for beam in row
    }
    assert len(lengths) > 1
