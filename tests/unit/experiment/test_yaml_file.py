"""YAML files: scalars, bases, overrides, and what is refused with file and line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.yaml_file import load_yaml, merge, override, plain, to_yaml


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        ("1e-3", 1e-3),  # text in YAML 1.1
        ("1E5", 1e5),
        ("3.", 3.0),
        (".5", 0.5),
        ("-2e+1", -20.0),
        ("1_000", 1000),
        ("007", "007"),  # 7 in YAML 1.1
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("0.5M", "0.5M"),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ('"1e-3"', "1e-3"),
        ("window(64, 64) & causal()", "window(64, 64) & causal()"),
    ],
)
def test_scalars_follow_yaml_1_2(write, spelled, value):
    read = load_yaml(write("a.yaml", f"x: {spelled}\n"))["x"]
    assert (read, type(read)) == (value, type(value))


def test_keys_are_text_whatever_they_look_like(write):
    assert list(load_yaml(write("a.yaml", "on: 1\n1: 2\nnull: 3\n"))) == ["on", "1", "null"]


def test_bases_merge_in_order_and_the_file_wins(write):
    write("base/one.yaml", "a: {x: 1, y: 1, z: 1}\nl: [1, 2]\n")
    write("base/two.yaml", "a: {y: 2, z: 2}\n")
    read = load_yaml(write("sub/own.yaml", "base: [../base/one.yaml, ../base/two.yaml]\na: {z: 3}\nl: [3]\n"))
    assert plain(read) == {"a": {"x": 1, "y": 2, "z": 3}, "l": [3]}
    assert {key: str(where) for key, where in read["a"].origin.items()} == {
        "x": "base/one.yaml:1",
        "y": "base/two.yaml:1",
        "z": "sub/own.yaml:2",
    }


def test_a_base_may_be_shared_by_two_bases(write):
    write("root.yaml", "a: 1\n")
    write("left.yaml", "base: root.yaml\nb: 1\n")
    write("right.yaml", "base: root.yaml\nc: 1\n")
    assert plain(load_yaml(write("own.yaml", "base: [left.yaml, right.yaml]\n"))) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"own.yaml:3: a: written twice \(first in line 1\)"),
        ("a:\n  b: 1\n\tc: 2\n", r"own.yaml:3: not valid YAML: .*indent with spaces, not tabs"),
        ("a: 1\nb: [1, 2\n", "own.yaml:3: not valid YAML"),
        ("a: b: c\n", r"own.yaml:1: not valid YAML: mapping values .*quotes"),
        ("a: !!python/object:os.system x\n", "own.yaml:1: not valid YAML: could not determine a constructor"),
        ("a: &a [*a]\n", "own.yaml:1: an alias holds itself"),
        ("? [1]\n: 2\n", "own.yaml:1: a key must be one word"),
        ("- 1\n", r"own.yaml: expected `key: value` lines, got '\[1\]'"),
        ("just text\n", "own.yaml: expected `key: value` lines, got 'just text'"),
        (" \n", "own.yaml: the file is empty"),
        (b"a: \xff\n", r"own.yaml: not UTF-8 text \(byte 3\)"),
        (b"\x00\x01\x02", "own.yaml: not valid YAML: .*special characters are not allowed"),
        ("base: 3\n", "own.yaml:1: base: expected a path or a list of paths, got 3"),
        ("a: 1\nbase: tinny.yaml\n", r"own.yaml:2: base: tinny.yaml: no such file; did you mean 'tiny.yaml'\?"),
        ("base: own.yaml\n", "own.yaml:1: base: own.yaml inherits from itself: own.yaml -> own.yaml"),
        ("base: [loop.yaml]\n", "loop.yaml:1: base: own.yaml inherits from itself: own.yaml -> loop.yaml -> own.yaml"),
    ],
)
def test_what_is_refused_with_file_and_line(write, text, message):
    write("tiny.yaml", "a: 1\n")
    write("loop.yaml", "base: own.yaml\n")
    with pytest.raises(UserError, match=message):
        load_yaml(write("own.yaml", text))


def test_a_directory_and_a_missing_file_are_told_apart(write):
    write("sub/a.yaml", "a: 1\n")
    with pytest.raises(UserError, match="sub: is a directory"):
        load_yaml("sub")
    with pytest.raises(UserError, match=r"nowhere/a\.yaml: no such file; give the path of a YAML file"):
        load_yaml("nowhere/a.yaml")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a.b=2", {"a": {"b": 2, "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a.b=1e-3", {"a": {"b": 1e-3, "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a.b=", {"a": {"b": None, "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a.b=x=y", {"a": {"b": "x=y", "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a.b=*.txt", {"a": {"b": "*.txt", "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a.b=[1, {c: 2}]", {"a": {"b": [1, {"c": 2}], "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("a={b: 3}", {"a": {"b": 3, "c": 1}, "l": [{"x": 1}, {"x": 2}]}),
        ("new.deep.key=1", {"a": {"b": 1, "c": 1}, "l": [{"x": 1}, {"x": 2}], "new": {"deep": {"key": 1}}}),
        ("l.1.x=9", {"a": {"b": 1, "c": 1}, "l": [{"x": 1}, {"x": 9}]}),
        ("l.2.x=9", {"a": {"b": 1, "c": 1}, "l": [{"x": 1}, {"x": 2}, {"x": 9}]}),
        ("l=[]", {"a": {"b": 1, "c": 1}, "l": []}),
    ],
)
def test_overrides(assignment, expected):
    data = {"a": {"b": 1, "c": 1}, "l": [{"x": 1}, {"x": 2}]}
    before = plain(data)
    assert plain(override(data, [assignment])) == expected
    assert data == before


def test_later_overrides_win():
    assert plain(override({}, ["a.b=1", "a.b=2", "a={c: 3}", "a.c=4"])) == {"a": {"b": 2, "c": 4}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a.b", "command line: 'a.b': an override is written key=value"),
        ("a..b=1", r"command line: 'a\.\.b=1': an override is written key=value"),
        ("a=[1", "command line: not valid YAML"),
        ("l.5.x=1", r"command line: l\.5: the list has 2 items; the next is l\.2"),
    ],
)
def test_overrides_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        override({"l": [{"x": 1}, {"x": 2}]}, [assignment])


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
_TRICKY = st.sampled_from(
    ["no", "1e-3", "1:30", "007", "0x1", "~", "null", "1_000", ".5", "2024-01-01", "a: b", " x ", "#"]
)
_DATA = st.recursive(
    _LEAVES | _TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TRICKY | st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_TRICKY | st.text(max_size=5), _DATA, min_size=1, max_size=4))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_to_yaml_reads_back_as_the_same_data(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    data.pop("base", None)
    if not data:
        return
    path.write_text(to_yaml(data), encoding="utf-8", newline="")
    assert plain(load_yaml(path)) == data


def test_a_merge_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert plain(merge(base, over)) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})
