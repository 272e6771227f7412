"""Draws things to ask for so that a thing's name tells nothing about the answer.

A thing that is in most photos would be a "yes" nearly always, and a rare one a "no". Weights of the draws are fitted until each
thing is expected to be asked for as often with "yes" as with "no".
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate

from salticid.data.options import check_share

HARD = 0.5
"""Share of the absent things that go with what a photo shows, such as a fork where there is a plate."""


class BalancedThings:
    """Things that are in photos, and things that are not, drawn with equal frequency for each thing.

    `present[i]` are the things that photo i surely shows, `excluded[i]` those that it may show: they are never drawn as absent.
    A share of `hard` of the absent things go with what is there: they are drawn from the things of photos that share a thing with
    this one. Raises ConfigurationError where that is no share.
    """

    def __init__(
        self, present: Sequence[Sequence[str]], excluded: Sequence[Collection[str]], *, hard: float = HARD, seed: int = 0, rounds: int = 40
    ) -> None:
        check_share("hard_negatives", hard)
        self.hard = hard
        self.present = [tuple(things) for things in present]
        self.excluded = [frozenset(things) | frozenset(here) for things, here in zip(excluded, present, strict=True)]
        self.things = sorted({thing for things in self.present for thing in things})
        everything = frozenset(self.things)
        self.usable = [bool(here) and not everything <= out for here, out in zip(self.present, self.excluded, strict=True)]
        self.companions = self._companions(random.Random(seed))
        frequency = Counter(thing for things in self.present for thing in things)
        # Rare things are worth more questions than their share of the photos gives them.
        self.yes = {thing: frequency[thing] ** -0.5 for thing in self.things}
        self.no = {thing: frequency[thing] ** 0.5 for thing in self.things}
        for _ in range(rounds):
            asked_yes, asked_no = self._expected()
            for thing in self.things:
                ratio = (asked_no[thing] / asked_yes[thing]) ** 0.5
                self.yes[thing] = min(max(self.yes[thing] * ratio, 1e-6), 1e6)
                self.no[thing] = min(max(self.no[thing] / ratio, 1e-6), 1e6)
        # What weights cannot balance (a thing that hardly any photo surely lacks) is asked for less often.
        asked_yes, asked_no = self._expected()
        self._keep = {
            (thing, there): min((asked_no[thing] / asked_yes[thing]) ** (1 if there else -1), 1.0)
            for thing in self.things
            for there in (True, False)
        }
        self._ladder = list(accumulate(self.no[thing] for thing in self.things))

    def _companions(self, random_: random.Random, count: int = 16) -> list[tuple[str, ...]]:
        """For each photo `count` things at most that it lacks and that photos like it have."""
        photos_with: dict[str, list[int]] = {thing: [] for thing in self.things}
        for photo, things in enumerate(self.present):
            for thing in things:
                photos_with[thing].append(photo)
        companions = []
        for things, excluded in zip(self.present, self.excluded, strict=True):
            found: list[str] = []
            for _ in range(4 * count if things else 0):
                other = self.present[random_.choice(photos_with[random_.choice(things)])]
                found.extend(thing for thing in other if thing not in excluded and thing not in found)
            companions.append(tuple(found[:count]))
        return companions

    def _expected(self) -> tuple[dict[str, float], dict[str, float]]:
        """How often each thing is drawn as present and as absent, with one draw of either for every photo."""
        asked_yes = dict.fromkeys(self.things, 1e-9)
        asked_no = dict.fromkeys(self.things, 1e-9)
        total, everywhere = sum(self.no.values()), 0.0
        for things, excluded, companions, usable in zip(self.present, self.excluded, self.companions, self.usable, strict=True):
            if not usable:
                continue
            mass = sum(self.yes[thing] for thing in things)
            for thing in things:
                asked_yes[thing] += self.yes[thing] / mass
            together = sum(self.no[thing] for thing in companions)
            for thing in companions:
                asked_no[thing] += self.hard * self.no[thing] / together
            share = (1.0 - self.hard if companions else 1.0) / max(total - sum(self.no.get(thing, 0.0) for thing in excluded), 1e-9)
            everywhere += share
            for thing in excluded:
                if thing in asked_no:
                    asked_no[thing] -= share * self.no[thing]
        for thing in self.things:
            asked_no[thing] = max(asked_no[thing] + everywhere * self.no[thing], 1e-9)
        return asked_yes, asked_no

    def draw_present(self, photo: int, random_: random.Random) -> str | None:
        """A thing that the photo shows; None when there is none."""
        things = self.present[photo]
        return random_.choices(things, [self.yes[thing] for thing in things])[0] if things else None

    def draw_absent(self, photo: int, random_: random.Random) -> str | None:
        """A thing that the photo surely lacks; None when there is none."""
        things: Sequence[str] = self.companions[photo]
        if not things or random_.random() < 1 - self.hard:
            for _ in range(50):
                thing = (
                    self.things[min(bisect(self._ladder, random_.random() * self._ladder[-1]), len(self.things) - 1)] if self.things else ""
                )
                if thing and thing not in self.excluded[photo]:
                    return thing
            things = [thing for thing in self.things if thing not in self.excluded[photo]]
        return random_.choices(things, [self.no[thing] for thing in things])[0] if things else None

    def draw(self, photo: int, count: int, random_: random.Random) -> list[tuple[str, bool]]:
        """`count` things at most, each with whether it is there, "yes" and "no" with equal chance; a thing may come twice.

        None at all for a photo that has only one of the two answers to give.
        """
        drawn: list[tuple[str, bool]] = []
        for _ in range(count if self.usable[photo] else 0):
            there = random_.random() < 0.5
            thing = (self.draw_present if there else self.draw_absent)(photo, random_)
            if thing is not None and random_.random() < self._keep[thing, there]:
                drawn.append((thing, there))
        return drawn
