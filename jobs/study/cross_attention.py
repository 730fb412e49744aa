"""Where a translation model's cross-attention looks: a picture of some pairs, and a number that says whether it aligns.

    .venv/bin/python jobs/study/cross_attention.py runs/pretrain/translation test.tsv --columns en es --output docs/images/alignment.png

The number needs no alignments made by hand: words that stand in both texts letter for letter (names, mostly: David, Moab) once each are
links that nobody doubts. Of these, the share whose target word looks most at its own source word, for the layer and head that do so best, beside
the best of the same on pairs whose sources are exchanged (chance, with the same freedom to choose a head).

Legend: H heads, T target tokens, S source tokens, D head width.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triune.data.tokenizers import Tokenizer
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.layers.attention import MultiHeadAttention
from triune.training.weights import load_model, tokenizer_of

_WORD = re.compile(r"[^\W\d_]{3,}")


@torch.no_grad()
def cross_attention(model: EncoderDecoder, source: Sequence[int], inputs: Sequence[int]) -> np.ndarray:
    """[layers, H, T, S] probabilities of every cross-attention layer, recomputed from its own projections.

    For models without query/key norms, biases or grouped heads in cross-attention, as the 2017 Transformer is.
    """
    layers = [m for m in model.decoder.modules() if isinstance(m, MultiHeadAttention) and m.cross]
    seen: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(layers))}
    hooks = []
    for number, layer in enumerate(layers):
        for name in ("query", "key_value"):

            def keep(_: Any, __: Any, out: Tensor, number: int = number, name: str = name) -> None:
                seen[number][name] = out[0]

            hooks.append(getattr(layer, name).register_forward_hook(keep))
    model(torch.tensor([list(inputs)]), source=torch.tensor([list(source)]))
    for hook in hooks:
        hook.remove()
    found = []
    for number, layer in enumerate(layers):
        query = seen[number]["query"].unflatten(-1, (layer.heads, -1)).transpose(0, 1)  # [H, T, D]
        key = seen[number]["key_value"].chunk(2, -1)[0].unflatten(-1, (layer.heads, -1)).transpose(0, 1)  # [H, S, D]
        scale = layer.head_width**-0.5 if layer.scale is None else layer.scale
        found.append((query @ key.transpose(1, 2) * scale).softmax(-1))
    return torch.stack(found).numpy()


def links(source: str, target: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(span in the source, span in the target), in characters, of each word that stands once in both."""

    def once(text: str) -> dict[str, tuple[int, int]]:
        spans = [(match.group(), match.span()) for match in _WORD.finditer(text)]
        words = [word for word, _ in spans]
        return {word: span for word, span in spans if words.count(word) == 1}

    here, there = once(source), once(target)
    return [(here[word], there[word]) for word in here if word in there]


def tokens_of(offsets: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Numbers of the tokens that overlap a span of characters."""
    return np.flatnonzero((offsets[:, 0] < span[1]) & (offsets[:, 1] > span[0]))


class Reader:
    """A model with its tokenizer: pairs of texts to attention maps."""

    def __init__(self, model: EncoderDecoder, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.words = model, tokenizer, tokenizer.vocabulary

    def maps(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([layers, H, T, S] attention, [S - 1, 2] offsets of the source, [T, 2] of the target): row t writes target token t."""
        (read, read_at), (written, written_at) = self.tokenizer.encode_aligned([source, target])
        ids = [*read.tolist(), self.words.closing]
        inputs = [self.words.decoder_start, *written.tolist()][: len(written)]
        return cross_attention(self.model, ids, inputs), read_at, written_at


def hits(reader: Reader, pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> np.ndarray:
    """[links, layers, H] whether the tokens of a linked target word look most at the tokens of its source word.

    `sources` are what the model reads: the pairs' own, or others, in which the places of the links mean nothing.
    """
    found = []
    for (source, target), given in zip(pairs, sources, strict=True):
        linked = links(source, target)
        if not linked:
            continue
        attention, read_at, written_at = reader.maps(given, target)
        own_at = reader.tokenizer.encode_aligned([source])[0][1]
        for here, there in linked:
            wanted = [place for place in tokens_of(own_at, here) if place < len(read_at)]
            asking = tokens_of(written_at, there)
            if len(wanted) and len(asking):
                # all but the closing token may be looked at
                best = attention[:, :, asking, : len(read_at)].mean(2).argmax(-1)  # [layers, H]
                found.append(np.isin(best, wanted))
    return np.array(found)


def draw(reader: Reader, pairs: Sequence[tuple[str, str]], head: tuple[int, int], path: Path) -> None:
    """Attention of one head for a few pairs, words along the axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(pairs), figsize=(7 * len(pairs), 6.5))
    for axis, (source, target) in zip(np.atleast_1d(axes), pairs, strict=True):
        attention, read_at, written_at = reader.maps(source, target)
        shown = attention[head[0], head[1], :, : len(read_at)]
        axis.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(read_at)), [source[a:b] for a, b in read_at], rotation=90, fontsize=8)
        axis.set_yticks(range(len(written_at)), [target[a:b] for a, b in written_at], fontsize=8)
        axis.set_xlabel("source, read")
        axis.set_ylabel("target, written")
    figure.suptitle(f"cross-attention of layer {head[0] + 1}, head {head[1] + 1}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("pairs", help="tsv with a header")
    parser.add_argument("--columns", nargs=2, default=["text", "target"])
    parser.add_argument("--output", type=Path, default=Path("runs/look/alignment.png"))
    parser.add_argument("--count", type=int, default=300, help="pairs to count links in")
    options = parser.parse_args()
    model, saved = load_model(options.run)
    assert isinstance(model, EncoderDecoder)
    reader = Reader(model, tokenizer_of(saved))
    with open(options.pairs, encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = [(row[options.columns[0]], row[options.columns[1]]) for row in rows][: options.count]
    pairs = [pair for pair in pairs if links(*pair)]
    true = hits(reader, pairs, [source for source, _ in pairs]).mean(0)  # [layers, H]
    exchanged = hits(reader, pairs, [source for source, _ in pairs[1:] + pairs[:1]]).mean(0)
    head = np.unravel_index(true.argmax(), true.shape)
    print(f"{len(pairs)} pairs with words in both texts; share of these words that look at their own source word")
    for layer, shares in enumerate(true, 1):
        print(f"  layer {layer}: " + "  ".join(f"{share:.2f}" for share in shares))
    print(
        f"best head: layer {head[0] + 1}, head {head[1] + 1}: {true.max():.3f}; with exchanged sources {exchanged.max():.3f}"
    )
    short = sorted(pairs, key=lambda pair: len(pair[0]))[:40:13][:3]
    draw(reader, short, (int(head[0]), int(head[1])), options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
