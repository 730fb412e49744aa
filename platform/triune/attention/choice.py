"""Which backend serves a call."""

from __future__ import annotations

from types import ModuleType

from triune.attention.backends import blocked, flex, reference, sdpa
from triune.attention.call import AttentionCall
from triune.attention.rule import dense_time, prefers_tiles
from triune.errors import UserError, nearest

#: by name
BACKENDS: dict[str, ModuleType] = {"sdpa": sdpa, "blocked": blocked, "flex": flex, "reference": reference}


def choose(call: AttentionCall, backend: str = "auto") -> ModuleType:
    """The backend that serves the call; UserError where the named one, or none, can.

    `auto` takes the quickest: one that skips tiles where the rule (rule.py) says that this pays, else a dense one.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UserError(
            f"attention.backend is {backend!r}, but it must be one of auto, {', '.join(BACKENDS)}"
            f"{nearest(backend, ['auto', *BACKENDS])}"
        )
    refusals = []
    for name in order(call) if backend == "auto" else (backend,):
        reasons = BACKENDS[name].why_not(call)
        if not reasons:
            return BACKENDS[name]
        refusals += [f"\n  {name}: {reason}" for reason in reasons]
    raise UserError(f"attention.backend is {backend!r}, but it can't serve this call:{''.join(refusals)}")


def order(call: AttentionCall) -> tuple[str, ...]:
    """All backends, the quickest for the call first."""
    heads = call.query.shape[1]
    if not prefers_tiles(call.pattern, call.query_layout, call.key_layout, heads=heads, dense=dense_time(call)):
        return ("sdpa", "blocked", "reference")
    return (
        ("blocked", "sdpa", "reference")
        if call.query.device.type == "cpu"
        else ("flex", "sdpa", "blocked", "reference")
    )
