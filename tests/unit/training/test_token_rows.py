"""Vocabularies of different tokenizers joined: which row each token starts from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.data.config import TokenizerConfig
from triune.data.special_tokens import SpecialTokens
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError
from triune.exchange.model_directory import save_model
from triune.models.factory import build, resolve
from triune.training.config import InitConfig
from triune.training.token_rows import TokenRows, join_tokens, same_tokens
from triune.training.weights import read_start

WORDS = "the quick brown fox jumps over a lazy dog. She isn't going! Was he there? hello world again < > / _ [ ] | 3 é"
TEXTS = [" ".join(np.random.default_rng(i).permutation(WORDS.split())) for i in range(60)]
KINDS = ("byte_bpe", "wordpiece", "unigram")


@pytest.fixture(scope="module")
def trained():
    sizes = {"byte_bpe": 420, "wordpiece": 420, "unigram": 120}
    return {
        kind: train_tokenizer(TokenizerConfig(kind=kind, vocabulary=size, sentinels=4), TEXTS)
        for kind, size in sizes.items()
    }


def joined(old: Tokenizer, new: Tokenizer, more: int = 0) -> TokenRows:
    return join_tokens(old, new, before=old.size, after=new.size + more)


def pieces_of(old, new, token):
    """The old tokens, as they are spelled, that a new one is made of."""
    spelled = {row: name for name, row in old.tokens.items()}
    return [spelled[row] for row in joined(old, new).pieces[new.tokens[token]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_joined_with_itself_keeps_every_row(kind, trained):
    rows = joined(trained[kind], trained[kind], more=2)
    assert rows.pieces == (*((row,) for row in range(trained[kind].size)), (), ())


@pytest.mark.parametrize(
    ("old", "new", "token", "pieces"),
    [
        (
            "byte_bpe",
            "wordpiece",
            "brown",
            ["Ġbrown"],
        ),  # a word's beginning, which only one of them spells with a space
        ("byte_bpe", "wordpiece", "##er", ["er"]),
        ("byte_bpe", "unigram", "▁the", ["Ġthe"]),
        ("byte_bpe", "unigram", "é", ["Ã©"]),
        ("wordpiece", "byte_bpe", "Ġfox", ["fox"]),
        ("wordpiece", "unigram", "▁a", ["a"]),
        ("wordpiece", "unigram", "h", ["##h"]),
        ("wordpiece", "byte_bpe", "br", ["b", "##r"]),
        ("unigram", "byte_bpe", "She", ["S", "he"]),
        ("unigram", "wordpiece", "S", ["▁", "S"]),
        ("wordpiece", "byte_bpe", "%", []),  # no text of the old tokenizer's had one
        ("wordpiece", "byte_bpe", "Ã", []),  # half a character
        ("byte_bpe", "wordpiece", "<mask>", ["<mask>"]),
        ("byte_bpe", "wordpiece", "<extra_id_3>", ["<extra_id_3>"]),
    ],
)
def test_tokens_are_joined_by_what_they_stand_for(old, new, token, pieces, trained):
    assert pieces_of(trained[old], trained[new], token) == pieces


def renamed(tokenizer: Tokenizer, roles: dict) -> Tokenizer:
    """The same tokenizer with special tokens spelled otherwise: old spelling -> new, and the roles of both."""
    content = tokenizer._files["tokenizer.json"].decode()
    for before, after in roles.items():
        content = content.replace(f'"{before}"', f'"{after}"')
    spelled = {role: roles.get(token, token) for role, token in vars(tokenizer.roles).items() if isinstance(token, str)}
    return Tokenizer(
        {"tokenizer.json": content.encode()}, SpecialTokens(**spelled, sentinels=tokenizer.roles.sentinels)
    )


def test_special_tokens_are_joined_by_their_role(trained):
    old = trained["wordpiece"]
    new = renamed(old, {"<pad>": "[PAD]", "<s>": "[CLS]", "</s>": "[SEP]", "<mask>": "[MASK]"})
    assert new.fingerprint != old.fingerprint
    assert pieces_of(old, new, "[MASK]") == ["<mask>"]
    assert pieces_of(old, new, "[CLS]") == ["<s>"]
    assert joined(old, new).pieces == tuple((row,) for row in range(old.size))


def test_a_token_of_several_roles_starts_from_the_end_of_a_text(trained):
    """GPT-2's one special token is pad, bos and eos; it stands before what follows a document's end."""
    old = trained["byte_bpe"]
    new = Tokenizer(
        dict(old._files), SpecialTokens(pad="<mask>", bos="<mask>", eos="<mask>", sentinels=old.roles.sentinels)
    )
    assert pieces_of(old, new, "<mask>") == ["</s>"]


def test_ids_beyond_the_old_table_have_no_row(trained):
    """A tokenizer may have more entries than the model beside it."""
    old = trained["byte_bpe"]
    rows = join_tokens(old, old, before=old.size - 5, after=old.size)
    assert rows.pieces[-6:] == ((old.size - 6,), (), (), (), (), ())
    assert rows.known == old.size - 5


@settings(deadline=None, max_examples=40, derandomize=True)
@given(before=st.integers(1, 20), after=st.integers(1, 20), known=st.integers(1, 20))
def test_one_tokenizer_keeps_its_ids_in_a_table_of_another_size(before, after, known):
    rows = same_tokens(before=before, after=after, known=known)
    assert rows.pieces == tuple((row,) if row < before else () for row in range(after))
    assert rows.known <= before


@pytest.mark.parametrize("shape", [(6, 3), (6,)], ids=["table", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_copied_to_the_bit_and_means_are_of_the_pieces(shape, dtype):
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = TokenRows(((4,), (1, 3), (), (0,)), 5).take(table)
    wide = table.double()
    assert torch.equal(made[0], table[4].float())
    assert torch.equal(made[3], table[0].float())
    # sums of 2 and 5 fp32 numbers of order 1, divided once: 6 roundings of 6e-8
    torch.testing.assert_close(made[1].double(), (wide[1] + wide[3]) / 2, rtol=0, atol=4e-7)
    torch.testing.assert_close(made[2].double(), wide[:5].mean(0), rtol=0, atol=4e-7)


def test_the_words_count_what_is_done():
    assert str(TokenRows(((0,), (1,)), 2)) == "2 rows copied"
    words = str(TokenRows(((0,), (1, 2), (), ()), 3))
    assert words == "1 rows copied; 1 the mean of the old rows of their pieces; 2 the mean of all"


SHAPE = {"context": 8, "width": 16, "layers": 1, "heads": 2, "vocabulary": 448}


@pytest.fixture
def two(trained, tmp_path):
    """InitConfig of an encoder and a decoder that read through different tokenizers."""
    for family, kind in (("encoder", "byte_bpe"), ("decoder", "wordpiece")):
        save_model(build({**SHAPE, "family": family}), trained[kind], tmp_path / family, objective="none")
    return {"encoder": str(tmp_path / "encoder"), "decoder": str(tmp_path / "decoder")}


def planned(two, tokenizer, *, tied, **init):
    model = resolve({**SHAPE, "family": "encoder_decoder", "tie_embeddings": tied})
    return read_start(InitConfig(**two, **init)).plan(model, tokenizer)


def test_only_a_table_that_is_taken_needs_the_datas_tokenizer(two, trained):
    table = {fate.name: fate for fate in planned(two, trained["byte_bpe"], tied=True).fates}["embedding.weight"]
    assert table.words == "copied from init.encoder"
    assert planned(two, trained["wordpiece"], tied=True, embeddings="decoder")
    with pytest.raises(UserError, match=r"init\.decoder: .* another tokenizer .* init\.vocabulary=joined"):
        planned(two, trained["byte_bpe"], tied=False)
    with pytest.raises(UserError, match=r"init\.encoder: .* another tokenizer"):
        planned(two, trained["wordpiece"], tied=True)


def test_each_table_is_joined_with_its_own_tokenizers(two, trained):
    fates = {f.name: f for f in planned(two, trained["byte_bpe"], tied=False, vocabulary="joined").fates}
    assert fates["embedding.weight"].rows is None
    expected = join_tokens(trained["wordpiece"], trained["byte_bpe"], before=448, after=448)
    assert fates["head.weight"].rows == expected
