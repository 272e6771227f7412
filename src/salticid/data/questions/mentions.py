"""Reads captions: which things they name, and which may be there unsaid."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from salticid.data.questions.words import COLOURS, HINTS, MASS, NUMBERS, PLURAL, THINGS, listed, plural_of

_ARTICLES = frozenset(listed("a an the his her its their another one some several many each of on in with by into onto from"))
_ADJECTIVES = frozenset(
    listed(
        "big large small little huge giant wooden metal plastic tall long short old new young colorful bright dark light wet stuffed "
        "open empty "
        "striped broken toy high round blue-green crashing"
    )
)
_UNREAL = frozenset(
    listed(
        "no without not toy stuffed fake rocking statue statues picture painting drawing poster photo photograph sculpture plush "
        "inflatable like cartoon costume hot pool mechanical seeing"
    )
)
_MODIFIED = frozenset(
    listed(
        "station stations track tracks stop seat toy toys race races racing racetrack park game house bed food costume costumes shaped "
        "print "
        "lane court tail like show team ride rides suit mask hat hats trail themed style trainer stand shop store decorations logo lift "
        "trick "
        "tricks path trunk bar pole poles "
        "equipment helmet collar leash uniform player players bowl dish coat jacket shirt shorts print dealership wheel rack tire tires "
        "window windows door hood driver riders rider racer cross drawn pull pulled carrier bottle biker bikers biking climber climbers "
        "goat goats cover counter top bridge light lights"
    )
)


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a photo's captions say: `named` counts the captions that name each thing; `unsure` things may be there unsaid."""

    named: dict[str, int]
    unsure: frozenset[str]

    def present(self) -> list[str]:
        """Things to ask for with the answer "yes"."""
        return sorted(t for t, count in self.named.items() if THINGS[t].asked and t not in self.unsure and count >= THINGS[t].votes)

    def excluded(self) -> frozenset[str]:
        """Things that must not be asked for with the answer "no"."""
        return self.unsure | self.named.keys()


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing named in a caption, at words `start` up to `stop`; `sure` where it is surely meant and real."""

    thing: str
    start: int
    stop: int
    plural: bool
    sure: bool


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation; `'s` is a word of its own."""
    return re.findall(r"'s|[a-z0-9]+(?:-[a-z0-9]+)*", caption.lower())


@functools.cache
def _lexicon() -> dict[tuple[str, ...], tuple[tuple[str, bool], ...]]:
    lexicon: dict[tuple[str, ...], tuple[tuple[str, bool], ...]] = {}
    for thing, entry in THINGS.items():
        narrower = {form for other in _family()[thing] for form in THINGS[other].forms.split()}
        for form in entry.forms.split():
            if form in narrower:
                continue
            one = form.replace("_", " ")
            many = plural_of(one)
            only = one.split(" ")[-1] in PLURAL
            for text, plural in {one: only, many: one.split(" ")[-1] not in MASS}.items():
                key = tuple(text.split(" "))
                lexicon[key] = (*lexicon.get(key, ()), (thing, plural))
    return lexicon


@functools.cache
def _family() -> dict[str, frozenset[str]]:
    """Things that a wider thing's own word leaves open: "animal" may be a dog."""
    return {wide: frozenset(t for t, entry in THINGS.items() if wide in entry.kinds.split()) for wide in THINGS}


@functools.cache
def _hints() -> dict[str, frozenset[str]]:
    """For each word of the hints all things that it makes likely."""
    hints: dict[str, frozenset[str]] = {}
    for words, things in HINTS:
        for word in words.split():
            hints[word] = hints.get(word, frozenset()) | {thing.replace("_", " ") for thing in things.split()}
    return hints


def nouns_in(words: Sequence[str]) -> Iterator[Noun]:
    """Things named in a caption's words, the longest form first, left to right."""
    lexicon, start = _lexicon(), 0
    while start < len(words):
        for length in (3, 2, 1):
            found = lexicon.get(tuple(words[start : start + length])) if start + length <= len(words) else None
            if found:
                for thing, plural in found:
                    yield Noun(thing, start, start + length, plural, _is_sure(words, thing, start, start + length, plural))
                start += length
                break
        else:
            start += 1


def _is_sure(words: Sequence[str], thing: str, start: int, stop: int, plural: bool) -> bool:
    before = words[start - 1] if start else ""
    after = words[stop] if stop < len(words) else ""
    if (before in _UNREAL and thing not in ("toy", "pool")) or (after in _MODIFIED and not plural):
        return False
    if start > 1 and words[start - 2] in (
        "no",
        "without",
        "fake",
        "statue",
        "statues",
        "picture",
        "painting",
        "like",
        "drawing",
        "sculpture",
    ):
        return False
    if THINGS[thing].verbs:
        return before in _ARTICLES or before in COLOURS or before in _ADJECTIVES or before in NUMBERS
    return True


def read_mentions(captions: Sequence[str]) -> Mentions:
    """Things that the captions name, and those that they leave open."""
    named: Counter[str] = Counter()
    unsure: set[str] = set()
    doubtful: set[str] = set()
    for caption in captions:
        words = words_of(caption)
        here: set[str] = set()
        for noun in nouns_in(words):
            entry = THINGS[noun.thing]
            if noun.sure:
                here.update((noun.thing, *entry.kinds.split()))
            else:
                doubtful.update((noun.thing, *entry.kinds.split()))
            unsure.update(name.replace("_", " ") for name in entry.unsure.split())
            unsure.update(_family()[noun.thing] - here)
        named.update(here)
        unsure.update(*(_hints().get(word, ()) for word in words))
    weak = {thing for thing in doubtful if thing not in named}
    return Mentions(dict(named), frozenset((unsure - named.keys()) | weak))
