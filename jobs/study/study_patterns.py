"""The patterns that the study compares, each at any scale: u tokens of a window are a sixteenth of the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Family = Literal["decoder", "encoder"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One pattern of the comparison.

    Args:
        name: names its runs and its line in the table.
        family: the model it is tried in.
        layers: (u, layer) -> the pattern of that layer, as an expression.
        reach: positions that a layer may look back from any query, in u; None is the whole row.
        seed: of weights and order of rows.
    """

    name: str
    family: Family
    layers: Callable[[int, int], str]
    reach: float | None = None
    seed: int = 1

    def expressions(self, length: int, layers: int, first: int = 0) -> list[str]:
        """The patterns of `layers` layers in rows of `length`, beginning with number `first` of a schedule."""
        return [self.layers(length // 16, first + layer) for layer in range(layers)]


def _decoder(name: str, layers: Callable[[int, int], str], reach: float | None = None, *, seed: int = 1) -> Contender:
    return Contender(name=name, family="decoder", layers=layers, reach=reach, seed=seed)


def _encoder(name: str, layers: Callable[[int, int], str], reach: float | None = None, *, seed: int = 1) -> Contender:
    return Contender(name=name, family="encoder", layers=layers, reach=reach, seed=seed)


def _window(u: int) -> str:
    return f"window({u - 1}, 0)"


def _around(u: int) -> str:
    return f"window({u // 2}, {u // 2})"


def _lsh(u: int, seed: int, *, causal: bool) -> str:
    # buckets of half a window on average, and chunks of the same size, as the paper has them
    return f"lsh(buckets=32, chunk={u // 2}, rounds=2, causal={causal}, seed={seed})"


def _bigbird(u: int, seed: int) -> str:
    block = u // 2
    return (
        f"block_local({block}, 1, 1) | global_tokens(first={block}) | random_blocks({block}, 2, seed={seed}, among=32)"
    )


#: "full-again" shows how much of a difference is the seed's
DECODERS = (
    _decoder("full", lambda u, layer: "causal()"),
    _decoder("full-again", lambda u, layer: "causal()", seed=2),
    _decoder("window", lambda u, layer: _window(u), reach=1),
    _decoder("window-sinks", lambda u, layer: f"({_window(u)} | sinks(4)) & causal()", reach=1),
    _decoder("window-and-full", lambda u, layer: "causal()" if layer % 4 == 3 else _window(u)),
    _decoder("fixed", lambda u, layer: f"fixed({u}, {u // 8})"),
    _decoder("bigbird", lambda u, layer: f"({_bigbird(u, layer)}) & causal()"),
    _decoder("lsh-and-window", lambda u, layer: _lsh(u, layer, causal=True) if layer % 2 else _window(u)),
    _decoder("moba", lambda u, layer: f"moba(block={u // 2}, top=3)"),
    _decoder(
        "nsa",
        lambda u, layer: f"nsa(compress={u // 4}, stride={u // 8}, select={u // 2}, top=3, window={u // 2})",
    ),
)

ENCODERS = (
    _encoder("full", lambda u, layer: "full()"),
    _encoder("full-again", lambda u, layer: "full()", seed=2),
    _encoder("window", lambda u, layer: _around(u), reach=0.5),
    _encoder("longformer", lambda u, layer: f"{_around(u)} | global_tokens(first=4)"),
    _encoder("bigbird", lambda u, layer: _bigbird(u, layer)),
    _encoder("dilated-heads", lambda u, layer: f"per_head({_around(u)}, dilated({u // 2}, {u // 2}, 4))", reach=2),
    _encoder("lsh-and-window", lambda u, layer: _lsh(u, layer, causal=False) if layer % 2 else _around(u)),
)

CONTENDERS = (*DECODERS, *ENCODERS)


def chosen(only: list[str], family: Family | None = None) -> list[Contender]:
    """The contenders whose name, family or `family/name` is in `only` (all where it is empty), in order.

    SystemExit for a name that is none.
    """
    known = {name for c in CONTENDERS for name in (c.name, c.family, f"{c.family}/{c.name}")}
    if unknown := set(only) - known:
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(sorted(known))}")
    return [
        c
        for c in CONTENDERS
        if family in (None, c.family) and (not only or {c.name, c.family, f"{c.family}/{c.name}"} & set(only))
    ]
