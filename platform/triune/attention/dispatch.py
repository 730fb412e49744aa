"""`attend`: the one function that models call for attention.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from triune.attention.backends import sdpa
from triune.attention.bias import ScoreBias
from triune.attention.call import AttentionCall
from triune.attention.choice import choose
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern, causal, full
from triune.attention.routed.attend import attend_routed
from triune.attention.routed.call import Branches, RoutedCall
from triune.attention.routed.patterns import Routed

_CAUSAL = causal()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pattern: Pattern | Routed,
    query_layout: SequenceLayout | None = None,
    key_layout: SequenceLayout | None = None,
    bias: ScoreBias | Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    training: bool = False,
    backend: str = "auto",
    branches: Branches | None = None,
) -> Tensor:
    """softmax(scale x Q K^T + bias, over the allowed pairs) V (Vaswani et al. 2017, 3.2.1).

    A pair is allowed where both tokens carry the same document number, neither is padding, and the pattern allows their
    positions or the key carries a prefix mark. A query that may attend to nothing, padding included, gives zero and
    passes no gradient.

    Args:
        query: [B, H, T, D].
        key: [B, K, S, D]; K divides H, and head h reads key/value head h // (H / K).
        value: [B, K, S, D].
        pattern: which position may attend to which.
        query_layout: where each query belongs. Both layouts None is one unpadded document a row, whose last query stands
            at the last key where T differs from S. Layers that share a layout object share its masks.
        key_layout: where each key belongs; the same object as query_layout in self-attention.
        bias: added to the scaled scores: a ScoreBias, or its scores [B or 1, H, T, S] from `bias_scores`.
        scale: multiplies the scores; None is 1 / sqrt(D).
        dropout: probability of dropping an attention weight, in training only.
        training: as in nn.Module.
        backend: a name of `choice.BACKENDS`, or "auto" for the quickest that can.
        branches: what `nsa` has beside query, key and value.

    Returns:
        [B, H, T, D].

    Raises:
        ValueError: shapes or layouts that do not fit together.
        UserError: an unknown backend, or one that can't serve the call, with every reason.
    """
    _check(query, key, value, dropout)
    dropout = dropout if training else 0.0
    if query_layout is None and key_layout is None and _sees_all(query, pattern, bias, dropout, backend):
        return sdpa.attend_all(query, key, value, scale)
    if query_layout is None or key_layout is None:
        pattern, query_layout, key_layout = _fill(
            pattern, query, key, query_layout, key_layout, aligned=bias is not None
        )
    for layout, tensor, name in ((query_layout, query, "query"), (key_layout, key, "key")):
        if layout.shape != (tensor.shape[0], tensor.shape[2]):
            raise ValueError(f"{name}_layout is of {layout.shape} rows and tokens, but {name} is {list(tensor.shape)}")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(pattern, Routed):
        routed = RoutedCall(
            query=query,
            key=key,
            value=value,
            pattern=pattern,
            query_layout=query_layout,
            key_layout=key_layout,
            bias=bias,
            scale=scale,
            dropout=dropout,
            branches=branches,
        )
        return attend_routed(routed, backend)
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        pattern=pattern,
        query_layout=query_layout,
        key_layout=key_layout,
        bias=bias,
        scale=scale,
        dropout=dropout,
    )
    parts = [choose(part, backend).attend(part) for part in _by_heads(call)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _sees_all(
    query: Tensor, pattern: Pattern | Routed, bias: ScoreBias | Tensor | None, dropout: float, backend: str
) -> bool:
    """Whether one query, the last of plain rows, sees every key under a kernel's plainest call: then there is nothing to choose.

    As is each token that is decoded over a cache, where choosing would take longer than attending.
    """
    return (
        query.shape[2] == 1
        and backend in ("auto", "sdpa")
        and bias is None
        and dropout == 0.0
        and not isinstance(pattern, Routed)
        and (pattern is _CAUSAL or pattern.is_full or pattern == _CAUSAL)
        and query.is_floating_point()
    )


def _by_heads(call: AttentionCall) -> Iterator[AttentionCall]:
    """One call a group of heads that share a pattern."""
    patterns = call.pattern.heads()
    if len(patterns) == 1:
        yield call
        return
    heads, keys = call.query.shape[1], call.key.shape[1]
    if keys % len(patterns):
        raise ValueError(
            f"{call.pattern} has {len(patterns)} parts, which must divide the {heads} heads and {keys} key/value heads"
        )
    for part, pattern in enumerate(patterns):
        mine = slice(part * heads // len(patterns), (part + 1) * heads // len(patterns))
        theirs = slice(part * keys // len(patterns), (part + 1) * keys // len(patterns))
        bias = call.bias
        if bias is not None:
            bias = bias[:, mine] if isinstance(bias, Tensor) else bias.of_heads(mine.start, mine.stop)
        yield replace(
            call,
            query=call.query[:, mine],
            key=call.key[:, theirs],
            value=call.value[:, theirs],
            pattern=pattern,
            bias=bias,
        )


def _check(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(
            f"query {list(query.shape)} must be [B, H, T, D], key {list(key.shape)} and value {list(value.shape)} [B, K, S, D]"
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query {list(query.shape)} and key {list(key.shape)} must agree in B and D, and key heads must divide query heads"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"attention dropout is {dropout}, but it must be at least 0 and below 1")


def _fill(
    pattern: Pattern | Routed,
    query: Tensor,
    key: Tensor,
    query_layout: SequenceLayout | None,
    key_layout: SequenceLayout | None,
    *,
    aligned: bool,
) -> tuple[Pattern | Routed, SequenceLayout, SequenceLayout]:
    """Plain rows for the layouts that are None; `aligned` where positions matter beyond the pattern."""
    batch, _, queries, _ = query.shape
    keys, device = key.shape[2], query.device
    given = query_layout or key_layout
    if given is not None:
        if (query_layout is not None and not given.plain) or aligned or not pattern.is_full:
            raise ValueError(
                "one layout is None: give both (the same object in self-attention), or neither for plain rows; a key_layout"
                " alone will do only where the pattern is full() and there is no bias"
            )
        return (
            pattern,
            query_layout or SequenceLayout.plain_rows(batch, queries, device),
            key_layout or SequenceLayout.plain_rows(batch, keys, device),
        )
    if queries == 1 and pattern == _CAUSAL:
        pattern = full()  # the last query sees every key: decoding a token needs no mask
    key_layout = SequenceLayout.plain_rows(batch, keys, device)
    if queries == keys:
        return pattern, key_layout, key_layout
    query_layout = SequenceLayout.plain_rows(batch, queries, device)
    if aligned or not pattern.is_full:  # the last query stands at the last key
        positions = query_layout.positions + (keys - queries)
        query_layout = replace(query_layout, positions=positions, plain=False, right_padded=False)
    return pattern, query_layout, key_layout
