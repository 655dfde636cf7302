"""Tensors under any names to a network's own: by the kinds, order and shapes of the layers.

The convolutions of a published network differ in shape, but for the expansions of two Fires that follow one another. So
the order of the layers, which numbers in names or a graph tell, is enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from squeeze_net.networks import BYPASSES, NETWORKS
from squeeze_net.weights.formats.layer_names import CONVOLUTIONS
from squeeze_net.weights.network import classifier_of, shapes_of
from squeeze_net.weights.record import Weights
from trainer.data.metadata import Metadata
from trainer.errors import InputError

Layer = dict[str, np.ndarray]  # kind -> tensor: W and perhaps b; or gamma, beta, avg_mean and avg_var

# Other people's networks are compared with these; `squeezenet` and `vgg_bn` are this project's own.
PUBLISHED = (*(name for name in NETWORKS if name.startswith('squeezenet_v')), 'alexnet')
N_ADD = dict(zip(BYPASSES, (0, 4, 8), strict=True))  # additions of maps in a network

_KINDS = {
    'W': 'weight weights kernel W gamma',
    'b': 'bias biases offset b beta',
    'avg_mean': 'avg_mean running_mean moving_mean mean',
    'avg_var': 'avg_var running_var moving_var moving_variance variance',
    'N': 'num_batches_tracked',
}
_KIND = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_NAME = re.compile(rf'(?:arg:|aux:)?(.*?)[./_]+({"|".join(_KIND)})(?::0)?', re.DOTALL)


def read_named(tensors: Mapping[str, np.ndarray]) -> Weights:
    """Tensors of a file, by the names of its framework, as `Weights`; under their own names if no network fits.

    Args:
        tensors: W (out, in, kh, kw) or (out, in); those that are not floating-point numbers are left out.
    Raises:
        InputError: there is none.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == 'f'}
    if not tensors:
        raise InputError('it holds no weights')
    layers = _layers_by_name(tensors)
    return (layers and match(layers)) or Weights(tensors)


def _layers_by_name(tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    """Layers in the order of the numbers in their names; none if there is a tensor of another kind."""
    layers: dict[str, Layer] = {}
    for name, tensor in tensors.items():
        parsed = _NAME.fullmatch(name[:1000])
        if parsed is not None:
            layers.setdefault(parsed[1], {})[_KIND[parsed[2]]] = tensor
        elif tensor.size > 1:  # a learning rate and the like are left out
            return []
    for layer in layers.values():
        if 'avg_mean' in layer:
            for old, new in ('W', 'gamma'), ('b', 'beta'):
                if old in layer:
                    layer[new] = layer.pop(old)
    ordered = sorted(layers, key=_natural)
    norms = [[name for name in names if 'avg_mean' in layers[name]] for names in (layers, ordered)]
    if norms[0] != norms[1]:
        return []  # many of them have one shape, and their order is not clear
    return [layers[name] for name in ordered]


def _natural(name: str) -> list[str | int]:
    """A key that sorts fire10 after fire9."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'([0-9]{1,9})', name))]


def match(layers: Sequence[Layer], n_add: int | None = None) -> Weights | None:
    """The weights of the published network that has these layers, if there is one.

    Args:
        layers: all of the network's, in any order in which the two Fires of one shape are in theirs; with `n_add`, in
            the order of computation, which is then checked.
        n_add: how often the network adds two maps; None if that is not known.
    """
    for network in PUBLISHED:
        if n_add is None or N_ADD[getattr(NETWORKS[network], 'bypass', 'none')] == n_add:
            tensors = _fit(layers, network, n_add is not None)
            if tensors is not None:
                return Weights(tensors, Metadata(network=network))
    return None


def _fit(layers: Sequence[Layer], network: str, in_order: bool) -> dict[str, np.ndarray] | None:
    """The tensors by the names of a network; None if layers are missing, left over, or of other shapes."""
    places: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes_of(network).items():
        path, _, kind = name.rpartition('/')
        places.setdefault(path, {})[kind] = shape
    free = {name.rpartition('/')[0] for name in classifier_of(network)}  # in their number of outputs
    linear = [path for path, shapes in places.items() if len(shapes.get('W', ())) == 2]
    pools: dict[tuple[str, tuple[int, ...]], list[int]] = {}  # kind and shape -> the layers that have it
    for i, layer in enumerate(layers):
        pools.setdefault(_key({kind: tensor.shape for kind, tensor in layer.items()}), []).append(i)
    chosen: dict[str, int] = {}
    taken = set()
    for path in sorted(places.keys() - free - set(linear), key=_natural):
        taken.add(key := _key(places[path]))
        if not pools.get(key):
            return None
        chosen[path] = pools[key].pop(0)
    rest = sorted(i for pool in pools.values() for i in pool)
    last = sorted(free | set(linear), key=_natural)
    if len(rest) != len(last) or (not in_order and any(pools[key] for key in taken)):
        return None
    chosen |= zip(last, rest, strict=True)
    order = [chosen[path] for path in CONVOLUTIONS if path in chosen]
    if in_order and order != sorted(order):
        return None
    tensors: dict[str, np.ndarray] = {}
    for path, i in chosen.items():
        tensor = layers[i].get('W')
        if tensor is not None and path in linear:
            tensor = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor
        given = layers[i] if tensor is None else {**layers[i], 'W': tensor}
        if path in last and not _is_alike(given, places[path]['W'], path in free, path == next(iter(linear), None)):
            return None
        if (filled := _filled(given, places[path])) is None:
            return None
        tensors |= {f'{path}/{kind}': tensor for kind, tensor in filled.items()}
    return tensors


def _key(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    return ('W', shapes['W']) if 'W' in shapes else ('gamma', shapes.get('avg_mean', ()))


def _is_alike(layer: Layer, expected: tuple[int, ...], any_outputs: bool, any_inputs: bool) -> bool:
    given = layer['W'].shape if 'W' in layer else ()
    if len(given) != len(expected):
        return False
    return (any_outputs or given[0] == expected[0]) and (any_inputs or given[1:] == expected[1:])


def _filled(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
    """The tensors of a layer as float32, with zeros for biases and ones for scales that it does not have."""
    n_out = len(layer['W']) if 'W' in layer else layer['avg_mean'].size if 'avg_mean' in layer else 0
    found = {}
    for kind in shapes:
        if kind in layer:
            with np.errstate(over='ignore'):  # `fill` refuses what is not finite
                tensor = layer[kind].astype(np.float32)
        elif kind in ('b', 'beta', 'gamma'):
            tensor = np.full(n_out, float(kind == 'gamma'), np.float32)
        else:
            return None
        if kind != 'W':
            if tensor.size != n_out:
                return None
            tensor = tensor.reshape(-1)
        found[kind] = tensor
    return found if layer.keys() <= {*shapes, 'N'} else None
