"""salticid data: look at the data of a recipe before training on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salticid.cli.extras import require
from salticid.cli.flags import Json, Overrides
from salticid.errors import DataError, SalticidError

if TYPE_CHECKING:
    from salticid.data.check import Check, SourceReport
    from salticid.data.templates import Template

EXAMPLE = "Example:  salticid data check recipes/nano/2_instruct.yaml data.folder=/photos --limit 200"
NEEDS = ("pydantic", "yaml")

app = typer.Typer(help="Look at the data of a recipe before training on it.", no_args_is_help=True)


@app.callback()
def options() -> None:
    """Look at the data of a recipe before training on it."""


@app.command(epilog=EXAMPLE)
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A stage's recipe; see the folder recipes/.")],
    overrides: Overrides = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of each data set to look at, drawn by chance.")] = 200,
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer counts; default, the one the recipe starts from.")] = None,
    as_json: Json = False,
) -> None:
    """Open every data set of a recipe: rows, unreadable photos, tokens, and three examples of each. Exits with 5 where a problem is."""
    require("train", NEEDS)
    from salticid.train.kinds import open_recipe

    stage, _ = open_recipe(recipe, overrides or ())
    look, note = _check(stage, model)
    reports = [_report(stage, number, look, limit) for number in range(len(stage.data.sources))]
    if as_json:
        print(json.dumps({"tokens_counted": look.count is not None, "sources": [report.as_dict() for report in reports]}, indent=2))
    else:
        print("\n\n".join([_as_text(report) for report in reports] + ([note] if note else [])))
    if any(report.problems for report in reports):
        raise typer.Exit(DataError.exit_code)


@app.command(epilog="Example:  salticid data objects data/coco --out parts/objects")
def objects(
    folder: Annotated[Path, typer.Argument(metavar="COCO", help="Folder of the coco reader: photos with boxes.")],
    out: Annotated[Path, typer.Option(help="Folder for the cut-outs; must not exist yet.")],
) -> None:
    """Cut free-standing objects out of photos that have boxes, for scenes (`cutouts` of photo_tasks); of held-out photos none."""
    from salticid.checkpoints.save import new_folder
    from salticid.data.datasets.coco import read_photos
    from salticid.data.objects import write_objects
    from salticid.models.photos import read_photo

    with new_folder(out) as new:
        count = write_objects(read_photos(folder), new, read_photo)
    print(f"{out}\t{count} cut-outs")


@app.command(epilog="Example:  salticid data boxes runs/boxes data/flickr8k --like data/coco --out parts/told")
def boxes(
    qformer: Annotated[Path, typer.Argument(metavar="QFORMER", help="Folder of a Q-Former trained with boxed queries.")],
    folder: Annotated[Path, typer.Argument(metavar="FLICKR8K", help="Folder of the flickr8k reader: photos with captions.")],
    like: Annotated[Path, typer.Option(metavar="COCO", help="Folder of the coco reader, whose kinds of things are looked for.")],
    out: Annotated[Path, typer.Option(help="Folder for boxes.json; must not exist yet.")],
) -> None:
    """Let a Q-Former tell where the things are that captions name (`boxes` of photo_tasks); of held-out photos none."""
    require("train", NEEDS)
    from salticid.checkpoints.save import new_folder
    from salticid.data.datasets import coco, flickr8k
    from salticid.data.datasets.told import write_told
    from salticid.train.heap import keep_freed_memory
    from salticid.train.told_boxes import tell_boxes

    keep_freed_memory()
    kinds = sorted({box.category for photo in coco.read_photos(like) for box in photo.objects})
    photos = flickr8k.read_photos(folder)
    with new_folder(out) as new:
        told = {path.name: regions for path, regions in tell_boxes(qformer, photos, kinds)}
        write_told(new, told)
    print(f"{out}\t{sum(map(len, told.values()))} boxes on {len(told)} of {len(photos)} photos")


@app.command(epilog="Example:  salticid data answers runs/nano/0_parts data/daquar --out parts/taught")
def answers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model whose tower sees the photos; best one that never learned them.")],
    folder: Annotated[Path, typer.Argument(metavar="DAQUAR", help="Folder of the daquar reader: photos with questions.")],
    out: Annotated[Path, typer.Option(help="Folder for answers.json; must not exist yet.")],
    borrowed: Annotated[int, typer.Option(min=0, help="Questions of photos that look like it, asked of every photo.")] = 30,
    alike: Annotated[int, typer.Option(min=1, help="How many photos that look most like it these are taken from.")] = 30,
    networks: Annotated[int, typer.Option(min=0, help="Small networks of the teacher, each a few minutes; 0: by comparing alone.")] = 2,
) -> None:
    """Let a teacher answer questions about photos that look like those they were asked of (`taught` of daquar); of held-out photos none."""
    require("train", NEEDS)
    import salticid.quant  # noqa: F401  (the embedded model's weights are packed)
    from salticid.checkpoints.save import new_folder
    from salticid.data.datasets.daquar import TAUGHT, read_photos
    from salticid.engine.catalog import find_model
    from salticid.train.taught_answers import seen_features, teach

    photos = read_photos(folder)
    with new_folder(out) as new:
        features_PND = seen_features(find_model(model), photos)
        told = list(teach(photos, features_PND, borrowed=borrowed, alike=alike, networks=networks))
        rows = [{"image": photos[each.photo].path.name, "question": each.question, "answer": each.answer} for each in told]
        (new / TAUGHT).write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    own = [each for each in told if each.given is not None]
    right = sum(each.answer == each.given for each in own) / len(own)
    print(f"{out}\t{len(told)} answers; each photo kept aside, {right:.3f} of people's own {len(own)} are answered as they did")


@app.command(epilog="Example:  salticid data captions runs/nano/0_parts data/flickr8k --out parts/seen")
def captions(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model whose tower sees the photos; best one that never learned them.")],
    folder: Annotated[Path, typer.Argument(metavar="FLICKR8K", help="Folder of the flickr8k reader: photos with captions.")],
    out: Annotated[Path, typer.Option(help="Folder for what the teacher knows; must not exist yet.")],
) -> None:
    """Make a teacher that scores captions by those of photos that look alike (`taught` of self_critical); of held-out photos none."""
    require("train", NEEDS)
    import salticid.quant  # noqa: F401  (the embedded model's weights are packed)
    from salticid.checkpoints.save import new_folder
    from salticid.data.datasets.flickr8k import read_photos
    from salticid.engine.catalog import find_model
    from salticid.train.taught_captions import ranked_above_others, read_teacher, see, write_teacher

    photos = read_photos(folder)
    with new_folder(out) as new:
        write_teacher(new, photos, see(find_model(model), photos))
        right = ranked_above_others(read_teacher(new), [photo.captions for photo in photos])
    print(f"{out}\t{len(photos)} photos; each kept aside, {right:.3f} of its captions score above another photo's (by chance 0.5)")


@app.command(epilog="Example:  salticid data drawn nano parts/seen data/flickr8k --out parts/drawn")
def drawn(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model that captions the photos: the one that is to learn.")],
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Folder that salticid data captions wrote, of the same photos.")],
    folder: Annotated[Path, typer.Argument(metavar="FLICKR8K", help="Folder of the flickr8k reader: photos with captions.")],
    out: Annotated[Path, typer.Option(help="Folder for drawn.json; must not exist yet.")],
    samples: Annotated[int, typer.Option(min=2, help="Captions drawn of each photo.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.01, help="Higher: captions that differ more, and more that are wrong.")] = 1.3,
) -> None:
    """Draw many captions of each training photo and let a teacher score them (`ranked` of a stage); of held-out photos none."""
    require("train", NEEDS)
    import salticid
    from salticid.checkpoints.save import new_folder
    from salticid.data.datasets.flickr8k import read_photos
    from salticid.train.drawn_captions import draw, write_drawn
    from salticid.train.taught_captions import read_teacher

    photos, judge = read_photos(folder), read_teacher(teacher)
    with new_folder(out) as new:
        found = list(draw(salticid.load(model), judge, photos, samples, temperature))
        write_drawn(new, found)
    count = sum(len(each.captions) for each in found)
    mean = sum(sum(each.scores) / len(each.scores) for each in found) / len(found)
    best = sum(max(each.scores) for each in found) / len(found)
    print(f"{out}\t{count} captions of {len(found)} photos; mean score {mean:.3f}, of each photo's best {best:.3f}")


def _report(stage: Any, number: int, look: Check, limit: int) -> SourceReport:
    """Of one data set; one that cannot be opened is a problem of its own, so that the others are looked at too."""
    from salticid.data.check import SourceReport
    from salticid.train.data import build_sources

    source = stage.data.sources[number]
    try:
        (opened,) = build_sources(stage.data.model_copy(update={"sources": [source]}))
    except DataError as error:
        return SourceReport(source.kind, source.path, problems=[" ".join(str(error).split())])
    return look(opened, source.kind, source.path, limit)


def _check(stage: Any, model: str | None) -> tuple[Check, str]:
    """How to look, and what to say where there is no model to count tokens with."""
    from salticid.checkpoints.load import load_config, load_processor
    from salticid.data.check import Check
    from salticid.data.templates import get_template
    from salticid.engine.catalog import find_model
    from salticid.models.photos import read_photo

    # A recipe of another kind than a stage, such as a Q-Former's, has no template, and starts from no folder.
    wanted, start = getattr(stage, "template", None), stage.model if isinstance(stage.model, Path) else Path()
    try:
        folder = start if model is None else find_model(model)
        config, processor = load_config(folder), load_processor(folder)
    except SalticidError as error:
        if model is not None:
            raise
        note = f"tokens were not counted ({error}); name another model with --model"
        return Check(read_photo, get_template(wanted or "plain")), note
    template = get_template(wanted or config.template)
    return Check(read_photo, template, _counter(processor, template), getattr(stage.data, "max_length", None)), ""


def _counter(processor: Any, template: Template) -> Callable[[Sequence[Any], int], int]:
    from salticid.data.templates import IMAGE_MARK
    from salticid.data.tokenize import tokenize_turns

    def count(turns: Sequence[Any], images: int) -> int:
        prefix = template.prefix(images).replace(IMAGE_MARK, IMAGE_MARK * processor.image_tokens)
        before = processor.tokenizer(prefix, add_special_tokens=False)["input_ids"]
        return len(before) + len(tokenize_turns(turns, processor.tokenizer, template, images)[0])

    return count


def _as_text(report: SourceReport) -> str:
    lines = [f"{report.kind} ({report.path}): {report.rows} rows, {report.looked_at} looked at"]
    if report.left_out:
        lines.append(f"  left out by the reader: {report.left_out}")
    if report.looked_at:
        lines.append(f"  photos {report.photos}, rows that cannot be read {report.unreadable}, without words {report.silent}")
    if report.tokens:
        low, middle, high = (f"{report.tokens[name]:g}" for name in ("min", "median", "max"))
        share = report.too_long / report.conversations
        lines.append(f"  tokens of a conversation: {low} to {high}, median {middle}; too long {report.too_long} ({share:.1%})")
    lines += [f"  | {line}" for example in report.examples for line in json.dumps(example, ensure_ascii=False).splitlines()]
    return "\n".join(lines + [f"  PROBLEM: {problem}" for problem in report.problems])
