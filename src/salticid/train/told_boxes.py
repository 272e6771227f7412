"""Boxes of what captions name, told by a Q-Former: people said what is on the photo, its queries tell where.

Photos with captions are many, those with boxes few. Asked only for what is known to be there, queries that learned boxes from few photos
mostly find it, also where they would never have named it themselves; from such boxes they, and a language model behind them, learn what
things look like where they belong (as phrases alone train detectors in GLIP, arXiv 2112.03857, section 3.3).

I photos, U names.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from salticid.checkpoints.qformer import load_qformer
from salticid.data.boxes import Region
from salticid.data.caption_text import tokenize_captions
from salticid.data.questions.mentions import nouns_in, words_of
from salticid.data.questions.words import THINGS
from salticid.data.records import CaptionedPhoto
from salticid.errors import ConfigurationError, DataError, ImageError
from salticid.models.photos import read_photo
from salticid.models.qformer.losses import intersection_over_union
from salticid.train.tally import Tally

BATCH = 16
VOTES = 2
"""Captions that must name a thing."""
PRESENT = 0.1
"""Least probability, by the query that tells the box, that anything lies there; that something does, captions say."""
SAME = 0.5
"""Overlap above which two people are one."""
PERSON = "person"
Wanted = tuple[CaptionedPhoto, dict[str, str]]
"""A photo, and what to ask it for (`single_things`)."""


@torch.no_grad()
def tell_boxes(
    folder: Path, photos: Sequence[CaptionedPhoto], names: Sequence[str], max_unreadable: int = 100
) -> Iterator[tuple[Path, list[Region]]]:
    """For each photo of which anything is told, boxes of things of these names that its captions name, each the only one of its kind.

    A person is called "person" on one half of the photos, and on the others what most captions say, such as "boy". Photos that cannot be
    read are passed over, with a warning.

    Raises:
        ConfigurationError: the queries know no boxes. DataError: no caption names any such thing; or more than `max_unreadable` photos
            cannot be read.
    """
    trained, image_processor, tokenizer = load_qformer(folder)
    if trained.eval().box_head is None:
        raise ConfigurationError(f"the queries of {folder} know no boxes and names; train them with model.boxed_queries")
    asked = [(photo, wanted) for photo in photos if (wanted := single_things(photo, names))]
    if not asked:
        raise DataError(f"no caption of {len(photos)} photos names anything of which there are boxes; check both data sets")
    ids_UT, mask_UT = tokenize_captions(tokenizer, list(names), trained.config.qformer.max_position_embeddings)
    names_UP = trained.embed_texts(ids_UT, mask_UT)
    tally = Tally(max_unreadable, option="max_unreadable")
    for start in tqdm(range(0, len(asked), BATCH), desc="boxes of what captions name", unit_scale=BATCH):
        images, batch = _read(asked[start : start + BATCH], tally)
        if not images:
            continue
        pixels = image_processor(images, return_tensors="pt")["pixel_values"]
        boxes_IU4, presence_IU = trained.tell(trained.get_image_features(pixels), names_UP)
        for (photo, wanted), boxes_U4, presence_U in zip(batch, boxes_IU4.clamp(0, 1), presence_IU, strict=True):
            told: list[Region] = []
            for name, kind in wanted.items():
                number = names.index(kind)
                if presence_U[number] >= PRESENT and not (kind == PERSON and _told_already(boxes_U4[number], told)):
                    left, top, right, bottom = boxes_U4[number].tolist()
                    told.append(Region(left, top, right, bottom, _called(name, kind, photo.path)))
            if told:
                yield photo.path, told


def _read(asked: Sequence[Wanted], tally: Tally) -> tuple[list[Image.Image], list[Wanted]]:
    images, readable = [], []
    for each in asked:
        try:
            images.append(read_photo(each[0].path))
        except ImageError as error:
            tally.pass_over(error)
            continue
        readable.append(each)
    return images, readable


def single_things(photo: CaptionedPhoto, names: Sequence[str]) -> dict[str, str]:
    """What `VOTES` captions name and none names in the plural, those that most name first, each with the name to ask for it by."""
    votes: Counter[str] = Counter()
    many: set[str] = set()
    for caption in photo.captions:
        nouns = [noun for noun in nouns_in(words_of(caption)) if noun.sure]
        votes.update({noun.thing for noun in nouns})
        many |= {noun.thing for noun in nouns if noun.plural}
    kinds = {thing: PERSON if PERSON in THINGS[thing].kinds.split() else thing for thing in votes}
    return {thing: kinds[thing] for thing, count in votes.most_common() if count >= VOTES and thing not in many and kinds[thing] in names}


def _told_already(box_4: torch.Tensor, told: Sequence[Region]) -> bool:
    """Whether a person in this box is one who has a box by another name."""
    people = [each for each in told if each.label == PERSON or PERSON in (THINGS[each.label].kinds.split() if each.label in THINGS else ())]
    others = [torch.tensor([[each.left, each.top, each.right, each.bottom]]) for each in people]
    return any(intersection_over_union(box_4[None], other_14).item() > SAME for other_14 in others)


def _called(name: str, kind: str, path: Path) -> str:
    return kind if zlib.crc32(path.name.encode()) % 2 else name
