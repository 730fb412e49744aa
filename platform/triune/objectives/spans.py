"""Random choice of tokens, words and spans, without a Python loop over tokens.

Every draw is `generator.random()`, whose values are the most stable that NumPy offers (see seeding.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def choose(
    sizes: np.ndarray, owners: np.ndarray, budgets: np.ndarray, keys: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """[U] bool: units taken in the order of their keys until each owner's budget is spent, exactly so in expectation.

    The unit that would exceed the budget is taken with probability (room left) / (its size), so that the expected total
    size is the budget, whatever the sizes are. Units of size 1 add up to the budget rounded down or up.

    Args:
        sizes: [U] tokens in each unit, above 0.
        owners: [U] document of each unit, ascending.
        budgets: [D] tokens to take from each document, at most those it has.
        keys: [U] random order; units of one key stay together, in the order of the text.
    """
    order = np.lexsort((keys, owners))  # stable, and `owners` is sorted: owners[order] == owners
    shuffled = sizes[order]
    before = np.cumsum(shuffled) - shuffled
    first = np.searchsorted(owners, np.arange(len(budgets)))  # [D] each document's first unit
    room = budgets[owners] - (before - before[first[owners]])
    chosen = np.empty(len(sizes), bool)
    chosen[order] = generator.random(len(sizes)) * shuffled < room
    return chosen


def partition(totals: np.ndarray, parts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each of G totals cut into its number of positive parts, every way equally likely: [sum(parts)] lengths in order.

    (T5's random segmentation, Raffel et al. 2020.) `parts` is at least 1 and at most the total; a total of 0 in one part
    gives 0, in no part nothing.
    """
    group = np.repeat(np.arange(len(totals)), totals)  # [N] of each item
    first = np.cumsum(totals) - totals  # [G]
    rank = np.arange(len(group)) - first[group]
    keys = generator.random(len(group))
    keys[rank == 0] = 2.0  # a cut before a group's first item would make an empty part
    order = np.lexsort((keys, group))  # `group` is sorted: the rank of a place is that of the item put there
    cut = np.empty(len(group), bool)
    cut[order] = rank < parts[group] - 1
    # a group has one cut less than parts, so the parts before an item are the cuts before it and the groups before its own
    part = np.cumsum(cut) + (np.cumsum(parts > 0) - 1)[group]
    return np.bincount(part, minlength=int(parts.sum()))


@lru_cache(maxsize=8)
def _poisson_table(mean: float) -> np.ndarray:
    """P(X <= k) for k = 0, 1, ... until it is 1 in double precision."""
    k = np.arange(int(mean + 12 * np.sqrt(mean)) + 40)
    log_factorial = np.cumsum(np.log(np.maximum(k, 1)))
    table = np.cumsum(np.exp(k * np.log(mean) - mean - log_factorial))
    table[-1] = 1.0  # what rounding left out
    return table


def poisson_lengths(total: int, mean: float, generator: np.random.Generator) -> np.ndarray:
    """Poisson lengths (0 among them) drawn until they reach `total`, the last one trimmed: they add up to `total`."""
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < total:
        draws = generator.random(int(2 * total / mean) + 8)
        lengths = np.concatenate([lengths, np.searchsorted(_poisson_table(mean), draws, side="right")])
    reached = np.cumsum(lengths)
    count = int(np.searchsorted(reached, total)) + 1 if total else 0
    lengths = lengths[:count]
    if count:
        lengths[-1] -= reached[count - 1] - total
    return lengths
