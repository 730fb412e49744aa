"""Greedy texts of windowed and parallel decoders, longer than their windows: ours through its cache, theirs through its own and without."""

import sys
from pathlib import Path

import pytest
import torch

from triune.exchange.importing import model_of, read_foreign
from triune.exchange.parity import quiet_transformers
from triune.exchange.proof import peer
from triune.inference.generation import generate
from triune.models.factory import build

JOBS = Path(__file__).resolve().parents[2] / "jobs" / "parity"
sys.path.insert(0, str(JOBS))
try:
    from all_cases import all_cases
finally:
    sys.path.remove(str(JOBS))

NEW = 24
CASES = [
    (name, case)
    for name in ("mistral", "qwen2", "qwen3", "gpt_neox")
    for case in all_cases()[name]
    if case.model.endswith("ForCausalLM")  # classifiers write nothing
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("model_type", "case"), [pytest.param(*pair, id=f"{pair[0]}: {pair[1].name}") for pair in CASES]
)
def test_greedy_text_is_theirs_with_and_without_a_cache(model_type, case, tmp_path):
    """Prompts shorter and longer than each window; 24 tokens carry the text past it and the ring of the cache around."""
    theirs = peer(case)
    with quiet_transformers():
        theirs.save_pretrained(tmp_path)
    ours = model_of(read_foreign(tmp_path))
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, case.settings["vocab_size"], (n,), generator=draw).tolist() for n in (3, 12, 20)]
    written = generate(ours, prompts, max_new_tokens=NEW)
    assert written == [generate(ours, [prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        for cached in (True, False):
            with quiet_transformers(), torch.no_grad():
                found = theirs.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, use_cache=cached,
                    pad_token_id=0, eos_token_id=None,
                )  # fmt: skip
            assert text == found[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("model_type", "number"), [("mistral", 0), ("qwen2", 1), ("qwen3", 2)])
def test_the_window_shows_in_the_text(model_type, number, tmp_path):
    """So that the test above would notice a cache that kept too much: without the window another text is written."""
    case = [case for name, case in CASES if name == model_type][number]
    theirs = peer(case)
    with quiet_transformers():
        theirs.save_pretrained(tmp_path)
    ours = model_of(read_foreign(tmp_path))
    assert ours.config.attention.pattern is not None
    blind = build(ours.config, **{"attention.pattern": None}).eval()
    blind.load_state_dict(ours.state_dict())
    prompts = [list(range(3, 23))]
    assert generate(ours, prompts, max_new_tokens=NEW) != generate(blind, prompts, max_new_tokens=NEW)
