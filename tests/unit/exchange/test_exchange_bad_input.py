"""Damaged, lying or hostile directories: one clear sentence that names file and tensor, exit code 2, nothing left behind."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from triune.cli import main
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import train_tokenizer
from triune.errors import UserError
from triune.exchange import from_huggingface, to_huggingface
from triune.exchange.parity import quiet_transformers

V = 300


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A tiny Llama with its tokenizer, as `save_pretrained` writes them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("good") / "llama"
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    with quiet_transformers():
        transformers.LlamaForCausalLM(config).save_pretrained(place)
    words = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=V, sentinels=2), ["a cat sees a dog"] * 9)
    words.save(place)
    return place


@pytest.fixture
def directory(good, tmp_path):
    """A copy of it to damage."""
    return Path(shutil.copytree(good, tmp_path / "theirs"))


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(directory, *words): import fails with exit code 2, says each of the words, and leaves nothing."""

    def check(directory, *words):
        out = tmp_path / "out"
        before = sorted(tmp_path.iterdir())
        assert main(["import", str(directory), str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("triune: ")
        assert "Traceback" not in said
        for word in words:
            assert word in said
        assert sorted(tmp_path.iterdir()) == before
        return said

    return check


def weights(directory):
    return directory / "model.safetensors"


def rewrite(directory, change):
    tensors = load_file(weights(directory))
    change(tensors)
    save_file(tensors, weights(directory), metadata={"format": "pt"})


def configure(directory, **settings):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_the_undamaged_one_is_imported(directory, tmp_path, capsys):
    assert main(["import", str(directory), str(tmp_path / "out")]) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "parity.json"} <= written
    assert "greedy tokens agree" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.02, 0.5, 0.999])
def test_truncated(directory, refused, share):
    content = weights(directory).read_bytes()
    weights(directory).write_bytes(content[: int(share * len(content))])
    refused(directory, "model.safetensors", "truncated")


def test_nothing_is_there(directory, refused):
    refused(directory / "elsewhere", "elsewhere: does not exist")
    (directory / "config.json").unlink()
    refused(directory, "has no config.json")


def test_truncated_names_the_tensor(directory, refused):
    content = weights(directory).read_bytes()
    weights(directory).write_bytes(content[:-4])
    refused(directory, "model.safetensors: model.norm.weight", "truncated")


def test_tensors_that_overlap_or_leave_a_gap(directory, refused):
    """A header may be consistent, tensor by tensor, and still read one tensor's numbers as another's."""
    content = weights(directory).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]
    text = json.dumps(header).encode().ljust(length + 64)
    weights(directory).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(directory, "model.safetensors: model.", "the tensor before it ends at")


def test_every_flipped_bit_of_the_header_is_found_or_harmless(directory):
    """Harmless are those of the padding and of the metadata, after which every tensor is what it was."""
    content = weights(directory).read_bytes()
    whole = from_huggingface(directory)[0].state_dict()
    length = 8 + int.from_bytes(content[:8], "little")
    found = 0  # with a message that says where
    places = [
        *range(64),
        *range(64, 8 * length, 53),
    ]  # the length itself, and every 53rd bit: all eight of a byte, in turn
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        weights(directory).write_bytes(damaged)
        try:
            read = from_huggingface(directory)[0].state_dict()
        except UserError as error:
            found += str(directory) in str(error)
            continue
        assert all(torch.equal(tensor, read[name]) for name, tensor in whole.items())
    assert found > 0.9 * len(places)


def test_a_flipped_bit_that_makes_a_number_infinite_names_the_tensor(directory, refused):
    def flip(tensors):
        bits = tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int32)
        bits[3, 5] = 0x7F800000

    rewrite(directory, flip)
    refused(directory, "model.safetensors: model.layers.1.mlp.up_proj.weight", "1 of 384", "NaN or infinite")


