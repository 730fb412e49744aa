"""`build`: from settings to a model of the right family, and what each family refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import AlibiPosition, ModelConfig
from triune.models.decoder import Decoder
from triune.models.encoder import Encoder
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.factory import build, resolve
from triune.models.layers.attention import MultiHeadAttention

TINY: dict[str, Any] = {"vocabulary": 40, "width": 32, "layers": 2, "heads": 4, "context": 16}
FAMILIES = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 40, shape)


def call(model: Any, inputs: torch.Tensor, **more: Any) -> torch.Tensor:
    if isinstance(model, EncoderDecoder):
        more = {"source": ids(inputs.shape[0], 5), **more}
    return model(inputs, **more)


@families
def test_family_shapes_and_settings(family: str) -> None:
    model = build(TINY, family=family)
    assert type(model) is FAMILIES[family]
    assert call(model, ids(2, 7)).shape == (2, 7, 32)
    assert model.head.logits(call(model, ids(2, 7))).shape == (2, 7, 40)
    assert model.config == resolve(TINY, family=family)
    assert model.head.weight is model.embedding.weight
    assert build(TINY, family=family, tie_embeddings=False).head.weight is not model.embedding.weight


def test_settings_from_a_file_a_mapping_or_an_object_are_the_same(tmp_path: Path) -> None:
    lines = "".join(f"{key}: {value}\n" for key, value in TINY.items())
    alone, inside = tmp_path / "alone.yaml", tmp_path / "inside.yaml"
    alone.write_text(lines)
    inside.write_text("name: trial\nmodel:\n" + "".join(f"  {line}\n" for line in lines.splitlines()))
    expected = resolve(TINY)
    assert resolve(alone) == resolve(str(inside)) == resolve(expected) == expected
    assert isinstance(expected, ModelConfig)


def test_overrides_are_merged() -> None:
    config = resolve(
        TINY,
        layers=3,
        position=AlibiPosition(),
        feed_forward={"kind": "swiglu"},
        **{"attention.pattern": "window(2, 0)"},
    )
    assert config.layers == 3
    assert config.position == AlibiPosition()
    assert config.feed_forward.kind == "swiglu"
    assert config.attention.pattern == "window(2, 0)"
    assert config.width == 32
    again = resolve(config, position={"kind": "rotary", "base": 5.0})
    assert again.position.base == 5.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocabulary": None}, "model.vocabulary is null"),
        ({"heads": 5}, "model.heads is 5"),
        ({"hedas": 4}, "model.hedas"),
        ({"position": {"kind": "rotary", "buckets": 4}}, "model.position.buckets"),
    ],
)
def test_wrong_settings_are_user_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(TINY, **settings)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_one_tower_refuses_a_source(family: str) -> None:
    model = build(TINY, family=family)
    with pytest.raises(UserError, match="encoder_decoder"):
        model(ids(1, 4), source=ids(1, 4))
    with pytest.raises(UserError, match="encoder_decoder"):
        model(ids(1, 4), source_layout=SequenceLayout.plain_rows(1, 4))


def test_an_encoder_refuses_a_cache() -> None:
    with pytest.raises(UserError, match="no cache"):
        build(TINY, family="encoder")(ids(1, 4), cache=build(TINY).new_cache(1))


@families
def test_a_row_beyond_a_learned_table_names_the_context(family: str) -> None:
    model = build(TINY, family=family, position={"kind": "learned"})
    call(model, ids(1, 16))
    with pytest.raises(UserError, match=r"17 tokens.*model\.context = 16"):
        call(model, ids(1, 17))


def test_a_cached_row_beyond_a_learned_table_names_the_context() -> None:
    model = build(TINY, position={"kind": "learned"})
    cache = model.new_cache(1)
    with torch.no_grad():
        model(ids(1, 15), cache=cache)
        model(ids(1, 1), cache=cache)
        with pytest.raises(UserError, match=r"17 tokens.*model\.context = 16"):
            model(ids(1, 1), cache=cache)


@pytest.mark.parametrize("kind", ["sinusoidal", "rotary", "alibi", "t5", "none"])
def test_other_positions_go_beyond_the_context(kind: str) -> None:
    assert build(TINY, position={"kind": kind})(ids(1, 40)).shape == (1, 40, 32)


def test_token_types_are_added_and_default_to_segment_0() -> None:
    model = build(TINY, family="encoder", token_types=2).eval()
    inputs = ids(1, 6)
    zeros = torch.zeros(1, 6, dtype=torch.long)
    assert torch.equal(model(inputs), model(inputs, token_types=zeros))
    assert not torch.equal(model(inputs), model(inputs, token_types=zeros + 1))
    with pytest.raises(UserError, match=r"model\.token_types"):
        build(TINY, family="encoder")(inputs, token_types=zeros)


def test_one_batch_passes_through_the_same_attention_class_in_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score is computed by `attend`, every `attend` is called by MultiHeadAttention, and by its one forward."""
    from triune.models.layers import attention

    callers: list[str] = []
    original = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a, **k: callers.append("attend") or original(*a, **k))
    direct: list[str] = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: direct.append("sdpa") or kernel(*a, **k)
    )
    batch = ids(2, 6)
    expected = {"encoder": 2, "decoder": 2, "encoder_decoder": 6}  # 2 layers; an encoder-decoder's are 2 + 2 x 2
    for family, count in expected.items():
        model = build(TINY, family=family)
        seen: list[type] = []
        for module in model.modules():
            if "ttention" in type(module).__name__:
                module.register_forward_hook(lambda module, *_, seen=seen: seen.append(type(module)))
        callers.clear()
        direct.clear()
        call(model, batch)
        assert seen == [MultiHeadAttention] * count
        assert len(callers) == count
        assert len(direct) == count


def test_only_the_attention_package_computes_attention() -> None:
    """No other file of the package speaks of softmax or of torch's kernel."""
    import triune.models.block

    root = Path(triune.models.block.__file__).parents[1]
    for path in sorted((root / "models").rglob("*.py")):
        text = path.read_text()
        assert "scaled_dot_product_attention" not in text, path
        if path.name not in ("loss.py", "heads.py"):
            assert "softmax(" not in "".join(line for line in text.splitlines() if "torch" in line or "F." in line), (
                path
            )


@families
def test_every_parameter_gets_a_gradient(family: str) -> None:
    for position in ("learned", "rotary", "t5"):
        model = build(
            TINY,
            family=family,
            position={"kind": position},
            head={"transform": True, "bias": True},
            norm={"embedding": True},
            attention={"qk_norm": True},
        )
        model.head.logits(call(model, ids(2, 16))).square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@families
def test_bf16_autocast_runs_forward_and_backward(family: str) -> None:
    model = build(TINY, family=family, norm={"kind": "rms"}, attention={"qk_norm": True}, key_value_heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = call(model, ids(2, 8))
    hidden.float().square().sum().backward()
    assert hidden.dtype == torch.float32  # the residual stream keeps fp32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
