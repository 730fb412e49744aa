"""`triune look pattern`: what a name stands for, counts against the matrix, the picture pixel by pixel, words and mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from pattern_cases import PATTERNS
from triune import cli
from triune.attention import causal, full, per_head, prefix, window
from triune.attention.config import AttentionConfig
from triune.attention.routed.patterns import moba
from triune.errors import UserError
from triune.insight import pattern_plot, pattern_text, survey
from triune.insight.subject import Panel, Subject, _panels, subject
from triune.models.config import ModelConfig
from triune.models.cost import flops
from triune.tree import construct, load_yaml, to_yaml

ROOT = Path(__file__).parents[3]
cases = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A working directory with presets of our own: name -> what stands under `model:`."""
    monkeypatch.chdir(tmp_path)

    def write(folder="model", comment="# A preset\n", **models):
        directory = tmp_path / "configs" / folder
        directory.mkdir(parents=True, exist_ok=True)
        for name, model in models.items():
            (directory / f"{name.replace('_', '-')}.yaml").write_text(comment + to_yaml({"model": model}))

    return write


# ---- counts


def by_hand(pattern, length, tile):
    """(kept pairs, area) of each tile."""
    seen = pattern.materialize(range(length), range(length))
    corners = [(q, k) for q in range(0, length, tile) for k in range(0, length, tile)]
    blocks = [seen[q : q + tile, k : k + tile] for q, k in corners]
    return seen, [(int(block.sum()), block.size) for block in blocks]


@cases
@given(PATTERNS, st.integers(1, 30), st.integers(1, 9), st.integers(1, 40))
def test_a_survey_counts_what_the_matrix_holds(pattern, length, tile, most_cells):
    found = survey.survey(pattern, length, tile, most_cells)
    seen, blocks = by_hand(pattern, length, tile)
    assert found.kept == seen.sum()
    assert found.full == sum(kept == area for kept, area in blocks)
    assert found.skipped == sum(kept == 0 for kept, _ in blocks)
    assert found.full + found.partial + found.skipped == len(blocks)
    assert found.computed == sum(area for kept, area in blocks if kept)
    rows = seen.sum(1)
    assert (found.fewest, found.most, found.blind) == (rows.min(), rows.max(), (rows == 0).sum())
    assert found.tile % found.cell == 0 or found.cell % found.tile == 0
    assert len(found.cells) <= max(most_cells, 1)
    assert np.array_equal(found.cells.ravel(), [kept for kept, _ in by_hand(pattern, length, found.cell)[1]])


