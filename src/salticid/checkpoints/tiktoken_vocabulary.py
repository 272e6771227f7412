"""Vocabularies in tiktoken's form, which the first Qwen and StableLM-2 ship with their own Python code, as ordinary tokenizers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from salticid.errors import CheckpointError

END = "<|endoftext|>"
# Of both: cl100k's, but each digit stands alone.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Specials:
    """Special tokens in order, the id of the first, and which of them pads."""

    first: int
    tokens: Sequence[str]
    pad: str


_STABLELM = (
    END,
    *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
    *("<gh_stars>", "<filename>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>"),
    *("<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>"),
    *("<|endofprompt|>", "<|im_start|>", "<|im_end|>", "<|pause|>"),
    *(f"<|reg{index}|>" for index in range(8)),
    "<|extra0|>",
)
# Which file holds which vocabulary. MoE-LLaVA pads Qwen with its first spare token.
TIKTOKEN_FILES: dict[str, Specials] = {
    "qwen.tiktoken": Specials(151643, (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205))), "<|extra_0|>"),
    "arcade100k.tiktoken": Specials(100257, _STABLELM, END),
}


def find_tiktoken(folder: Path) -> Path | None:
    """The tiktoken file of a folder without `tokenizer.json`, if it is one of `TIKTOKEN_FILES`."""
    if (folder / "tokenizer.json").is_file():
        return None
    return next((folder / name for name in TIKTOKEN_FILES if (folder / name).is_file()), None)


def read_tiktoken(path: Path, specials: Specials | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that gives the ids that upstream's Python code gives.

    Args:
        path: lines of a token in base64 and its rank.
        specials: default, those that belong to a file of this name.

    Raises:
        CheckpointError: the file is damaged or truncated.
    """
    specials = specials or TIKTOKEN_FILES[path.name]
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        if sorted(ranks.values()) != list(range(len(ranks))) or specials.first - len(ranks) not in (0, 1):  # StableLM leaves one id free
            raise ValueError(len(ranks))
        merges = _merges(ranks)
    except (ValueError, KeyError, binascii.Error) as error:
        raise CheckpointError(f"{path} is damaged; download it again") from error
    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    vocabulary |= {token: specials.first + index for index, token in enumerate(specials.tokens)}
    # tiktoken looks a whole piece up before it merges, hence ignore_merges.
    backend = Tokenizer(BPE(vocabulary, [(spell(left), spell(right)) for left, right in merges], ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials.tokens))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=specials.pad)


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token is made of, by rank: merging below a token's own rank leaves just these two."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            lowest = min(joined)
            if lowest >= rank:
                raise ValueError(token)
            place = joined.index(lowest)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        merges.append((parts[0], parts[1]))
    return merges