def test_any_flipped_bit_is_found_where_parity_json_lies_beside(directory, refused, tmp_path):
    out = tmp_path / "export"
    model, _ = from_huggingface(directory)
    to_huggingface(model, out, architecture="llama")
    content = bytearray(weights(out).read_bytes())
    content[-3] ^= 1
    weights(out).write_bytes(content)
    refused(out, str(weights(out)), "SHA-256", "parity.json")


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_with_code_is_refused_and_not_executed(directory, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights(directory).unlink()
    torch.save({"model.norm.weight": Boom()}, directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin", "no code in it has run")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Boom()}))
    refused(directory, "pytorch_model.bin", "no code in it has run")
    assert not (tmp_path / "executed").exists()


def test_a_plain_pickle_is_read(directory):
    tensors = load_file(weights(directory))
    weights(directory).unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    model, _ = from_huggingface(directory)
    assert torch.equal(model.embedding.weight, tensors["model.embed_tokens.weight"])


def sharded(directory):
    with quiet_transformers():
        model = transformers.LlamaForCausalLM.from_pretrained(directory)
        weights(directory).unlink()
        model.save_pretrained(directory, max_shard_size="8KB")
    return sorted(directory.glob("model-*.safetensors"))


def test_shards_are_read_and_a_missing_one_is_named(directory, refused):
    whole = from_huggingface(directory)[0].state_dict()
    shards = sharded(directory)
    assert len(shards) > 2
    read = from_huggingface(directory)[0].state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in whole.items())
    shards[1].unlink()
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    first = next(name for name, file in index.items() if file == shards[1].name)
    refused(directory, shards[1].name, "shard is missing", first)


def test_a_tensor_that_the_index_lists_and_the_shard_lacks(directory, refused):
    shards = sharded(directory)
    tensors = load_file(shards[0])
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, shards[0])
    refused(directory, f"{shards[0].name}: {name}", "index lists it")


def test_an_index_that_points_outside(directory, refused):
    sharded(directory)
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "../../elsewhere.safetensors"
    file.write_text(json.dumps(index))
    shutil.copy(next(directory.glob("model-*.safetensors")), directory.parents[1] / "elsewhere.safetensors")
    refused(directory, "elsewhere.safetensors", "missing", "model.norm.weight")
    (directory.parents[1] / "elsewhere.safetensors").unlink()


def test_no_weights(directory, refused):
    weights(directory).unlink()
    refused(directory, "holds no weights")


def test_a_wrong_shape(directory, refused):
    rewrite(directory, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(23, 16)}))
    refused(directory, str(directory), "model.layers.0.mlp.up_proj.weight: [23, 16], expected [24, 16]")


def test_a_missing_and_a_leftover_tensor(directory, refused):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.extra"] = tensors.pop("model.layers.1.mlp.down_proj.weight")

    rewrite(directory, change)
    refused(
        directory,
        "model.layers.1.mlp.down_proj.weight: missing, expected [16, 24]",
        "model.layers.0.mlp.up_proj.extra: left over",
    )


