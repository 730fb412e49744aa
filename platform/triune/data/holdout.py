"""Which documents and records are held out for validation: a function of their text and the seed, for pretraining and fine-tuning alike."""

from __future__ import annotations

import hashlib

HASHES = 2**64


def hash_of(text: str, seed: int) -> int:
    """A number below 2^64 from the text, so that equal texts land on the same side of the split."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True))
    return int.from_bytes(digest.digest(), "little")


def threshold_of(lowest: int, highest: int, share: float) -> int:
    """The number below which a hash is held out: `share` of those between `lowest` and `highest`, but at least one, and never all.

    0 where `share` is 0, and where all are equal (one document, or copies of one).
    """
    threshold = max(round(share * HASHES), lowest + 1) if share > 0 else 0
    if threshold > highest:  # one document, or copies of one: none is left to train on
        threshold = highest if lowest < highest else 0
    return threshold
