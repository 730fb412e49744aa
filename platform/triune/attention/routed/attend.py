"""Routed attention from a call: its documents as rows, its pattern, and back.

Legend: B batch, T query length, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from triune.attention.call import AttentionCall
from triune.attention.choice import choose
from triune.attention.patterns import window
from triune.attention.routed import lsh, moba, nsa
from triune.attention.routed.call import Branches, RoutedCall, Rows
from triune.attention.routed.documents import Group, decoded_documents, documents_of
from triune.attention.routed.patterns import SERVED, Lsh, Moba, Nsa, Routed
from triune.errors import UserError, nearest

_DENSE = {
    "sdpa": "its kernel takes one mask for all heads, and a routed pattern's pairs differ from head to head and are known only "
    "once the tokens are",
    "flex": "a BlockMask is built before the tokens are known, and a routed pattern's pairs only after",
}


def attend_routed(call: RoutedCall, backend: str = "auto") -> Tensor:
    """[B, H, T, D] in the query's dtype, computed in fp32 (fp64 where the query is).

    A query at padding gives zero and passes no gradient. Queries that are the last of more keys, as a cache has them, take
    the reference's way: each costs all keys of its document.

    UserError where the backend or the call can't be served, with every reason.
    """
    if reasons := list(_refusals(call, backend)):
        raise UserError("\n".join(reasons))
    together = call.query_layout is call.key_layout
    documents = documents_of(call.query_layout) if together else decoded_documents(call.query_layout, call.key_layout)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    outputs = []
    with torch.autocast(call.query.device.type, enabled=False):
        for queries, keys in zip(documents.queries, documents.keys, strict=True):
            rows = _rows(call, queries, keys, dtype)
            exact = backend == "reference" or not together
            outputs.append(_reference(rows, call.pattern) if exact else _tiles(rows, call.pattern, backend))
        return documents.scatter(outputs, call.query.shape[0]).to(call.query.dtype)


def _reference(rows: Rows, pattern: Routed) -> Tensor:
    match pattern:
        case Lsh():
            return lsh.reference(rows, pattern)
        case Moba():
            return moba.reference(rows, pattern)
        case Nsa():
            return nsa.reference(rows, pattern)
    raise TypeError(f"unknown routed pattern {pattern!r}")


def _tiles(rows: Rows, pattern: Routed, backend: str) -> Tensor:
    match pattern:
        case Lsh():
            return lsh.attend(rows, pattern)
        case Moba():
            return moba.attend(rows, pattern)
        case Nsa():
            return nsa.attend(rows, pattern, _sliding(nsa.sliding_rows(rows), pattern, backend))
    raise TypeError(f"unknown routed pattern {pattern!r}")


def _sliding(rows: Rows, pattern: Nsa, backend: str) -> Tensor:
    """NSA's sliding branch is a static pattern: the quickest backend serves it."""

    call = AttentionCall(
        query=rows.query,
        key=rows.key,
        value=rows.value,
        pattern=window(pattern.window - 1, 0),
        query_layout=rows.layout,
        key_layout=rows.layout,
        bias=None,
        scale=rows.scale,
        dropout=rows.dropout,
    )
    return choose(call, backend).attend(call)


def _rows(call: RoutedCall, queries: Group, keys: Group, dtype: torch.dtype) -> Rows:
    def of_keys(tensor: Tensor) -> Tensor:
        return keys.gather(tensor).to(dtype)

    branches = call.branches
    if branches is not None:
        branches = Branches(
            compressed=(of_keys(branches.compressed[0]), of_keys(branches.compressed[1])),
            window=(of_keys(branches.window[0]), of_keys(branches.window[1])),
            gates=queries.gather(branches.gates).to(dtype),
            compress=branches.compress,
        )
    return Rows(
        query=queries.gather(call.query).to(dtype),
        key=of_keys(call.key),
        value=of_keys(call.value),
        layout=keys.layout,
        lengths=keys.lengths,
        positions=queries.positions,
        scale=call.scale,
        dropout=call.dropout,
        branches=branches,
    )


def _refusals(call: RoutedCall, backend: str) -> Iterator[str]:
    pattern = call.pattern
    if backend in _DENSE:
        yield f"attention.backend is {backend!r}, but it can't serve {pattern}: {_DENSE[backend]}; use one of {', '.join(SERVED)}."
    elif backend not in SERVED:
        yield f"attention.backend is {backend!r}, but {pattern} needs one of {', '.join(SERVED)}{nearest(backend, SERVED)}."
    if call.bias is not None:
        yield (
            f"{pattern} takes no bias on its scores: use rotary, learned, sinusoidal or no positions instead of alibi or t5 "
            "(its tiles hold tokens of any distance, and none of the papers has one)."
        )
    layouts = (call.query_layout, call.key_layout)
    for name in ("prefix", "landmarks"):
        if any(getattr(layout, name) is not None for layout in layouts):
            yield f"{pattern} knows no {name} in the layout: every pair is chosen by content. Use a static pattern for marked rows."
    if call.query.shape[2] > call.key.shape[2]:
        yield f"{pattern} means nothing in cross-attention: {call.query.shape[2]} queries stand beside {call.key.shape[2]} keys."
    if isinstance(pattern, Lsh):
        yield from _lsh_refusals(call, pattern)
    if isinstance(pattern, Nsa) != (call.branches is not None):
        needed = "needs" if call.branches is None else "takes no"
        yield f"{pattern} {needed} branches (compressed and windowed keys, gates): they are learned, by the attention layer of a model."


def _lsh_refusals(call: RoutedCall, pattern: Lsh) -> Iterator[str]:
    if call.key.shape[1] != call.query.shape[1]:
        yield f"{pattern} shares one vector as query and key, so there are as many key heads as query heads, not {call.key.shape[1]} and {call.query.shape[1]}."
        return
    if call.query_layout is not call.key_layout and not pattern.causal:
        yield f"{pattern} can't decode with a cache: a new token would change what earlier ones see. Use causal=True."
    if call.key is call.query or torch.compiler.is_compiling() or call.query.shape[2] > call.key.shape[2]:
        return
    if not torch.equal(call.key[:, :, call.key.shape[2] - call.query.shape[2] :].to(call.query.dtype), call.query):
        yield f"{pattern} shares one vector as query and key: give the same tensor as both."
