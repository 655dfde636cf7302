"""Between tensors and networks: which network tensors are of, and filling it so that each tensor has its place."""

from __future__ import annotations

import functools
from typing import Any

import chainer
import numpy as np

from squeeze_net.networks import BASELINES, NETWORKS, make_network
from squeeze_net.weights.record import Weights
from trainer.data.metadata import MAX_CLASSES
from trainer.errors import InputError

SHOWN = 3  # faults in a message
IMAGENET_SIZE, CIFAR_SIZE = 227, 122  # px, where a file does not say
COUNT = 'N'  # of the batches that a running statistic has seen; not all formats hold it, and inference does not need it


def arrays_of(model: chainer.Chain) -> dict[str, Any]:
    """Parameters and running statistics by their paths, 'fire2/squeeze1x1/W'."""
    arrays = {path[1:]: parameter.array for path, parameter in model.namedparams()}
    for path, link in model.namedlinks(skipself=True):
        for name in sorted(link._persistent):  # a set, whose order differs from process to process
            if hasattr(value := getattr(link, name), 'dtype'):
                arrays[f'{path[1:]}/{name}'] = value
    return arrays


def tensors_of(model: chainer.Chain) -> dict[str, np.ndarray]:
    """A copy of them on the CPU, with the counts of batches."""
    host = chainer.get_device('@numpy')
    found = {name: np.array(host.send(array)) for name, array in arrays_of(model).items()}
    for path, link in model.namedlinks(skipself=True):
        if COUNT in link._persistent:
            found[f'{path[1:]}/{COUNT}'] = np.asarray(getattr(link, COUNT))
    return found


@functools.cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a network of `NETWORKS` with two classes."""
    return {name: array.shape for name, array in arrays_of(make_network(network, 2, CIFAR_SIZE)).items()}


@functools.cache
def classifier_of(network: str) -> frozenset[str]:
    """The tensors whose shape depends on the number of classes."""
    other = arrays_of(make_network(network, 3, CIFAR_SIZE))
    return frozenset(name for name, shape in shapes_of(network).items() if other[name].shape != shape)


def identify(weights: Weights) -> Weights:
    """The same with the network and the number of classes that names and shapes tell, where the file did not.

    Bypasses without weights do not show: such a network is taken for the one without.
    """
    metadata, tensors = weights.metadata, weights.tensors
    network = metadata.network
    if network is None:
        by_cost = sorted(NETWORKS, key=lambda name: name in BASELINES)  # which take a while to make
        network = next((name for name in by_cost if _fits(tensors, name)), None)
    n_class = metadata.n_class
    if n_class is None and network in NETWORKS:
        sizes = {tensors[name].shape[0] for name in classifier_of(network) if name in tensors and tensors[name].ndim}
        if len(sizes) == 1 and 1 <= (size := sizes.pop()) <= MAX_CLASSES:
            n_class = size
    return weights.with_metadata(network=network, n_class=n_class)


def _fits(tensors: dict[str, np.ndarray], network: str) -> bool:
    """Whether these are the names of a network, and the shapes of its convolutions, but for the classifier."""
    shapes = shapes_of(network)
    if shapes.keys() != {name for name in tensors if name.rpartition('/')[2] != COUNT}:
        return False
    kept = [name for name, shape in shapes.items() if len(shape) == 4 and name not in classifier_of(network)]
    return all(tensors[name].shape == shapes[name] for name in kept)


def build(weights: Weights, purpose: str) -> tuple[chainer.Chain, int]:
    """The network of the weights, filled with them, and the size of its images, px.

    Raises:
        InputError: it is not known, or the weights do not fit it.
    """
    metadata = weights.metadata
    if metadata.network is not None and metadata.network not in NETWORKS:
        raise InputError(
            f'the weights are of {metadata.network!r}, which is not among the networks of this project: use '
            'trainer.load_classifier(model, FILE), or add it to squeeze_net.NETWORKS (CONTRIBUTING.md, "A network")'
        )
    if metadata.network is None:
        names = ', '.join(NETWORKS)
        raise InputError(
            f'the weights do not tell their network, which {purpose} needs: give --network, one of {names}'
        )
    if metadata.n_class is None:
        raise InputError(f'the weights hold no classifier of {metadata.network}, which {purpose} needs')
    if metadata.preprocessing is not None:
        size = metadata.preprocessing.crop
    else:
        size = IMAGENET_SIZE if metadata.n_class == 1000 else CIFAR_SIZE
    model = make_network(metadata.network, metadata.n_class, size)
    fill(model, weights.tensors)
    return model, size


def start_from(model: chainer.Chain, network: str, weights: Weights, reset_classifier: bool) -> None:
    """Give a network the weights of another training.

    Args:
        model: of `NETWORKS[network]`, with any number of classes.
        weights: of the same network.
        reset_classifier: keep the model's own classifier.
    Raises:
        InputError: they do not fit; says so of the classifier, which may be left out.
    """
    classifier = classifier_of(network)
    arrays = arrays_of(model)
    if not reset_classifier:
        for name in sorted(classifier & weights.tensors.keys()):
            given, expected = weights.tensors[name].shape, arrays[name].shape
            if given != expected and given[1:] == expected[1:]:
                raise InputError(
                    f'the weights are of {given[0]} classes, the data of {expected[0]}: '
                    'begin with a fresh classifier by --reset-classifier'
                )
    fill(model, weights.tensors, classifier if reset_classifier else frozenset())


def fill(model: chainer.Chain, tensors: dict[str, np.ndarray], without: frozenset[str] = frozenset()) -> None:
    """Put every tensor into the parameter or statistic of its name.

    Args:
        model: keeps what it has of `without`.
        tensors: by path; float32 is what they become.
        without: names of tensors to leave out, whatever their shape.
    Raises:
        InputError: a tensor that is missing, has no place, has another shape, or is not finite; names up to three.
            Then the model is as it was.
    """
    places = {name: array for name, array in arrays_of(model).items() if name not in without}
    given = {name: tensor for name, tensor in tensors.items() if name not in without}
    counts = {name: given.pop(name) for name in list(given) if name.rpartition('/')[2] == COUNT}
    faults = [f'{name} is missing' for name in sorted(places.keys() - given.keys())]
    faults += [f'{name} has no place in the network' for name in sorted(given.keys() - places.keys())]
    for name in sorted(places.keys() & given.keys()):
        if given[name].shape != places[name].shape:
            faults.append(f'{name} has the shape {given[name].shape}, the network {places[name].shape}')
        elif not np.isfinite(given[name]).all():
            faults.append(f'{name} holds numbers that are not finite')
    if faults:
        more = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
        raise InputError(f'the weights do not fit the network: {"; ".join(faults[:SHOWN])}{more}')
    for name, tensor in given.items():
        places[name][...] = places[name].dtype.type(0) if tensor.size == 0 else tensor
    for path, link in model.namedlinks(skipself=True):
        count = counts.get(f'{path[1:]}/{COUNT}')
        if count is not None and count.size == 1 and COUNT in link._persistent:
            setattr(link, COUNT, int(count.reshape(())))
