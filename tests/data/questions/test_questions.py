from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from salticid.data.conversation import Turn
from salticid.data.datasets.coco import CocoObjects
from salticid.data.datasets.daquar import Daquar
from salticid.data.datasets.flickr8k import Flickr8k
from salticid.data.questions import facts
from salticid.data.questions.balance import BalancedThings
from salticid.data.questions.captions import tidy
from salticid.data.questions.heldout import KINDS, unknown_questions, yes_no_questions
from salticid.data.questions.mentions import read_mentions
from salticid.data.questions.unknown import KEPT, UNKNOWN, absent
from salticid.data.questions.words import HINTS, THINGS, plural_of, with_article
from salticid.errors import ConfigurationError


def absent_from(*captions: str) -> set[str]:
    return set(THINGS) - read_mentions(captions).excluded()


@pytest.mark.parametrize(
    ("caption", "thing"),
    [
        ("A puppy plays .", "dog"),
        ("Two kids play .", "person"),
        ("A boy plays .", "person"),
        ("A dirt bike on a track .", "motorcycle"),
        ("A man hits the ball with a bat .", "baseball bat"),
        ("People ride horses .", "horse"),
        ("A woman swims in the ocean .", "water"),
    ],
)
def test_named_things_and_their_kinds_are_present(caption: str, thing: str) -> None:
    assert thing in read_mentions([caption, caption]).present()


@pytest.mark.parametrize(
    ("caption", "thing"),
    [
        ("A catcher throws .", "cat"),
        ("A cowboy sits .", "cow"),
        ("A hot dog on a plate .", "dog"),
        ("A child with a stuffed dog .", "dog"),
        ("A girl waves .", "wave"),
        ("A man without a hat .", "hat"),
        ("A man waits at a train station .", "train"),
        ("A carpet on the floor .", "car"),
        ("A dirt bike on a track .", "bicycle"),
    ],
)
def test_look_alike_words_name_nothing(caption: str, thing: str) -> None:
    assert thing not in read_mentions([caption, caption]).present()


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("A young boy plays .", {"person", "child", "boy", "man"}),
        ("A player kicks .", {"person", "man", "woman", "ball"}),
        ("An animal runs .", {"animal", "dog", "cat", "horse"}),
        ("A surfer rides .", {"person", "surfboard", "wave", "ocean", "water"}),
        ("He runs down the street .", {"person", "car", "street", "bicycle"}),
        ("A child with a stuffed dog .", {"dog", "child"}),
        ("A man without a hat .", {"hat"}),
        ("A family rides .", {"person", "woman", "bicycle", "horse"}),
    ],
)
def test_what_captions_leave_open_is_never_called_absent(caption: str, things: set[str]) -> None:
    assert not things & absent_from(caption)
    assert "elephant" in absent_from(caption) or "animal" in things


def test_the_table_refers_to_itself_only() -> None:
    for thing, entry in THINGS.items():
        assert set(entry.kinds.split()) <= set(THINGS), thing


def test_hints_name_things() -> None:
    named = {name.replace("_", " ") for _, names in HINTS for name in names.split()}
    assert {"person", "ball", "bicycle"} <= named & set(THINGS)
    assert len(named & set(THINGS)) > 50


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a dog  runs .", "A dog runs."),
        ('" A dog , running "', "A dog, running."),
        ("A dog 's toy ..", "A dog's toy."),
        ("  two men", "Two men."),
    ],
)
def test_captions_are_tidied(raw: str, clean: str) -> None:
    assert tidy(raw) == clean


def test_colours_need_agreement() -> None:
    assert facts.colour_questions(["A man in a red shirt .", "A man wears a shirt ."]) == [Turn("What color is the shirt?", "red")]
    assert facts.colour_questions(["A man in a red shirt .", "A man in a blue shirt ."]) == []
    assert facts.colour_questions(["A man in a red and white shirt .", "A man in a white shirt ."]) == []
    assert facts.colour_questions(["A brown dog and a black dog .", "A brown dog ."]) == []
    assert facts.colour_questions(["A man in grey pants .", "A man in gray pants ."]) == [Turn("What color are the pants?", "gray")]


def test_counts_need_agreement() -> None:
    assert facts.count_questions(["Two dogs run ."] * 4) == [Turn("How many dogs are there?", "2")]
    assert facts.count_questions([*["Two dogs run ."] * 4, "Three dogs run ."]) == []
    assert facts.count_questions([*["Two men run ."] * 4, "A crowd ."]) == []
    assert facts.count_questions(["Two men and a boy run ."] * 4) == []
    assert facts.count_questions(["A girl runs .", "The child runs .", "A kid runs .", "A girl ."]) == [
        Turn("How many people are there?", "1")
    ]
    assert facts.count_questions(["Dogs run ."] * 4) == []


def test_actions_places_and_subjects() -> None:
    assert facts.action_questions(["A dog is running through the grass ."]) == [Turn("What is the dog doing?", "running through the grass")]
    assert facts.action_questions(["Two boys wearing hats are playing football ."]) == [
        Turn("What are the boys doing?", "playing football")
    ]
    assert facts.action_questions(["A dog chasing a ball .", "Two dogs running ."]) == []
    assert facts.action_questions(["A man wearing a hat ."]) == []
    assert Turn("Where is the dog?", "on the beach") in facts.place_questions(["A dog runs on the beach ."])
    assert facts.place_questions(["A dog runs with a stick ."]) == []
    assert Turn("What animal is this?", "dog") in facts.subject_questions(["A dog .", "A puppy ."])
    assert facts.subject_questions(["A dog .", "A cat ."]) == []
    assert Turn("Who is in the photo?", "a man") in facts.subject_questions(["A man sits ."] * 3)
    assert facts.subject_questions(["A man sits .", "A woman sits .", "A man sits ."]) == []


