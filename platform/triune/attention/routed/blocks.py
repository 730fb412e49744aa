"""Causal attention to a query's own block and to chosen whole blocks before it: what MoBA and NSA's selected branch share.

Legend: N documents x key/value heads, G query heads of a key/value head, L tokens, D head width, Z blocks of a row, E tokens of
a block, A blocks chosen by a query, R queries of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.backends.tiles import CPU_SCORES, OTHER_SCORES, merge, tile_attention
from triune.attention.routed.gather import take


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, block: int, *, scale: float, dropout: float
) -> Tensor:
    """[N, G, L, D].

    Queries are gathered by the block that they chose, so that each tile of them reads one block; those blocks are whole and
    past, so that their tiles need no mask. The parts are merged by their log-sum-exps.

    Args:
        query: [N, G, L, D].
        key: [N, L, D].
        value: [N, L, D].
        chosen: [N, G, L, A] numbers of blocks before the query's own, each at most once; -1 for none.
        block: tokens of a block.
        scale: multiplies the scores.
        dropout: probability of dropping a weight now.
    """
    count, group, length, width = query.shape
    size = min(block, length)
    blocks = -(-length // size)
    filler = (0, 0, 0, blocks * size - length)
    keys, values = (F.pad(tensor, filler).reshape(-1, size, width) for tensor in (key, value))  # [N Z, E, D]
    # queries of a block side by side, for all heads of its group: [N Z, G E, D], flat [N Z G E, D]
    tiles = (
        F.pad(query, filler).reshape(count, group, blocks, size, width).transpose(1, 2).reshape(-1, group * size, width)
    )
    triangle = torch.ones(size, size, dtype=torch.bool, device=query.device).tril().repeat(group, 1)[None]
    output, lse = tile_attention(tiles, keys, values, mask=triangle, scale=scale, dropout=dropout)
    output, lse = output.reshape(-1, 1, width), lse.reshape(-1, 1)
    if chosen.shape[-1]:
        picks = F.pad(chosen, filler, value=-1).view(count, group, blocks, size, chosen.shape[-1]).transpose(1, 2)
        line = torch.arange(count, device=query.device).view(-1, 1, 1, 1, 1) * blocks
        picks = torch.where(picks < 0, -1, picks + line).reshape(-1, chosen.shape[-1])  # [N Z G E, A] of all N Z blocks
        past, past_lse = _past(tiles.reshape(-1, width), keys, values, picks, scale=scale, dropout=dropout)
        output, lse = torch.cat([output, past], dim=1), torch.cat([lse, past_lse], dim=1)  # [N Z G E, 1 + A, ...]
    merged = (
        merge(output, lse, 1).view(count, blocks, group, size, width).transpose(1, 2).reshape(count, group, -1, width)
    )
    return merged[:, :, :length]


def _past(
    query: Tensor, keys: Tensor, values: Tensor, picks: Tensor, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """What each query [P, D] gets from each block that it picked [P, A]: outputs [P, A, D] and log-sum-exps [P, A]."""
    (number, width), rows = query.shape, max(keys.shape[1] // 2, 16)
    index, place, block = _tiles(picks.flatten(), keys.shape[0], rows)
    pairs = torch.where(index < 0, -1, index // picks.shape[1])  # the query of each row of a tile
    gathered = take(query, pairs, place.view(number, -1).t()).view(-1, rows, width)
    keys, values = keys.index_select(0, block), values.index_select(0, block)
    output, lse = tile_attention(gathered, keys, values, mask=None, scale=scale, dropout=dropout)
    output = take(output.reshape(-1, width), place, index[None]).view(number, -1, width)
    lse = take(lse.reshape(-1, 1), place, index[None]).view(number, -1)
    return output, lse.masked_fill(picks < 0, -torch.inf)


@torch.no_grad()
def _tiles(picks: Tensor, groups: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of `rows` places, each for pairs that picked one block.

    A CPU makes as many tiles as are needed; elsewhere as many as could ever be, so that nothing waits for the device.

    Returns:
        index [tiles * rows] the pair at each place, -1 for none; place [pairs] the place of each pair, -1 where it picked
        none; block [tiles].
    """
    device, pairs = picks.device, picks.numel()
    picked, order = torch.where(picks < 0, groups, picks).sort(stable=True)
    starts = torch.searchsorted(picked, torch.arange(groups + 1, device=device))  # of each block's pairs, sorted
    ends = ((starts.diff() + rows - 1) // rows).cumsum(0)  # of each block's tiles
    exact = device.type == "cpu" and not torch.compiler.is_compiling()
    tiles = max(int(ends[-1]), 1) if exact else pairs // rows + groups
    offset = torch.cat([(ends - (starts.diff() + rows - 1) // rows) * rows - starts[:-1], starts.new_zeros(1)])
    where = torch.arange(pairs, device=device) + offset[picked]
    none = tiles * rows
    where = where.masked_fill(picked == groups, none)
    index = torch.full((none + 1,), -1, device=device).scatter_(0, where, order)[:-1]
    place = torch.empty_like(where).scatter_(0, order, where.masked_fill(where == none, -1))
    block = torch.searchsorted(ends, torch.arange(tiles, device=device), right=True).clamp_max(groups - 1)
    return index, place, block


def query_chunks(length: int, per_query: int, device: torch.device, multiple: int = 1) -> Iterator[slice]:
    """Slices of the queries such that `per_query` scores of each fit in the cache (memory, on a GPU) at once."""
    most = CPU_SCORES if device.type == "cpu" else OTHER_SCORES
    step = max(most // max(per_query, 1) // multiple, 1) * multiple
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


@torch.no_grad()
def best_blocks(
    length: int, top: int, block: int, scores: Callable[[slice], Tensor], per_query: int, device: torch.device
) -> Tensor:
    """[N, G, L, A] the `top` past blocks of highest score, -1 where there are fewer; A is at most `top`.

    Args:
        length: L.
        top: blocks wanted beside the own one.
        block: tokens of a block.
        scores: for a slice of the queries, [N, G, queries, whole blocks of the row].
        per_query: scores of one query in all N and G.
        device: of the scores.
    """
    whole = torch.arange(length // block, device=device)
    found = []
    for part in query_chunks(length, per_query, device):
        own = torch.arange(part.start, part.stop, device=device) // block
        score, best = scores(part).masked_fill(whole >= own[:, None], -torch.inf).topk(min(top, len(whole)), dim=-1)
        found.append(torch.where(score == -torch.inf, -1, best))
    return torch.cat(found, dim=2)
