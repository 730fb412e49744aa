"""Runs that start from runs of other families, and from a directory of Hugging Face's, through the command line."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from triune.cli import main
from triune.data.tokenizers import Tokenizer
from triune.training.token_rows import join_tokens

SHORT = {"run": {"tokens": 20 * 128, "checkpoint_every": "20 steps"}}
#: moves no weight: 1e-30 is below half a unit in the last place of every number but 0
STILL = ["optimizer.learning_rate=1e-30", "optimizer.adamw_learning_rate=1e-30", "run.tokens=128", "run.validate_every=0.5"]  # fmt: skip


@pytest.fixture
def finished(write_config, tmp_path, capsys):
    """finished(family) -> the directory of a finished run."""

    def run(family):
        assert main(["pretrain", str(write_config(family, SHORT, name=family))]) == 0
        capsys.readouterr()
        return tmp_path / "runs" / "pretrain" / family

    return run


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_an_encoder_decoder_from_an_encoder_and_a_decoder(finished, write_config, tmp_path, capsys):
    encoder, decoder = finished("encoder"), finished("decoder")
    config = str(write_config("encoder_decoder", name="two"))
    both = [f"init.encoder={encoder}", f"init.decoder={decoder / 'checkpoints' / 'last'}"]
    both += ["init.cross_attention=self_attention", "model.decoder_layers=3", "init.decoder_layers=spread"]
    assert main(["plan", config, *both]) == 0
    planned = capsys.readouterr().out
    assert main(["pretrain", config, *both, *STILL]) == 0
    shown = capsys.readouterr().out
    new = tmp_path / "runs" / "pretrain" / "two"
    table = (new / "init.txt").read_text()
    assert shown.count(table) == 1
    assert table in planned
    assert "queries copied from the layer's self-attention (init.decoder)" in table
    assert "0, 1, 1 of the 2 in stack (init.decoder)" in table

    ours, first, second = weights(new), weights(encoder), weights(decoder)
    assert torch.equal(ours["embedding.weight"], first["embedding.weight"])
    for layer in range(2):
        name = f"blocks.{layer}.feed_forward.up.weight"
        assert torch.equal(ours[f"encoder.{name}"], first[f"stack.{name}"])
    for place, layer in enumerate([0, 1, 1]):
        fused = second[f"stack.blocks.{layer}.attention.query_key_value.weight"]
        assert torch.equal(ours[f"decoder.blocks.{place}.attention.query_key_value.weight"], fused)
        crossing = [ours[f"decoder.blocks.{place}.cross_attention.{part}.weight"] for part in ("query", "key_value")]
        assert torch.equal(torch.cat(crossing), fused)

    for source in (encoder, decoder):
        shutil.rmtree(source)
    going_on = [*both, *STILL[:2], "run.validate_every=0.5", f"run.tokens={3 * 128}"]
    assert main(["pretrain", config, *going_on]) == 0
    shown = capsys.readouterr().out
    assert "continuing from" in shown
    assert "weights from" not in shown
    assert (new / "init.txt").read_text() == table


def test_an_encoder_from_half_of_an_encoder_decoder_trains(finished, write_config, tmp_path):
    source = finished("encoder_decoder")
    config = str(write_config("encoder", SHORT, name="half"))
    assert main(["finetune", config, f"init.from={source}"]) == 0
    table = (tmp_path / "runs" / "finetune" / "half" / "init.txt").read_text()
    assert "head.dense.weight" in table
    assert "fresh: a part of the head" in table
    assert "0-1 of the 2 in encoder" in table
    assert "decoder.blocks.*.cross_attention.query.weight (2)" in table


def gpt2(directory, corpus):
    """A tiny GPT-2 of Hugging Face's, with a tokenizer that knows other words than ours."""
    import transformers

    from triune.data.config import TokenizerConfig
    from triune.data.tokenizers import train_tokenizer

    words = [line.replace("garden", "gardener") for line in corpus.read_text().splitlines()[:100]]
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=310, sentinels=0), words)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=320, n_positions=24, n_embd=32, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2
        )
    )
    model.save_pretrained(directory)
    tokenizer.save(directory)
    return model.state_dict()


