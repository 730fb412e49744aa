"""GGUF files of Llama's shape: the same numbers as the model they were made of, and one sentence for each that is damaged or other."""

import json
import random
import struct
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_writing import (
    byte_level_of,
    definition_of,
    gguf_name,
    neighbours,
    settings_of,
    tensors_of,
    unpacked,
    write_gguf,
)

from triune.attention.layout import SequenceLayout
from triune.cli import main
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError
from triune.exchange import from_huggingface
from triune.exchange.parity import quiet_transformers
from triune.gguf_file import GgufFile
from triune.training.config import InitConfig
from triune.training.weights import load_model, read_start, read_weights, tokenizer_of

V = 320
SMALL = {
    "vocab_size": V, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 2e-5,
}  # fmt: skip
CASES = {
    "tied, base 10000": {"tie_word_embeddings": True},
    "untied, another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}},
    "one head of keys, wide heads": {"num_key_value_heads": 1, "head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 12,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 96,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A byte-level tokenizer of 300 entries, and its directory."""
    place = tmp_path_factory.mktemp("words")
    texts = ["a cat sees a dog, and 12 dogs don't see 3 cats; where is the river? ünïcode"] * 9
    words = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=300, sentinels=2), texts)
    words.save(place)
    return words, place


def llama(**settings):
    """A random Llama of `transformers`; its norms and biases are away from one and zero."""
    torch.manual_seed(1)
    with quiet_transformers():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | settings)).eval()
    for name, value in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(value, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def scaled(model):
    """(metadata, tensors) of a model's rotary scaling, as llama.cpp's converter writes it."""
    rope, width = model.config.rope_parameters, model.config.head_dim
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        keys = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": rope["factor"]}
        original = {"llama.rope.scaling.original_context_length": 12} if kind == "yarn" else {}
        return keys | original, {}
    if kind == "llama3":  # the converter writes by what each frequency is divided
        plain = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
        return {}, {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)}
    return {}, {}


@pytest.fixture
def written(tmp_path, words):
    """written(model, **changes of metadata): a file with the tokenizer in it."""

    def make(model, *, kind="F32", tensors=None, **changes):
        keys, extra = scaled(model)
        metadata = settings_of(model.config) | byte_level_of(definition_of(words[1]), size=V) | keys | changes
        metadata = {key: value for key, value in metadata.items() if value is not None}
        return write_gguf(tmp_path / "model.gguf", metadata, (tensors or tensors_of(model)) | extra, kind=kind)

    return make


