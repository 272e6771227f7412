"""Does a model find what was pasted onto photos that it never saw, and what stands on them anyway?

    python benchmarks/locate.py runs/tinygpt_v/nano_stage4 --data path/to/data --cutouts parts/stamps --pictures runs/scenes
    python benchmarks/locate.py runs/tinygpt_v/nano_stage4 --data path/to/data --objects

Scenes are of known truth, on Flickr8k's `dev` photos; the cut-outs are those of training; photos, places and sizes are new. Each scene is
asked for one of its cut-outs, and for the same cut-out on the bare photo, where it is not. With `--objects`, held-out COCO photos are asked
for their only object of a kind, and another photo for the same. A model that does not look gives the same box both times.

    python benchmarks/locate.py runs/tinygpt_v/nano_qformer_boxes --data path/to/data

A Q-Former with boxed queries is asked without a language model, for one of all names that are asked for.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from PIL import Image, ImageDraw

import salticid
from salticid.checkpoints.load import holds
from salticid.checkpoints.qformer import load_qformer
from salticid.data.boxes import GRID, Region, encode_box, parse_boxes
from salticid.data.caption_text import tokenize_captions
from salticid.data.datasets.coco import CocoObjects
from salticid.data.datasets.flickr8k import Flickr8k
from salticid.data.datasets.photo_tasks import lone_objects, region
from salticid.data.records import Box
from salticid.data.scenes import compose, read_cutouts
from salticid.data.tasks import instruction
from salticid.models.qformer import QFormerPretrainingConfig
from salticid.scorers.boxes import box_accuracy, box_iou

WHOLE = encode_box(Region(0.0, 0.0, 1.0, 1.0))


class Asked(NamedTuple):
    """A photo, one where the thing asked for is not, that thing, and all that was pasted."""

    photo: Image.Image
    other: Image.Image
    box: Box
    boxes: tuple[Box, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description="locating things on photos")
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/ and coco/")
    parser.add_argument("--cutouts", type=Path, default=Path("parts/stamps"))
    parser.add_argument("--most", type=int, default=3, help="cut-outs on a photo, at most")
    parser.add_argument("--objects", action="store_true", help="real objects of COCO in place of scenes")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--pictures", type=Path, help="folder for the first dozen, truth in green and answer in red")
    options = parser.parse_args()
    if options.objects:
        scenes, own, other = draw_objects(options.data), "the photo", "another photo"
    else:
        scenes, own, other = draw_scenes(options.data, options.cutouts, options.most, options.count), "the scene", "the bare photo"
    ask = ask_qformer if holds(Path(options.model), QFormerPretrainingConfig.model_type) else ask_model
    asked = [scene.box.category for scene in scenes]
    answers = {
        own: ask(options.model, [scene.photo for scene in scenes], asked),
        other: ask(options.model, [scene.other for scene in scenes], asked),
        "always the whole photo": [WHOLE] * len(scenes),
        "always the middle half": [encode_box(Region(0.25, 0.25, 0.75, 0.75))] * len(scenes),
    }
    print(f"| asked {len(scenes)} times | overlaps by more than a half | mean intersection over union | gives a box |")
    print("|---|---:|---:|---:|")
    for name, written in answers.items():
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in score(written, scenes)) + " |")
    for count, rights in sorted(chosen(answers[own], scenes).items()):
        print(f"of {count} things the one asked for: {fmean(rights):.3f} of {len(rights)} answers; by chance {1 / count:.3f}")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for number, (scene, answer) in enumerate(zip(scenes[:12], answers[own], strict=False)):
            show(scene.photo, scene.box, answer).save(options.pictures / f"{number:02}.png")


def draw_scenes(data: Path, cutouts: Path, most: int, count: int) -> list[Asked]:
    named, scenes = read_cutouts(cutouts), list[Asked]()
    for number, photo in enumerate(Flickr8k(data / "flickr8k", "dev").photos):
        scene, record = compose(photo, named, most, random.Random(f"locate/{number}"))
        if (boxes := lone_objects(record)) and len(scenes) < count:
            bare = Image.open(photo.path).convert("RGB")
            scenes.append(Asked(scene.of_image(bare), bare, boxes[0], record.objects))
    return scenes


def draw_objects(data: Path) -> list[Asked]:
    """Each object with its photo, and with the photo of an object far off in the list."""
    found = [(photo.path, box) for photo in CocoObjects(data / "coco", "heldout").photos for box in lone_objects(photo)]
    photos = [Image.open(path).convert("RGB") for path, _ in found]
    return [Asked(photos[number], photos[number - len(found) // 2], box, ()) for number, (_, box) in enumerate(found)]


def ask_model(model: str, photos: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
    questions = [instruction("refer", name) for name in names]
    return salticid.load(model).ask_many(list(zip(photos, questions, strict=True)), max_new_tokens=40)


def ask_qformer(folder: str, photos: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
    model, image_processor, tokenizer = load_qformer(Path(folder))
    known = sorted(set(names))
    ids_UT, mask_UT = tokenize_captions(tokenizer, known, model.config.qformer.max_position_embeddings)
    written = []
    for photo, name in zip(photos, names, strict=True):
        features = model.eval().get_image_features(image_processor([photo], return_tensors="pt")["pixel_values"])
        box = model.locate(features, ids_UT, mask_UT)[0, known.index(name)]
        written.append(encode_box(Region(*box.clamp(0, 1).tolist())))
    return written


def score(answers: list[str], scenes: list[Asked]) -> tuple[float, float, float]:
    """Share above a half, mean overlap, and share with a box, on the grid of answers."""
    found = [corners(boxes[0]) if (boxes := parse_boxes(answer)) else None for answer in answers]
    truths = [corners(region(scene.box)) for scene in scenes]
    overlaps = [0.0 if box is None else box_iou(box, truth) for box, truth in zip(found, truths, strict=True)]
    return box_accuracy(found, truths).score, fmean(overlaps), sum(box is not None for box in found) / len(found)


def chosen(answers: list[str], scenes: list[Asked]) -> dict[int, list[bool]]:
    """By how many things were pasted, two or more: does the answer overlap the one asked for most? Without answers beside all."""
    rights: dict[int, list[bool]] = {}
    for answer, scene in zip(answers, scenes, strict=True):
        given = parse_boxes(answer)
        overlaps = {box: box_iou(corners(given[0]), corners(region(box))) for box in scene.boxes} if given else {}
        if len(overlaps) > 1 and max(overlaps.values()) > 0:
            rights.setdefault(len(overlaps), []).append(max(overlaps, key=overlaps.__getitem__) == scene.box)
    return rights


def corners(box: Region) -> tuple[float, float, float, float]:
    return box.left * GRID, box.top * GRID, box.right * GRID, box.bottom * GRID


def show(scene: Image.Image, box: Box, answer: str) -> Image.Image:
    picture = scene.copy()
    draw = ImageDraw.Draw(picture)
    draw.rectangle(region(box).pixels(*picture.size), outline="lime")
    for found in parse_boxes(answer)[:1]:
        draw.rectangle(found.pixels(*picture.size), outline="red")
    draw.text((3, 3), box.category, fill="yellow")
    return picture


if __name__ == "__main__":
    main()
