"""A smaller vocabulary for a byte-level BPE tokenizer: fewer rows in the embedding, the same text in and out.

Dropping merges never makes a text unwritable: what used to be one token becomes several, down to single bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from salticid.errors import ConfigurationError


def shrink_bpe(tokenizer: Tokenizer, texts: Iterable[str], first_merges: int, added: Iterable[str] = ()) -> tuple[Tokenizer, list[int]]:
    """Keep the special tokens, the bytes, the `first_merges` most frequent merges, and every token that `texts` need.

    Args:
        tokenizer: a byte-level BPE tokenizer of the `tokenizers` library.
        texts: what the model must still write in few tokens.
        added: new special tokens, placed last.

    Returns:
        The new tokenizer, and for each of its ids the id it had (-1 for `added`).

    Raises:
        ConfigurationError: the tokenizer is of another kind.
    """
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise ConfigurationError(f"only BPE vocabularies can be shrunk, this one is {model['type']}")
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    made = {left + right for left, right in merges}
    by_id = {index: token for token, index in vocabulary.items()}

    wanted = {token for token in vocabulary if token not in made}
    wanted.update(left + right for left, right in merges[:first_merges])
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        wanted.update(by_id[index] for index in set(encoding.ids) if index in by_id)
    for token in wanted & made:
        wanted |= _passed(token, ranks)

    special = {entry["content"]: entry["id"] for entry in spec["added_tokens"]}
    kept = sorted(wanted | set(special), key=lambda token: vocabulary.get(token, special.get(token, 0)))
    old_ids = [vocabulary.get(token, special.get(token, -1)) for token in kept]
    new_ids = {token: index for index, token in enumerate(kept)}
    model["vocab"] = new_ids
    model["merges"] = [list(pair) for pair in merges if pair[0] + pair[1] in new_ids and pair[0] in new_ids and pair[1] in new_ids]
    for entry in spec["added_tokens"]:
        entry["id"] = new_ids[entry["content"]]
    _renumber(spec.get("post_processor") or {}, new_ids)
    spec["padding"] = spec["truncation"] = None
    shrunk = Tokenizer.from_str(json.dumps(spec))
    new = [token for token in added if token not in new_ids]
    shrunk.add_special_tokens(new)
    return shrunk, old_ids + [-1] * len(new)


def _passed(token: str, ranks: dict[tuple[str, ...], int]) -> set[str]:
    """Every token that byte-pair encoding passes through on its way to `token`; without one of them it would end elsewhere."""
    symbols, passed = list(token), set()
    while found := [(ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        _, place = min(found)
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        passed.add(symbols[place])
    return passed


def _renumber(processor: dict[str, Any], new_ids: dict[str, int]) -> None:
    """Ids that a tokenizer puts around every text, written as tokens and as numbers."""
    for inner in processor.get("processors", []):
        _renumber(inner, new_ids)
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [new_ids[token] for token in entry["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], new_ids[processor[name][0]]]
