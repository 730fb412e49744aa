"""`triune import`: a directory of Hugging Face's becomes a model of ours, with the proof that it computes the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.architecture import Architecture, Settings, TokenIds, architecture
from triune.exchange.carried import Carried
from triune.exchange.files import CONFIG, PROOF, WeightFiles, checksum, draft_of, read_json
from triune.exchange.gguf_models import load_reading, read_gguf
from triune.exchange.labels import read_labels
from triune.exchange.mapping import TensorMapping, check_shapes, to_ours
from triune.exchange.model_directory import MODEL_TYPE, Saved, fill_directory
from triune.exchange.parity import Parity, load_theirs, prove
from triune.exchange.task_heads import kind_of, task_of
from triune.gguf_file import is_gguf
from triune.models.checks import check
from triune.models.config import ModelConfig, TokenInput
from triune.models.factory import Transformer, build


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A model of theirs as read: its settings and tensors are ours already.

    Args:
        directory: where it lies; for a GGUF file the file.
        architecture: what it is.
        config: its settings.
        ids: special tokens that its config names.
        tensors: its weights.
        labels: what its classes are called, in the order of the scores; None where nobody named them.
    """

    directory: Path
    architecture: Architecture
    config: ModelConfig
    ids: TokenIds
    tensors: dict[str, Tensor]
    labels: list[str] | None = None

    @property
    def task(self) -> dict[str, Any] | None:
        """What its head was fine-tuned for, as our model directory keeps it; None for a head of no task."""
        return task_of(self.config.head, self.labels)

    @property
    def objective(self) -> str:
        """Kind of objective that it is trained on by default."""
        task = self.task
        return self.architecture.trained_by if task is None else str(task["objective"]["kind"])


def from_huggingface(directory: str | Path) -> tuple[Transformer, ModelConfig]:
    """A model in eval mode, and its settings, from a directory that `save_pretrained` wrote or the Hub's files lie in.

    Reads safetensors, whole or sharded, a `pytorch_model.bin` without executing what is in it, or, where `directory` is one, a GGUF
    file of Llama's shape. Nothing is downloaded, and no code of the directory is run. `triune import` also proves that the model computes what `transformers` does.

    Raises:
        UserError: an architecture or a setting that ours does not have, or files that are not what `config.json` says.
    """
    found = read_foreign(Path(directory))
    return model_of(found), found.config


def read_foreign(directory: Path) -> Foreign:
    """Read and check config and weights; UserError as `from_huggingface`."""
    if is_gguf(directory):
        target, config, ids, tensors = read_gguf(directory)
        return Foreign(directory=directory, architecture=target, config=config, ids=ids, tensors=tensors)
    values = foreign_config(directory)
    target = architecture(values["model_type"], place=directory / CONFIG)
    files = WeightFiles(directory)
    config = _config_of(values, target, files)
    mapping = target.mapping(config)
    names = {_placed(name, mapping, target): name for name in files.held}
    with torch.device("meta"):
        empty = dict(build(config).named_parameters())
    check_shapes(mapping, empty, {ours: files.shapes[name] for ours, name in names.items()}, place=directory)
    wanted = {name: held for name, held in names.items() if mapping.written_as(name) is not None}
    read = files.read(wanted.values())
    tensors = to_ours(mapping, {name: read[held] for name, held in wanted.items()}, place=directory)
    _check_types(tensors, directory)
    scored = kind_of(config.head) in ("sequence", "tokens")
    labels = read_labels(Settings(values, place=directory / CONFIG))[1] if scored else None
    return Foreign(
        directory=directory,
        architecture=target,
        config=config,
        ids=TokenIds.read(values),
        tensors=tensors,
        labels=labels,
    )


def foreign_config(directory: Path) -> dict[str, Any]:
    """Their `config.json`; UserError where there is none, or it is one of ours."""
    if not directory.exists():
        raise UserError(
            f"{directory}: does not exist; give a directory of a model in Hugging Face's layout, or a GGUF file"
        )
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory}: has no {CONFIG}; give a directory of a model in Hugging Face's layout")
    values = read_json(directory / CONFIG)
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise UserError(
            f"{directory / CONFIG}: model_type is {kind!r}, but it must name an architecture, such as llama"
        )
    if kind == MODEL_TYPE:
        raise UserError(f"{directory}: is a model of triune's already; use it as it is, or `triune export` it")
    return values