def logits_of(file, ids):
    model, _ = from_huggingface(file)
    with torch.no_grad():
        hidden = model(ids, SequenceLayout.from_lengths([ids.shape[1]] * len(ids), ids.shape[1]))
        return model.head.logits(hidden)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_model_that_it_was_made_of(case, written):
    model = llama(**CASES[case])
    ids = torch.randint(0, V, (2, 48), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model(ids).logits
    ours = logits_of(written(model), ids)
    # 2 layers: triune.exchange.parity.tolerance
    assert (ours - theirs).square().mean().sqrt() < 1e-5 * theirs.square().mean().sqrt()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantized_numbers_are_those_of_the_gguf_package(kind, written):
    model = llama()
    tensors = tensors_of(model)
    held = unpacked(tensors, kind)
    file = GgufFile(written(model, kind=kind))
    for name, value in held.items():
        found = file.values(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value)


def test_rotary_pairs_are_put_apart_in_queries_and_keys_and_nowhere_else(written):
    model = llama()
    loaded, config = from_huggingface(written(model))
    ours = dict(loaded.named_parameters())["stack.blocks.1.attention.query_key_value.weight"]
    state = model.state_dict()
    theirs = torch.cat([state[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(ours, theirs)
    assert not np.array_equal(neighbours(theirs[:96].numpy(), 6), theirs[:96].numpy())
    assert (config.context, config.heads, config.resolved_key_value_heads, config.resolved_head_width) == (48, 6, 2, 16)
    assert config.norm.epsilon == pytest.approx(2e-5, rel=1e-6)  # fp32 in the file


def test_old_files_name_fewer_settings(written):
    model = llama(num_attention_heads=4, num_key_value_heads=4)
    ids = torch.arange(20).unsqueeze(0)
    least = dict.fromkeys(
        f"llama.{key}"
        for key in (
            "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
            "rope.freq_base", "vocab_size",
        )
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(logits_of(written(model, **least), ids), model(ids).logits, rtol=1e-4, atol=1e-5)


def test_import_proves_it_against_the_reading_of_transformers(written, words, tmp_path, capsys):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with the accelerate package only")
    file = written(llama(**CASES["llama3"]), kind="Q8_0")
    assert main(["import", str(file), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "48 of 48 greedy tokens agree" in said
    record = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert [probe["probe"] for probe in record["probes"]] == ["random", "sentence"]
    assert record["files"].keys() == {"model.safetensors"}
    model, saved = load_model(tmp_path / "out")
    again, _ = from_huggingface(file)
    assert saved.tokenizer == Tokenizer.load(file).fingerprint
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_the_proof_refuses_pairs_read_another_way(written, tmp_path, capsys, monkeypatch):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with the accelerate package only")
    monkeypatch.setattr("triune.exchange.gguf_models.RotaryPairs.to_ours", lambda self, theirs: theirs)
    assert main(["import", str(written(llama())), str(tmp_path / "out")]) == 2
    assert "the hidden state after layer 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_starts_from_the_file(written, words):
    file = written(llama())
    saved = read_weights(file)
    assert (saved.objective, saved.model.layers) == ("causal", 2)
    assert saved.tokenizer == Tokenizer.load(file).fingerprint == tokenizer_of(saved).fingerprint
    model, _ = load_model(file)
    other, _ = from_huggingface(file)
    torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()), rtol=0, atol=0)
    start = read_start(InitConfig(from_=str(file)))
    with pytest.raises(UserError, match=r"data\.tokenizer: \{kind: pretrained, path: .*model\.gguf\}"):
        start.plan(saved.model, words[0])
    start.plan(saved.model, Tokenizer.load(file))


# --- damaged or other files -------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(file, *words): import fails with exit code 2, says each of the words, and leaves nothing."""

    def check(file, *expected):
        before = sorted(tmp_path.iterdir())
        assert main(["import", str(file), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"triune: {file}")
        for word in expected:
            assert word in said
        assert "Traceback" not in said
        assert sorted(tmp_path.iterdir()) == before

    return check


def test_missing_empty_and_foreign_files(tmp_path, refused):
    refused(tmp_path / "none.gguf", "cannot be read: No such file")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(tmp_path / "empty.gguf", "is no GGUF file")
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4" + bytes(400))
    refused(tmp_path / "other.gguf", "is no GGUF file", r"b'PK\x03\x04'")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_other_versions_and_big_endian(version, written, refused):
    file = written(llama())
    content = bytearray(file.read_bytes())
    content[4:8] = struct.pack("<I", version)
    file.write_bytes(content)
    refused(file, f"is GGUF version {version}", "2 and 3")


def test_truncated_anywhere(written, refused):
    file = written(llama())
    content = file.read_bytes()
    whole = GgufFile(file)
    first = min(packed.start for packed in whole.tensors.values())
    for size in (5, 23, 40, 700, first // 2, first - 200):
        file.write_bytes(content[:size])
        refused(file, "header is truncated or damaged")
    last = max(whole.tensors, key=lambda name: whole.tensors[name].start)
    for size in (first, first + 1, whole.tensors[last].start, whole.tensors[last].start + whole.tensors[last].size - 1):
        file.write_bytes(content[:size])
        refused(file, "truncated", f"has {size:,}")
    refused(file, last)


def test_a_damaged_header_never_crashes(written, tmp_path):
    file = written(llama())
    content = file.read_bytes()
    first = min(packed.start for packed in GgufFile(file).tensors.values())
    draw = random.Random(0)
    said = []
    for _ in range(300):
        damaged = bytearray(content)
        at = draw.randrange(first if draw.random() < 0.5 else 700)
        flipped = bytes([damaged[at] ^ 1 << draw.randrange(8)])
        damaged[at : at + 8] = draw.choice([b"\xff" * 8, draw.randbytes(8), flipped])
        file.write_bytes(damaged[: len(content)])
        try:
            read_weights(file)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all(str(file) in text for text in said)


def test_another_architecture(written, refused):
    refused(written(llama(), **{"general.architecture": "mamba"}), "general.architecture is 'mamba'", "llama only")


def test_a_quantization_that_cannot_be_unpacked(written, refused):
    file = written(llama())
    name = b"blk.1.ffn_up.weight"
    content = bytearray(file.read_bytes())
    at = content.index(name) + len(name) + 4 + 2 * 8
    for kind, label in ((9, "Q8_1"), (1234, "number 1234")):
        content[at : at + 4] = struct.pack("<I", kind)
        file.write_bytes(content)
        refused(file, "blk.1.ffn_up.weight", f"is quantized as {label}", "cannot unpack")


def test_rows_that_are_no_whole_blocks(written, refused):
    file = written(llama())
    name = b"blk.1.ffn_up.weight"
    content = bytearray(file.read_bytes())
    at = content.index(name) + len(name) + 4 + 2 * 8
    content[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType.Q4_K)
    file.write_bytes(content)
    refused(file, "blk.1.ffn_up.weight: rows of 96 are no whole blocks of 256")


def test_arrays_in_arrays_without_end(tmp_path, refused):
    file = tmp_path / "deep.gguf"
    deep = struct.pack("<IQ", 9, 1) * 50_000
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"a", 9) + deep)
    refused(file, "header is truncated or damaged")


def test_one_of_several_parts(written, refused):
    refused(written(llama(), **{"split.count": 3}), "one of 3 parts")


def test_nan(written, refused):
    tensors = tensors_of(llama())
    tensors["blk.0.attn_v.weight"][3, 5] = np.nan
    refused(written(llama(), tensors=tensors), "blk.0.attn_v.weight: 1 of 3072 numbers are NaN")


def test_missing_leftover_and_wrongly_shaped_tensors_are_listed_by_their_own_names(written, refused):
    tensors = tensors_of(llama())
    del tensors["blk.0.ffn_norm.weight"]
    tensors["blk.0.attn_q_norm.weight"] = np.ones(16, np.float32)
    tensors["blk.1.attn_k.weight"] = tensors["blk.1.attn_k.weight"][:16]
    refused(
        written(llama(), tensors=tensors), "3 tensors",
        "blk.0.ffn_norm.weight: missing, expected [96]", "blk.0.attn_q_norm.weight: left over",
        "blk.1.attn_k.weight: [16, 96], expected [32, 96]",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 3, "blk.2.attn_norm.weight: missing"),
        ("block_count", 10**9, "tensors in all"),
        ("block_count", None, "has no 'block_count'"),
        ("attention.head_count", 0, "head_count is 0"),
        ("attention.head_count", "six", "head_count is 'six'"),
        ("attention.head_count_kv", 4, "model.key_value_heads"),
        ("attention.layer_norm_rms_epsilon", None, "has no 'attention.layer_norm_rms_epsilon'"),
        ("attention.value_length", 8, "attention.value_length is 8"),
        ("rope.dimension_count", 8, "rope.dimension_count is 8"),
        ("rope.scaling.type", "longrope", "rope.scaling.type is 'longrope'"),
        ("rope.scaling.yarn_beta_fast", 16.0, "rope.scaling.yarn_beta_fast is 16"),
        ("expert_count", 8, "expert_count is 8"),
        ("attention.sliding_window", 16, "attention.sliding_window is 16"),
        ("vocab_size", 999, "token_embd.weight: [320, 96], expected [999, 96]"),
    ],
)
def test_settings_that_lie_or_that_ours_cannot_do(key, value, said, written, refused):
    refused(written(llama(), **{f"llama.{key}": value}), said)


def test_factors_that_are_not_of_llama3s_scaling(written, refused):
    tensors = tensors_of(llama()) | {"rope_freqs.weight": np.array([1, 2, 1, 4, 8, 8, 8, 8], np.float32)}
    refused(written(llama(), tensors=tensors), "rope_freqs.weight: are not the factors of Llama 3's scaling")
    tensors["rope_freqs.weight"] = np.ones(4, np.float32)
    refused(written(llama(), tensors=tensors), "rope_freqs.weight: shape [4], expected [8]")


def test_a_tensor_that_is_there_twice_or_lies_in_another(written, refused):
    file = written(llama())
    content = bytearray(file.read_bytes())
    twice = content.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")
    file.write_bytes(twice)
    refused(file, "blk.0.ffn_up.weight: is there twice")
    name = b"blk.1.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4
    content[at : at + 8] = struct.pack("<Q", 0)
    file.write_bytes(content)
    refused(file, "begins inside")


def test_without_the_gguf_package(written, refused, monkeypatch):
    file = written(llama())
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(file, "gguf package", "pip install 'triune[gguf]'")


def test_names_of_the_whole_model_are_known():
    assert gguf_name("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
