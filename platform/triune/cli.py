"""The command line: `triune VERB`. A verb's module is imported only when it runs, so help and config errors stay quick."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from triune.errors import UserError, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from triune.experiment import Experiment

_VERBS = {
    "prepare": "read the corpus, train or load the tokenizer, write token shards",
    "pretrain": "train a model from scratch or from weights (init.from), or continue the run that is there",
    "finetune": "train on from a run, a checkpoint or a model directory (init.from)",
    "evaluate": "measure a fine-tuned model on labelled data, with confidence intervals and a file of predictions",
    "plan": "print the resolved experiment, parameters, FLOPs and memory, and stop",
    "generate": "write text with a trained model",
    "import": "turn a directory of Hugging Face's or a GGUF file into a model directory, with proof that it computes the same",
    "export": "turn a run, checkpoint or model directory into one that from_pretrained opens, with proof",
    "look": "draw an attention pattern with its counts and its cost (`look pattern`)",
}
_LOOKS = ("pattern",)
_VALUED = ("--name", "--overrides", "--devices", "--nodes", "--from", "--data", "--output")
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 2 the user's mistake (said on stderr), 130 interrupted.

    A bug keeps its traceback.
    """
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except UserError as mistake:
        print(f"triune: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntriune: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`| head`) has seen enough; keep the interpreter's own last flush quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(
            f"triune: no room on disk{where} ({error.strerror}); free some and give the same command again: "
            "it goes on from the last whole checkpoint",
            file=sys.stderr,
        )
        return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in _VERBS:
        raise UserError(f"{verb!r} is no verb{nearest(verb, _VERBS)}\n{_overview()}")
    own = {"look": _look, "evaluate": _evaluate, "generate": _generate, "import": _import, "export": _export}
    return own[verb](rest) if verb in own else _experiment(verb, rest)


def _overview() -> str:
    verbs = "\n".join(f"  {verb:10} {meaning}" for verb, meaning in _VERBS.items())
    return f"usage: triune VERB ...\n\nverbs:\n{verbs}\n\n`triune VERB --help` lists the options of a verb and every field of an experiment."


def _experiment(verb: str, arguments: list[str]) -> int:
    """The verbs that read an experiment."""
    parser = _experiment_parser(verb)
    if _wants_help(arguments):
        print(f"{parser.format_help()}\n{reference()}")
        return 0
    overrides, rest = _divide(arguments)
    options = _parse(parser, rest, verb)
    experiments = importlib.import_module("triune.experiment")
    settings = [*overrides, *_from_options(options)]
    experiment: Experiment = experiments.load(options.config, settings, name=options.name)
    if experiment.init.from_ is not None and (verb == "finetune" or experiments.is_task(experiment)):
        # a mistake in the file is answered at once, above; the weights say what the file leaves open
        beneath = importlib.import_module("triune.training.inheritance").beneath
        experiment = experiments.load(options.config, settings, name=options.name, beneath=beneath)
    if options.print_config:
        print(experiments.dump(experiment), end="")
        return 0
    experiments.check(experiment)
    run = importlib.import_module("triune.run")
    if verb == "plan" or options.get("dry_run"):
        return int(run.plan(experiment))
    if verb == "prepare":
        return int(run.prepare(experiment))
    return int(run.pretrain(experiment, stage=verb, restart=options.restart))


def _experiment_parser(verb: str) -> ArgumentParser:
    parser = _parser(verb, "CONFIG [a.b=c ...]")
    parser.add_argument("config", type=str, help="YAML file of the experiment; `a.b=c` after it sets a field of it")
    parser.add_argument("--name", type=str, help="name of the run; null is the config's own, else its file name")
    parser.add_argument("--overrides", type=str, help="more `a.b=c`, in one text, quoted as for a shell")
    parser.add_argument("--print_config", action="store_true", help="print the resolved experiment as YAML and stop")
    parser.add_argument("--devices", type=str, help="short for trainer.devices")
    parser.add_argument("--nodes", type=_typing().PositiveInt, help="short for trainer.num_nodes")
    if verb in ("finetune", "plan"):
        parser.add_argument("--from", type=str, dest="source", help="short for init.from: the weights to start from")
    if verb in ("pretrain", "finetune"):
        parser.add_argument("--restart", action="store_true", help="start afresh in a new directory; deletes nothing")
        parser.add_argument("--dry-run", action="store_true", help="do what `triune plan` does")
    return parser


def _from_options(options: Namespace) -> Iterator[str]:
    """What the options say in the experiment's own words; they win over the assignments."""
    yield from _split(options.overrides)
    if options.get("source") is not None:
        yield f"init.from={options.source}"
    if options.devices is not None:
        yield f"trainer.devices={options.devices}"
    if options.nodes is not None:
        yield f"trainer.num_nodes={options.nodes}"


