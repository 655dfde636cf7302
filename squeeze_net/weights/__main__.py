"""Convert a weights file to another format, or describe it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import trainer
from squeeze_net import NETWORKS, make_network
from squeeze_net.weights import FORMATS, PUBLISHED, WRITTEN, Weights, find, read, start_from, tensors_of, write
from squeeze_net.weights.network import check_fits, identify
from trainer import commands
from trainer.data import preprocessing
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.data.sources import read_class_list

EXAMPLES = """\
# what is in a file
python -m squeeze_net.weights squeezenet_v1.1
# into another format: a network that runs anywhere
python -m squeeze_net.weights squeezenet_v1.1 squeezenet.onnx
# for fine-tuning on 10 classes
python -m squeeze_net.weights squeezenet1_1.pth start.npz --reset-classifier 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Describe or convert a weights file as the command line asks."""
    args = make_parser().parse_args(argv)
    path = find(args.source)
    weights = with_flags(read(path), args)
    print(describe(weights, path))
    if args.target is None:
        print(list_tensors(weights))
        return 0
    for written in write(weights, args.target, args.overwrite):
        print(f'wrote {written}: {written.stat().st_size:,} bytes')
    kept, given = read(args.target).metadata, weights.metadata
    lost = ['the names of the classes'] if kept.classes != given.classes else []
    if kept.preprocessing != given.preprocessing:
        lost.append('which images the network expects')
    if lost:
        print(f'note: {args.target.suffix} does not keep {" and ".join(lost)}: .npz, .safetensors, .onnx and .sqz do')
    return 0


def with_flags(weights: Weights, args: argparse.Namespace) -> Weights:
    """The same with what the flags add to it."""
    if args.network is not None:
        check_fits(weights, args.network)
        weights = weights.with_metadata(network=args.network)
    if args.preprocess is not None:
        view = preprocessing.find(args.preprocess, weights.metadata.preprocessing)
        weights = weights.with_metadata(preprocessing=view)
    weights = identify(weights)
    if args.reset_classifier is not None:
        weights = reset_classifier(weights, args.reset_classifier, args.seed)
    if args.classes is not None:
        names = read_class_list(args.classes).names
        n_class = weights.metadata.n_class
        if n_class not in (None, len(names)):
            raise trainer.InputError(f'--classes {args.classes} names {len(names)} classes, the weights have {n_class}')
        weights = weights.with_metadata(classes=names)
    return weights


def reset_classifier(weights: Weights, n_class: int, seed: int) -> Weights:
    """The same with a classifier of `n_class` classes as a fresh network has it."""
    network = weights.metadata.network
    if n_class < 1:
        raise trainer.InputError(f'--reset-classifier is {n_class}, but must be 1 or more')
    if network not in NETWORKS:
        raise trainer.InputError(f'--reset-classifier needs to know the network: give --network {"|".join(NETWORKS)}')
    np.random.seed(seed)
    view = weights.metadata.preprocessing
    model = make_network(network, n_class, 227 if view is None else view.crop)
    start_from(model, network, weights, reset_classifier=True, flag='--network')
    return Weights(tensors_of(model), weights.metadata).with_metadata(n_class=n_class, classes=None)


def describe(weights: Weights, path: Path) -> str:
    """One line on a file: network, parameters, classes, preprocessing."""
    metadata = weights.metadata
    words = [f'{path}: {metadata.network or "an unknown network"}', f'{weights.n_parameters:,} parameters']
    if metadata.n_class is not None:
        words.append(f'{metadata.n_class:,} classes' + ('' if metadata.classes is None else ' with names'))
    view = metadata.preprocessing
    words.append('unknown preprocessing' if view is None else f'preprocessing {view.name}, {view.crop} px')
    return ', '.join(words) + (f'\nnote: {weights.note}' if weights.note else '')


def list_tensors(weights: Weights) -> str:
    """A line a tensor: name, shape, dtype."""
    width = max(map(len, weights.tensors))
    lines = []
    for name, tensor in weights.tensors.items():
        shape = ' x '.join(map(str, tensor.shape)) or 'a number'
        lines.append(f'  {name:{width}}  {shape:18}  {tensor.dtype}')
    return '\n'.join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = commands.command_parser('python -m squeeze_net.weights', __doc__, EXAMPLES)
    parser.add_argument(
        'source', metavar='SRC', help=f'a file ({", ".join(FORMATS)}), or a published one: {", ".join(PUBLISHED)}'
    )
    parser.add_argument('target', nargs='?', type=Path, metavar='DST', help=f'what to write: {", ".join(WRITTEN)}')
    parser.add_argument('--network', choices=list(NETWORKS), metavar='NAME', help='if the file does not tell it')
    parser.add_argument('--reset-classifier', type=int, metavar='N', help='give it a fresh classifier of N classes')
    parser.add_argument('--seed', type=int, default=0, help='of the fresh classifier (default: 0)')
    parser.add_argument(
        '--preprocess', choices=list(PREPROCESSINGS), metavar='NAME', help=f'to record: {", ".join(PREPROCESSINGS)}'
    )
    parser.add_argument('--classes', type=Path, metavar='FILE', help='class names to record, one per line')
    commands.add_overwrite(parser)
    return parser


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.weights'):
        sys.exit(main())
