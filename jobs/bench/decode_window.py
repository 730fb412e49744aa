"""Time and memory of decoding a token, dense and over a window's ring, at several depths of the context.

    python jobs/bench/decode_window.py --threads 2 --out jobs/bench/results/<machine>-decode-window.md

Both models have the same weights and read the same prompt; then single tokens follow, and the median of their times is the
row's. Depths are visited in turns by both models, so that a busy minute falls on both. Memory is what the cache holds: keys
and values of all layers, and the tables that say where they belong. `attention, us` is one layer's attention alone (one query
over the keys that the cache hands it), `other` what the step costs beside the attention of all layers.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.attention.dispatch import attend
from triune.attention.patterns import full
from triune.models.factory import build
from triune.models.layers.ring import Ring


def model_of(pattern: str, arguments: argparse.Namespace) -> Any:
    """A decoder in evaluation, the same weights for each pattern."""
    torch.manual_seed(0)
    settings = {
        "vocabulary": 512,
        "context": max(arguments.depths) + arguments.tokens,
        "width": arguments.width,
        "layers": arguments.layers,
        "heads": arguments.width // 64,
        "norm": {"kind": "rms"},
        "attention": {"pattern": pattern},
    }
    return build(settings).eval()


@torch.no_grad()
def filled(model: Any, depth: int, piece: int) -> Any:
    """A cache that has read `depth` tokens, in pieces, so that no step makes the scores of the whole prompt."""
    cache = model.new_cache(1, capacity=depth)
    prompt = torch.randint(0, 512, (1, depth), generator=torch.Generator().manual_seed(1))
    for part in prompt.split(piece, dim=1):
        model(part, cache=cache)
    return cache


@torch.no_grad()
def seconds(model: Any, cache: Any, tokens: int) -> float:
    """Median of single tokens, after one that is not counted."""
    token, found = torch.zeros(1, 1, dtype=torch.int64), []
    for _ in range(tokens + 1):
        start = time.perf_counter()
        model(token, cache=cache)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


@torch.no_grad()
def attention_seconds(cache: Any, tokens: int) -> float:
    """Median of one query over the keys that the first layer hands to attention, without a mask."""
    layer = cache.layers[0]
    held = layer.store.filled if isinstance(layer.store, Ring) else cache.length
    key, value = layer.keys[:, :, :held], layer.values[:, :, :held]
    query, found = torch.randn_like(key[:, :, :1]), []
    for _ in range(tokens + 1):
        start = time.perf_counter()
        attend(query, key, value, pattern=full())
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def held_bytes(cache: Any) -> int:
    """Keys and values in use, not the room beside them, and the tables of rings."""
    stores = {id(layer.store): layer.store for layer in cache.layers}.values()
    tables: list[Tensor] = [
        t for store in stores if isinstance(store, Ring) for t in (store.documents, store.positions)
    ]
    total = sum(table.nbytes for table in tables)
    for layer in cache.layers:
        used = layer.store.filled if isinstance(layer.store, Ring) else cache.length
        total += 2 * layer.keys[:, :, :used].numel() * layer.keys.element_size()
    return total


def measure(arguments: argparse.Namespace) -> list[str]:
    """One line of the table for each depth and model."""
    patterns = {"dense": "causal()", f"window {arguments.window:,}": f"window({arguments.window - 1}, 0)"}
    models = {name: model_of(pattern, arguments) for name, pattern in patterns.items()}
    lines = []
    for depth in arguments.depths:
        caches = {name: filled(model, depth, arguments.piece) for name, model in models.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(arguments.rounds):
            for name, model in models.items():
                times[name].append(seconds(model, caches[name], arguments.tokens))
        for name, cache in caches.items():
            alone = attention_seconds(cache, arguments.tokens)
            whole = statistics.median(times[name])
            other = whole - arguments.layers * alone
            lines.append(
                f"| {depth:,} | {name} | {whole * 1e3:,.2f} | {alone * 1e6:,.0f} | {other * 1e3:,.2f} "
                f"| {held_bytes(cache) / 2**20:,.2f} |"
            )
    return lines


def main() -> None:
    """Run all depths and print the table; with --out also write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[2048, 8192, 32768], help="tokens of the prompt")
    parser.add_argument("--window", type=int, default=1024, help="keys in sight, the token's own included")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a median")
    parser.add_argument("--rounds", type=int, default=3, help="medians of each model at each depth")
    parser.add_argument("--piece", type=int, default=1024, help="tokens of the prompt read at once")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    header = [
        "| depth, tokens | model | token, ms | attention, us a layer | other, ms | cache, MiB |",
        "|---|---|---|---|---|---|",
    ]
    text = (
        f"# Decoding over a window\n\nWidth {arguments.width}, {arguments.layers} layers, batch 1, fp32, window {arguments.window:,}; "
        f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads; "
        f"medians of {arguments.rounds} turns of {arguments.tokens} tokens.\n\n"
    )
    text += "\n".join([*header, *measure(arguments)]) + "\n"
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
