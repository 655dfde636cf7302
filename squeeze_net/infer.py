"""Classify images: the likeliest classes of each, as a table, JSON or CSV, or drawn below the image.

An image that cannot be read is named where its answer would stand: the table and JSON say why, CSV has a line without
rank, class, name and probability. The exit code is 0 if at least one image was read, or all with --unreadable fail,
else 2.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import trainer
from squeeze_net import classifier
from squeeze_net.classifier import Classifier, softmax
from trainer import commands
from trainer.commands import refuse_address
from trainer.data import decode
from trainer.data.images import files_below, image_suffixes, is_image_name
from trainer.data.sources.files import named_line
from trainer.data.sources.source import read_file, read_text
from trainer.files import atomic_write, free_path, is_picture_of
from trainer.fonts import font_for, shortened
from trainer.run.records import strict_json

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = """\
python -m squeeze_net.infer cat.jpg --weights squeezenet_v1.1
python -m squeeze_net.infer photos/ more/dog.png -w results/squeezenet_v1.1_finetuned/weights_best.npz --format csv
python -m squeeze_net.infer val.txt -w squeezenet_v1.0 --top 1 --format jsonl
python -m squeeze_net.infer cat.jpg -w squeezenet_v1.1 --draw drawn/
"""
SOFTWARE = 'squeeze_net.infer --draw'  # in what --draw writes


class Photos:
    """Files of images without labels, as a source for `trainer.data.decode`."""

    classes: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.labels, self.place = list(paths), np.zeros(len(paths), np.int32), f'{len(paths)} images'

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        return read_file(self.paths[i])

    def name(self, i: int) -> str:
        return str(self.paths[i])


@dataclass(frozen=True)
class Answer:
    """The likeliest classes of an image, the likeliest first."""

    image: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def top(self) -> Iterator[tuple[int, str, float]]:
        """(class, name, probability) of each class."""
        return zip(self.classes, self.names, self.probabilities, strict=True)


@dataclass(frozen=True)
class Fault:
    """An image that cannot be read, and why."""

    image: str
    reason: str

    @classmethod
    def of(cls, fault: decode.Unreadable) -> Fault:
        return cls(fault.name, fault.reason.removeprefix(f'{fault.name} ').removeprefix('cannot be read: '))


def gather(sources: Sequence[Path]) -> list[Path]:
    """All images of the sources: files, folders (with those below, sorted by name), and lists.

    Hidden files and folders do not count, nor what --draw has made; how many files of other kinds are left out is
    printed to stderr.

    Raises:
        InputError: a source that does not exist, is an address, or holds no image.
    """
    paths: list[Path] = []
    for source in sources:
        refuse_address(source)
        if source.is_dir():
            files = list(files_below(source))
            images = [path for path in files if is_image_name(path.name) and not _is_drawn(path)]
            others = [path for path in files if not is_image_name(path.name)]
            if not images:
                besides = ' besides those of --draw' if any(map(_is_drawn, files)) else ''
                raise trainer.InputError(f'{source} holds no images{besides} ({", ".join(image_suffixes())})')
            if others:
                kinds = sorted({path.suffix.lower() or path.name for path in others})
                shown = ', '.join(kinds[:N_KIND]) + (', ...' if len(kinds) > N_KIND else '')
                print(f'{source}: {len(others):,} other files left out ({shown})', file=sys.stderr)
            paths += images
        elif not source.exists():
            raise trainer.InputError(
                f'{source} does not exist; expected an image, a folder of images, or a list (.txt)'
            )
        else:
            paths += read_list(source) if source.suffix.lower() == '.txt' else [source]
    return paths


def _is_drawn(path: Path) -> bool:
    return path.suffix == '.png' and is_picture_of(path, SOFTWARE)


def read_list(path: Path) -> list[Path]:
    """The images of a text file of lines `path` or `path label`, relative to its folder.

    Raises:
        InputError: the file cannot be read, or names no image.
    """
    names = map(_without_label, read_text(path).removeprefix('\ufeff').splitlines())
    paths = [path.parent / name for name in names if name]
    if not paths:
        raise trainer.InputError(f'{path} names no image')
    return paths


def _without_label(line: str) -> str:
    """The path of a line: all of it, but for a label after the name of an image, or a number."""
    found = None if is_image_name(line.strip()) else named_line(line.strip())
    return found[1] if found else re.sub(r'\s+\d+$', '', line.strip())


def infer(model: Classifier, batches: decode.Batches, paths: Sequence[Path], top: int) -> Iterator[Answer | Fault]:
    """The `top` likeliest classes of each image, or why it cannot be read, in the order of `paths`."""
    n_told = 0
    for pictures, _, indexes in batches:
        faults = deque(batches.skipped[n_told:])  # complete up to the last image of this batch
        probabilities = softmax(model(pictures))
        order = np.argsort(-probabilities, axis=1, kind='stable')[:, :top]
        for index, classes, row in zip(indexes, order, probabilities, strict=True):
            while faults and faults[0].index < index:
                n_told += 1
                yield Fault.of(faults.popleft())
            names = tuple(model.classes[c] for c in classes)
            yield Answer(str(paths[index]), tuple(map(int, classes)), names, tuple(map(float, row[classes])))
    yield from map(Fault.of, batches.skipped[n_told:])


def as_table(answer: Answer | Fault) -> str:
    """The image, and below it a line a class."""
    if isinstance(answer, Fault):
        return f'{answer.image}\n  cannot be read: {answer.reason}'
    return '\n'.join([answer.image, *(f'  {probability:7.2%}  {name}' for _, name, probability in answer.top)])


def as_jsonl(answer: Answer | Fault) -> str:
    """One line of JSON: image, and its likeliest classes or the error."""
    if isinstance(answer, Fault):
        return strict_json({'image': answer.image, 'error': answer.reason})
    top = [{'class': c, 'name': name, 'probability': round(p, 6)} for c, name, p in answer.top]
    return strict_json({'image': answer.image, 'top': top})


def as_csv(answer: Answer | Fault) -> str:
    """A line for each class: image, rank, class, name, probability; of an unreadable image, the first alone."""
    lines = io.StringIO()
    rows: list[tuple[object, ...]]
    if isinstance(answer, Fault):
        rows = [(answer.image, '', '', '', '')]
    else:
        rows = [(answer.image, rank, c, name, f'{p:.6f}') for rank, (c, name, p) in enumerate(answer.top, 1)]
    csv.writer(lines, lineterminator='\n').writerows(rows)
    return lines.getvalue().removesuffix('\n')


FORMATS = {'table': as_table, 'json': as_jsonl, 'jsonl': as_jsonl, 'csv': as_csv}
CSV_HEADER = 'image,rank,class,name,probability'


def draw(image: Image, answer: Answer) -> Image:
    """The image, at most 480 px wide and high, and below it a bar for each of its classes."""
    from PIL import Image as PILImage
    from PIL import ImageDraw

    side, row, margin = 480, 30, 12
    scale = side / max(image.size)
    picture = image.convert('RGB').resize([max(1, round(length * scale)) for length in image.size])
    sheet = PILImage.new('RGB', (side, picture.height + row * len(answer.names) + 2 * margin), 'white')
    sheet.paste(picture, ((side - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for i, (_, name, probability) in enumerate(answer.top):
        top = picture.height + margin + i * row
        length = round((side - 2 * margin) * probability)
        pen.rectangle((margin, top + 2, margin + length, top + row - 3), fill='#9ecae1' if i == 0 else '#deebf7')
        font, share = font_for(name, 15), f'{probability:.1%}'
        name = shortened(name, font, side - 2 * margin - 80)
        pen.text((margin + 6, top + row / 2), name, 'black', font, 'lm')
        pen.text((side - margin, top + row / 2), share, 'black', font_for(share, 15), 'rm')
    return sheet


class Drawer:
    """Writes each image with its classes to a PNG file: numbered where the name is taken by a file of anything else."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise trainer.InputError(f'--draw {folder} cannot be made ({error.strerror})') from None
        self.folder, self._written = folder, set[Path]()

    def __call__(self, answer: Answer) -> None:
        from PIL.PngImagePlugin import PngInfo

        path = free_path(self.folder / f'{Path(answer.image).stem}.png', SOFTWARE, self._written)
        self._written.add(path)
        info = PngInfo()
        info.add_text('Software', SOFTWARE)
        with atomic_write(path) as file:
            draw(decode.decode(read_file(Path(answer.image))), answer).save(file, 'png', pnginfo=info)


