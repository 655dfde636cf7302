"""Between tensors and networks: which network tensors are of, and filling it so that each tensor has its place."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chainer
import numpy as np

from squeeze_net.networks import BASELINES, NETWORKS, make_network
from squeeze_net.weights.record import Weights
from trainer.data.metadata import MAX_CLASSES, Metadata
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
    network = metadata.network or _network_of(tensors)
    n_class = metadata.n_class
    if n_class is None and network in NETWORKS:
        sizes = {tensors[name].shape[0] for name in classifier_of(network) if name in tensors and tensors[name].ndim}
        if len(sizes) == 1 and 1 <= (size := sizes.pop()) <= MAX_CLASSES:
            n_class = size
    return weights.with_metadata(network=network, n_class=n_class)


def _network_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The first network with these names, and these shapes of convolutions, but for the classifier."""
    by_cost = sorted(NETWORKS, key=lambda name: name in BASELINES)  # which take a while to make
    return next((name for name in by_cost if _fits(tensors, name)), None)


def _fits(tensors: Mapping[str, np.ndarray], network: str) -> bool:
    shapes = shapes_of(network)
    if shapes.keys() != {name for name in tensors if name.rpartition('/')[2] != COUNT}:
        return False
    kept = [name for name, shape in shapes.items() if len(shape) == 4 and name not in classifier_of(network)]
    return all(tensors[name].shape == shapes[name] for name in kept)


def _differences(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, has no place, or has another shape than in a network of these shapes, a clause each."""
    odd = [name for name in sorted(shapes.keys() & tensors.keys()) if tensors[name].shape != shapes[name]]
    return [
        *(f'{name} is missing' for name in sorted(shapes.keys() - tensors.keys())),
        *(f'{name[:60]} has no place in the network' for name in sorted(tensors.keys() - shapes.keys())),
        *(f'{name} has the shape {tensors[name].shape}, the network {shapes[name]}' for name in odd),
    ]


def _first(differences: list[str]) -> str:
    more = f'; and {len(differences) - SHOWN} more' if len(differences) > SHOWN else ''
    return '; '.join(differences[:SHOWN]) + more


def misfit(tensors: Mapping[str, np.ndarray], network: str | None = None, flag: str = '--network') -> str | None:
    """Which network weights are of, if not of this one, or else which is the closest; None if there is none closer.

    Args:
        network: of `NETWORKS`, or None if nobody names one.
        flag: chooses the network.
    """
    if network is not None and _fits(tensors, network):
        return None
    if (own := _network_of(tensors)) is not None:
        return f'these are weights of {own}, not of {network}: give {flag} {own}'
    given = {name: tensor for name, tensor in tensors.items() if name.rpartition('/')[2] != COUNT}
    differences = {}
    for name in NETWORKS:
        # of any number of classes
        shapes = shapes_of(name) | {key: given[key].shape for key in classifier_of(name) & given.keys()}
        if shapes.keys() & given.keys():
            differences[name] = _differences(given, shapes)
    if not differences:
        names = ', '.join(name[:60] for name in sorted(given)[:SHOWN])
        return f'the weights are of no network here: none has tensors called {names}'
    closest = min(differences, key=lambda name: (len(differences[name]), name != network))
    if closest == network:
        return None
    return f'the weights are of no network here; the closest is {closest}, but {_first(differences[closest])}'


def check_fits(weights: Weights, network: str) -> None:
    """Raise an `InputError` if weights are of another network than --network says."""
    if (fault := misfit(weights.tensors, network)) is not None:
        raise InputError(fault)


def image_size(metadata: Metadata) -> int:
    """Of the images of a network, px: as noted down, or else the usual one for its number of classes."""
    if metadata.preprocessing is not None:
        return metadata.preprocessing.crop
    return IMAGENET_SIZE if metadata.n_class == 1000 else CIFAR_SIZE


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
        raise InputError(str(misfit(weights.tensors)))
    if metadata.n_class is None:
        lacking = f'the weights hold no classifier of {metadata.network}, which {purpose} needs'
        raise InputError(misfit(weights.tensors, metadata.network) or lacking)
    size = image_size(metadata)
    model = make_network(metadata.network, metadata.n_class, size)
    fill_network(model, metadata.network, weights.tensors, '--network')
    return model, size


def start_from(
    model: chainer.Chain, network: str, weights: Weights, reset_classifier: bool, flag: str = '--model'
) -> None:
    """Give a network the weights of another training.

    Args:
        model: of `NETWORKS[network]`, with any number of classes.
        weights: of the same network.
        reset_classifier: keep the model's own classifier.
        flag: chooses the network, for messages.
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
                    'give --finetune in place of --pretrained, for a fresh classifier and rates that suit it, '
                    'or add --reset-classifier'
                )
    fill_network(model, network, weights.tensors, flag, classifier if reset_classifier else frozenset())


def fill_network(
    model: chainer.Chain,
    network: str,
    tensors: dict[str, np.ndarray],
    flag: str = '--network',
    without: frozenset[str] = frozenset(),
) -> None:
    """`fill` a network of `NETWORKS[network]`; if that fails, the message names the network that the weights are of.

    Args:
        flag: chooses the network, for the message.
    """
    try:
        fill(model, tensors, without)
    except InputError as error:
        raise InputError(misfit(tensors, network, flag) or str(error)) from None


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
    faults = _differences(given, {name: place.shape for name, place in places.items()})
    faults += [f'{name} holds numbers that are not finite' for name in given if not np.isfinite(given[name]).all()]
    if faults:
        raise InputError(f'the weights do not fit the network: {_first(faults)}')
    for name, tensor in given.items():
        places[name][...] = tensor
    for path, link in model.namedlinks(skipself=True):
        count = counts.get(f'{path[1:]}/{COUNT}')
        if count is not None and count.size == 1 and COUNT in link._persistent:
            setattr(link, COUNT, int(count.reshape(())))
