"""Typed construction: what each type takes, unions told apart by `kind`, and what a mistake reads like."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.tree import construct, describe, load_yaml, merge, override, report, to_tree
from triune.units import Count, Interval


@dataclass(frozen=True, kw_only=True)
class Slow:
    """Goes slowly.

    Args:
        kind: the variant.
        rate: how slowly,
            in two lines.
    """

    kind: Literal["slow"] = "slow"
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Fast:
    """Goes fast.

    Args:
        kind: the variant.
        rate: how fast.
        boost: more.
    """

    kind: Literal["fast"] = "fast"
    rate: float = 9.0
    boost: bool = False


@dataclass(frozen=True, kw_only=True)
class Style:
    """A section whose `kind` is an option like any other.

    Args:
        kind: round or square.
        size: how big.
    """

    kind: Literal["round", "square"] = "round"
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Item:
    """One of a list.

    Args:
        path: where.
    """

    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Root:
    """Everything at once.

    Args:
        whole: an int.
        share: a float.
        flag: a bool.
        word: a str.
        choice: a Literal.
        count: a Count.
        maybe_count: a Count or nothing.
        span: an Interval.
        pair: a tuple.
        words: a list.
        pattern: a str or a list.
        base: a float or a list.
        speed: a union.
        style: a section.
        items: a list of sections.
        free: a mapping.
        from_: a reserved word.
    """

    whole: int = 1
    share: float = 0.5
    flag: bool = False
    word: str = "w"
    choice: Literal["a", "bee"] | None = None
    count: Count = field(default=Count(4))
    maybe_count: Count | None = None
    span: Interval = field(default=Interval.parse("0.5"))
    pair: tuple[float, float] = (0.1, 0.2)
    words: list[str] = field(default_factory=list)
    pattern: str | list[str] | None = None
    base: float | list[float] = 1.0
    speed: Slow | Fast = field(default_factory=Slow)
    style: Style = field(default_factory=Style)
    items: list[Item] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    from_: str | None = None


@pytest.mark.parametrize(
    ("key", "given", "built"),
    [
        ("whole", 3, 3),
        ("share", 3, 3.0),
        ("flag", True, True),
        ("choice", "bee", "bee"),
        ("choice", None, None),
        ("count", "0.5M", Count(500_000)),
        ("count", 7, Count(7)),
        ("maybe_count", None, None),
        ("maybe_count", "2k", Count(2000)),
        ("span", "100 steps", Interval(100, "steps", "100 steps")),
        ("pair", [1, 0.5], (1.0, 0.5)),
        ("words", ["a"], ["a"]),
        ("pattern", "causal()", "causal()"),
        ("pattern", ["a", "b"], ["a", "b"]),
        ("base", [1, 2], [1.0, 2.0]),
        ("speed", {"kind": "fast", "boost": True}, Fast(boost=True)),
        ("speed", {"rate": 1}, Slow(rate=1.0)),
        ("style", {"kind": "square"}, Style(kind="square")),
        ("items", [{"path": "x"}, {}], [Item(path="x"), Item()]),
        ("items", {"0": {"path": "x"}}, [Item(path="x")]),
        ("free", {"a": {"b": [1, "c", None]}}, {"a": {"b": [1, "c", None]}}),
        ("from", "x", "x"),
    ],
)
def test_values_are_taken_as_their_types(key, given, built):
    root = construct(Root, {key: given})
    value = getattr(root, "from_" if key == "from" else key)
    assert (value, type(value)) == (built, type(built))
    if isinstance(built, list | tuple):
        assert [type(item) for item in value] == [type(item) for item in built]
    assert construct(Root, to_tree(root)) == root


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("whole", True, "whole: expected a whole number, got true"),
        ("whole", 1.5, "whole: expected a whole number, got 1.5"),
        ("whole", "abc", "whole: expected a whole number, got 'abc'"),
        ("whole", None, "whole: expected a whole number, got null"),
        ("share", True, "share: expected a number, got true"),
        ("share", float("nan"), "share: expected a number, got nan"),
        ("share", "1", "share: expected a number, got '1'"),
        ("flag", "yes", "flag: expected true or false, got 'yes'"),
        ("flag", 1, "flag: expected true or false, got 1"),
        ("word", 7, "word: expected text, got 7; put it in quotes"),
        ("word", True, "word: expected text, got true; put it in quotes"),
        ("choice", "be", "choice: 'be' is not one of a, bee, null; did you mean 'bee'?"),
        ("choice", 3, "choice: expected one of a, bee or null, got 3"),
        ("count", "5Q", "count: '5Q' has an unknown scale 'Q': use k, M, B or T"),
        ("count", True, "count: True is not a whole number"),
        ("count", "1.5", "count: '1.5' is not a whole number"),
        ("maybe_count", "5Q", "maybe_count: '5Q' has an unknown scale 'Q': use k, M, B or T"),
        (
            "span",
            "5 bananas",
            "span: '5 bananas' has an unknown unit 'bananas': use tokens (50M), steps, s, min, h or d",
        ),
        ("span", None, "span: None is not an interval such as 50M (tokens), 100 steps, 30min or 0.2 (of the run)"),
        ("pair", [1], "pair: expected a list of 2 numbers, got [1]"),
        ("words", "a", "words: expected a list of text, got 'a'"),
        ("base", "x", "base: expected a number or a list of numbers, got 'x'"),
        ("speed", "fast", "speed: expected a mapping such as {kind: fast}, got 'fast'"),
        ("speed", 3, "speed: expected a mapping such as {kind: slow}, got 3"),
        ("speed", {"kind": "fats"}, "speed.kind: 'fats' is not one of slow, fast; did you mean 'fast'?"),
        ("speed", {"kind": None}, "speed.kind: missing; one of slow, fast"),
        ("speed", {"kind": [1]}, "speed.kind: [1] is not one of slow, fast"),
        ("speed", {"boost": 1}, "speed.boost: kind 'slow' has no such option (value 1); it belongs to kind 'fast'"),
        ("style", [1], "style: expected a mapping such as {key: value}, got [1]"),
        ("items", {"path": "x"}, "items: expected a list of mappings, got {'path': 'x'}; begin each with `- `"),
        ("items", ["x"], "items.0: expected a mapping, got 'x'"),
        ("items", [{}, {"pth": "x"}], "items.1.pth: unknown key (value 'x'); did you mean 'path'?"),
        ("free", [1], "free: expected a mapping, got [1]"),
        ("wholle", 1, "wholle: unknown key (value 1); did you mean 'whole'?"),
        ("boost", 1, "boost: unknown key (value 1); did you mean 'speed.boost'?"),
        ("from_", "x", "from_: unknown key (value 'x'); did you mean 'from'?"),
    ],
)
def test_a_mistake_names_path_value_and_constraint(key, given, message):
    with pytest.raises(UserError) as error:
        construct(Root, {key: given})
    assert str(error.value) == message


def test_an_unknown_key_near_nothing_lists_the_known_ones():
    with pytest.raises(UserError, match=r"style\.zzz: unknown key .*; known keys: kind, size"):
        construct(Root, {"style": {"zzz": 1}})


def test_mistakes_are_collected_on_one_screen_and_the_rest_counted():
    with pytest.raises(UserError) as error:
        construct(Root, {f"unknown{index}": index for index in range(11)})
    lines = str(error.value).splitlines()
    assert lines[0] == "11 mistakes:"
    assert len(lines) == 1 + 8 + 1
    assert lines[-1] == "  ... and 3 more"
    report([])


def test_long_values_are_cut():
    with pytest.raises(UserError) as error:
        construct(Root, {"whole": "x" * 500})
    assert len(str(error.value)) < 120


def test_the_file_and_line_of_a_mistake_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("style:\n  size: big\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\n\nitems:\n  - path: a\n  - path: 3\n")
    with pytest.raises(UserError) as error:
        construct(Root, override(load_yaml("own.yaml"), ["flag=7"]))
    assert str(error.value).splitlines()[1:] == [
        "  base.yaml:2: style.size: expected a whole number, got 'big'",
        "  own.yaml:5: items.1.path: expected text or null, got 3; put it in quotes",
        "  command line: flag: expected true or false, got 7",
    ]


@pytest.mark.parametrize("layers", [2, 3])
def test_switching_a_union_kind_leaves_the_old_fields_behind(layers):
    base = {"speed": {"kind": "fast", "boost": True, "rate": 3}}
    middle = [{"speed": {"rate": 5}}] if layers == 3 else []
    over = {"speed": {"kind": "slow"}}
    merged = base
    for layer in [*middle, over]:
        merged = merge(merged, layer)
    assert construct(Root, merged).speed == Slow()


def test_what_a_base_left_behind_stays_behind_in_the_files_above(tmp_path):
    (tmp_path / "fast.yaml").write_text("speed: {kind: fast, boost: true}\n")
    (tmp_path / "slow.yaml").write_text("base: fast.yaml\nspeed: {kind: slow}\n")
    (tmp_path / "own.yaml").write_text("base: slow.yaml\nspeed: {rate: 3}\n")
    assert construct(Root, load_yaml(tmp_path / "own.yaml")).speed == Slow(rate=3.0)


def test_switching_from_the_default_kind_leaves_its_fields_behind():
    assert construct(Root, merge({"speed": {"rate": 3}}, {"speed": {"kind": "fast"}})).speed == Fast()
    assert construct(Root, merge({"speed": {"rate": 3}}, {"speed": {"kind": "slow"}})).speed == Slow(rate=3.0)


def test_naming_the_same_kind_again_keeps_the_fields():
    merged = merge({"speed": {"kind": "fast", "boost": True}}, {"speed": {"kind": "fast", "rate": 1}})
    assert construct(Root, merged).speed == Fast(boost=True, rate=1.0)


def test_a_kind_that_tells_no_union_apart_keeps_the_fields():
    assert construct(
        Root, merge({"style": {"kind": "round", "size": 7}}, {"style": {"kind": "square"}})
    ).style == Style(kind="square", size=7)


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_of_kind_and_field_may_come_in_any_order(order):
    base = {"speed": {"kind": "slow", "rate": 3}}
    data = override(base, ["speed.rate=4", "speed.kind=fast", "speed.boost=true"][::order])
    assert construct(Root, data).speed == Fast(rate=4.0, boost=True)


def test_an_override_may_hold_a_whole_variant():
    assert construct(Root, override({}, ["speed={kind: fast, rate: 4}"])).speed == Fast(rate=4.0)
    assert construct(Root, override({"speed": {"kind": "slow"}}, ["speed={kind: fast, rate: 4}"])).speed == Fast(
        rate=4.0
    )


def test_a_new_layers_wrong_field_is_still_refused_after_a_switch():
    with pytest.raises(UserError, match=r"speed\.boost: kind 'slow' has no such option"):
        construct(Root, merge({"speed": {"kind": "fast", "rate": 1}}, {"speed": {"kind": "slow", "boost": True}}))


@dataclass(frozen=True, kw_only=True)
class Needy:
    """Has a field without default.

    Args:
        must: needed.
    """

    must: int

    def __post_init__(self) -> None:
        if self.must < 0:
            raise ValueError("must is negative")


def test_missing_fields_and_a_class_own_refusal_are_user_errors():
    with pytest.raises(UserError, match=r"deep\.must: missing; it has no default"):
        construct(Needy, {}, "deep")
    with pytest.raises(UserError, match="deep: must is negative"):
        construct(Needy, {"must": -1}, "deep")


def test_describe_lists_every_field_with_type_default_and_meaning():
    notes = {(note.path, note.kind): note for note in describe(Root)}
    assert notes[("speed.rate", "slow")].meaning == "how slowly, in two lines."
    assert notes[("speed.rate", "fast")].default == "9.0"
    assert notes[("speed.kind", "fast")].meaning == "Goes fast."
    assert notes[("speed", None)].type == "kind: slow | fast"
    assert notes[("items.0.path", None)].type == "text | null"
    assert notes[("span", None)].type == "interval"
    assert notes[("from", None)].default == "null"
    assert notes[("pair", None)].default == "[0.1, 0.2]"


def test_describe_refuses_a_field_without_meaning():
    @dataclass(frozen=True, kw_only=True)
    class Silent:
        """Says nothing.

        Args:
            told: something.
        """

        told: int = 1
        untold: int = 1

    with pytest.raises(KeyError, match="untold"):
        list(describe(Silent))


_INTERVALS = st.sampled_from(["50M", "100 steps", "30min", "0.2", "0.25", "0.050", "2h", "1e3", "1_000", "12", "3.0"])


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=9),
    _INTERVALS,
    st.integers(0, 10**13),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_round_trip(whole, share, word, span, count):
    root = Root(
        whole=whole,
        share=share,
        word=word,
        span=Interval.parse(span),
        count=Count(count),
        pair=(share, 1.0),
        words=[word],
        base=[share],
        speed=Fast(rate=share),
        items=[Item(path=word)],
        free={word: {"x": [whole]}},
        from_=word,
    )
    again = construct(Root, to_tree(root))
    assert again == root
    assert (type(again.count), type(again.pair)) == (Count, tuple)