def test_indoors_needs_one_kind_of_place() -> None:
    assert facts.indoors_questions(["A dog on a couch .", "A dog on the sofa ."])[0].answer == "indoors"
    assert facts.indoors_questions(["A dog in the snow .", "A dog in a field ."])[0].answer == "outdoors"
    assert facts.indoors_questions(["A couch in the street .", "A couch outside ."]) == []


def test_long_actions_stay_short() -> None:
    long = ["A dog is running very fast through the tall green grass near a lake in the park ."]
    assert all(len(turn.answer.split()) <= 8 for turn in facts.action_questions(long))


def test_a_thing_tells_nothing_about_the_answer() -> None:
    random_ = random.Random(0)
    present = [["person", *random_.sample(["dog", "cat", "car", "kite"], 1)] if i % 5 else ["dog"] for i in range(200)]
    things = BalancedThings(present, present)
    asked: Counter[tuple[str, bool]] = Counter()
    for photo in range(200):
        for thing, there in things.draw(photo, 40, random_):
            assert there == (thing in present[photo])
            asked[thing, there] += 1
    for thing in things.things:
        assert 0.44 < asked[thing, True] / (asked[thing, True] + asked[thing, False]) < 0.56, thing


@pytest.mark.parametrize(("hard", "least", "most"), [(0.0, 0.0, 0.6), (1.0, 1.0, 1.0)])
def test_a_share_of_the_absent_things_goes_with_what_is_there(hard: float, least: float, most: float) -> None:
    present = [["plate", "fork"], ["plate", "cup"], ["car", "bus"], ["car", "truck"], ["dog", "kite"]] * 8
    things = BalancedThings(present, present, hard=hard)
    drawn = [name for seed in range(200) for name, there in things.draw(0, 8, random.Random(seed)) if not there]
    assert len(drawn) > 300
    assert least <= drawn.count("cup") / len(drawn) <= most
    for thing in things.things:  # and a thing's name still tells nothing
        asked = Counter(pair for photo in range(40) for pair in things.draw(photo, 80, random.Random(photo)) if pair[0] == thing)
        assert not asked or 0.4 < asked[thing, True] / asked.total() < 0.6, thing


@pytest.mark.parametrize("kind", [CocoObjects, Flickr8k, Daquar])
def test_hard_negatives_of_a_data_set_are_a_share(kind: type[CocoObjects | Flickr8k | Daquar], corpora: dict[str, Path]) -> None:
    folder = corpora[{CocoObjects: "coco", Flickr8k: "flickr8k", Daquar: "daquar"}[kind]]
    assert kind(folder, hard_negatives=0.25).things.hard == 0.25
    with pytest.raises(ConfigurationError, match=r"hard_negatives is a share from 0 to 1, not 1\.5"):
        kind(folder, hard_negatives=1.5)


def test_excluded_things_are_drawn_as_neither() -> None:
    things = BalancedThings([["dog"], ["cat"], ["car"]], [["cat"], [], []])
    drawn = {name for _ in range(200) for name, there in things.draw(0, 4, random.Random(_)) if not there}
    assert drawn == {"car"}


def test_absent_things_get_the_right_article() -> None:
    answers = {absent(thing, random.Random(0)).answer for thing in ("car", "umbrella", "snow", "skis")}
    assert answers == {"I don't see a car.", "I don't see an umbrella.", "I don't see any snow.", "I don't see any skis."}
    assert (with_article("unicycle"), plural_of("wine glass"), plural_of("knife")) == ("a unicycle", "wine glasses", "knives")


def test_unknown_questions_for_evaluation_are_kept_apart(corpora: dict[str, Path]) -> None:
    photos = CocoObjects(corpora["coco"], split="heldout").photos
    asked = unknown_questions(photos, per_photo=2)
    assert len(asked) == 2 * len(photos)
    assert {question for _, question in asked} <= set(KEPT)
    assert len(KEPT) == 15
    assert not set(KEPT) & set(UNKNOWN)
    assert len(set(UNKNOWN)) == 45


@pytest.mark.parametrize("kind", KINDS)
def test_yes_no_questions_are_true_and_balanced(kind: str, corpora: dict[str, Path]) -> None:
    photos = CocoObjects(corpora["coco"]).photos
    questions = yes_no_questions(photos, kind)
    assert questions == yes_no_questions(photos, kind)
    assert len(questions) == len(set(questions))
    for photo in photos:
        mine = [(question, answer) for path, question, answer in questions if path == photo.path]
        assert Counter(answer for _, answer in mine) == {"yes": 3, "no": 3}
        for question, answer in mine:
            name = question.removeprefix("Is there a ").removeprefix("Is there an ").removesuffix(" in the image?")
            assert (name in {box.category for box in photo.objects}) == (answer == "yes"), question


def test_popular_negatives_are_the_frequent_ones(corpora: dict[str, Path]) -> None:
    photos = CocoObjects(corpora["coco"]).photos
    most = Counter(name for photo in photos for name in {box.category for box in photo.objects}).most_common(1)[0][0]
    lacking = [photo for photo in photos if most not in {box.category for box in photo.objects}]
    popular = {(path, question) for path, question, answer in yes_no_questions(photos, "popular") if answer == "no"}
    assert all(
        (photo.path, f"Is there {with_article(most)} in the image?".replace("there skis", "there a skis")) in popular for photo in lacking
    )


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="random, popular, adversarial"):
        yes_no_questions([], "hard")
