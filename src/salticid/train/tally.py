"""What could not be used of the training data: counted, logged and capped."""

from __future__ import annotations

import logging
import multiprocessing

from salticid.errors import DataError

logger = logging.getLogger(__name__)


class Tally:
    """Counts that worker processes share; `option` is what sets `max_unreadable`.

    unreadable_photos: photos that were passed over. conversations_left_out: those that reach past the longest sequence.
    examples_left_out: photos of which no conversation fits.
    """

    NAMES = ("unreadable_photos", "conversations_left_out", "examples_left_out")

    def __init__(self, max_unreadable: int, option: str = "data.max_unreadable"):
        self.max_unreadable, self.option = max_unreadable, option
        self._counts = {name: multiprocessing.Value("q", 0) for name in self.NAMES}

    @property
    def counts(self) -> dict[str, int]:
        return {name: value.value for name, value in self._counts.items()}

    def pass_over(self, error: Exception) -> None:
        """Count a photo that cannot be read.

        Raises:
            DataError: more photos than may be; names this one.
        """
        count = self._add("unreadable_photos", 1)
        if count > self.max_unreadable:
            raise DataError(f"{count} photos could not be read, {self.max_unreadable} may be ({self.option}); the last: {error}") from error
        logger.warning("passed over photo %d of at most %d: %s", count, self.max_unreadable, error)

    def leave_out(self, conversations: int, whole: bool = False) -> None:
        """Count conversations that were too long, and, where they were all of an example's, the example."""
        self._add("conversations_left_out", conversations)
        self._add("examples_left_out", int(whole))

    def _add(self, name: str, count: int) -> int:
        value = self._counts[name]
        with value.get_lock():
            value.value += count
            return value.value