@cases
@given(PATTERNS, st.integers(1, 24), st.integers(1, 7))
def test_every_pair_has_the_colour_of_what_it_is(pattern, length, tile):
    colours = pattern_plot.picture(survey.survey(pattern, length, tile, 1024))
    seen, _ = by_hand(pattern, length, tile)
    for q in range(length):
        for k in range(length):
            block = seen[q // tile * tile :, k // tile * tile :][:tile, :tile]
            kind = "FULL" if block.all() else "PARTIAL" if block.any() else "SKIPPED"
            name = "_SKIPPED" if kind == "SKIPPED" else f"_KEPT_{kind}" if seen[q, k] else "_MASKED"
            assert tuple(colours[q, k]) == pytest.approx(getattr(pattern_plot, name), abs=1e-12)


def test_a_cell_is_the_darker_the_more_it_keeps():
    found = survey.survey(window(0, 0) | prefix(4), 64, 8, 8)
    assert found.cell == 8
    shades = pattern_plot.picture(found)[4, [0, 4, 2]].sum(-1)  # 32 of 64 pairs, 8 of 64, none
    assert shades[0] < shades[1] < shades[2]


@pytest.mark.parametrize(("length", "tile"), [(1, 1), (7, 1), (8, 1), (32, 4), (256, 32), (1024, 128), (65536, 128)])
def test_tiles_shrink_with_short_lengths(length, tile):
    assert survey.default_tile(length) == tile


def test_cost_beside_dense_and_causal_dense():
    found = survey.survey(causal(), 8, 4, 8)  # two tiles on the diagonal and one below it
    assert (found.computed, found.pairs, found.causal_pairs) == (48, 64, 36)
    cost = dict(pattern_text.facts(Panel(pattern=causal()), found))["cost"]
    assert cost.endswith("75 % of dense, 133 % of causal dense")


# ---- what a name stands for


def test_a_list_of_patterns_is_a_panel_a_pattern():
    shown = subject("modernbert")
    assert (shown.title, shown.name, shown.context) == (
        "ModernBERT base (Warner et al. 2024)",
        "modernbert-base",
        8192,
    )
    assert [(panel.pattern, panel.users, panel.layers) for panel in shown.panels] == [
        (full(), "layers 1, 4, 7 ... 22 (8 of 22)", 8),
        (window(64, 64), "layers 2-3, 5-6, 8-9 ... 20-21 (14 of 22)", 14),
    ]


def test_both_towers_are_shown():
    users = [(panel.pattern, panel.users) for panel in subject("configs/model/t5-small.yaml").panels]
    assert users == [(full(), "all 6 encoder layers"), (causal(), "all 6 decoder layers")]


def test_a_name_is_looked_up_among_models_then_runs(presets):
    presets(tiny={"context": 11})
    presets("pretrain", tiny={"context": 22}, other={"context": 33})
    assert [subject(name).context for name in ("tiny", "other")] == [11, 33]


def test_a_family_is_its_base_or_its_only_member(presets):
    presets(a_base={"context": 1}, a_large={"context": 2}, b_large={"context": 3}, c_small={}, c_large={})
    assert [subject(name).context for name in ("a", "b", "a-large")] == [1, 3, 2]
    with pytest.raises(UserError, match="'c' may be c-large, c-small; name one of them"):
        subject("c")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("modernbrt", "'modernbrt' is no config in .*; did you mean 'modernbert'"),
        ("xyzzy", "'xyzzy' is no config in configs/model and configs/pretrain .*parentheses"),
        ("", "'' is no config"),
        ("causal", "causal lacks its parentheses"),
        ("windw(3, 0)", "did you mean 'window'"),
        ("configs/model/none.yaml", "no such file"),
        ("configs", "'configs' is no config"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UserError, match=words):
        subject(name)


def test_a_title_names_a_paper_only_where_the_config_does(presets):
    presets(comment="# The 2017 Transformer, base (Vaswani et al. 2017, table 3): 63M (2017).\n", old={})
    presets(comment="# A model with 12 layers (base): none.\n", new={})
    assert [subject(name).title for name in ("old", "new")] == [
        "The 2017 Transformer, base (Vaswani et al. 2017, table 3)",
        "new",
    ]


def test_groups_of_heads(presets):
    text = "per_head(window(2, 0), causal(), window(2, 0))"
    users = [(panel.pattern, panel.users) for panel in subject(text).panels]
    assert users == [(window(2, 0), "part 1, 3 of 3 of the heads"), (causal(), "part 2 of 3 of the heads")]
    presets(grouped={"heads": 6, "head_width": 8, "layers": 3, "attention": {"pattern": [text, "causal()"]}})
    found = [(panel.pattern, panel.users, panel.layers, panel.heads) for panel in subject("grouped").panels]
    assert found == [
        (window(2, 0), "layers 1, 3 (2 of 3), heads 1-2, 5-6 of 6", 2, 4),
        (causal(), "layers 1, 3 (2 of 3), heads 3-4 of 6", 2, 2),
        (causal(), "layer 2 of 3", 1, 6),
    ]


def test_heads_follow_the_rule_of_attend():
    parts = (window(0, 0), window(1, 0), window(2, 0))
    for heads in (1, 2, 3, 4, 7):
        panels = list(_panels_of(per_head(*parts), heads))
        expected = [parts[h * 3 // heads] for h in range(heads)]
        assert sum(count for _, count in panels) == heads
        assert dict(panels) == {part: expected.count(part) for part in expected}


def _panels_of(pattern, heads):
    attention = AttentionConfig(pattern=str(pattern))
    config = ModelConfig(family="decoder", heads=heads, head_width=8, layers=1, attention=attention)
    return ((panel.pattern, panel.heads) for panel in _panels(config))


@pytest.mark.parametrize("path", ["modernbert-base", "gpt2-small", "llama-135m", "bert-tiny"])
def test_flops_are_those_of_the_cost_model(path):
    config = construct(ModelConfig, load_yaml(f"configs/model/{path}.yaml")["model"], "model")
    length = 96
    total = sum(
        4 * panel.layers * panel.heads * panel.head_width * panel.pattern.kept(length, length)
        for panel in subject(path).panels
    )
    assert total == flops(config, length).parts["attention scores"]


# ---- words and characters


def test_the_report(capsys, tmp_path):
    assert (
        cli.main(["look", "pattern", "window(1, 0)", "--length", "4", "--tile=2", f"--output={tmp_path}/a/x.png"]) == 0
    )
    assert capsys.readouterr().out.splitlines() == [
        "length 4, tiles of 2 x 2",
        "",
        "window(1, 0)",
        "  kept   7 of 16 pairs (43.8 %)",
        "  keys   1 to 2 a query, 1.8 on average",
        "  tiles  0 full, 3 partial, 1 skipped",
        "  cost   12 pairs in the tiles that are not skipped: 75 % of dense, 120 % of causal dense",
        "",
        "  ██· · ·",
        "  ████· ·",
        "  · ████·",
        "  · · ████",
        "  ██ kept, · not; queries down, keys across",
        f"picture: {tmp_path}/a/x.png",
    ]


def test_long_matrices_are_drawn_by_blocks_in_characters_the_terminal_has():
    found = survey.survey(causal(), 64, 8, 1024)
    assert list(pattern_text.matrix(found, 4, "ascii")) == [
        "++. . . ",
        "##++. . ",
        "####++. ",
        "######++",
        "## all kept, ++ some, . none of 16 x 16 pairs; queries down, keys across",
    ]
    assert next(pattern_text.matrix(found, 4, "utf-8")) == "▒▒· · · "


def _said(name, length, capsys):
    pattern_plot.look(name, length=length)
    return capsys.readouterr().out


def test_notes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "note   queries that see no key, whose output is zero: 1\n" in _said(
        "~window(None, 0) & prefix(9)", 9, capsys
    )
    assert "note   the same as full() at this length; a longer one shows more: --length 32" in _said(
        "window(9, 9)", 8, capsys
    )
    assert "note   the same as causal() at this length" in _said("window(9, 0)", 8, capsys)
    assert "note" not in _said("causal()", 8, capsys) + _said("full()", 8, capsys) + _said("window(3, 0)", 8, capsys)


def test_a_routed_pattern_has_counts_and_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = _said("moba(block=4, top=2)", 16, capsys)
    kept = moba(block=4, top=2).kept(16, 16)
    assert f"at most {kept} of 256 pairs" in said
    assert "depends on what the tokens hold" in said
    assert "picture:" not in said
    assert not list(tmp_path.iterdir())


def test_a_model_tells_flops_a_layer_and_in_all(tmp_path, monkeypatch, capsys, presets):
    presets(
        m={
            "heads": 2,
            "width": 16,
            "layers": 4,
            "context": 8,
            "attention": {"pattern": ["full()", "window(1, 0)"]},
            "family": "encoder",
        }
    )
    assert pattern_plot.look("m") == 0
    said = capsys.readouterr().out
    assert (
        "FLOPs  4.1 kFLOP a layer, forward: 4 x 2 heads x 8 x kept pairs; all pairs take 4.1 kFLOP" in said
    )  # 4 x 2 x 8 x 64
    assert "FLOPs  960 FLOP a layer" in said
    assert "self-attention of all layers: 10.1 kFLOP a row, forward; all pairs take 16.4 kFLOP (61.7 %)" in said
    assert Path("runs/look/m-8.png").is_file()


@pytest.mark.parametrize(("panels", "lines"), [(2, 32), (3, 16), (5, 0)])
def test_many_matrices_do_not_bury_the_facts(panels, lines, presets, tmp_path, capsys):
    listed = [f"window({index + 1}, 0)" for index in range(panels)]
    presets(m={"layers": panels, "context": 32, "attention": {"pattern": listed}})
    pattern_plot.look("m", output=str(tmp_path / "m.png"))
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  kept ") for line in said) == panels
    assert sum(line[:4] in ("  ██", "  ▒▒", "  · ") and "queries down" not in line for line in said) == panels * lines


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(1, 8, "12.5 %"), (0, 8, "0 %"), (8, 8, "100 %"), (9999, 10000, "about 100 %"), (1002, 1000, "about 100 %"), (12, 10, "120 %"), (200, 10, "2,000 %")],
)  # fmt: skip
def test_shares(part, whole, said):
    assert pattern_text.share(part, whole) == said


# ---- the picture


@pytest.mark.parametrize("length", [1, 13, 300, 1000])
def test_each_pair_is_a_square_of_whole_pixels(length, tmp_path):
    shown = subject("window(0, 0) | prefix(1)")
    found = survey.survey(shown.panels[0].pattern, length, 16, 1024)
    figure = pattern_plot.draw(shown, [(shown.panels[0], found)])
    pattern_plot.save(figure, tmp_path / "x.png")
    box = figure.axes[0].get_window_extent()
    pixels = imread(tmp_path / "x.png")[..., :3]
    top, left, side = (round(value) for value in (len(pixels) - box.y1, box.x0, box.width))
    assert side % length == 0
    square = side // length
    middle = slice(square // 2, None, square)
    inside = pixels[top : top + side, left : left + side][middle, middle]
    assert np.abs(inside - pattern_plot.picture(found)).max() < 1 / 255  # eight bits a colour


@pytest.mark.parametrize("panels", [1, 2, 9])
def test_nothing_is_drawn_over_anything(panels):
    text = "(window(16, 16) & ~window(3, 3) | prefix(4)) & causal() | window(0, 0) | prefix(90) & ~prefix(80)"
    pattern = subject(text).panels[0].pattern
    many = [Panel(pattern=pattern | window(0, i + 1), users=f"layers {i} (1 of 22)") for i in range(panels)]
    shown = Subject(title="A model of many patterns (Someone et al. 2020)", name="x", panels=many, context=64)
    figure = pattern_plot.draw(shown, [(panel, survey.survey(panel.pattern, 40, 8, 512)) for panel in many])
    figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_tightbbox() for axes in figure.axes]
    boxes += [figure.legends[0].get_window_extent()]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


@pytest.mark.parametrize("ending", [".pdf", ".svg", ".PNG"])
def test_other_formats(ending, tmp_path):
    pattern_plot.look("causal()", length=4, output=str(tmp_path / f"x{ending}"))
    assert (tmp_path / f"x{ending}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--length", "0"], "--length: .* 0 "),
        (["--tile", "-1"], "--tile: .* -1 "),
        (["--length", "1000000", "--tile", "16"], "62,500 tiles of 16 a side, .* --tile 245 or more"),
        (["--output", "x.jpg"], r"--output is 'x.jpg', but its name must end in one of \.png"),
        (["--output", "/dev/null/x.png"], "--output /dev/null/x.png cannot be written"),
        (["--output", "{tmp}/d.png"], r"d\.png cannot be written \(Is a directory\)"),
        (["--lenght", "3"], "did you mean '--length'"),
    ],
)
def test_mistakes_on_the_command_line(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.png").mkdir()
    code = cli.main(["look", "pattern", "causal()", "--length", "8", *(text.format(tmp=tmp_path) for text in options)])
    said = capsys.readouterr().err
    assert code == 2
    assert re.search(words, said), said


@pytest.mark.parametrize("arguments", [[], ["patern"], ["x"]])
def test_look_says_what_there_is(arguments, capsys):
    assert cli.main(["look", *arguments]) == 2
    assert "write triune look pattern" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["pattern", "--help"]])
def test_help(arguments, capsys):
    assert cli.main(["look", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: triune look pattern PATTERN")
    assert all(option in said for option in ("--length", "--tile", "--output"))


def test_looking_needs_no_torch_and_help_no_matplotlib(tmp_path):
    code = (
        "import sys; from triune.cli import main; main(['look', 'pattern', '--help']); assert 'matplotlib' not in sys.modules; "
        f"main(['look', 'pattern', 'modernbert', '--length', '8', '--output', '{tmp_path}/x.png']); "
        "assert not {'torch', 'lightning', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