def test_integers_are_no_weights(directory, refused):
    rewrite(directory, lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)}))
    refused(directory, "stack.norm.weight", "int64")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "lama"}, ["config.json", "model_type 'lama'", "did you mean 'llama'?"]),
        ({"model_type": "falcon_mamba"}, ["model_type 'falcon_mamba'", "It knows b"]),
        ({"model_type": None}, ["config.json: model_type is None"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.input_layernorm.weight: missing"]),
        ({"num_hidden_layers": 1}, ["model.layers.1.input_layernorm.weight: left over"]),
        ({"num_hidden_layers": 10**9}, ["says 1,000,000,000 layers", "tensors in all"]),
        ({"hidden_size": 32}, ["model.embed_tokens.weight: [300, 16], expected [300, 32]"]),
        ({"hidden_size": "16"}, ["config.json: hidden_size is '16', but it must be a whole number"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
        ({"num_key_value_heads": 2}, ["model.layers.0.self_attn.k_proj.weight: [8, 16], expected [16, 16]"]),
        ({"num_hidden_layers": -2}, ["config.json", "model.layers is -2"]),
        ({"tie_word_embeddings": True}, ["one tensor by config.json, but hold different numbers", "lm_head.weight"]),
        ({"hidden_act": "xielu"}, ["config.json: hidden_act is 'xielu'", "silu"]),
        ({"attention_bias": True}, ["attention_bias is True, but triune can do False only"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ["rope_parameters: rope_type is 'dynamic'"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8}}, ["beta_fast is 8"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_lies_or_asks_for_the_impossible(directory, refused, settings, words):
    configure(directory, **settings)
    refused(directory, *words)


def test_a_config_that_is_no_json(directory, refused):
    (directory / "config.json").write_text("{")
    refused(directory, "config.json: cannot be read as JSON")
    (directory / "config.json").write_text("[]")
    refused(directory, "config.json: holds a list")
    (directory / "config.json").unlink()
    refused(directory, "has no config.json")


def test_a_config_that_computes_something_else_is_caught_by_the_proof(directory, refused, monkeypatch):
    """As if ours read a setting wrongly: the tensors fit, and only the numbers tell."""
    from triune.exchange import importing
    from triune.models.config import RotaryPosition

    found = importing.read_foreign

    def wrong(place):
        import dataclasses

        right = found(place)
        return dataclasses.replace(right, config=dataclasses.replace(right.config, position=RotaryPosition(base=77.0)))

    monkeypatch.setattr(importing, "read_foreign", wrong)
    refused(directory, "do not compute the same", "the hidden state after layer 0", "Nothing was written")


def test_an_export_that_the_proof_refuses_leaves_nothing(directory, tmp_path, capsys, monkeypatch):
    """As if ours computed another scale than it says: the files are written by then, under the draft's name."""
    ours, out = tmp_path / "ours", tmp_path / "export"
    assert main(["import", str(directory), str(ours)]) == 0
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    from triune.models.layers.attention import MultiHeadAttention

    right = MultiHeadAttention.forward

    def wrong(self, hidden, *args, **kwargs):
        return right(self, hidden, *args, **kwargs) * (1 + 1e-3 * (self.head_width == 8))

    monkeypatch.setattr(MultiHeadAttention, "forward", wrong)
    assert main(["export", str(ours), str(out), "--architecture=llama"]) == 2
    said = capsys.readouterr().err
    assert "the hidden state after layer 0 is off by" in said
    assert sorted(tmp_path.iterdir()) == before


def test_no_tokenizer_and_another_ones_tokenizer(directory, refused, good, tmp_path, capsys):
    for file in ("tokenizer.json", "tokenizer_config.json", "special_roles.json"):
        (directory / file).unlink()
    refused(directory, "--tokenizer")
    assert main(["import", str(directory), str(tmp_path / "out"), f"--tokenizer={good}"]) == 0


def test_a_directory_of_ours_and_the_same_place(directory, refused, tmp_path, capsys):
    ours = tmp_path / "ours"
    assert main(["import", str(directory), str(ours)]) == 0
    capsys.readouterr()
    refused(ours, "a model of triune's already")
    assert main(["import", str(directory), str(directory)]) == 2
    assert "is what is read" in capsys.readouterr().err


def test_a_failed_export_leaves_what_was_there(directory, tmp_path, capsys):
    ours, out = tmp_path / "ours", tmp_path / "export"
    assert main(["import", str(directory), str(ours)]) == 0
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    capsys.readouterr()
    assert main(["export", str(ours), str(out), "--architecture=bert"]) == 2
    assert "model.family is decoder; encoder would export" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "export.tmp").exists()
    assert main(["export", str(ours), str(out), "--architecture=lama"]) == 2
    assert "did you mean 'llama'?" in capsys.readouterr().err
    assert main(["export", str(ours), str(out), "--shard_size=some"]) == 2
    assert "--shard_size" in capsys.readouterr().err
