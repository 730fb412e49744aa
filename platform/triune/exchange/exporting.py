"""`triune export`: a model of ours becomes a directory that plain `from_pretrained` opens, with the proof that it computes the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from triune.data.tokenizers import Tokenizer
from triune.exchange.architecture import Architecture, TokenIds
from triune.exchange.carried import Carried
from triune.exchange.files import CONFIG, draft_of, write_weights
from triune.exchange.importing import write_proof
from triune.exchange.labels import check_labels, write_labels
from triune.exchange.mapping import to_theirs
from triune.exchange.model_directory import own_tensors
from triune.exchange.obstacles import choose
from triune.exchange.parity import Parity, load_theirs, prove
from triune.exchange.tokenizer_files import write_tokenizer
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.models.factory import Transformer

SHARD_SIZE = 5_000_000_000  # bytes; what `save_pretrained` cuts at


def to_huggingface(
    model: Transformer,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    architecture: str | None = None,
    *,
    shard_size: int = SHARD_SIZE,
    ids: TokenIds | None = None,
    carried: Carried | None = None,
    labels: Sequence[str] | None = None,
) -> Parity:
    """Write `directory` for `from_pretrained`: config.json, weights, tokenizer, generation_config.json and parity.json.

    Args:
        model: on the CPU; it is asked in eval mode and left as it was.
        directory: written whole or not at all; what was there is replaced.
        tokenizer: written beside it, opened by `AutoTokenizer`.
        architecture: `model_type` to write; None takes the first that has a word for every setting.
        shard_size: bytes from which on the weights are cut into several files.
        ids: special tokens for the config where there is no tokenizer.
        carried: what the directory that the model was imported from said of generation and images.
        labels: what the classes of its head are called, in the order of the scores; None calls them LABEL_0, LABEL_1, ...

    Raises:
        UserError: a setting that no architecture (or not this one) has, labels that are not those of the head, or a model that
            `transformers` computes otherwise.
    """
    check_labels(labels, model.config.head.labels if isinstance(model.config.head, ClassHeadConfig) else 0)
    carried = carried or Carried()
    ids = carried.ids(TokenIds.of(tokenizer) if ids is None else ids)
    target = choose(model.config, architecture, ids)
    ids = replace(ids, pad=target.config_json(model.config, ids)["pad_token_id"])  # RoBERTa's is that of its positions
    place = Path(directory)
    training = model.training
    model.eval()
    try:
        with draft_of(place) as draft:
            write_model(model, draft, target, ids=ids, shard_size=shard_size, labels=labels)
            carried.write(draft, generates=target.generates(model.config))
            if tokenizer is not None:
                write_tokenizer(tokenizer, draft, model.config)
            theirs = load_theirs(draft, target, model.config)
            parity = prove(model, theirs, target, ids=ids, tokenizer=tokenizer, what=place)
            write_proof(parity, draft, direction="export")
    finally:
        model.train(training)
    return parity


def write_model(
    model: Transformer,
    directory: Path,
    target: Architecture,
    *,
    ids: TokenIds,
    shard_size: int = SHARD_SIZE,
    labels: Sequence[str] | None = None,
) -> None:
    """Config, generation config and weights into a directory that is there."""
    config = model.config
    _write(directory / CONFIG, target.config_json(config, ids) | ({} if labels is None else write_labels(labels)))
    if target.generates(config):
        _write(directory / "generation_config.json", _generation(target, config, ids))
    tensors = to_theirs(target.mapping(config), own_tensors(model))
    if target.classes(config).bare:
        tensors = {name.removeprefix(target.prefix): tensor for name, tensor in tensors.items()}
    write_weights(tensors, directory, shard_size=shard_size)


def _generation(target: Architecture, config: ModelConfig, ids: TokenIds) -> dict[str, Any]:
    named = {key: value for key, value in (ids.named() | target.extra(ids)).items() if value is not None}
    return {"_from_model_config": True, **named}


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