def _split(overrides: str | None) -> list[str]:
    """The assignments of one text; UserError where its quotes do not close."""
    try:
        return shlex.split(overrides or "")
    except ValueError as error:
        raise UserError(f"--overrides: {overrides!r} cannot be split into a.b=c: {error}") from None


def _generate(arguments: list[str]) -> int:
    parser = _parser("generate", "RUN")
    parser.add_argument(
        "run_directory", type=str, help="a run, a `model/` directory, or one of Hugging Face's or a GGUF file"
    )
    parser.add_argument(
        "--prompt",
        type=str,
        help="text to go on from; for an encoder with its mask token, for a span model with <extra_id_0>, ... in the gaps",
    )
    parser.add_argument("--input", type=str, help='file of prompts: .jsonl with "prompt", else one a line')
    parser.add_argument("--output", type=str, help="file for the answers to --input, .jsonl; null prints them")
    parser.add_argument(
        "--batch_size", type=_typing().PositiveInt, default=8, help="prompts of --input answered together"
    )
    parser.add_argument(
        "--stream", action=_yes_no(), default=None, help="print the answer as it comes; null does where it can"
    )
    parser.add_argument(
        "--one_by_one", action="store_true", help="an encoder: fill the surest mask first, then read again"
    )
    _add_sampling(parser)
    if _wants_help(arguments):
        print(parser.format_help())
        return 0
    options = _parse(parser, arguments, "generate")
    return int(importlib.import_module("triune.run").generate(**options.as_dict()))


def _add_sampling(parser: ArgumentParser) -> None:
    """Options that are fields of `GenerationConfig`; null leaves the choice to the family of the model."""
    number = _typing()
    options: list[tuple[str, Any, str]] = [
        ("max_new_tokens", number.PositiveInt, "most tokens to write; null is 100"),
        ("min_new_tokens", number.NonNegativeInt, "tokens to write before the text may end"),
        ("temperature", number.NonNegativeFloat, "0 takes the likeliest token; null is 0.8 for a decoder, else 0"),
        ("top_k", number.NonNegativeInt, "draw from the k likeliest; 0 is all; null is 50 for a decoder"),
        ("top_p", number.ClosedUnitInterval, "draw from the likeliest that make up this share"),
        ("min_p", number.ClosedUnitInterval, "draw from those at least this share as likely as the likeliest"),
        ("repetition_penalty", number.PositiveFloat, "above 1 makes what was written less likely"),
        ("beams", number.PositiveInt, "search over so many texts at a time for the likeliest"),
        ("length_penalty", float, "of a search: above 0 favours long texts; null is 1"),
        ("n_best", number.PositiveInt, "texts for each prompt"),
        ("seed", number.NonNegativeInt, "seed of the draw; null is 1"),
    ]
    for name, kind, meaning in options:
        parser.add_argument(f"--{name}", type=kind, help=meaning)
    parser.add_argument(
        "--stop",
        type=str,
        action="append",
        help=r"text that ends the answer, not part of it; \n is a line end; may be repeated",
    )


def _yes_no() -> Any:
    return importlib.import_module("jsonargparse").ActionYesNo(no_prefix="no-")


def _evaluate(arguments: list[str]) -> int:
    parser = _parser("evaluate", "RUN [a.b=c ...]")
    parser.add_argument("run_directory", type=str, help="a run, a checkpoint or a model directory with a task")
    parser.add_argument(
        "--data", type=str, help="file of labelled records; more is said as data.train.0.columns.text=…"
    )
    parser.add_argument("--output", type=str, help="directory to write to; null is evaluations/<data> beside the model")
    parser.add_argument("--overrides", type=str, help="more `a.b=c`, in one text, quoted as for a shell")
    parser.add_argument("--resamples", type=_typing().PositiveInt, default=1000, help="resamples of the bootstrap")
    if _wants_help(arguments):
        print(parser.format_help())
        return 0
    overrides, rest = _divide(arguments)
    options = _parse(parser, rest, "evaluate").as_dict()
    settings = (*overrides, *_split(options.pop("overrides")))
    return int(importlib.import_module("triune.verdict").evaluate(**options, settings=settings))


def _import(arguments: list[str]) -> int:
    parser = _parser("import", "DIRECTORY OUT")
    parser.add_argument(
        "directory",
        type=str,
        help="a model in Hugging Face's layout, config.json and safetensors, or a GGUF file of Llama's shape",
    )
    parser.add_argument(
        "out", type=str, help="model directory to write, as <run>/model/ is; what was there is replaced"
    )
    parser.add_argument("--tokenizer", type=str, help="where its tokenizer is; null is beside it")
    if _wants_help(arguments):
        print(parser.format_help())
        return 0
    options = _parse(parser, arguments, "import")
    return int(importlib.import_module("triune.training.transfer").import_model(**options.as_dict()))


