"""Labelled boxes on a photo, at the photo's own size."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from salticid.data.boxes import Region

# Eight hues that people with the common colour blindnesses can tell apart (Okabe and Ito).
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
DARK = ("#0072b2", "#d55e00")


def draw_regions(photo: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A copy of the photo in RGB with each region's frame, and its label above the frame or, at the photo's edge, inside it.

    Regions with the same label have the same colour; without labels, each has its own.
    """
    drawn = photo.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    side = min(drawn.size)
    line = max(2, side // 200)
    font = ImageFont.load_default(size=max(10, side // 30))
    colours: dict[str, str] = {}
    for index, region in enumerate(regions):
        colour = colours.setdefault(region.label or f"\0{index}", COLOURS[len(colours) % len(COLOURS)])
        left, top, right, bottom = region.pixels(*drawn.size)
        box = (min(left, drawn.width - 1), min(top, drawn.height - 1), max(right - 1, left), max(bottom - 1, top))
        pen.rectangle(box, outline=colour, width=line)
        if region.label:
            _write_label(pen, region.label, box, colour, font, drawn.size)
    return drawn


def _write_label(
    pen: ImageDraw.ImageDraw,
    label: str,
    box: tuple[int, int, int, int],
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    *_, right, bottom = pen.textbbox((0, 0), label, font=font)
    gap = 2
    width, height = int(right) + 2 * gap, int(bottom) + 2 * gap
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else min(box[1], max(0, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + gap, y + gap), label, font=font, fill="white" if colour in DARK else "black")
