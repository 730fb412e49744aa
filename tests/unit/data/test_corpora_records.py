"""Records out of installed packages: conversations in turns, and written dates whose source alone decides the target."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from record_cases import LABEL, MESSAGES, TARGET, TEXT, complaint, records

import triune.data.corpora as corpora
from triune.data.config import DataConfig, SourceConfig
from triune.data.corpora import CORPORA
from triune.data.records import read_supervised
from triune.data.sources import Document, documents, identity
from triune.data.written_dates import LANGUAGES, value_of, written_date, written_dates
from triune.errors import UserError
from triune.objectives.record import Message

DATES = SourceConfig(package="babel", examples=300)  # type: ignore[arg-type]


def test_a_conversation_has_a_turn_for_all_that_one_says_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [("x", "Hello"), ("x", " how are  you? "), ("x", " "), ("y", "fine"), ("y", " "), ("x", "good")]
    turns = [[{"sender": sender, "text": text} for sender, text in said[:3]]]
    turns += [[{"sender": sender, "text": text}] for sender, text in said[3:]]
    nothing = [[{"sender": "x", "text": " "}]]
    (tmp_path / "dataset.json").write_text(json.dumps({"1": {"messages": turns}, "2": {"messages": nothing}}))
    monkeypatch.setattr(corpora, "_folder", lambda package: tmp_path)
    (record,) = records(SourceConfig(package="chitchat-dataset"), [MESSAGES])
    assert record.fields["messages"] == [
        Message("user", "Hello\nhow are you?"),
        Message("assistant", "fine"),
        Message("user", "good"),
    ]
    assert record.key == "A: Hello\nA: how are you?\nB: fine\nA: good"
    assert record.where == "chitchat-dataset: item 1"
    assert [document.text for document in documents(SourceConfig(package="chitchat-dataset"))] == [record.key]


def test_the_first_dates_and_numbers() -> None:
    """Pinned: another Python or Babel that draws or spells otherwise makes another benchmark."""
    pytest.importorskip("babel")
    assert list(written_dates(6, 0)) == [
        ("de → pt: 20. März 1961", "20 de março de 1961"),
        ("pt → it: terça-feira, 11 de março de 1969", "martedì 11 marzo 1969"),
        ("fr → es: mercredi 31 décembre 2059", "miércoles, 31 de diciembre de 2059"),
        ("pt → it: 94%", "94%"),
        ("en → de: 489.52", "489,52"),
        ("fr → es: 17 novembre 2064", "17 de noviembre de 2064"),
    ]
    assert list(written_dates(40, 3))[:20] == list(written_dates(20, 3)) != list(written_dates(20, 4))


def test_values_spelled_alike_in_one_language_are_alike_in_every_other() -> None:
    """So that a source, which names both languages, decides its target, whatever else may be drawn."""
    pytest.importorskip("babel")
    translations: dict[tuple[str, str], dict[str, str]] = {}  # language, spelling in it -> spelling in each language
    again = 0
    for number in range(1500):
        draw = random.Random(number)
        spell = value_of(draw, ["long", "full", "decimal", "percent", "currency", "compact"][number % 6])
        spelled = {language: spell(language) for language in LANGUAGES}
        for language, text in spelled.items():
            again += (language, text) in translations
            assert translations.setdefault((language, text), spelled) == spelled, text
    assert again > 100  # the assertion above was put to the test


def test_a_source_names_its_direction_and_comes_once() -> None:
    pytest.importorskip("babel")
    pairs = list(written_dates(2000, 0))
    for source, target in pairs:
        assert re.match(r"(..) → (?!\1)..: \S", source)
        assert target == target.strip()
        assert not {"\xa0", "\u202f"} & set(source + target)
    assert {source[:7] for source, _ in pairs} == {f"{a} → {b}" for a in LANGUAGES for b in LANGUAGES if a != b}
    assert len({source for source, _ in pairs}) == 2000
    drawn = [written_date(0, index) for index in range(2100)]
    assert pairs == list(dict(drawn).items())[:2000]  # in the order drawn, without what came before


def test_dates_are_records_and_documents_and_split_apart() -> None:
    pytest.importorskip("babel")
    read = records(DATES, [TEXT, TARGET])
    assert [(record.fields["text"], record.fields["target"]) for record in read] == list(written_dates(300, 0))
    paired = SourceConfig(package="babel", examples=300, target_column="target")  # type: ignore[arg-type]
    assert list(documents(paired)) == [Document(*pair) for pair in written_dates(300, 0)]
    data = read_supervised(DataConfig(train=[DATES], validation_share=0.1), [TEXT, TARGET])
    kept, held = ({record.fields["text"] for record in part} for part in (data.train[0], data.validation))
    assert len(kept) + len(held) == len(kept | held) == 300
    assert 10 < len(held) < 60
    assert "no column 'label' among text, target" in complaint(DATES, LABEL)
    assert "no column 'txt' among text, target; did you mean 'text'" in str(
        raised(SourceConfig(package="babel", column="txt"))
    )
    assert identity(DATES) != identity(SourceConfig(package="babel", examples=301))  # type: ignore[arg-type]
    assert identity(DATES) != identity(SourceConfig(package="babel", examples=300, seed=1))  # type: ignore[arg-type]


def raised(source: SourceConfig) -> UserError:
    with pytest.raises(UserError) as error:
        list(documents(source))
    return error.value


def test_a_package_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for package in CORPORA:
        assert 'pip install "triune[demo]"' in complaint(SourceConfig(package=package), MESSAGES)
