"""Attention is computed in attention/backends and nowhere else: no second softmax over scores, no second kernel call."""

import ast
from pathlib import Path

import pytest

import triune

ROOT = Path(triune.__file__).parent
BACKENDS = ROOT / "attention" / "backends"
KERNELS = {
    "scaled_dot_product_attention",
    "flex_attention",
    "varlen_attn",
    "MultiheadAttention",
    "multi_head_attention_forward",
}
SOFTMAX = {"softmax", "Softmax", "_safe_softmax"}
#: where a softmax runs over the vocabulary, not over keys
VOCABULARY = ("models/loss.py", "inference/")


def names(source):
    """Names and attributes that the source uses: of functions, modules and imports, never of comments or strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def offences(source, *, softmax):
    return {name for name in names(source) if name in KERNELS or (softmax and name in SOFTMAX)}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_attention_outside_the_backends(path):
    if BACKENDS in path.parents:
        return
    allowed = path.relative_to(ROOT).as_posix().startswith(VOCABULARY)
    assert not offences(path.read_text(encoding="utf-8"), softmax=not allowed)


def test_the_search_finds_what_it_should():
    assert offences("import torch.nn.functional as F\nF.scaled_dot_product_attention(q, k, v)", softmax=True)
    assert offences("from torch.nn.functional import scaled_dot_product_attention as quick", softmax=False)
    assert offences("(q @ k.mT).softmax(-1) @ v", softmax=True)
    assert not offences("# softmax\n'softmax'", softmax=True)
    assert any(offences(path.read_text(encoding="utf-8"), softmax=True) for path in BACKENDS.glob("*.py"))


def test_models_call_attend_alone():
    """Models reach attention through `attend`, never through a backend."""
    for path in (ROOT / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("triune.attention.backends"), path