def main(argv: Sequence[str] | None = None) -> int:
    """Name what is on the images; returns the exit code."""
    args = make_parser().parse_args(argv)
    if args.top < 1:
        raise trainer.InputError(f'--top is {args.top}, but must be 1 or more')
    paths = gather(args.images)
    args.batch = min(args.batch, len(paths))
    model = classifier.from_flags(args.weights, args)
    drawer = None if args.draw is None else Drawer(args.draw)
    workers = args.workers
    if workers is None and len(paths) < FEW:
        workers = 0  # processes take longer to start than a few images to decode
    batches = decode.batches(Photos(paths), model.preprocessing, args.batch, workers, args.unreadable)
    if 'json' in args.format:
        commands.write_utf8()
    with batches:
        if args.format == 'csv':
            print(CSV_HEADER)
        for i, answer in enumerate(infer(model, batches, paths, min(args.top, len(model.classes)))):
            text = FORMATS[args.format](answer)
            if args.format == 'json':
                print(',\n ' if i else '[', text, sep='', end='')
            else:
                print(text, flush=True)
            if isinstance(answer, Answer) and drawer is not None:
                drawer(answer)
        if args.format == 'json':
            print(']')
    if (n_fault := len(batches.skipped)) == len(paths):
        raise trainer.InputError('none of the images can be read')
    if n_fault:
        print(f'{n_fault:,} of {len(paths):,} images could not be read', file=sys.stderr)
    return 0


FEW = 64
N_KIND = 5  # of files left out, named


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = commands.command_parser('python -m squeeze_net.infer', __doc__, EXAMPLES)
    parser.add_argument(
        'images', nargs='+', type=Path, metavar='IMAGE|FOLDER|LIST', help='a list is a .txt of paths, one a line'
    )
    parser.add_argument(
        '-w', '--weights', required=True, metavar='FILE|NAME', help='of any format, or the name of published ones'
    )
    parser.add_argument('--top', type=int, default=5, metavar='N', help='classes to name (default: 5)')
    parser.add_argument('--format', choices=list(FORMATS), default='table', help='default: table')
    parser.add_argument('--draw', type=Path, metavar='DIR', help='write each image with its classes below it')
    classifier.add_flags(parser)
    return parser


if __name__ == '__main__':
    # By its own name: the decoding processes cannot import `Photos` from `__main__`.
    from squeeze_net.infer import main as run

    with trainer.exit_with_message('python -m squeeze_net.infer'):
        sys.exit(run())
