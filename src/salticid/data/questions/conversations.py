"""Joins turns into conversations."""

from __future__ import annotations

import random
from collections.abc import Sequence

from salticid.data.conversation import Turn

Conversation = tuple[Turn, ...]


def converse(openings: Sequence[Turn], questions: Sequence[Turn], random_: random.Random, share: float = 0.1) -> tuple[Conversation, ...]:
    """Each opening and each question as its own conversation, but about `share` of them hold two turns.

    The second turn is always a question; the first an opening (a caption) or another question.
    """
    conversations: list[Conversation] = [(turn,) for turn in openings]
    for turn in questions:
        alone = [place for place, held in enumerate(conversations) if len(held) == 1 and held[0].question != turn.question]
        if alone and random_.random() < share * (len(openings) + len(questions)) / (len(questions) * (1 + share)):
            place = random_.choice(alone)
            conversations[place] = (*conversations[place], turn)
        else:
            conversations.append((turn,))
    return tuple(conversations)
