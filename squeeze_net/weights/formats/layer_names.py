"""What published files call the layers of the published networks, and how they are told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from squeeze_net.weights.record import Weights
from trainer.data.metadata import Metadata

FIRES = tuple(f'fire{n}' for n in range(2, 10))
CONVOLUTIONS = (
    'conv1',
    *(f'{fire}/{part}' for fire in FIRES for part in ('squeeze1x1', 'expand1x1', 'expand3x3')),
    'conv10',
)

# The prototxt of the deep-compressed v1.0.
_DEEP_COMPRESSION = {'conv1x1_1': 'squeeze1x1', 'conv1x1_2': 'expand1x1', 'conv3x3_2': 'expand3x3'}

# torchvision numbers the modules of `features`, pools included, and so the versions differ.
_TORCHVISION_FIRES = {
    'squeezenet_v1.0': (3, 4, 5, 7, 8, 9, 10, 12),
    'squeezenet_v1.1': (3, 4, 6, 7, 9, 10, 11, 12),
}
TORCH_KINDS = {
    'weight': 'W',
    'bias': 'b',
    'running_mean': 'avg_mean',
    'running_var': 'avg_var',
    'num_batches_tracked': 'N',
}


def from_caffe(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The project's names of a Caffe model's blobs; what is not known keeps its own."""
    return {_from_caffe(name): tensor for name, tensor in tensors.items()}


def _from_caffe(name: str) -> str:
    layer, _, kind = name.rpartition('/')
    parts = layer.split('/')
    parts[-1] = _DEEP_COMPRESSION.get(parts[-1], parts[-1])
    if parts == ['conv_final']:
        parts = ['conv10']
    return '/'.join([*parts, kind])


def unwrapped(tensors: Mapping[str, np.ndarray], dot: str) -> dict[str, np.ndarray]:
    """The tensors without the names of what wraps their network: 'module.', '_orig_mod.', 'predictor/', 'net.', ...

    A first word that all names share is a wrapper, unless it is a layer of a network here; PyTorch's two wrappers may
    also stand further inside.

    Args:
        dot: what stands between words.
    """
    paths = {name: [word for word in name.split(dot) if word not in ('module', '_orig_mod')] for name in tensors}
    while len({path[0] if path else '' for path in paths.values()}) == 1:
        if min(map(len, paths.values())) < 3 or next(iter(paths.values()))[0] in ('features', *CONVOLUTIONS, *FIRES):
            break
        paths = {name: path[1:] for name, path in paths.items()}
    renamed = {dot.join(paths[name]): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) and all(renamed) else dict(tensors)


def is_torch(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the keys of a PyTorch state dict."""
    return bool(tensors) and all(name.rpartition('.')[2] in TORCH_KINDS for name in tensors)


def torchvision_network(tensors: Mapping[str, np.ndarray]) -> str | None:
    """'squeezenet_v1.0' or 'squeezenet_v1.1' if these are the keys of torchvision's, else None."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(r'features\.(\d{1,2})\.squeeze\.', name))}
    for network, fires in _TORCHVISION_FIRES.items():
        if numbers == set(fires):
            return network
    return None


def read_torch(tensors: Mapping[str, np.ndarray], text: str | None = None) -> Weights:
    """Tensors by the keys of a state dict, or by the project's own names, as `Weights`.

    Args:
        text: the metadata as the file holds them; without them, the names tell torchvision's networks.
    """
    if text is None and is_torch(tensors):
        tensors = unwrapped(tensors, '.')
    metadata = Metadata(network=torchvision_network(tensors)) if text is None else Metadata.loads(text)
    return Weights(from_torch(tensors) if is_torch(tensors) else dict(tensors), metadata)


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The project's names of a state dict: torchvision's SqueezeNets, or the project's own layers with dots."""
    network = torchvision_network(tensors)
    fires = dict(zip(map(str, _TORCHVISION_FIRES.get(network or '', ())), FIRES, strict=False))
    means = {name.rpartition('.')[0] for name in tensors if name.endswith('.running_mean')}
    renamed = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition('.')
        parts = path.split('.')
        if network is not None:
            if parts == ['features', '0']:
                parts = ['conv1']
            elif parts == ['classifier', '1']:
                parts = ['conv10']
            elif parts[0] == 'features' and len(parts) == 3 and parts[1] in fires:
                parts = [fires[parts[1]], 'squeeze1x1' if parts[2] == 'squeeze' else parts[2]]
        own = TORCH_KINDS.get(kind, kind)
        if path in means:
            own = {'W': 'gamma', 'b': 'beta'}.get(own, own)
        renamed['/'.join([*parts, own])] = tensor
    return renamed


def to_torch(name: str) -> str:
    """The key of a state dict for a tensor: the project's layers with dots, PyTorch's kinds."""
    kinds = {own: kind for kind, own in TORCH_KINDS.items()} | {'gamma': 'weight', 'beta': 'bias'}
    *path, kind = name.split('/')
    return '.'.join([*path, kinds.get(kind, kind)])
