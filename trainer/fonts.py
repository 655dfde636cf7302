"""Fonts for what is written into pictures: matplotlib's own, and installed ones for the characters that it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font
    from PIL.ImageFont import FreeTypeFont


def font_for(text: str, size_px: int, weight: str = '') -> FreeTypeFont:
    """A font for Pillow: matplotlib's own, or the installed one that holds most of the characters that it lacks.

    Args:
        weight: '' or '-Bold', where it is matplotlib's own.
    """
    from PIL import ImageFont

    path = next(iter(substitutes(text)), None) or _own(weight)
    return ImageFont.truetype(path, size_px)


def shortened(text: str, font: FreeTypeFont, width_px: int) -> str:
    """The text, its end replaced by '…' where it is too long."""
    text = ''.join(c if c.isprintable() else '?' for c in text)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + '…') > width_px:
        text = text[:-1]
    return text + '…'


def substitutes(text: str) -> list[Path]:
    """Installed fonts that together hold what matplotlib's own lacks of a text, as far as there are any."""
    if text.isascii():
        return []
    own = _open(_own())
    assert own is not None
    return list(_substitutes(frozenset(_lacking(own, filter(str.isprintable, text)))))


@cache
def _substitutes(lacking: frozenset[str]) -> tuple[Path, ...]:
    if not lacking:
        return ()
    from matplotlib.font_manager import findSystemFonts

    def usefulness(path: Path) -> tuple[int, bool]:
        font = _open(path)
        name = f'{font.family_name} {font.style_name}'.lower() if font is not None else ''
        if font is None or 'lastresort' in name.replace(' ', ''):  # draws a box for any character
            return 0, False
        is_plain = not font.style_flags and not any(word in name for word in ('mono', 'serif', 'mincho', 'light'))
        return len(lacking) - len(_lacking(font, lacking)), is_plain

    best = max(map(Path, sorted(findSystemFonts())), key=usefulness, default=None)
    if best is None or not usefulness(best)[0]:
        return ()
    font = _open(best)
    assert font is not None
    return best, *_substitutes(frozenset(_lacking(font, lacking)))


def _lacking(font: FT2Font, characters: Iterable[str]) -> set[str]:
    return {c for c in characters if not font.get_char_index(ord(c))}


def _open(path: Path) -> FT2Font | None:
    """A font, or None for one that cannot be read or is made of pictures."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
    except (OSError, RuntimeError):
        return None
    return font if font.scalable else None


def _own(weight: str = '') -> Path:
    """The font of the plots, which comes with matplotlib and, unlike Pillow's own, holds × and accents."""
    import matplotlib

    return Path(matplotlib.get_data_path(), 'fonts', 'ttf', f'DejaVuSans{weight}.ttf')
