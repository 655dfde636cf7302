"""SqueezeNet: v1.0 and v1.1 as published, with bypasses if asked; and pre-activation, the experiment's own."""

from __future__ import annotations

from typing import Any

import chainer
from chainer.utils.conv import get_conv_outsize

import trainer.functions as F
import trainer.links as L
from squeeze_net.networks.finetuning import RECIPE
from squeeze_net.networks.fire import Fire, PreActivationFire

BYPASSES = ('none', 'simple', 'complex')


class SqueezeNet(chainer.Chain):
    """The experiment's network; 747,146 parameters at 10 classes.

    | layer | in, squeeze, expand1x1, expand3x3 | output at 122 px |
    | --- | --- | --- |
    | conv1 7x7/2 pad 2, neither BN nor ReLU after it | 3 -> 96 | 96 x 60 x 60 |
    | max pool 3x3/2 pad 1, ceil mode | | 96 x 31 x 31 |
    | fire2, fire3 + bypass | (96, 16, 64, 64), (128, 16, 64, 64) | 128 x 31 x 31 |
    | fire4 | (128, 32, 128, 128) | 256 x 31 x 31 |
    | max pool | | 256 x 16 x 16 |
    | fire5 + bypass, fire6, fire7 + bypass | (256, 32, 128, 128) ... (384, 48, 192, 192) | 384 x 16 x 16 |
    | fire8 | (384, 64, 256, 256) | 512 x 16 x 16 |
    | max pool | | 512 x 9 x 9 |
    | fire9 + bypass, dropout | (512, 64, 256, 256) | 512 x 9 x 9 |
    | BN-ReLU-conv10 1x1, global average | 512 -> n_class | n_class |

    Args:
        n_class: number of classes.
        size: height and width of the training images, px; any other size from 3 px on can be fed, too.
        dropout: ratio of the dropout after fire9.

    x: (N, 3, H, W) RGB, each image normalised to mean 0 and deviation 1; returns logits (N, n_class).

    Source: Iandola et al., "SqueezeNet" (2016), table 1 (v1.0) and section 6 (simple bypass).
    """

    recipe: dict[str, Any] = {}  # the trainer's defaults are made for it
    finetuning: dict[str, Any] = RECIPE | {'lr': 0.01, 'freeze': 'conv1,fire[2-5]'}
    fixed_size = False

    def __init__(self, n_class: int = 10, size: int = 122, dropout: float = 0.5) -> None:
        if size < 3:
            raise ValueError(f'images of {size} px leave no map: SqueezeNet needs 3 px or more')
        super().__init__()
        self.dropout = dropout
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 96, 7, stride=2, pad=2, initialW=chainer.initializers.HeNormal())
            self.fire2 = PreActivationFire(96, 16, 64, 64)
            self.fire3 = PreActivationFire(128, 16, 64, 64, bypass=True)
            self.fire4 = PreActivationFire(128, 32, 128, 128)
            self.fire5 = PreActivationFire(256, 32, 128, 128, bypass=True)
            self.fire6 = PreActivationFire(256, 48, 192, 192)
            self.fire7 = PreActivationFire(384, 48, 192, 192, bypass=True)
            self.fire8 = PreActivationFire(384, 64, 256, 256)
            self.fire9 = PreActivationFire(512, 64, 256, 256, bypass=True)
            self.conv10 = L.BNReLUConv(512, n_class, ksize=1)

    def forward(self, x: Any) -> chainer.Variable:
        h = max_pool(self.conv1(x))
        h = self.fire4(self.fire3(self.fire2(h)))
        h = max_pool(h)
        h = self.fire8(self.fire7(self.fire6(self.fire5(h))))
        h = max_pool(h)
        h = F.dropout(self.fire9(h), self.dropout)
        return F.mean(self.conv10(h), axis=(2, 3))


def max_pool(x: Any) -> chainer.Variable:
    """3x3/2 with padding 1, in ceil mode."""
    return F.max_pooling_2d(x, 3, stride=2, pad=1, cover_all=True)


