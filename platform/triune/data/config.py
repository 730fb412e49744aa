"""Settings of the data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from triune.errors import UserError
from triune.units import Count


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents or labelled records: exactly one of path, huggingface and package. A plain text is a path.

    Args:
        path: a file, a glob or a directory; txt, jsonl, json, csv, tsv, parquet; plain, .gz, .bz2, .xz or .zst. Labelled records also
            from conll, bio, iob, conllu and SQuAD's json.
        target_path: the second file of a pair of parallel text files; its line n belongs to line n of `path`.
        huggingface: name (or local directory) of a Hugging Face dataset.
        package: name of an installed Python package that carries a corpus (chitchat-dataset) or writes one (babel).
        subset: configuration name of the Hugging Face dataset.
        split: split of the Hugging Face dataset.
        column: column or key that holds the text.
        target_column: column that holds the second text of a pair (translation).
        columns: field of the task -> column, key or number of the column in the file (fine-tuning); a field that is not named is
            looked up under its own name.
        document: what one document of a txt file is: the file, a paragraph (blank line between) or a line.
        weight: share of this source in training, relative to the others' weights; null is its size.
        examples: how many examples an endless package (babel) writes.
        seed: seed of an endless package.
    """

    SHORTHAND: ClassVar[str] = "path"  # the field that a plain text in place of a mapping fills

    path: str | None = None
    target_path: str | None = None
    huggingface: str | None = None
    package: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    target_column: str | None = None
    columns: dict[str, str | int] = field(default_factory=dict)
    document: Literal["file", "paragraph", "line"] = "file"
    weight: float | None = None
    examples: Count = Count(20_000)
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("path", "huggingface", "package") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UserError(f"a data source needs exactly one of path, huggingface and package, and has {found}")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise UserError(f"data source weight: {self.weight} must be above 0; leave the source out to skip it")
        if self.target_path is not None and (self.path is None or self.target_column is not None):
            raise UserError(
                f"data source target_path: {self.target_path!r} is the second of two parallel text files; it goes with path, "
                "and without target_column, which is for files with columns"
            )
        if self.examples < 1:
            raise UserError(f"data source examples: {int(self.examples)} must be 1 or more")

    @property
    def is_paired(self) -> bool:
        """Whether its documents are pairs of texts."""
        return self.target_column is not None or self.target_path is not None


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer: trained on the training sources, or loaded.

    Args:
        kind: byte_bpe (GPT-2), wordpiece (BERT), unigram (SentencePiece) are trained; pretrained is loaded.
        vocabulary: entries to train, special tokens included.
        path: directory, tokenizer.json or Hugging Face name of a pretrained tokenizer.
        lowercase: fold case before training (wordpiece, unigram).
        sentinels: sentinel tokens reserved for span corruption.
        sample_bytes: most text to train on, in bytes.
    """

    kind: Literal["byte_bpe", "wordpiece", "unigram", "pretrained"] = "byte_bpe"
    vocabulary: Count = Count(32_000)
    path: str | None = None
    lowercase: bool = False
    sentinels: int = 100
    sample_bytes: Count = Count(200_000_000)

    def __post_init__(self) -> None:
        if (self.kind == "pretrained") != (self.path is not None):
            raise UserError(
                f"data.tokenizer.path: {self.path!r} with kind {self.kind!r}: give the path of a pretrained tokenizer "
                "together with kind: pretrained, and leave it out for one that is trained"
            )
        if self.lowercase and self.kind not in ("wordpiece", "unigram"):
            raise UserError(f"data.tokenizer.lowercase: true is for wordpiece and unigram, not for {self.kind}")
        if self.sentinels < 0:
            raise UserError(f"data.tokenizer.sentinels: {self.sentinels} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How documents fill rows.

    Args:
        kind: packed fills rows with whole documents, best fit, walls between them; single gives each document its row, batches of like length.
        length: tokens of a row; null is the model's context.
        multiple_of: padded lengths are rounded up to this (single).
    """

    kind: Literal["packed", "single"] = "packed"
    length: int | None = None
    multiple_of: int = 8

    def __post_init__(self) -> None:
        for name in ("length", "multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.rows.{name}: {value} must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes rows.

    Args:
        train: sources to train on.
        validation: sources to validate on; empty holds out `validation_share` of the training documents.
        validation_share: share of the training documents held out (by document, by seed) where no validation source is given.
        tokenizer: the tokenizer.
        rows: how documents fill rows.
        cache: directory of the prepared shards, shared by all experiments over the same sources and tokenizer.
        workers: processes that build rows beside training; 0 builds them in the training process.
        seed: seed of the split and of the tokenizer's sample.
    """

    train: list[SourceConfig] = field(default_factory=list)
    validation: list[SourceConfig] = field(default_factory=list)
    validation_share: float = 0.02
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    cache: str = "data-cache"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise UserError(f"data.validation_share: {self.validation_share} must be at least 0 and below 1")
        weighted = [source.weight is not None for source in self.train]
        if any(weighted) and not all(weighted):
            raise UserError("data.train: some sources have a weight and some have none; give one to all or to none")
