"""Text on its way in and out of a tokenizer: what people type stays plain, what the model writes comes out in whole characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"


def plain_text(text: str, tokenizer: Any) -> str:
    """Text in which the tokenizer finds no special token: a space after the first character of each, `<image>` to `< image>`."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, as a shell passes bytes that are no UTF-8
    if not special:
        return text
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    return re.sub(pattern, lambda found: f"{found[0][:1]} {found[0][1:]}", text)


class TextStream:
    """Token ids in, pieces of text out.

    A character that takes several tokens comes out once it is whole. Text that may be the start of a stop string is held back until
    that is decided; white space at both ends of the answer is dropped.

    `stopped` is set when a stop string has been met; what follows is ignored.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        # Ids before `_start` are written and forgotten; those from there to `_done` are written, and kept because some tokenizers
        # decode a token differently at the start of a text.
        self._start = self._done = 0
        self._held = ""
        self._begun = False

    def add(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        self._ids.append(token)
        text = self._undecoded()
        if self.stopped or text.endswith(REPLACEMENT):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._release(text, last=False)

    def finish(self) -> str:
        """The rest, once there are no more tokens."""
        return "" if self.stopped else self._release(self._undecoded(), last=True)

    def _undecoded(self) -> str:
        written = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(written) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str, last: bool) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if found:
            text, self.stopped = text[: min(found)], True
        final = last or self.stopped
        certain = text if final else text[: len(text) - max((_overlap(text, stop) for stop in self.stop), default=0)]
        certain = certain.rstrip()
        self._held = "" if final else text[len(certain) :]
        self._begun = self._begun or bool(certain)
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string starts with."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
