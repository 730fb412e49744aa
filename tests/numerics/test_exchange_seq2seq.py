"""Encoder-decoders write as `generate` of `transformers` does, by its own settings of generation, which import and export carry."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from triune.cli import main
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import train_tokenizer
from triune.exchange import from_huggingface, to_huggingface
from triune.exchange.architecture import TokenIds, architecture
from triune.exchange.carried import Carried
from triune.exchange.parity import quiet_transformers
from triune.exchange.proof import Case, peer
from triune.inference.generation import generate
from triune.models.factory import build, resolve

V, NEW = 300, 9
START, FIRST, PAD = 21, 33, 7
SHAPE = {
    "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 30,
}  # fmt: skip
T5 = {"vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
IDS = {"pad_token_id": PAD, "bos_token_id": 3, "eos_token_id": 40, "decoder_start_token_id": START}
MODELS = {
    "bart": ("BartForConditionalGeneration", SHAPE),
    "marian": ("MarianMTModel", SHAPE),
    "pegasus": ("PegasusForConditionalGeneration", SHAPE),
    "t5": ("T5ForConditionalGeneration", T5),
}  # fmt: skip
SOURCES = [[50, 60, 70, 80, 90, 100], [110, 120], [130, 131, 132, 133]]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def theirs(request, tmp_path):
    """A random model whose settings of generation have odd tokens, in a directory.

    The token that ends a text is one that the model writes in some rows and not in others, so that both ways to end occur.
    """
    name, shape = MODELS[request.param]
    model = peer(Case(name="", model=name, settings=shape | IDS))
    settings = model.generation_config
    settings.update(forced_bos_token_id=FIRST, forced_eos_token_id=None, eos_token_id=None)
    rows = [set(row[3:-1]) for row in written(model)]
    end = min(token for row in rows for token in row if not all(token in other for other in rows))
    settings.eos_token_id = settings.forced_eos_token_id = model.config.eos_token_id = end
    with quiet_transformers():
        model.save_pretrained(tmp_path / "theirs")
    return model


def written(model):
    """What `generate` writes for SOURCES, as one padded batch, by the model's own settings: rows up to their end."""
    width = max(map(len, SOURCES))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in SOURCES])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in SOURCES])
    with quiet_transformers(), torch.no_grad():
        rows = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, num_beams=1, do_sample=False).tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def answers(model, carried):
    """The same of ours."""
    opening = carried.opening(0)
    room = NEW - (len(opening) - 1)  # a first token that is forced takes room, too
    end = carried.ids(TokenIds()).eos
    rows = generate(model, [opening] * len(SOURCES), sources=SOURCES, max_new_tokens=room, eos=end, pad=PAD)
    return [opening + carried.closed(row, room) for row in rows]


@pytest.mark.parametrize("theirs", MODELS, indirect=True)
def test_generate_agrees(theirs, tmp_path):
    ours, _ = from_huggingface(tmp_path / "theirs")
    expected = written(theirs)
    assert answers(ours, Carried.read(tmp_path / "theirs")) == expected
    assert all(row[:2] == [START, FIRST] for row in expected)
    assert all(row[-1] == theirs.generation_config.eos_token_id for row in expected)
    assert min(map(len, expected)) < NEW + 1  # one ends by itself
    assert max(map(len, expected)) == NEW + 1  # and one is cut


@pytest.mark.parametrize("theirs", ["bart", "marian"], indirect=True)
def test_settings_of_generation_come_back(theirs, tmp_path):
    """Through both verbs, with a tokenizer whose own roles are other tokens; beams and forbidden words are carried, too."""
    source, ours, back = tmp_path / "theirs", tmp_path / "ours", tmp_path / "back"
    theirs.generation_config.update(num_beams=3, bad_words_ids=[[PAD]], length_penalty=0.5, max_length=17)
    theirs.generation_config.save_pretrained(source)
    train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=V, sentinels=2), ["a cat sees a dog"] * 9).save(source)
    assert main(["import", str(source), str(ours)]) == 0
    assert main(["export", str(ours), str(back)]) == 0
    assert _json(back / "generation_config.json") == _json(source / "generation_config.json")
    config = _json(back / "config.json")
    assert {key: config[key] for key in IDS} == IDS | {"eos_token_id": theirs.config.eos_token_id}
    with quiet_transformers():
        again = transformers.AutoModelForSeq2SeqLM.from_pretrained(back, local_files_only=True)
    assert written(again) == written(theirs)
    assert again.generation_config.num_beams == 3


@pytest.mark.parametrize("theirs", ["bart"], indirect=True)
def test_an_imported_model_writes_from_its_own_first_tokens(theirs, tmp_path, capsys):
    """Not from those of the tokenizer's roles; `triune generate` hides special tokens."""
    source, ours = tmp_path / "theirs", tmp_path / "ours"
    words = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=V, sentinels=2), ["a cat sees a dog"] * 9)
    words.save(source)
    assert main(["import", str(source), str(ours)]) == 0
    capsys.readouterr()
    assert main(["generate", str(ours), "--prompt=a cat"]) == 0
    known = words.vocabulary
    read = [*words.encode_batch(["a cat"])[0].tolist(), known.closing]
    room = SHAPE["max_position_embeddings"] + 1 - 2  # the last token written is not read
    model, _ = from_huggingface(source)
    written = [
        generate(model, [start], sources=[read], max_new_tokens=room, eos=known.closing, pad=known.pad)[0]
        for start in ([START, FIRST], [known.decoder_start])
    ]
    texts = [
        words.decode([i for i in row if i not in {known.pad, known.bos, known.eos}], skip_special_tokens=False)
        for row in written
    ]
    assert texts[0] != texts[1]
    assert capsys.readouterr().out.strip() == texts[0].strip()


