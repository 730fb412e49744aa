"""Training throughput of the three families beside `transformers` at equal shapes, in one run on one machine.

    python jobs/bench/training_throughput.py --precision bf16 --out jobs/bench/results/<machine>-training.md

Both sides get the same batch, torch's fused AdamW, clipping at norm 1 and no dropout, in a raw loop (no Lightning, no
logging), interleaved step by step; the median of each side's steps is compared. Peers run their `sdpa` attention where
they have one. Ours: GPT-2, BERT and T5 as `configs/model/` spells them, at the benchmark's width and depth.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from triune.attention.config import AttentionConfig
from triune.models.config import (
    FeedForwardConfig,
    HeadConfig,
    InitializationConfig,
    LearnedPosition,
    ModelConfig,
    NormConfig,
    T5Position,
)
from triune.models.factory import build

WIDTH, LAYERS, HEADS = 384, 6, 6
MASKED_SHARE = 0.15
_WITHOUT_AMX = (
    "bf16 is autocast on both sides. Without AMX torch multiplies bf16 at half its fp32 speed; triune then rounds to bf16 "
    "and multiplies through the fp32 kernel (models/layers/linear.py), which is most of its lead there."
)


@dataclass(frozen=True)
class Case:
    """One architecture at one shape: a step of ours, a step of the peer's, and the tokens of a step."""

    name: str
    ours: nn.Module
    peer: nn.Module
    loss_ours: Callable[[], Tensor]
    loss_peer: Callable[[], Tensor]
    tokens: int


def gpt2(batch: int, length: int, vocabulary: int) -> Case:
    """Decoder: learned positions, pre-norm LayerNorm, GELU (tanh), tied head; every position predicted."""
    config = ModelConfig(
        family="decoder",
        vocabulary=vocabulary,
        context=length,
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        position=LearnedPosition(),
        norm=NormConfig(),
        feed_forward=FeedForwardConfig(kind="gelu_tanh"),
    )
    ours = build(config)
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=length,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    row = torch.randint(0, vocabulary, (batch, length + 1))
    inputs, targets = row[:, :-1].contiguous(), row[:, 1:].contiguous()
    weights = torch.ones(targets.shape)

    def loss_ours() -> Tensor:
        out = ours.head.loss(ours(inputs), targets, weights)
        return out.total / out.weight

    def loss_peer() -> Tensor:
        logits = peer(input_ids=inputs).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return Case("GPT-2", ours, peer, loss_ours, loss_peer, batch * length)


def bert(batch: int, length: int, vocabulary: int) -> Case:
    """Encoder: learned positions, post-norm, GELU, masked-LM head; 15% of the positions predicted."""
    config = ModelConfig(
        family="encoder",
        vocabulary=vocabulary,
        context=length,
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        position=LearnedPosition(),
        norm=NormConfig(placement="post", epsilon=1e-12, embedding=True),
        feed_forward=FeedForwardConfig(kind="gelu"),
        head=HeadConfig(transform=True, bias=True),
        token_types=2,
        initialization=InitializationConfig(kind="normal"),
    )
    ours = build(config)
    peer = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=length,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )
    inputs = torch.randint(0, vocabulary, (batch, length))
    targets = torch.randint(0, vocabulary, (batch, length))
    masked = torch.rand(batch, length) < MASKED_SHARE
    weights = masked.float()
    labels = targets.masked_fill(~masked, -100)

    def loss_ours() -> Tensor:
        out = ours.head.loss(ours(inputs), targets, weights)
        return out.total / out.weight

    def loss_peer() -> Tensor:
        return peer(input_ids=inputs, labels=labels).loss

    return Case("BERT", ours, peer, loss_ours, loss_peer, batch * length)


