"""The Fire module: squeeze with 1x1 convolutions, then expand with 1x1 and 3x3 ones side by side."""

from __future__ import annotations

from typing import Any

import chainer

import trainer.functions as F
import trainer.links as L


class Fire(chainer.Chain):
    """A Fire as published, with ReLU after each convolution, and with a bypass if asked.

    s = relu(conv1x1(x));  y = concat(relu(conv1x1(s)), relu(conv3x3(s)));  y + x, or y + conv1x1(x), with a bypass

    Args:
        in_channels: channels of x.
        squeeze: channels of s (s1x1 in the paper).
        expand1x1, expand3x3: channels of the two halves of y (e1x1, e3x3).
        bypass: what to add to y: x ('simple'; in_channels must be expand1x1 + expand3x3), a 1x1 convolution of it
            ('complex'), or nothing ('none').
        batch_norm: normalise between each convolution and its ReLU.

    x: (N, in_channels, H, W); y: (N, expand1x1 + expand3x3, H, W).

    Source: Iandola et al., "SqueezeNet" (2016), sections 3.2 and 6. Xavier initialisation as in the published Caffe
    models: uniform, of variance 1 / (in * kh * kw); biases 0.
    """

    def __init__(
        self,
        in_channels: int,
        squeeze: int,
        expand1x1: int,
        expand3x3: int,
        bypass: str = 'none',
        batch_norm: bool = False,
    ) -> None:
        out_channels = expand1x1 + expand3x3
        if bypass == 'simple' and in_channels != out_channels:
            raise ValueError(f'a bypass adds {in_channels} channels to {expand1x1} + {expand3x3}: they must be equal')
        super().__init__()
        self.bypass, self.batch_norm = bypass, batch_norm
        xavier = chainer.initializers.LeCunUniform()
        with self.init_scope():
            self.squeeze1x1 = L.Convolution2D(in_channels, squeeze, 1, initialW=xavier)
            self.expand1x1 = L.Convolution2D(squeeze, expand1x1, 1, initialW=xavier)
            self.expand3x3 = L.Convolution2D(squeeze, expand3x3, 3, pad=1, initialW=xavier)
            if batch_norm:
                self.squeeze1x1_bn = L.BatchNormalization(squeeze)
                self.expand1x1_bn = L.BatchNormalization(expand1x1)
                self.expand3x3_bn = L.BatchNormalization(expand3x3)
            if bypass == 'complex':
                self.bypass1x1 = L.Convolution2D(in_channels, out_channels, 1, initialW=xavier)

    def forward(self, x: Any) -> Any:
        s = self._activate('squeeze1x1', x)
        y = F.side_by_side([self._activate('expand1x1', s), self._activate('expand3x3', s)])
        if self.bypass == 'complex':
            return self.bypass1x1(x, add=y)
        return F.add(y, x) if self.bypass == 'simple' else y

    def _activate(self, name: str, x: Any) -> chainer.Variable:
        y = self[name](x)
        return self[f'{name}_bn'](y, relu=True) if self.batch_norm else F.relu(y)


class PreActivationFire(chainer.Chain):
    """A Fire of three BN-ReLU-Conv layers, with a simple bypass if asked.

    s = conv1x1(relu(bn(x)));  y = concat(conv1x1(relu(bn(s))), conv3x3(relu(bn(s))));  with bypass y + x

    Args:
        in_channels: channels of x.
        squeeze: channels of s (s1x1 in the paper).
        expand1x1, expand3x3: channels of the two halves of y (e1x1, e3x3).
        bypass: add x to y; in_channels must be expand1x1 + expand3x3.

    x: (N, in_channels, H, W); y: (N, expand1x1 + expand3x3, H, W). Each half of the bypass is added by the convolution
    that writes that half of y, and where the engine serves, the halves stay apart (`trainer.functions.SideBySide`).

    Source: Iandola et al., "SqueezeNet" (2016), sections 3.2 and 6, whose Fire puts ReLU after the convolutions and has
    no batch normalisation; the order BN-ReLU-Conv is that of He et al., "Identity mappings" (2016).
    """

    def __init__(self, in_channels: int, squeeze: int, expand1x1: int, expand3x3: int, bypass: bool = False) -> None:
        if bypass and in_channels != expand1x1 + expand3x3:
            raise ValueError(f'a bypass adds {in_channels} channels to {expand1x1} + {expand3x3}: they must be equal')
        super().__init__()
        self.bypass, self.halves = bypass, (expand1x1, expand3x3)
        with self.init_scope():
            self.squeeze1x1 = L.BNReLUConv(in_channels, squeeze, ksize=1)
            self.expand1x1 = L.BNReLUConv(squeeze, expand1x1, ksize=1)
            self.expand3x3 = L.BNReLUConv(squeeze, expand3x3, ksize=3, pad=1)

    def forward(self, x: Any) -> Any:
        s = self.squeeze1x1(x)
        x1, x3 = F.split(x, self.halves) if self.bypass else (None, None)
        return F.side_by_side([self.expand1x1(s, add=x1), self.expand3x3(s, add=x3)])