GPT2_SHAPE = [
    "model.position.kind=learned", "model.norm.placement=pre", "model.norm.kind=layer", "model.norm.bias=true", "model.bias=true",
    "model.feed_forward.kind=gelu_tanh", "model.tie_embeddings=true", "model.head.transform=false", "model.layers=2", "model.heads=2",
]  # fmt: skip


def test_an_encoder_from_hugging_faces_decoder_with_another_tokenizer(write_config, tmp_path, corpus, capsys):
    directory = tmp_path / "gpt2"
    theirs = gpt2(directory, corpus)
    config = str(write_config("encoder", SHORT, name="joined"))
    options = [f"init.from={directory}", "init.layers=last", *GPT2_SHAPE, *STILL]
    assert main(["pretrain", config, *options]) == 2
    refused = capsys.readouterr().err
    assert "was trained with another tokenizer" in refused
    assert "init.vocabulary=joined" in refused
    assert main(["pretrain", config, *options, "init.vocabulary=joined"]) == 0
    new = tmp_path / "runs" / "pretrain" / "joined"
    ours, table = weights(new), theirs["transformer.wte.weight"]

    old, own = Tokenizer.load(directory), Tokenizer.load(new / "tokenizer")
    both = [token for token in own.tokens if token in old.tokens]
    assert len(both) > 260
    assert own.tokens["Ġgarden"] != old.tokens.get("Ġgarden")
    for token in both:
        assert torch.equal(ours["embedding.weight"][own.tokens[token]], table[old.tokens[token]]), token
    rows = join_tokens(old, own, before=320, after=len(ours["embedding.weight"]))
    pieces = rows.pieces[own.tokens["Ġgarden"]]
    mean = table[list(pieces)].mean(0)
    torch.testing.assert_close(ours["embedding.weight"][own.tokens["Ġgarden"]], mean, rtol=0, atol=len(pieces) * 6e-8)
    # Hugging Face's Conv1D is [in, out]
    assert torch.equal(ours["stack.blocks.0.feed_forward.up.weight"], theirs["transformer.h.1.mlp.c_fc.weight"].T)
    positions = theirs["transformer.wpe.weight"]
    assert torch.equal(ours["input.positions.weight"], torch.cat([positions, positions[:8]]))
    said = (new / "init.txt").read_text()
    assert f"{sum(len(row) == 1 for row in rows.pieces)} rows copied" in said
    assert "1, 2 of the 3 in stack" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["init.encoder={run}", "model.width=64"], "model.width: 64 here, 32 in"),
        (["init.encoder={run}", "model.layers=3", "init.layers=[0, 1, 2]"], "init.layers: 2 is no layer of"),
        (["init.from={run}"], "init.encoder="),
        (["init.from={run}", "init.decoder={run}"], "give one or the other"),
        (["init.encoder={run}", "init.cross_attention=self_attention"], "init.decoder names no weights"),
        (["init.layers=spread"], "none are named"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_text_is_read(options, says, source, write_config, tmp_path, capsys):
    config = write_config("encoder_decoder", {"data": {"train": [{"path": "nowhere.txt"}]}}, name="wrong")
    assert main(["pretrain", str(config), *(option.format(run=source) for option in options)]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "nowhere.txt" not in shown
    assert not (tmp_path / "runs" / "pretrain" / "wrong").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model directory of a decoder, never trained."""
    from triune.data.config import TokenizerConfig
    from triune.data.tokenizers import train_tokenizer
    from triune.exchange.model_directory import save_model
    from triune.models.factory import build

    tokenizer = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=300, sentinels=0), ["some words"])
    directory = tmp_path_factory.mktemp("source") / "model"
    shape = {"vocabulary": 320, "context": 32, "width": 32, "layers": 2, "heads": 2}
    save_model(build(shape), tokenizer, directory, objective="causal")
    return directory
