"""Score a weights file, of any format, on images whose classes are known."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import trainer
from squeeze_net import classifier, labels
from squeeze_net.classifier import Classifier, softmax
from trainer import cli, commands, device
from trainer.data import datasets, decode
from trainer.data.sources import ImageList
from trainer.files import atomic_write, make_place, refuse_to_replace
from trainer.report.confusion import format_confusion
from trainer.run.records import strict_json
from trainer.step.evaluate import true_ranks

EXAMPLES = """\
python -m squeeze_net.validate squeezenet_v1.0 --list val.txt
python -m squeeze_net.validate squeezenet_v1.1.pth --list val.txt --preprocess torchvision --json
python -m squeeze_net.validate results/squeezenet_v1.1_finetuned/weights_best.npz --dataset cifar10
"""


SHOWN = 20  # names of unreadable images


class Score:
    """The results of a network on images, summed batch by batch.

    Attributes:
        n: images.
        loss: mean softmax cross entropy.
        top1, top5: fractions; of classes with equal logits the lower one comes first.
        confusion: (n_class, n_class) int64 images; rows: the true class, columns: the predicted one.
        in_top5: (n_class,) int64 images by true class.
    """

    def __init__(self, n_class: int) -> None:
        self.confusion = np.zeros((n_class, n_class), np.int64)
        self.in_top5 = np.zeros(n_class, np.int64)
        self._loss = 0.0

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count logits (N, n_class) of images whose classes are `labels` (N,)."""
        with np.errstate(divide='ignore', invalid='ignore'):
            probabilities = np.take_along_axis(softmax(logits), labels[:, None], 1)
            self._loss -= float(np.log(probabilities).sum())
        np.add.at(self.confusion, (labels, logits.argmax(1)), 1)
        np.add.at(self.in_top5, labels, true_ranks(logits, labels) < 5)

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        return self._loss / max(self.n, 1)

    @property
    def top1(self) -> float:
        return float(np.trace(self.confusion)) / max(self.n, 1)

    @property
    def top5(self) -> float:
        return float(self.in_top5.sum()) / max(self.n, 1)


