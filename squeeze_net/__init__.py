"""The networks, by the names that `main.py --model` knows them by.

A network is a `chainer.Chain` built as `Network(n_class, size, dropout)`, with two class attributes: `recipe`, the
flags it trains well with where the trainer's defaults do not suit it, and `fixed_size`, True if it takes only images
of `size`.
"""

import trainer  # noqa: F401  (before Chainer is imported: it makes Chainer run on today's NumPy)
from squeeze_net.alexnet import AlexNet
from squeeze_net.fire import PreActivationFire
from squeeze_net.squeezenet import SqueezeNet
from squeeze_net.vgg import VGGBN

NETWORKS = {
    'squeezenet': SqueezeNet,
    'alexnet': AlexNet,
    'vgg_bn': VGGBN,
}
BASELINES = ('alexnet', 'vgg_bn')  # what the plots draw dashed beside the others

__all__ = ['BASELINES', 'NETWORKS', 'VGGBN', 'AlexNet', 'PreActivationFire', 'SqueezeNet']
