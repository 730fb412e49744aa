"""Special tokens, all of them, in one place: which role a token plays, and how text is kept from spelling one."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
#: spellings of the fill-in-the-middle tokens (this package and StarCoder, Qwen, SantaCoder)
_FILL_IN_THE_MIDDLE = ("<fim_{}>", "<|fim_{}|>", "<fim-{}>")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The tokens of each role as they are spelled; None where a tokenizer has none. Two roles may share a token."""

    pad: str | None = None
    bos: str | None = None
    eos: str | None = None
    unknown: str | None = None
    mask: str | None = None
    fim_prefix: str | None = None
    fim_middle: str | None = None
    fim_suffix: str | None = None
    sentinels: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[str]:
        """Every token once, in the order in which a trained vocabulary numbers them."""
        *roles, sentinels = asdict(self).values()
        return list(dict.fromkeys([token for token in roles if token is not None] + list(sentinels)))


def standard(sentinels: int) -> SpecialTokens:
    """What every tokenizer trained here carries."""
    return SpecialTokens(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unknown="<unk>",
        mask="<mask>",
        fim_prefix="<fim_prefix>",
        fim_middle="<fim_middle>",
        fim_suffix="<fim_suffix>",
        sentinels=tuple(f"<extra_id_{i}>" for i in range(sentinels)),
    )


def roles_of(declared: Mapping[str, str | None], vocabulary: Mapping[str, int]) -> SpecialTokens:
    """Roles in a foreign tokenizer, from what it declares (pad_token, cls_token, ...) and what its vocabulary holds.

    BERT's [CLS] is bos and its [SEP] eos. Without a bos, T5 starts its decoder with pad, and every other tokenizer
    begins documents with eos, as GPT-2 does. Without a pad, eos fills rows: the layout tells the two apart.
    """
    numbered = {int(match[1]): token for token in vocabulary if (match := _SENTINEL.fullmatch(token))}
    sentinels: list[str] = []
    while len(sentinels) in numbered:
        sentinels.append(numbered[len(sentinels)])
    pad = declared.get("pad_token")
    eos = declared.get("eos_token") or declared.get("sep_token")
    bos = declared.get("bos_token") or declared.get("cls_token") or (pad if sentinels else None) or eos
    middle = {
        role: next((form.format(role) for form in _FILL_IN_THE_MIDDLE if form.format(role) in vocabulary), None)
        for role in ("prefix", "middle", "suffix")
    }
    return SpecialTokens(
        pad=pad or eos or bos,
        bos=bos,
        eos=eos or bos,
        unknown=declared.get("unk_token"),
        mask=declared.get("mask_token"),
        fim_prefix=middle["prefix"],
        fim_middle=middle["middle"],
        fim_suffix=middle["suffix"],
        sentinels=tuple(sentinels),
    )


def disarmed(definition: dict[str, Any], roles: SpecialTokens) -> dict[str, Any]:
    """A `tokenizer.json` that gives every text the same ids but can never produce a special token from it.

    A tokenizer finds special tokens in a text in two ways: as added tokens, before the model runs, and (Unigram,
    WordPiece, merges ignored) as ordinary entries of the model's vocabulary. Renaming them in both places to a
    spelling that no text has (it holds NUL, which no source lets through) shuts both and moves no id.
    Only the unknown token still comes out, for characters that the model does not know. Truncation and
    padding go too: encoding drops and adds nothing.
    """
    definition = copy.deepcopy(definition)
    added = definition.get("added_tokens") or []
    special = set(roles.tokens) | {token["content"] for token in added if token["special"]}
    renamed = {token: f"\0special {number}\0" for number, token in enumerate(sorted(special))}
    for token in added:
        if token["content"] in renamed:
            token["content"] = renamed[token["content"]]
            token["special"] = True  # `encode_special_tokens` then reads them as plain text
            token["normalized"] = False
    model = definition["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    return definition | {"truncation": None, "padding": None}
