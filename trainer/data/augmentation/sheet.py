"""A contact sheet: rows of pictures with captions, under headings, as one image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.fonts import font_for, shortened

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

WHITE, INK, GREY = '#ffffff', '#222222', '#666666'
MARGIN_PX, GAP_PX, GROUP_GAP_PX = 28, 18, 46
FONT_PX, TITLE_PX, LINE_PX = 15, 22, 21
CELL_PX = 256  # pictures are magnified to about this
MIN_COLUMN_PX = 210  # room for the longest caption
STDS_SHOWN = 3  # black and white are this many standard deviations from the mean


class Cell(NamedTuple):
    """A picture and its caption."""

    picture: np.ndarray  # (height, width, 3) uint8, RGB
    caption: tuple[str, str]  # two lines, the second paler
    fills: bool = False  # magnified as far as there is room, instead of as much as all the others


def to_picture(x: npt.ArrayLike) -> np.ndarray:
    """A normalised image for display: 0 as mid-grey, -3 as black, 3 as white.

    Args:
        x: (3, H, W) floats of mean 0 and standard deviation 1, on the CPU.
    Returns:
        (H, W, 3) uint8.
    """
    levels = 127.5 + 127.5 / STDS_SHOWN * np.asarray(x, np.float32).transpose(1, 2, 0)
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def draw_sheet(
    title: str,
    notes: Sequence[str],
    headings: Sequence[tuple[int, str]],
    rows: Sequence[Sequence[Cell | None]],
    view_px: int,
) -> Image.Image:
    """Lay out the rows below the title and the headings, and the notes below the rows.

    Pictures are magnified by whole numbers, so that their pixels stay what they are.

    Args:
        title: one line.
        notes: lines for the foot.
        headings: (first column, heading) of each group of columns; groups stand apart.
        rows: of equally many cells each; None leaves a gap.
        view_px: the side of the largest view.
    """
    from PIL import Image, ImageDraw

    zoom = max(1, round(CELL_PX / view_px))
    box = view_px * zoom
    width = max(box, MIN_COLUMN_PX)
    bold, large = font_for('', FONT_PX, '-Bold'), font_for(title, TITLE_PX)
    starts = [column for column, _ in headings]
    steps = (width + (GROUP_GAP_PX if column in starts else GAP_PX) for column in range(1, len(rows[0])))
    lefts = list(accumulate(steps, initial=MARGIN_PX))
    row_height = box + 8 + 2 * LINE_PX + GAP_PX
    top = MARGIN_PX + TITLE_PX + 22 + LINE_PX + 8
    sheet_width = lefts[-1] + width + MARGIN_PX
    notes = [line for note in notes for line in _wrap(note, font_for(note, FONT_PX), sheet_width - 2 * MARGIN_PX)]
    sheet = Image.new('RGB', (sheet_width, top + len(rows) * row_height + len(notes) * LINE_PX + MARGIN_PX), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PX, MARGIN_PX), shortened(title, large, sheet_width - 2 * MARGIN_PX), INK, large)
    for column, heading in headings:
        pen.text((lefts[column], top - LINE_PX - 8), heading, INK, bold)
    for y, row in zip(range(top, sheet.height, row_height), rows, strict=False):
        for x, cell in zip(lefts, row, strict=True):
            if cell is not None:
                sheet.paste(_magnify(cell.picture, box, None if cell.fills else zoom), (x, y))
                _caption(pen, x, y + box + 6, cell.caption, width)
    for line, note in enumerate(notes):
        pen.text((MARGIN_PX, top + len(rows) * row_height + line * LINE_PX), note, GREY, font_for(note, FONT_PX))
    return sheet


def _caption(pen: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], width_px: int) -> None:
    for line, (text, colour) in enumerate(zip(lines, (INK, GREY), strict=True)):
        font = font_for(text, FONT_PX)
        pen.text((x, y + line * LINE_PX), shortened(text, font, width_px), colour, font)


def _magnify(picture: np.ndarray, box: int, zoom: int | None) -> Image.Image:
    """The picture, `zoom` times as large; None: as large as goes into a square of `box` px, or shrunk to that."""
    from PIL import Image

    image = Image.fromarray(picture)
    zoom = zoom or box // max(image.size)
    if zoom == 0:
        image.thumbnail((box, box), Image.Resampling.LANCZOS)
        return image
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