@pytest.mark.parametrize("theirs", ["marian"], indirect=True)
def test_without_a_file_of_their_own_settings_of_generation_are_those_of_the_config(theirs, tmp_path):
    """As `transformers` does it."""
    source = tmp_path / "theirs"
    (source / "generation_config.json").unlink()
    config = _json(source / "config.json")
    config |= {"forced_bos_token_id": FIRST, "forced_eos_token_id": config["eos_token_id"], "num_beams": 2}
    (source / "config.json").write_text(json.dumps(config))
    with quiet_transformers():
        again = transformers.MarianMTModel.from_pretrained(source)
    carried = Carried.read(source)
    assert answers(from_huggingface(source)[0], carried) == written(again)
    assert carried.generation["num_beams"] == 2
    assert "d_model" not in carried.generation


def test_a_trained_model_forces_nothing(tmp_path):
    """`BartConfig` would force token 2 at the end where its file does not speak of it; and its decoder starts where ours does."""
    model = _trained("bart")
    words = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=V, sentinels=2), ["a cat sees a dog"] * 9)
    to_huggingface(model, tmp_path / "out", words, "bart")
    with quiet_transformers():
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    kept = theirs.generation_config
    assert (kept.forced_eos_token_id, kept.forced_bos_token_id) == (None, None)
    assert theirs.config.forced_eos_token_id is None
    assert kept.decoder_start_token_id == words.vocabulary.decoder_start
    assert kept.eos_token_id == words.vocabulary.eos


# ---- what the cases of jobs/parity have no place for -------------------------------------------------------------------


def _trained(model_type, **changes):
    bart = model_type == "bart"
    position = {"kind": "learned", "offset": 2} if bart else {"kind": "sinusoidal", "layout": "halves"}
    norm = {"placement": "pre" if model_type == "pegasus" else "post", "embedding": bart}
    return build(
        {"family": "encoder_decoder", "vocabulary": V, "context": 24, "width": 32, "layers": 1, "heads": 4},
        position=position, norm=norm, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("model_type", ["bart", "marian", "pegasus"])
def test_a_model_with_and_without_a_bias_of_its_scores_is_exported(model_type, biased, tmp_path):
    """`to_huggingface` proves that theirs computes the same; without a bias theirs has zeros."""
    model = _trained(model_type, head={"bias": biased})
    if biased:
        torch.nn.init.normal_(model.head.bias)
    to_huggingface(model, tmp_path / "out", architecture=model_type)
    held = load_file(tmp_path / "out" / "model.safetensors")["final_logits_bias"]
    assert held.shape == (1, V)
    assert torch.equal(held[0], model.head.bias.detach() if biased else torch.zeros(V))
    back, config = from_huggingface(tmp_path / "out")
    assert config.head.bias
    assert torch.equal(back.head.bias, held[0])


@pytest.mark.parametrize("name", ["BartModel", "MarianModel", "PegasusModel"])
def test_a_file_of_the_bare_class_has_the_scores_of_its_table(name, tmp_path):
    """As facebook/bart-base is: no prefix and no bias in it. `transformers` opens it with the table as its scores, too."""
    bare = peer(Case(name="", model=name, settings=SHAPE | IDS))
    with quiet_transformers():
        bare.save_pretrained(tmp_path)
        full = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    model, config = from_huggingface(tmp_path)
    assert not config.head.bias
    source, target = torch.tensor([SOURCES[0]]), torch.tensor([[START, 55, 66]])
    with torch.no_grad():
        scores = model.head.logits(model(target, source=source))
        expected = full(input_ids=source, decoder_input_ids=target).logits
    # triune.exchange.parity.tolerance: rounding of a few blocks comes to 1e-5 of the scores' size at most
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["MarianMTModel", "PegasusForConditionalGeneration"])
def test_the_position_tables_of_the_longest_published_models_are_computed(name):
    """1,024 positions, byte for byte: their tables are what ours computes, so that an export may hold ours."""
    made = getattr(transformers, name)
    shape = {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
    }
    with quiet_transformers():
        theirs = made(
            made.config_class(
                vocab_size=20, max_position_embeddings=1024, **shape, pad_token_id=0, decoder_start_token_id=0
            )
        )
    config = resolve(
        {"family": "encoder_decoder", "vocabulary": 20, "context": 1024, "width": 64, "layers": 1, "heads": 1},
        position={"kind": "sinusoidal", "layout": "halves"},
    )  # fmt: skip
    for fixed in architecture(made.config_class.model_type).mapping(config).fixed:
        if "embed_positions" in fixed.name:
            assert torch.equal(fixed.make(), theirs.get_parameter(fixed.name).detach())


def _json(file):
    return json.loads(file.read_text(encoding="utf-8"))