def score(
    model: Classifier,
    batches: Iterable[tuple[np.ndarray, ...]],
    class_of: np.ndarray,
    progress: Callable[[int], object] = lambda n: None,
) -> Score:
    """Score pictures (N, 3, H, W), 0..255, with labels (N,), of which `class_of` gives the network's classes."""
    result = Score(len(model.classes))
    for pictures, t, *_ in batches:
        result.add(model(pictures), class_of[t])
        progress(len(t))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Score the weights; returns the exit code."""
    args = make_parser().parse_args(argv)
    if args.json:
        commands.write_utf8()
    for flag, path in ('--per_class', args.per_class), ('--confusion', args.confusion):
        if path is not None:
            refuse_to_replace(path, flag, overwrite=args.overwrite)
            make_place(path)
    if args.per_class is not None and args.per_class == args.confusion:
        raise trainer.InputError(f'--per_class and --confusion are both {args.confusion}, expected two files')
    if args.list is not None:
        cli.refuse_settings(args, 'goes with --dataset, not with --list', 'data', 'limit', 'seed')
    elif args.root is not None:
        raise trainer.InputError(f'--root {args.root} goes with --list, not with --dataset')
    cli.config_of(args, 'limit', 'seed')  # refuses what is out of bounds before the weights are read
    model = classifier.from_flags(args.weights, args)
    images = open_images(args, model)
    source = images.source
    matching = labels.match(images.labels, images.classes, model.classes, source, args.first_label)
    if matching.note is not None:
        print(matching.note, file=sys.stderr)
    started = time.perf_counter()
    with tqdm(total=len(images.labels), unit=' images', leave=False, disable=None) as bar:
        scores = score(model, images.batches, matching.class_of, bar.update)
    seconds = time.perf_counter() - started
    skipped = list(getattr(images.batches, 'skipped', ()))
    if scores.n == 0:
        reason = f': {skipped[0]}' if skipped else ''
        raise trainer.InputError(f'{source} holds no image that can be read{reason}')
    record = {
        'weights': str(args.weights),
        'network': model.network,
        'n_parameters': model.model.count_params(),
        'preprocessing': model.preprocessing.as_dict(),
        'source': source,
        'labels': matching.note,
        'n_images': scores.n,
        'top1': scores.top1,
        'top5': scores.top5 if len(model.classes) > 5 else None,
        'loss': scores.loss,
        'n_unreadable': len(skipped),
        'unreadable': [str(fault) for fault in skipped[:SHOWN]],
        'seconds': round(seconds, 3),
        'images_per_s': round(scores.n / seconds, 1),
        'precision': model.config.precision,
        'device': device.describe(model.device),
        'versions': device.versions(model.device),
    }
    print(strict_json(record) if args.json else as_text(record))
    if skipped and args.json:
        print(f'{len(skipped)} images could not be read', file=sys.stderr)
    if not matching.is_by_name and (doubt := labels.doubt(scores.confusion)) is not None:
        print(f'the labels look wrong: {doubt}', file=sys.stderr)
    if args.per_class is not None:
        write_per_class(scores, model.classes, args.per_class)
    if args.confusion is not None:
        write_confusion(scores, model.classes, args.confusion)
    elif not args.json:
        print('\n' + format_confusion(model.classes, scores.confusion))
    return 0


class Images(NamedTuple):
    """What is scored."""

    batches: Iterable[tuple[np.ndarray, ...]]
    labels: np.ndarray  # (N,) int32
    classes: tuple[str, ...] | None  # their names, by label
    source: str


def open_images(args: argparse.Namespace, model: Classifier) -> Images:
    """The images of --list, or the test images of --dataset."""
    view, options = model.preprocessing, (args.batch, args.workers, args.unreadable)
    if args.list is not None:
        images = ImageList(args.list, root=args.root)
        return Images(decode.batches(images, view, *options), images.labels, images.classes, str(args.list))
    data = classifier.load_data(args, view, needs_train=False)
    for line in data.notes:
        print(line, file=sys.stderr)
    return Images(data.test_batches(view, *options), data.test.labels, data.classes, f'{data.source}, test')


def as_text(record: dict[str, Any]) -> str:
    """The record in three or four lines."""
    view = record['preprocessing']
    sizes = f'{view["resize"]} {view["side"]}, crop {view["crop"]} px'
    top5 = '' if record['top5'] is None else f'   top-5 {record["top5"]:.2%}'
    lines = [
        f'{record["weights"]}: {record["network"]}, {record["n_parameters"]:,} parameters',
        f'{record["source"]}: {record["n_images"]:,} images, preprocessing {view["name"]} ({sizes})',
        f'top-1 {record["top1"]:.2%}{top5}   loss {record["loss"]:.4f}   {record["images_per_s"]:,.0f} images/s',
    ]
    if record['n_unreadable']:
        more = f', and {record["n_unreadable"] - SHOWN} more' if record['n_unreadable'] > SHOWN else ''
        lines.append(f'{record["n_unreadable"]} could not be read: {", ".join(record["unreadable"])}{more}')
    return '\n'.join(lines)


def write_per_class(scores: Score, classes: Sequence[str], path: Path) -> None:
    """A CSV with a line for each class: images, top-1, top-5, and the class it is most often taken for."""
    rows: list[tuple[object, ...]] = [('class', 'name', 'images', 'top1', 'top5', 'most_confused_with', 'times')]
    for label, (name, row) in enumerate(zip(classes, scores.confusion, strict=True)):
        n, right, wrong = int(row.sum()), int(row[label]), row.copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        rates = (f'{right / n:.4f}', f'{scores.in_top5[label] / n:.4f}') if n else ('', '')
        most = (classes[other], int(wrong[other])) if wrong[other] else ('', 0)
        rows.append((label, name, n, *rates, *most))
    _write_csv(rows, path)


def write_confusion(scores: Score, classes: Sequence[str], path: Path) -> None:
    """A CSV of the pairs that occur: true class, predicted class, images."""
    rows = [(i, j, classes[i], classes[j], scores.confusion[i, j]) for i, j in np.argwhere(scores.confusion)]
    _write_csv([('true', 'predicted', 'true_name', 'predicted_name', 'images'), *rows], path)


def _write_csv(rows: Iterable[Iterable[object]], path: Path) -> None:
    with atomic_write(path, 'w') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = commands.command_parser('python -m squeeze_net.validate', __doc__, EXAMPLES)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file, or the name of a published one')
    images = parser.add_argument_group('the images')
    source = images.add_mutually_exclusive_group(required=True)
    source.add_argument('--list', type=Path, metavar='FILE', help='lines `path label`; a label is a number or a name')
    source.add_argument('--dataset', choices=list(datasets.DATASETS), help='the test images of a data set')
    images.add_argument(
        '--root', type=Path, metavar='DIR', help='where the paths of --list begin (default: its folder)'
    )
    first_label = 'where labels are numbers, that of the first class (default: 0)'
    images.add_argument('--first_label', type=int, default=0, metavar='N', help=first_label)
    cli.add_settings(images, 'data', 'limit', 'seed', helps=classifier.HELPS)
    classifier.add_flags(parser)
    out = parser.add_argument_group('what to write')
    out.add_argument('--json', action='store_true', help='one line of JSON instead of the text')
    out.add_argument('--per_class', type=Path, metavar='FILE.csv', help='accuracy class by class')
    out.add_argument('--confusion', type=Path, metavar='FILE.csv', help='how often each class was taken for each other')
    commands.add_overwrite(out)
    return parser


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.validate'):
        sys.exit(main())
