"""A tokenizer as llama.cpp keeps it: tokens, their kinds, and merges or scores. Facts: GGUF's specification and `src/llama-vocab.cpp`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from salticid.checkpoints.tiktoken_vocabulary import PATTERN
from salticid.errors import ConfigurationError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# How a text is cut before pairs of bytes are merged -> llama.cpp's name for it. Cuts are those of `_cuts`.
CUTS: dict[tuple[str, ...], str] = {
    ("words",): "gpt-2",  # also Phi-2's
    ("digits", "words"): "smollm",
    (PATTERN, "bytes"): "qwen2",  # also StableLM-2's
    (PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1), "bytes"): "llama-bpe",
}
SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """What stands under `tokenizer.*` in a GGUF file.

    model: "gpt2" (pairs of bytes, by `merges`) or "llama" (SentencePiece's pairs, by `scores`). pre: how texts are cut, of "gpt2".
    ids: of special tokens, by GGUF's names: bos, eos, eot, unk, pad. space_prefix: a text is read as if a space stood before it.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    pre: str = "default"
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_prefix: bool = False
    chat_template: str | None = field(default=None, repr=False)

    def ends(self, text: str) -> bool:
        """Does this text begin with a special token that ends an answer?"""
        return any(text.startswith(self.tokens[index]) for name, index in self.ids.items() if name in ("eos", "eot"))

    def write(self, writer: Any) -> None:
        """Add the keys to a `gguf.GGUFWriter`. Beginnings and ends are written by the chat template, never added by llama.cpp."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, index in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, answer_end: str, chat_template: str) -> Vocabulary:
    """The vocabulary of a fast tokenizer.

    Args:
        rows: of the embedding; ids that no token has are filled up with unused ones.
        answer_end: how the conversation template ends an answer; where this is a special token, it ends generation.

    Raises:
        ConfigurationError: a tokenizer that llama.cpp has no name for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigurationError("llama.cpp needs a fast tokenizer, one with tokenizer.json; save the model with such a tokenizer")
    spec: dict[str, Any] = json.loads(backend.to_str())
    if spec["model"]["type"] != "BPE":
        raise ConfigurationError(f"a tokenizer of type {spec['model']['type']} has no form here; llama.cpp's BPE ones can be exported")
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    pieces = {index: token for token, index in spec["model"]["vocab"].items()} | {id: entry["content"] for id, entry in added.items()}
    tokens = [pieces.get(index, f"[PAD{index}]") for index in range(rows)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    ids = _special_ids(tokenizer, answer_end, {index for index, entry in added.items() if entry["special"]})
    types = [_type(index, pieces, added, spec["model"], ids) for index in range(rows)]
    if not spec["model"].get("byte_fallback"):
        return Vocabulary("gpt2", tokens, types, ids, _cut_name(spec["pre_tokenizer"]), merges, chat_template=chat_template)
    # SentencePiece's scores of pairs are their ranks, which is all that merging asks for.
    ranks = {merge.replace(" ", ""): rank for rank, merge in reversed(list(enumerate(merges)))}
    scores = [-float(ranks.get(token, len(ranks))) for token in tokens]
    return Vocabulary("llama", tokens, types, ids, "default", (), scores, _has_space_prefix(spec), chat_template)


def _special_ids(tokenizer: PreTrainedTokenizerBase, answer_end: str, special: Collection[int]) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ending = tokenizer(answer_end, add_special_tokens=False)["input_ids"] if answer_end else []
    if ending and ending[0] in special and ending[0] != ids["eos"]:
        ids["eot"] = ending[0]
    # llama.cpp would take ids of its own for what is missing, of other vocabularies.
    ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
    return {name: index for name, index in ids.items() if index is not None}


def _type(index: int, pieces: Mapping[int, str], added: Mapping[int, Any], model: Mapping[str, Any], ids: Mapping[str, int]) -> int:
    if index not in pieces:
        return UNUSED
    if model.get("byte_fallback"):
        if index == ids.get("unk"):
            return UNKNOWN
        if len(pieces[index]) == 6 and pieces[index].startswith("<0x"):
            return BYTE
    if index not in added:
        return NORMAL
    return CONTROL if added[index]["special"] else USER_DEFINED


def _cut_name(pre_tokenizer: Mapping[str, Any] | None) -> str:
    cuts = tuple(_cuts(pre_tokenizer or {"type": "none"}))
    if cuts not in CUTS:
        known = ", ".join(CUTS.values())
        raise ConfigurationError(f"llama.cpp has no name for how this tokenizer cuts texts ({' + '.join(cuts)}); known here: {known}")
    return CUTS[cuts]


def _cuts(pre: Mapping[str, Any]) -> list[str]:
    """What a pre-tokenizer does, step by step: "words" and "bytes" are byte-level with and without GPT-2's pattern."""
    if pre["type"] == "Sequence":
        return [cut for step in pre["pretokenizers"] for cut in _cuts(step)]
    if pre["type"] == "ByteLevel" and not pre["add_prefix_space"]:
        return ["words" if pre["use_regex"] else "bytes"]
    if pre["type"] == "Digits" and pre["individual_digits"]:
        return ["digits"]
    if pre["type"] == "Split" and "Regex" in pre["pattern"] and not pre["invert"]:
        return [pre["pattern"]["Regex"]]
    return [pre["type"]]


def _has_space_prefix(spec: Mapping[str, Any]) -> bool:
    normalizer, pre = spec["normalizer"] or {}, spec["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps) or (
        pre.get("type") == "Metaspace" and pre.get("prepend_scheme") in ("always", "first")
    )
