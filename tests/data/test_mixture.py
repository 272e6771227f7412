from __future__ import annotations

from collections import Counter

import pytest

from salticid.data.conversation import Example, Turn
from salticid.data.mixture import Mixture, shuffled
from salticid.errors import ConfigurationError


class Numbers:
    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, seed: int) -> Example:
        return Example((f"{self.name}{index}",), ((Turn(str(index), str(seed)),),))


def test_items_do_not_depend_on_what_was_read_before() -> None:
    sources = [Numbers("a", 7), Numbers("b", 13)]
    one, other = Mixture(sources, [3, 1], 500, seed=1), Mixture(sources, [3, 1], 500, seed=1)
    assert [one[i] for i in range(500)] == [other[i] for i in reversed(range(500))][::-1]
    assert [one[i] for i in range(50)] != [Mixture(sources, [3, 1], 500, seed=2)[i] for i in range(50)]


def test_every_photo_once_per_epoch_in_a_new_order() -> None:
    mixture = Mixture([Numbers("a", 37), Numbers("b", 11)], [0.7, 0.3], 2500, seed=0)
    places = [mixture.locate(i) for i in range(len(mixture))]
    for source, size in ((0, 37), (1, 11)):
        mine = [(photo, epoch) for which, photo, epoch in places if which == source]
        epochs = [[photo for photo, epoch in mine if epoch == number] for number in range(20)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1] != list(range(size))


def test_the_same_photo_is_drawn_anew_in_the_next_epoch() -> None:
    mixture = Mixture([Numbers("a", 5)], [1.0], 10, seed=0)
    seeds = Counter(mixture[i].conversations[0][0].answer for i in range(10))
    assert len(seeds) == 10


def test_weights_hold_over_short_stretches() -> None:
    mixture = Mixture([Numbers("a", 100), Numbers("b", 100), Numbers("c", 100)], [6, 3, 1], 3000, seed=0)
    for start in range(0, 3000, 100):
        counts = Counter(mixture.locate(i)[0] for i in range(start, start + 100))
        assert abs(counts[0] - 60) <= 2
        assert abs(counts[1] - 30) <= 2
        assert abs(counts[2] - 10) <= 2


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_shuffled_is_a_permutation(size: int) -> None:
    assert sorted(shuffled(i, size, 9) for i in range(size)) == list(range(size))


def test_beyond_the_end_and_bad_arguments() -> None:
    mixture = Mixture([Numbers("a", 3)], [1.0], 4, seed=0)
    assert len(list(mixture)) == 4  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        mixture[4]
    with pytest.raises(ConfigurationError, match="one weight per source"):
        Mixture([Numbers("a", 3)], [1.0, 2.0], 4, seed=0)
    with pytest.raises(ConfigurationError, match="above 0"):
        Mixture([Numbers("a", 3)], [0.0], 4, seed=0)
