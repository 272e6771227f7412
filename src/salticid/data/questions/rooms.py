"""Objects of indoor photos: what the answers of a photo prove to be there, and what cannot stand in the same room."""

from __future__ import annotations

from collections.abc import Sequence

_ALIASES: dict[str, str] = {
    "refridgerator": "refrigerator",
    "night_stand": "night stand",
    "bunk_bed": "bed",
    "garbage_bin": "garbage bin",
    "coffee_machine": "coffee machine",
    "bathtub": "bathtub",
    "floor_mat": "floor mat",
    "washing_machine": "washing machine",
    "shower_curtain": "shower curtain",
    "tissue_box": "tissue box",
    "ping_pong_table": "ping pong table",
    "tv": "television",
    "toilet": "toilet",
    "treadmill": "treadmill",
}
_ROOMS: dict[str, frozenset[str]] = {
    "bath": frozenset({"toilet", "bathtub", "shower curtain"}),
    "kitchen": frozenset({"stove", "refrigerator", "dishwasher", "oven", "microwave", "knife rack", "toaster", "coffee machine"}),
    "bed": frozenset({"bed", "night stand"}),
    "living": frozenset({"sofa", "fireplace", "television", "piano", "ping pong table", "treadmill"}),
    "office": frozenset({"whiteboard", "blackboard", "projector screen", "printer"}),
}
_APART: dict[str, tuple[str, ...]] = {
    "bath": ("kitchen", "bed", "living", "office"),
    "kitchen": ("bath", "bed", "office"),
    "bed": ("bath", "kitchen"),
    "living": ("bath",),
    "office": ("bath", "kitchen", "bed"),
}
OUTDOOR = ("horse", "surfboard", "cow", "airplane", "boat", "elephant", "bus", "zebra", "giraffe", "train", "kite", "truck", "sheep")
"""Things that never stand in a room."""

_ROOM_THINGS = tuple(sorted(set().union(*_ROOMS.values())))


def things_in(questions: Sequence[tuple[str, str]]) -> list[str]:
    """Things of the room table that the photo's answers name."""
    answers = {answer.strip() for _, joined in questions for answer in joined.split(",")}
    names = {_ALIASES.get(answer, answer.replace("_", " ")) for answer in answers}
    return sorted(names & set(_ROOM_THINGS))


def possible_in(questions: Sequence[tuple[str, str]]) -> frozenset[str]:
    """Things of the room table that may be in the photo: all but those of rooms apart from the room it surely shows."""
    here = set(things_in(questions))
    asked = " ".join(f"{question} {answer}" for question, answer in questions).replace("_", " ")
    for written, name in _ALIASES.items():
        asked = asked.replace(written.replace("_", " "), name)
    rooms = {room for room, things in _ROOMS.items() if here & things}
    apart = [set().union(*(_ROOMS[other] for other in _APART[room])) for room in rooms]
    impossible = set().union(*apart) - set().union(*(_ROOMS[room] for room in rooms)) if rooms else set()
    return frozenset(thing for thing in _ROOM_THINGS if thing not in impossible or thing in asked)