class PublishedSqueezeNet(chainer.Chain):
    """What v1.0 and v1.1 have in common: the Fires, the classifier, and how they are initialised.

    A version is its table: the stem and which layers a max pool 3x3/2 (ceil mode) follows.

    Args:
        n_class: number of classes.
        size: height and width of the training images, px; any other size that leaves a map can be fed, too.
        dropout: ratio of the dropout before conv10.
        bypass: 'simple' adds the inputs of fire3, 5, 7 and 9 to their outputs, 'complex' also those of the other Fires,
            through 1x1 convolutions; 'none' by default, or what the class says.
        batch_norm: normalise between each convolution but conv10 and its ReLU.

    x: (N, 3, H, W), BGR, 0..255 minus (104, 117, 123) for the published weights; returns logits (N, n_class).
    """

    recipe: dict[str, Any] = {'lr': 0.04, 'weight_decay': 2e-4}  # the solver published with v1.0
    finetuning: dict[str, Any] = RECIPE | {
        'lr': 0.0003,  # for pixels of 0..255, without normalisation: 0.01 diverges
        'lr_multiplier': 'conv10=3',
        'freeze': 'conv1[!0]*,fire[2-5]',  # also conv1_bn, but not conv10
    }
    fixed_size = False
    stem: tuple[int, int]  # channels and kernel of conv1, stride 2
    pooled: tuple[str, ...]
    conv10_pad: int
    bypass = 'none'
    batch_norm = False

    # in, squeeze, expand1x1, expand3x3; the first after the stem
    fires = {
        'fire2': (16, 64, 64),
        'fire3': (16, 64, 64),
        'fire4': (32, 128, 128),
        'fire5': (32, 128, 128),
        'fire6': (48, 192, 192),
        'fire7': (48, 192, 192),
        'fire8': (64, 256, 256),
        'fire9': (64, 256, 256),
    }

    def __init__(
        self,
        n_class: int = 1000,
        size: int = 227,
        dropout: float = 0.5,
        bypass: str | None = None,
        batch_norm: bool | None = None,
    ) -> None:
        bypass = self.bypass if bypass is None else bypass
        if bypass not in BYPASSES:
            raise ValueError(f'bypass is {bypass!r}, but must be one of {", ".join(BYPASSES)}')
        if size < self.smallest_size():
            raise ValueError(
                f'images of {size} px leave no map: {type(self).__name__} needs {self.smallest_size()} px or more'
            )
        super().__init__()
        self.dropout = dropout
        self.has_norm = self.batch_norm if batch_norm is None else batch_norm
        channels, ksize = self.stem
        xavier = chainer.initializers.LeCunUniform()
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, channels, ksize, stride=2, initialW=xavier)
            if self.has_norm:
                self.conv1_bn = L.BatchNormalization(channels)
            for name, (squeeze, expand1x1, expand3x3) in self.fires.items():
                is_alike = channels == expand1x1 + expand3x3
                kind = 'simple' if is_alike and bypass != 'none' else 'complex' if bypass == 'complex' else 'none'
                setattr(self, name, Fire(channels, squeeze, expand1x1, expand3x3, kind, self.has_norm))
                channels = expand1x1 + expand3x3
            gaussian = chainer.initializers.Normal(0.01)
            self.conv10 = L.Convolution2D(channels, n_class, 1, pad=self.conv10_pad, initialW=gaussian)

    @classmethod
    def smallest_size(cls) -> int:
        """Of images that leave a map after every layer, px."""

        def leaves_a_map(size: int) -> bool:
            size = get_conv_outsize(size, cls.stem[1], 2, 0)
            for _ in cls.pooled:
                size = get_conv_outsize(size, 3, 2, 0, cover_all=True) if size > 0 else 0
            return size > 0

        return next(size for size in range(1, 227) if leaves_a_map(size))

    def forward(self, x: Any) -> chainer.Variable:
        h = self.conv1(x)
        h = self.conv1_bn(h, relu=True) if self.has_norm else F.relu(h)
        h = self._pool('conv1', h)
        for name in self.fires:
            h = self._pool(name, self[name](h))
        h = F.relu(self.conv10(F.dropout(h, self.dropout)))
        return F.mean(h, axis=(2, 3))

    def _pool(self, name: str, h: Any) -> Any:
        return F.max_pooling_2d(h, 3, stride=2, cover_all=True) if name in self.pooled else h


class SqueezeNetV10(PublishedSqueezeNet):
    """SqueezeNet v1.0; 1,248,424 parameters at 1,000 classes, 861.3 million multiplications at 227 px.

    | layer | s1x1, e1x1, e3x3 | output at 227 px |
    | --- | --- | --- |
    | conv1 7x7/2, ReLU | | 96 x 111 x 111 |
    | max pool 3x3/2 | | 96 x 55 x 55 |
    | fire2, fire3 | 16, 64, 64 | 128 x 55 x 55 |
    | fire4 | 32, 128, 128 | 256 x 55 x 55 |
    | max pool 3x3/2 | | 256 x 27 x 27 |
    | fire5 | 32, 128, 128 | 256 x 27 x 27 |
    | fire6, fire7 | 48, 192, 192 | 384 x 27 x 27 |
    | fire8 | 64, 256, 256 | 512 x 27 x 27 |
    | max pool 3x3/2 | | 512 x 13 x 13 |
    | fire9, dropout 0.5 | 64, 256, 256 | 512 x 13 x 13 |
    | conv10 1x1 pad 1, ReLU | | n_class x 15 x 15 |
    | global average pool | | n_class |

    Source: Iandola et al., "SqueezeNet" (2016), table 1; the padding of conv10 is that of the published model.
    """

    stem = 96, 7
    pooled = 'conv1', 'fire4', 'fire8'
    conv10_pad = 1


class SqueezeNetV11(PublishedSqueezeNet):
    """SqueezeNet v1.1; 1,235,496 parameters at 1,000 classes, 387.7 million multiplications at 227 px.

    | layer | s1x1, e1x1, e3x3 | output at 227 px |
    | --- | --- | --- |
    | conv1 3x3/2, ReLU | | 64 x 113 x 113 |
    | max pool 3x3/2 | | 64 x 56 x 56 |
    | fire2, fire3 | 16, 64, 64 | 128 x 56 x 56 |
    | max pool 3x3/2 | | 128 x 28 x 28 |
    | fire4, fire5 | 32, 128, 128 | 256 x 28 x 28 |
    | max pool 3x3/2 | | 256 x 14 x 14 |
    | fire6, fire7 | 48, 192, 192 | 384 x 14 x 14 |
    | fire8, fire9, dropout 0.5 | 64, 256, 256 | 512 x 14 x 14 |
    | conv10 1x1, ReLU | | n_class x 14 x 14 |
    | global average pool | | n_class |

    Source: the authors' model repository, "SqueezeNet v1.1" (2016). It says 2.4x less computation than v1.0; these
    counts make it 2.2x.
    """

    stem = 64, 3
    pooled = 'conv1', 'fire3', 'fire5'
    conv10_pad = 0
