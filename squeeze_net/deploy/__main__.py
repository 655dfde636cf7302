"""Export a trained network: ONNX files with their preprocessing inside, a C file, a web page.

All forms are written that can be, or those of --only, with a README.md that shows how to use each. The 8-bit ONNX file
needs --data or --dataset: it is calibrated on training images, and scored on the test images beside float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trainer
from squeeze_net import classifier, weights
from squeeze_net.deploy import c_files, int8, onnx, page_files, readme
from squeeze_net.deploy.images import load_images
from squeeze_net.deploy.job import Job, LeftOut
from trainer import cli, commands
from trainer.data import datasets


class Form(NamedTuple):
    """What can be written.

    Attributes:
        write: puts the files into the folder of a job and returns their section of the README.
        files: their names.
    """

    write: Callable[[Job], str]
    files: tuple[str, ...]


FORMS = {
    'onnx': Form(onnx.write, (onnx.FILE,)),
    'int8': Form(int8.write, (int8.FILE,)),
    'c': Form(c_files.write, (*c_files.FILES, c_files.ARCHIVE)),
    'page': Form(page_files.write, (page_files.FILE, page_files.PROGRAM, c_files.ARCHIVE)),
}
README = 'README.md'
MAX_BATCH = 1 << 16
OF_IMAGES = 'limit', 'seed', 'workers'  # settings shared with main.py
EXAMPLES = """\
python -m squeeze_net.deploy weights.npz -o deployed
python -m squeeze_net.deploy squeezenet_v1.1 -o deployed --only onnx --batch 1
python -m squeeze_net.deploy small.sqz -o deployed --dataset cifar10 --data DIR --limit 100
python -m squeeze_net.deploy small.sqz -o site --only page --single_file
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy as the command line asks; returns the exit code."""
    args = make_parser().parse_args(argv)
    forms = read_forms(args)
    refuse_folder(args.output, args.overwrite)
    path = weights.find(args.weights)
    _, loaded = classifier.open_weights(path, args.network, args.preprocess, args.classes)
    with part_of(args.output) as folder:
        job = Job(
            loaded,
            path,
            folder,
            args.batch,
            args.plain,
            args.single_file,
            partial(load_images, args) if has_images(args) else None,
        )
        left_out = write_forms(job, forms, args.only is not None)
        for part in folder.iterdir():
            if (place := args.output / part.name).is_dir():
                raise trainer.InputError(f'{place} is a folder, where a file is to be written: remove it')
        written = [part.replace(args.output / part.name) for part in sorted(folder.iterdir())]
    for place in written:
        print(f'wrote {place}: {place.stat().st_size:,} bytes')
    for line in left_out:
        print(line)
    for place in dict.fromkeys(args.output / name for form in FORMS.values() for name in form.files):
        if place not in written and place.exists():
            print(f'note: {place} is from before, maybe of other weights')
    return 0


def read_forms(args: argparse.Namespace) -> list[str]:
    """The names of the forms to write.

    Raises:
        InputError: an unknown one, or a flag for others than these.
    """
    if args.batch is not None and not 1 <= args.batch <= MAX_BATCH:
        raise trainer.InputError(f'--batch is {args.batch}, but must be 1 .. {MAX_BATCH:,}')
    forms = list(FORMS) if args.only is None else list(dict.fromkeys(map(str.strip, args.only.split(','))))
    for name in forms:
        if name not in FORMS:
            raise trainer.InputError(f'--only {args.only}: {name!r} is not a form; expected some of {",".join(FORMS)}')
    if not has_images(args):
        cli.refuse_settings(args, 'goes with --data or --dataset, which are missing', *OF_IMAGES)
    cli.config_of(args, *OF_IMAGES)  # refuses what is out of bounds
    of_onnx = ('onnx', 'int8')
    given = (
        ('--batch', args.batch, of_onnx),
        ('--plain', args.plain, of_onnx),
        ('--data', has_images(args), ('int8',)),
        ('--single_file', args.single_file, ('page',)),
    )
    for flag, value, users in given:
        if value and not {*users} & {*forms}:
            raise trainer.InputError(f'{flag} is for {" and ".join(users)}, which --only {args.only} leaves out')
    return forms


def has_images(args: argparse.Namespace) -> bool:
    """Whether the flags name images."""
    return args.data is not None or args.dataset is not None


def refuse_folder(folder: Path, overwrite: bool) -> None:
    """Stop before files are written into a folder that holds others.

    Raises:
        InputError: it is not empty, without `overwrite`, or not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise trainer.InputError(f'-o {folder} is not a folder: choose another name')
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise trainer.InputError(
            f'-o {folder} is not empty: choose another folder, or replace what it has of the same names by --overwrite'
        )


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, for what is not complete yet; removed at the end, as all that stay empty."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix='.', suffix='.part', dir=folder) as part:
            yield Path(part)
    finally:
        with suppress(OSError):  # not empty: all went well
            for one in made:
                one.rmdir()


def write_forms(job: Job, forms: Sequence[str], is_asked_for: bool) -> list[str]:
    """Write the forms and their README; returns a line for each that is left out.

    Raises:
        InputError: one that is asked for, or all, cannot be written; says why.
    """
    sections, left_out = [], []
    for name in forms:
        try:
            sections.append(FORMS[name].write(job))
        except LeftOut as reason:
            if is_asked_for:
                raise trainer.InputError(f'--only {name}: {reason}') from None
            left_out.append(f'{name} is left out: {reason}')
    job.put(README, readme.page(job, sections, left_out).encode())
    return left_out


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = commands.command_parser('python -m squeeze_net.deploy', __doc__, EXAMPLES)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file of any format, or the name of a published one')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='DIR', help='folder to write, new or empty')
    commands.add_overwrite(parser)
    parser.add_argument('--only', metavar='FORM,...', help=f'some of {",".join(FORMS)}')
    onnx_flags = parser.add_argument_group('the ONNX files')
    onnx_flags.add_argument('--batch', type=int, metavar='N', help='take N pictures at once (default: any number)')
    plain = 'without preprocessing and softmax: normalised float32 (N, 3, H, W) to logits'
    onnx_flags.add_argument('--plain', action='store_true', help=plain)
    page_flags = parser.add_argument_group('the page')
    single = f'write it as one {page_files.FILE} that opens from the disk, without a server'
    page_flags.add_argument('--single_file', action='store_true', help=single)
    classifier.add_network_flags(parser)
    images = parser.add_argument_group('the images for int8')
    images.add_argument('--dataset', choices=list(datasets.DATASETS), help='default: cifar10, if --data is given')
    cli.add_settings(images, 'data', *OF_IMAGES, helps=classifier.HELPS, unreadable='skip')
    return parser


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.deploy'):
        sys.exit(main())
