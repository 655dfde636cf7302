"""Draw what the network sees of a few images: the original, the test view, and views as training draws them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from trainer.commands import add_overwrite, command_parser, exit_with_message
from trainer.data.augmentation.draw import Draws
from trainer.data.augmentation.kernels import KERNEL_NAMES
from trainer.data.augmentation.sheet import STDS_SHOWN, Cell, draw_sheet, to_picture
from trainer.data.augmentation.sizes import Sizes
from trainer.data.augmentation.specimens import Specimens, read_dataset, read_image
from trainer.data.augmentation.views import TestView, TrainView
from trainer.errors import InputError
from trainer.files import SOFTWARE, atomic_write, refuse_to_replace

if TYPE_CHECKING:
    from PIL import Image

MAX_ROWS, MAX_COLUMNS = 20, 12


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the sheet that the command line asks for."""
    from PIL.PngImagePlugin import PngInfo

    args = _parser().parse_args(arguments)
    _check(args)
    sizes = Sizes.of(args.size)
    path = Path(args.source)
    if path.is_file() or path.suffix:
        specimens = read_image(path, sizes.side_max)
    else:
        specimens = read_dataset(args.source, args.data, args.rows or 6, sizes.side_max)
    sheet = make_sheet(specimens, sizes, args.seed, args.rows or len(specimens.images), args.columns)
    info = PngInfo()
    info.add_text('Software', SOFTWARE)
    with atomic_write(args.output) as file:
        sheet.save(file, 'png', pnginfo=info)
    print(f'{args.output}: {sheet.width} × {sheet.height} px')


def make_sheet(specimens: Specimens, sizes: Sizes, seed: int, n_rows: int, n_columns: int) -> Image.Image:
    """A row a specimen, with its views in the first `n_columns` epochs.

    Rows left over when the specimens run out show them again, in the epochs that follow.
    """
    split = specimens.images, np.arange(len(specimens.images), dtype=np.int32)
    train_view, test_view = TrainView(split, sizes, seed), TestView(split, sizes)
    rows: list[list[Cell | None]] = []
    for row in range(n_rows):
        again, n = divmod(row, len(specimens.images))
        epochs = range(again * n_columns, (again + 1) * n_columns)
        shown: list[Cell | None] = [None, None]
        if not again:
            height, width, _ = specimens.originals[n].shape
            test_picture = to_picture(test_view([n])[0][0])
            shown = [
                Cell(specimens.originals[n], (specimens.names[n], f'{width} × {height} px'), fills=True),
                Cell(test_picture, _caption(test_view.draws(), n, whole=True)),
            ]
        x, _ = train_view(SimpleNamespace(epoch=np.array(epochs), index=np.full(n_columns, n)))
        captions = (_caption(train_view.draws(epoch), n) for epoch in epochs)
        rows.append([*shown, *(Cell(to_picture(view), caption) for view, caption in zip(x, captions, strict=True))])
    title = f'{specimens.title} as the network sees it, size {sizes.crop}, seed {seed}'
    headings = [(0, 'original'), (1, 'test view'), (2, 'training views')]
    return draw_sheet(title, _notes(specimens, sizes), headings, rows, max(sizes.crop, sizes.test_crop))


def _notes(specimens: Specimens, sizes: Sizes) -> list[str]:
    views = (
        f'Training views are resized to between {sizes.side_min} and {sizes.side_max} px, cropped to {sizes.crop} px '
        f'and mirrored half of the time; test views are resized to {sizes.test} px.'
    )
    colours = (
        'Each view is normalised by its own mean and standard deviation; here the mean is shown as mid-grey, and '
        f'{STDS_SHOWN} standard deviations below and above it as black and white.'
    )
    return [f'{views} {colours}', *([f'Images: {specimens.source}.'] if specimens.source else [])]


def _caption(draws: Draws, n: int, whole: bool = False) -> tuple[str, str]:
    side, top, left, kernel, flip = (column[n] for column in draws)
    place = 'whole' if whole else f'top {top}, left {left}' + (', mirrored' if flip else '')
    return f'{KERNEL_NAMES[kernel]} to {side} px', place


def _check(args: argparse.Namespace) -> None:
    for flag, value, most in ('--rows', args.rows, MAX_ROWS), ('--columns', args.columns, MAX_COLUMNS):
        if value is not None and not 1 <= value <= most:
            raise InputError(f'{flag} {value} is outside 1 .. {most}')
    if not 0 <= args.seed < 2**64:
        raise InputError(f'--seed {args.seed} is outside 0 .. 2**64 - 1')
    if args.output.suffix.lower() != '.png':
        raise InputError(f'-o {args.output}: a sheet is a PNG file, so its name must end in .png')
    if not args.output.parent.is_dir():
        raise InputError(f'-o {args.output}: the folder {args.output.parent} does not exist')
    refuse_to_replace(args.output, '-o', overwrite=args.overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('python -m trainer.augmentation', __doc__)
    add = parser.add_argument
    add('source', metavar='IMAGE_OR_DATASET', help='an image file, or the name of a data set such as cifar10')
    png = 'the PNG file to write (default: %(default)s)'
    add('-o', '--output', type=Path, default=Path('sheet.png'), metavar='FILE', help=png)
    add('--size', type=int, default=122, metavar='PX', help='of the training crop (default: %(default)s)')
    add('--seed', type=int, default=0, metavar='N', help='of the draws (default: %(default)s)')
    add('--rows', type=int, metavar='N', help='images (default: 6), or rows of views of one file (default: 1)')
    add('--columns', type=int, default=6, metavar='N', help='training views per row (default: %(default)s)')
    add('--data', type=Path, metavar='DIR', help='where the data set lies')
    add_overwrite(parser)
    return parser


if __name__ == '__main__':
    with exit_with_message('trainer.augmentation'):
        main()
