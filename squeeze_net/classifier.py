"""A trained network with all that belongs to its use: its preprocessing, and the names of its classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import chainer

import trainer
from squeeze_net import NETWORKS, labels, make_network, weights
from trainer import Config, cli
from trainer.classifier import softmax
from trainer.data import datasets, preprocessing
from trainer.data.augmentation import Sizes, training_size
from trainer.data.datasets import Data, Stream
from trainer.data.preprocessing import PREPROCESSINGS, Preprocessing
from trainer.data.sources import read_class_list

__all__ = ['Classifier', 'add_flags', 'default_class_names', 'from_flags', 'load_data', 'softmax']


class Classifier(trainer.Classifier):
    """Images to logits, by a network of `NETWORKS`.

    Args:
        network: its name in `NETWORKS`.
        model, preprocessing, classes, config, batch: as for `trainer.Classifier`.
    """

    def __init__(
        self,
        model: chainer.Chain,
        network: str,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        config: Config,
        batch: int = 32,
    ) -> None:
        super().__init__(model, preprocessing, classes, config, batch)
        self.network = network

    @classmethod
    def open(
        cls,
        source: str | Path,
        network: str | None = None,
        preprocess: str | None = None,
        classes: Path | None = None,
        config: Config | None = None,
        batch: int = 32,
    ) -> Classifier:
        """The classifier in a weights file of any format, or in a published one by its name.

        Args:
            source: a file, or a name of `squeeze_net.weights.PUBLISHED`.
            network: its name in `NETWORKS`, where the file does not say or tell it.
            preprocess: a name of `PREPROCESSINGS`, where the file does not say, or against what it says.
            classes: a file of class names, one a line.
        Raises:
            InputError: a file that cannot be read, or that leaves open what it needs; says which flag helps.
        """
        model, loaded = open_weights(source, network, preprocess, classes)
        metadata = loaded.metadata
        assert metadata.network is not None and metadata.preprocessing is not None and metadata.classes is not None
        return cls(model, metadata.network, metadata.preprocessing, metadata.classes, config or Config(), batch)


def open_weights(
    source: str | Path, network: str | None = None, preprocess: str | None = None, classes: Path | None = None
) -> tuple[chainer.Chain, weights.Weights]:
    """The network of a file and its weights, whose metadata name network, preprocessing and all classes.

    Args:
        source, network, preprocess, classes: as for `Classifier.open`.
    Raises:
        InputError: as `Classifier.open`.
    """
    model, loaded = weights.load_model(weights.find(source), network)
    metadata = loaded.metadata
    if preprocess is not None:
        wanted = preprocessing.find(preprocess, metadata.preprocessing)
    elif metadata.preprocessing is not None:
        wanted = metadata.preprocessing
    else:
        raise trainer.InputError(
            f'{source} does not say what images it expects: give --preprocess {"|".join(PREPROCESSINGS)}'
        )
    assert metadata.network is not None and metadata.n_class is not None
    if getattr(model, 'fixed_size', False) and wanted != metadata.preprocessing:
        other = make_network(metadata.network, metadata.n_class, wanted.crop)
        if [p.shape for p in other.params()] != [p.shape for p in model.params()]:
            raise trainer.InputError(f'{source} does not take images of {wanted.crop} px, as {wanted.name} makes them')
    names = metadata.classes or default_class_names(metadata.n_class)
    if classes is not None:
        names = read_class_list(classes).names
    if len(names) != metadata.n_class:
        raise trainer.InputError(f'--classes {classes} names {len(names)} classes, but {source} has {metadata.n_class}')
    return model, loaded.with_metadata(preprocessing=wanted, classes=tuple(names))


def default_class_names(n_class: int) -> tuple[str, ...]:
    """ImageNet's for 1,000 classes, else the numbers."""
    if n_class != 1000:
        return tuple(map(str, range(n_class)))
    return labels.first_names(labels.imagenet())


HELPS = {  # of settings that mean something else in training
    'seed': 'of which images are held out as the test, where the data have none',
    'unreadable': 'images that cannot be read: fail, or skip: leave them out',
}
COMPUTE = ('gpu', 'precision', 'engine', 'threads')  # settings shared with main.py


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Those that say what a weights file leaves open: --network, --preprocess, --classes."""
    group = parser.add_argument_group('the network')
    group.add_argument('--network', choices=list(NETWORKS), metavar='NAME', help='where the file does not name it')
    views = f'{", ".join(PREPROCESSINGS)} (default: what the file says)'
    group.add_argument('--preprocess', choices=list(PREPROCESSINGS), metavar='NAME', help=views)
    group.add_argument('--classes', type=Path, metavar='FILE', help='names of the classes, one a line')


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those that `from_flags` reads, except the weights file itself."""
    add_network_flags(parser)
    group = parser.add_argument_group('compute')
    group.add_argument('-b', '--batch', type=int, default=32, metavar='N', help='images at once (default: 32)')
    cli.add_settings(group, *COMPUTE, 'workers', helps=HELPS, unreadable='skip')


def from_flags(source: str, args: argparse.Namespace) -> Classifier:
    """The classifier that the flags ask for, with the weights in `source`."""
    config = cli.config_of(args, *COMPUTE, 'batch', 'workers')
    return Classifier.open(source, args.network, args.preprocess, args.classes, config, args.batch)


def load_data(args: argparse.Namespace, view: Preprocessing, needs_train: bool = True) -> Data | Stream:
    """The data set that --dataset, --data, --limit, --seed and --unreadable name, for a network that expects `view`.

    Args:
        needs_train: without, nothing but the test images has to be there.
    Raises:
        InputError: data that cannot be read.
    """
    return datasets.load(
        *(args.dataset or 'cifar10', args.data),
        limit=args.limit,
        max_side=Sizes.of(training_size(view)).side_max,  # as the training did, so that it scores the same pixels
        preprocess=view.name,
        seed=args.seed,
        unreadable=args.unreadable,
        needs_train=needs_train,
    )
