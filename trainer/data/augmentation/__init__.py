"""What the network sees of an image: chance drawn as arrays, applied to a batch on its device.

`draw` (random numbers) -> `warp` (resize, crop, mirror, normalise) -> `views` (Chainer converters).
`python -m trainer.augmentation IMAGE_OR_DATASET` draws a sheet of it.
"""

from trainer.data.augmentation.draw import Draws, draw_test, draw_train, take
from trainer.data.augmentation.kernels import BICUBIC, BILINEAR, KERNEL_NAMES, NEAREST, resize_weights
from trainer.data.augmentation.sizes import Sizes, training_size
from trainer.data.augmentation.views import TestView, TrainView
from trainer.data.augmentation.warp import warp
from trainer.data.preprocessing import normalise

__all__ = [
    'BICUBIC',
    'BILINEAR',
    'KERNEL_NAMES',
    'NEAREST',
    'Draws',
    'Sizes',
    'TestView',
    'TrainView',
    'draw_test',
    'draw_train',
    'normalise',
    'resize_weights',
    'take',
    'training_size',
    'warp',
]