def model_of(found: Foreign) -> Transformer:
    """The model, in eval mode."""
    model = build(found.config)
    load(model, found.tensors)
    return model.eval()


@torch.no_grad()
def load(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, which have been checked, into a model of their settings."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def as_saved(directory: Path) -> Saved:
    """A foreign directory or GGUF file in the form in which weights of ours are read, for `init.from`; its tokenizer is beside it."""
    found = read_foreign(directory)
    return Saved(
        path=directory,
        model=found.config,
        objective=found.objective,
        task=found.task,
        tokenizer=_tokenizer(directory).fingerprint if _reads_text(found.config) else "",
        tensors=found.tensors,
    )


def import_directory(directory: str | Path, out: str | Path, *, tokenizer: str | Path | None = None) -> Parity:
    """Write `out`, a model directory of ours, with `parity.json`.

    Args:
        directory: theirs.
        out: written whole or not at all; what was there is replaced.
        tokenizer: where its tokenizer is, if not beside it; a model of images needs none.

    Raises:
        UserError: as `from_huggingface`, no tokenizer, or a model that does not compute what theirs does.
    """
    source, place = Path(directory), Path(out)
    _check_apart(source, place)
    found = read_foreign(source)
    words = _tokenizer(tokenizer or source) if _reads_text(found.config) else None
    if words is not None and words.size > int(found.config.vocabulary or 0):
        raise UserError(
            f"{tokenizer or source}: the tokenizer has {words.size:,} ids, the model {found.config.vocabulary:,}"
        )
    model = model_of(found)
    parity = prove(
        model,
        (load_reading if is_gguf(source) else load_theirs)(source, found.architecture, found.config),
        found.architecture,
        ids=found.ids,
        tokenizer=words,
        what=source,
    )
    with draft_of(place) as draft:
        fill_directory(model, words, draft, objective=found.objective, task=found.task)
        Carried.read(source).write(draft, generates=found.architecture.generates(found.config))
        write_proof(parity, draft, direction="import")
    return parity


def write_proof(parity: Parity, directory: Path, *, direction: str) -> None:
    """Write `parity.json` with the sums of the weights beside it."""
    sums = {file.name: checksum(file) for file in sorted(directory.glob("*.safetensors"))}
    record = parity.as_json(direction=direction, files=sums)
    (directory / PROOF).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _config_of(values: Mapping[str, Any], target: Architecture, files: WeightFiles) -> ModelConfig:
    """Their settings as ours, checked against one another and, where they could be out of all bounds, against the files."""
    place = files.directory / CONFIG
    settings = Settings(values, place=place, names=frozenset(files.held))
    if settings.has("quantization_config"):
        raise UserError(
            f"{place}: has a quantization_config, but triune reads floating numbers; take the model as it was trained"
        )
    config = target.read_config(settings)
    layers = max(config.layers, config.resolved_decoder_layers)
    if layers > len(files.held):
        raise UserError(
            f"{place}: says {layers:,} layers, but {files.directory} holds {len(files.held):,} tensors in all"
        )
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{place}: read as settings of triune's, {error}") from error
    return config


def _reads_text(config: ModelConfig) -> bool:
    return isinstance(config.input, TokenInput)


def _tokenizer(place: str | Path) -> Tokenizer:
    try:
        return Tokenizer.load(place)
    except UserError as error:
        raise UserError(
            f"{place}: its tokenizer cannot be read; give --tokenizer where it is elsewhere\n{error}"
        ) from error


def _placed(name: str, mapping: TensorMapping, target: Architecture) -> str:
    """A tensor's name as the class with a head has it: files of the bare class, and some old ones, have no prefix.

    Files that began in TensorFlow (`bert-base-uncased`), and ESM's as transformers 5.23 saves them, call a norm's tensors gamma and beta.
    """
    today = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    names = [name, target.prefix + name, today, target.prefix + today]
    return next((one for one in names if mapping.known(one)), name)


def _check_types(tensors: Mapping[str, Tensor], directory: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{directory}: the tensor for {name} holds {str(tensor.dtype).removeprefix('torch.')}, but weights are floating "
                "numbers; take a version of the model that is not quantized"
            )


def _check_apart(source: Path, out: Path) -> None:
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: is what is read; give another directory to write to")
