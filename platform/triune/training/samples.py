"""What a model writes: continuations, filled masks, restored spans. (Drafted; completed once inference is there.)"""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback


class SampleTable(Callback):
    def __init__(self, *a):
        pass


def write_samples(*a, **k):
    return []
