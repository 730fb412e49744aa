"""The verbs `import` and `export`: between Hugging Face's directories and ours, and what is said at the end."""

from __future__ import annotations

from pathlib import Path

from triune.errors import UserError
from triune.exchange.architecture import architecture as find
from triune.exchange.carried import Carried
from triune.exchange.exporting import SHARD_SIZE, to_huggingface
from triune.exchange.files import CONFIG, read_json
from triune.exchange.importing import import_directory
from triune.exchange.parity import Parity
from triune.training.weights import load_model, tokenizer_of
from triune.units import Count


def import_model(directory: str, out: str, tokenizer: str | None = None) -> int:
    """Turn a directory of Hugging Face's into a model directory of ours; the exit code."""
    parity = import_directory(directory, out, tokenizer=tokenizer)
    print(f"{out}: {parity.architecture} from {directory}; {_agreement(parity)}")
    _warn(parity)
    reads_text = read_json(Path(out) / CONFIG)["tokenizer"] != ""
    print(f"  next: {f'triune generate {out}, or ' if reads_text else ''}init.from={out}")
    return 0


def export_model(source: str, out: str, architecture: str | None = None, shard_size: str = str(SHARD_SIZE)) -> int:
    """Turn a run, checkpoint or model directory of ours into a directory for `from_pretrained`; the exit code."""
    size = _bytes(shard_size)
    if Path(out).resolve() == Path(source).resolve():
        raise UserError(f"{out}: is what is read; give another directory to write to")
    model, saved = load_model(source)
    parity = to_huggingface(
        model,
        out,
        tokenizer=tokenizer_of(saved) if saved.tokenizer else None,
        architecture=architecture,
        shard_size=size,
        carried=Carried.read(saved.path),
        labels=(saved.task or {}).get("labels"),
    )
    print(f"{out}: {parity.architecture} from {saved.path}; {_agreement(parity)}")
    _warn(parity)
    auto = find(parity.architecture).classes(model.config).auto
    words = ", AutoTokenizer likewise" if saved.tokenizer else ""
    print(f"  next: transformers.{auto}.from_pretrained({out!r}){words}")
    return 0


def _warn(parity: Parity) -> None:
    if parity.caveat:
        print(f"  mind: {parity.caveat}")


def _bytes(text: str) -> int:
    try:
        size = Count(text)
    except ValueError as error:
        raise UserError(f"--shard_size: {error}") from error
    if size < 1:
        raise UserError(f"--shard_size is {text}, but it must be at least one byte, such as 2G")
    return size


def _agreement(parity: Parity) -> str:
    """What the proof found, in a line."""
    worst = max(value.relative for one in parity.compared for value in one.states.values())
    written = f", {parity.greedy[0]} of {parity.greedy[1]} greedy tokens agree" if parity.greedy else ""
    return (
        f"hidden states within {worst:.1e} of transformers' (allowed {parity.tolerance:.1e}){written}; see parity.json"
    )
