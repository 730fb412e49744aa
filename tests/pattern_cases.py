"""Hypothesis strategies over every static pattern: `ATOMS`, `PATTERNS` (combined with & | ~) and `PER_HEAD`."""

from hypothesis import strategies as st

from triune.attention import (
    block_local,
    causal,
    dilated,
    fixed,
    full,
    global_tokens,
    per_head,
    prefix,
    random_blocks,
    sinks,
    strided,
    window,
)

_side = st.one_of(st.none(), st.integers(0, 6))
_few = st.integers(1, 6)

#: every constructor but per_head, with values that matter within some 20 positions
ATOMS = st.one_of(
    st.builds(window, _side, _side),
    st.builds(prefix, _few),
    st.just(causal()),
    st.just(full()),
    st.builds(dilated, st.integers(0, 3), st.integers(0, 3), st.integers(1, 4)),
    st.builds(block_local, _few, st.integers(0, 2), st.integers(0, 2)),
    st.builds(strided, _few),
    _few.flatmap(lambda stride: st.builds(fixed, st.just(stride), st.integers(1, stride))),
    st.builds(sinks, _few),
    st.builds(lambda first: global_tokens(first=first), _few),
    st.builds(lambda some: global_tokens(indices=some), st.lists(st.integers(0, 15), min_size=1, max_size=4)),
    st.builds(random_blocks, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1, 4, 8])),
)
#: ATOMS combined with & | ~
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=5,
)
#: per_head of two to four, which heads in their number divide
PER_HEAD = st.builds(lambda parts: per_head(*parts), st.lists(PATTERNS, min_size=2, max_size=4))
