"""The references of routed attention against their equations, written as loops over single tokens of one head or group.

fp64 throughout: sums of up to 40 terms of values below 50 err by less than 40 x 50 x 2^-53 x 10 = 3e-12.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from triune.attention.dispatch import attend
from triune.attention.routed.call import Branches
from triune.attention.routed.lsh import rotations
from triune.attention.routed.patterns import lsh, moba, nsa

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
T, D = 26, 4


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def average(scores: dict[int, float], value: Tensor, times: dict[int, int] | None = None) -> Tensor:
    """Softmax-weighted mean of the values of the tokens in `scores`, each counted so many `times`."""
    weights = {s: math.exp(x) * (1 if times is None else times[s]) for s, x in scores.items()}
    total = sum(weights.values())
    return sum((w / total * value[s] for s, w in weights.items()), torch.zeros(value.shape[-1], dtype=torch.float64))


def bucket_lists(vectors: Tensor, head: int, heads: int, seed: int, rounds: int, buckets: int) -> list[list[int]]:
    """Bucket of each token, a list a round."""
    turn = rotations(seed, heads, D, rounds, buckets // 2, torch.device("cpu"))[
        head
    ].double()  # [D, rounds, buckets / 2]
    found = []
    for r in range(rounds):
        turned = vectors @ turn[:, r]
        found.append(torch.cat([turned, -turned], -1).argmax(-1).tolist())
    return found


@pytest.mark.parametrize(("buckets", "chunk", "rounds"), [(4, 3, 1), (4, 3, 3), (2, 5, 2), (12, 2, 2), (4, 40, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_lsh_causal(buckets: int, chunk: int, rounds: int, seed: int) -> None:
    shared, value = normal(1, 2, T, D, seed=seed), normal(1, 2, T, D, seed=seed + 50)
    pattern = lsh(buckets=buckets, chunk=chunk, rounds=rounds, causal=True, seed=seed)
    got = attend(shared, shared, value, pattern=pattern, backend="reference")
    for head in range(2):
        x, v = shared[0, head], value[0, head]
        hashed = bucket_lists(x, head, 2, seed, rounds, buckets)
        for t in range(T):
            times: dict[int, int] = {}
            for of in hashed:
                for s in [s for s in range(t) if of[s] == of[t]][-chunk:]:
                    times[s] = times.get(s, 0) + 1
            times = times or {t: 1}
            scores = {s: float(x[t] @ x[s] / (x[s].square().sum() + D * 1e-6).sqrt()) for s in times}
            torch.testing.assert_close(got[0, head, t], average(scores, v, times), **CLOSE)


@pytest.mark.parametrize(("buckets", "chunk", "rounds"), [(4, 3, 1), (4, 3, 3), (2, 5, 2), (12, 13, 2), (4, 40, 2)])
def test_lsh_both_ways(buckets: int, chunk: int, rounds: int) -> None:
    shared, value = normal(1, 1, T, D, seed=1), normal(1, 1, T, D, seed=2)
    pattern = lsh(buckets=buckets, chunk=chunk, rounds=rounds, causal=False, seed=4)
    got = attend(shared, shared, value, pattern=pattern, backend="reference")
    x, v = shared[0, 0], value[0, 0]
    orders = [sorted(range(T), key=lambda t: (of[t], t)) for of in bucket_lists(x, 0, 1, 4, rounds, buckets)]
    chunks = [[order[i : i + chunk] for i in range(0, T, chunk)] for order in orders]
    line = [part for parts in chunks for part in parts]  # all rounds in a ring: the first chunk looks at the last
    for t in range(T):
        times: dict[int, int] = {}
        for index, part in enumerate(line):
            if t in part:
                for s in (*line[index - 1], *part):
                    if s != t:
                        times[s] = times.get(s, 0) + 1
        scores = {s: float(x[t] @ x[s] / (x[s].square().sum() + D * 1e-6).sqrt()) for s in times}
        torch.testing.assert_close(got[0, 0, t], average(scores, v, times), **CLOSE)


@pytest.mark.parametrize(("block", "top"), [(4, 1), (4, 3), (3, 20), (7, 2), (30, 2), (1, 4)])
def test_moba(block: int, top: int) -> None:
    query, key, value = normal(1, 4, T, D, seed=0), normal(1, 2, T, D, seed=1), normal(1, 2, T, D, seed=2)
    got = attend(query, key, value, pattern=moba(block=block, top=top), backend="reference")
    for head in range(4):
        q, k, v = query[0, head], key[0, head // 2], value[0, head // 2]
        for t in range(T):
            own = t // block
            affinity = {b: float(q[t] @ k[b * block : (b + 1) * block].mean(0)) for b in range(own)}
            chosen = {own, *sorted(affinity, key=lambda b: -affinity[b])[: top - 1]}
            scores = {s: float(q[t] @ k[s]) / D**0.5 for s in range(t + 1) if s // block in chosen}
            torch.testing.assert_close(got[0, head, t], average(scores, v), **CLOSE)


@pytest.mark.parametrize(
    ("compress", "stride", "select", "top", "window"),
    [(4, 2, 4, 3, 3), (4, 2, 6, 4, 5), (2, 2, 2, 5, 1), (6, 2, 8, 3, 40)],
)
def test_nsa(compress: int, stride: int, select: int, top: int, window: int) -> None:
    query = normal(1, 4, T, D, seed=0)
    keys, values = [normal(1, 2, T, D, seed=i) for i in (1, 2, 3)], [normal(1, 2, T, D, seed=i) for i in (4, 5, 6)]
    gates, matrix = normal(1, 4, T, 3, seed=7).sigmoid(), normal(D, D, seed=8)
    branches = Branches(
        compressed=(keys[1], values[1]),
        window=(keys[2], values[2]),
        gates=gates,
        compress=lambda k, v: ((k @ matrix).tanh().sum(3), v.mean(3)),
    )
    pattern = nsa(compress=compress, stride=stride, select=select, top=top, window=window)
    got = attend(query, keys[0], values[0], pattern=pattern, backend="reference", branches=branches)
    scale = D**-0.5
    for group in range(2):
        selected, squeezed, near = ((k[0, group], v[0, group]) for k, v in zip(keys, values, strict=True))
        starts = range(0, T - compress + 1, stride)  # eq. 7
        small_key = torch.stack([(squeezed[0][i : i + compress] @ matrix).tanh().sum(0) for i in starts])
        small_value = torch.stack([squeezed[1][i : i + compress].mean(0) for i in starts])
        for t in range(T):
            ended = [c for c, i in enumerate(starts) if i + compress - 1 <= t]
            heads = (2 * group, 2 * group + 1)
            importance = dict.fromkeys(range(t // select + 1), 0.0)
            for head in heads:
                scores = {c: math.exp(float(query[0, head, t] @ small_key[c]) * scale) for c in ended}
                for c in ended:  # eq. 8, 10
                    for m in range(compress // stride):  # eq. 9: a share for each stride of tokens in the block
                        block = (c + m) * stride // select
                        importance[block] += scores[c] / sum(scores.values())
            own = t // select
            forced = {0, own, max(own - 1, 0)}
            others = sorted((b for b in importance if b not in forced), key=lambda b: -importance[b])
            chosen = {*forced, *others[: max(top - len(forced), 0)]}  # eq. 11
            for head in heads:
                q = query[0, head, t]
                parts = (
                    average({c: float(q @ small_key[c]) * scale for c in ended}, small_value),
                    average(
                        {s: float(q @ selected[0][s]) * scale for s in range(t + 1) if s // select in chosen},
                        selected[1],
                    ),
                    average({s: float(q @ near[0][s]) * scale for s in range(max(t - window + 1, 0), t + 1)}, near[1]),
                )
                want = sum(gate * part for gate, part in zip(gates[0, head, t], parts, strict=True))  # eq. 5
                torch.testing.assert_close(got[0, head, t], want, **CLOSE)
