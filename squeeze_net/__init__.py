"""The SqueezeNet family, its weights, compression and design space, on the trainer of `trainer/`."""

import trainer  # noqa: F401  (before Chainer is imported: it makes Chainer run on today's NumPy)
from squeeze_net.networks import (
    BASELINES,
    BYPASSES,
    NETWORKS,
    VGGBN,
    Airbench94,
    AlexNet,
    Fire,
    PreActivationFire,
    SqueezeNet,
    SqueezeNetV10,
    SqueezeNetV11,
    make_network,
)

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