def t5(batch: int, length: int, vocabulary: int) -> Case:
    """Encoder-decoder: relative buckets, RMS norm, ReLU, tied head; targets of a quarter of the source's length."""
    config = ModelConfig(
        family="encoder_decoder",
        vocabulary=vocabulary,
        context=length,
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        position=T5Position(),
        norm=NormConfig(kind="rms", epsilon=1e-6),
        bias=False,
        feed_forward=FeedForwardConfig(kind="relu", width=4 * WIDTH),
        attention=AttentionConfig(scale=1.0),
        head=HeadConfig(scale=WIDTH**-0.5),
        initialization=InitializationConfig(kind="t5"),
    )
    ours = build(config)
    peer = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=4 * WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            dropout_rate=0.0,
            use_cache=False,
            decoder_start_token_id=0,
        )
    )
    source = torch.randint(0, vocabulary, (batch, length))
    target = length // 4
    labels = torch.randint(1, vocabulary, (batch, target))
    inputs = torch.cat([torch.zeros(batch, 1, dtype=torch.long), labels[:, :-1]], 1)
    weights = torch.ones(labels.shape)

    def loss_ours() -> Tensor:
        out = ours.head.loss(ours(inputs, source=source), labels, weights)
        return out.total / out.weight

    def loss_peer() -> Tensor:
        return peer(input_ids=source, labels=labels).loss

    return Case("T5", ours, peer, loss_ours, loss_peer, batch * (length + target))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], precision: str) -> float:
    """Seconds of one optimizer step."""
    cast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    start = time.perf_counter()
    with cast:
        value = loss()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def compare(case: Case, precision: str, steps: int) -> dict[str, float]:
    """Median step of both sides, interleaved, after two warm-up steps each."""
    sides = {}
    for name, model, loss in (("ours", case.ours, case.loss_ours), ("peer", case.peer, case.loss_peer)):
        model.train()
        sides[name] = (model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), loss)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for index in range(steps + 2):
        order = ("ours", "peer") if index % 2 else ("peer", "ours")
        for name in order:
            seconds = step(*sides[name], precision)
            if index >= 2:
                times[name].append(seconds)
    ours, peer = (statistics.median(times[n]) for n in ("ours", "peer"))
    ratios = sorted(p / o for o, p in zip(times["ours"], times["peer"], strict=True))
    return {
        "ours": case.tokens / ours,
        "peer": case.tokens / peer,
        "ratio": peer / ours,
        "low": ratios[len(ratios) // 4],
        "high": ratios[-1 - len(ratios) // 4],
    }


def main() -> None:
    """Print the table, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["bf16", "fp32"], nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8192])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    lines = [
        "# Training throughput beside transformers",
        "",
        f"{capabilities.get('cpu_name', 'CPU')}, {options.threads} threads, AVX-512 bf16 "
        f"{'yes' if capabilities.get('avx512_bf16') else 'no'}, AMX bf16 {'yes' if capabilities.get('amx_bf16') else 'no'}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}. Width {WIDTH}, {LAYERS} layers "
        f"(T5: {LAYERS} + {LAYERS}), {HEADS} heads, {options.batch} rows of {options.length} tokens; median of "
        f"{options.steps} interleaved steps, quartiles of the paired ratios in brackets.",
        "",
        *([] if capabilities.get("amx_bf16") else [_WITHOUT_AMX, ""]),
        "| model | parameters | vocabulary | precision | triune, tokens/s | transformers, tokens/s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for vocabulary in options.vocabulary:
        for make in (gpt2, bert, t5):
            for precision in options.precision:
                torch.manual_seed(0)
                case = make(options.batch, options.length, vocabulary)
                ours, peer = (sum(p.numel() for p in m.parameters()) for m in (case.ours, case.peer))
                assert ours == peer, f"{case.name}: {ours:,} parameters here, {peer:,} there"
                found = compare(case, precision, options.steps)
                lines.append(
                    f"| {case.name} | {ours / 1e6:.1f}M | {vocabulary:,} | {precision} | {found['ours']:,.0f} | "
                    f"{found['peer']:,.0f} | **{found['ratio']:.2f}** ({found['low']:.2f}-{found['high']:.2f}) |"
                )
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text(
            "\n".join(lines) + f"\n\nCommand: `python {Path(__file__).relative_to(Path.cwd())} "
            f"--vocabulary {' '.join(map(str, options.vocabulary))} --batch {options.batch} "
            f"--length {options.length} --steps {options.steps}`\n"
        )


if __name__ == "__main__":
    main()