def _export(arguments: list[str]) -> int:
    parser = _parser("export", "SOURCE OUT")
    parser.add_argument("source", type=str, help="a run, a checkpoint or a model directory")
    parser.add_argument("out", type=str, help="directory to write; what was there is replaced")
    parser.add_argument(
        "--architecture",
        type=str,
        help="model_type to write (llama); null is the first that has a word for every setting",
    )
    parser.add_argument(
        "--shard_size", type=str, default="5G", help="bytes from which on the weights are cut into files (2G)"
    )
    if _wants_help(arguments):
        print(parser.format_help())
        return 0
    options = _parse(parser, arguments, "export")
    return int(importlib.import_module("triune.training.transfer").export_model(**options.as_dict()))


def _look(arguments: list[str]) -> int:
    thing = arguments[0] if arguments else ""
    if thing not in (*_LOOKS, "-h", "--help"):
        found = f"{thing!r} is nothing to look at{nearest(thing, _LOOKS)}" if thing else "nothing to look at is named"
        raise UserError(
            f"{found}; write triune look {' or '.join(_LOOKS)} ... (`triune look --help` lists the options)"
        )
    number = _typing()
    parser = _parser("look", "pattern PATTERN")
    parser.add_argument(
        "pattern",
        type=str,
        help='an expression, in quotes: "window(64, 64) | global_tokens(first=2)"; a config: a path, a name in configs/model or '
        "configs/pretrain (longformer-base), or a family (longformer)",
    )
    parser.add_argument(
        "--length",
        type=number.PositiveInt,
        help="queries, and keys; null is the model's context, 256 for an expression",
    )
    parser.add_argument(
        "--tile", type=number.PositiveInt, help="queries, and keys, of a tile; null is 128, less at short lengths"
    )
    parser.add_argument(
        "--output", type=str, help="picture to write: .png, .pdf or .svg; null is runs/look/<name>-<length>.png"
    )
    if _wants_help(arguments):
        print(parser.format_help())
        return 0
    options = _parse(parser, arguments[1:], "look")
    return int(importlib.import_module("triune.insight.pattern_plot").look(**options.as_dict()))


def _typing() -> Any:
    return importlib.import_module("jsonargparse.typing")


def _parser(verb: str, usage: str) -> ArgumentParser:
    jsonargparse = importlib.import_module("jsonargparse")
    return jsonargparse.ArgumentParser(
        usage=f"triune {verb} {usage} [options]",
        description=_VERBS[verb],
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # ours prints the experiment, which is not the parser's own namespace
    )


def _parse(parser: ArgumentParser, arguments: Sequence[str], verb: str) -> Namespace:
    """Options of a verb; UserError where they are wrong."""
    try:
        return parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        message = re.sub(r'Parser key "(\w+)":\s*', r"--\1: ", str(error))
    unknown = re.search(r"unrecognized arguments: (-*)(\S+)", message)
    if unknown and not unknown[1]:
        message += "; a field of the experiment is set as key=value, such as model.layers=6"
    elif unknown and "." in unknown[2]:
        message += f"; a field of the experiment is written without dashes: {unknown[2]}"
    elif unknown:
        message += nearest(unknown[1] + unknown[2], _options(parser))
    raise UserError(f"{message} (`triune {verb} --help` lists the options)")


def _options(parser: ArgumentParser) -> list[str]:
    return re.findall(r"(?<=\s)--\w[\w-]*", parser.format_help())


def _wants_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(assignments `a.b=c`, the rest); assignments may stand anywhere but as the value of an option."""
    assignments: list[str] = []
    rest: list[str] = []
    valued = False
    for text in arguments:
        (assignments if _OVERRIDE.fullmatch(text) and not valued else rest).append(text)
        valued = text in _VALUED
    return assignments, rest


def reference() -> str:
    """Every field of an experiment, with type, default and meaning, wrapped to the terminal."""
    tree = importlib.import_module("triune.tree")
    experiment = importlib.import_module("triune.experiment").Experiment
    width = max(80, min(120, shutil.get_terminal_size().columns))
    lines = [
        "fields of an experiment, in YAML or as `a.b=c` on the command line",
        "  count: 4096, 32k, 0.5M, 10B; interval: 50M (tokens), 100 steps, 30min, 0.2 (of the run); null: not set",
    ]
    above = ""
    for note in tree.describe(experiment):
        variant = note.default is None and note.path.endswith(".kind")
        head = f"{note.path}={note.type}" if variant else f"{note.path}  {note.type}"
        head += "" if note.default is None else f" = {note.default}"
        section = note.path if note.is_section else note.path.rpartition(".")[0]
        if section != above or variant:
            lines.append("")
        above = section
        lines.extend(textwrap.wrap(head, width, initial_indent="  ", subsequent_indent="      "))
        lines.extend(textwrap.wrap(note.meaning, width, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
