"""The networks, by the names that `main.py --model` knows them by.

A network is a `chainer.Chain` built as `Network(n_class, size, dropout)`, the last two if it has them, with three
class attributes, if needed: `recipe`, the flags it trains well with where the trainer's defaults do not suit it,
`finetuning`, the same for `--finetune`, and `fixed_size`, True if it takes only images of `size`.
"""

import inspect

import chainer
import numpy as np

from squeeze_net.networks.airbench import Airbench94
from squeeze_net.networks.alexnet import AlexNet
from squeeze_net.networks.fire import Fire, PreActivationFire
from squeeze_net.networks.squeezenet import BYPASSES, SqueezeNet, SqueezeNetV10, SqueezeNetV11
from squeeze_net.networks.vgg import VGGBN
from trainer.errors import InputError


def _variants(name: str, network: type) -> dict[str, type]:
    """The published network, then with bypasses, each also with batch normalisation."""
    found = {}
    for bypass in BYPASSES:
        for batch_norm in (False, True):
            suffix = (f'_{bypass}' if bypass != 'none' else '') + ('_bn' if batch_norm else '')
            options = {'bypass': bypass, 'batch_norm': batch_norm, '__doc__': network.__doc__}
            found[name + suffix] = type(network.__name__, (network,), options) if suffix else network
    return found


NETWORKS = {
    'squeezenet': SqueezeNet,
    'alexnet': AlexNet,
    'vgg_bn': VGGBN,
    'airbench94': Airbench94,
    **_variants('squeezenet_v1.0', SqueezeNetV10),
    **_variants('squeezenet_v1.1', SqueezeNetV11),
}


def make_network(name: str, n_class: int, size: int, dropout: float | None = None) -> chainer.Chain:
    """A network by its name in `NETWORKS`, with all of its parameters: one image is computed for shapes left open.

    Args:
        n_class: number of classes.
        size: of the training images, px.
        dropout: 0..1; None for the network's own.
    Raises:
        InputError: the size leaves no map.
    """
    taken = inspect.signature(NETWORKS[name]).parameters
    if dropout is not None and 'dropout' not in taken:
        raise InputError(f'--dropout {dropout}: {name} has no dropout')
    options = {'size': size, 'dropout': dropout}
    given = {option: value for option, value in options.items() if option in taken and value is not None}
    try:
        model = NETWORKS[name](n_class, **given)
        if any(parameter.array is None for parameter in model.params()):
            with chainer.using_config('train', False), chainer.no_backprop_mode():
                model(np.zeros((1, 3, size, size), chainer.config.dtype))
    except ValueError as error:
        raise InputError(f'{name}, --size {size}: {error}') from None
    return model


BASELINES = ('alexnet', 'vgg_bn')  # what the plots draw dashed beside the others

__all__ = [
    'BASELINES',
    'BYPASSES',
    'NETWORKS',
    'VGGBN',
    'Airbench94',
    'AlexNet',
    'Fire',
    'PreActivationFire',
    'SqueezeNet',
    'SqueezeNetV10',
    'SqueezeNetV11',
    'make_network',
]
