"""The net of a `.caffemodel` as Caffe's text: the published SqueezeNets, with bypasses if they have some."""

from __future__ import annotations

from typing import Any

import chainer

from squeeze_net.networks.squeezenet import PublishedSqueezeNet
from squeeze_net.weights.file import Weights
from trainer.errors import InputError


def write(model: chainer.Chain, weights: Weights, size: int) -> str:
    """The deploy net: input `data`, output `prob`, layers by the names of the published models.

    Args:
        model: a published SqueezeNet without batch normalisation.
        weights: whose network the text names.
        size: of the images, px.
    Raises:
        InputError: another network.
    """
    if not isinstance(model, PublishedSqueezeNet) or model.has_norm:
        raise InputError(
            f'a .caffemodel is written of the published SqueezeNets, not of {weights.metadata.network}: use .onnx'
        )
    net = _Net()
    net.lines += [f'name: "{weights.metadata.network}"']
    net.add('data', 'Input', [], 'data', f'input_param {{ shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }} }}')
    h = net.pool(model, 'conv1', net.convolution('conv1', model.conv1, 'data'), number='1')
    for name in model.fires:
        fire, x = model[name], h
        s = net.convolution(f'{name}/squeeze1x1', fire.squeeze1x1, x)
        halves = [net.convolution(f'{name}/{part}', fire[part], s) for part in ('expand1x1', 'expand3x3')]
        h = net.add(f'{name}/concat', 'Concat', halves)
        if fire.bypass == 'complex':
            x = net.convolution(f'{name}/bypass1x1', fire.bypass1x1, x, relu=False)
        if fire.bypass != 'none':
            h = net.add(f'{name}/bypass', 'Eltwise', [h, x], parameters='eltwise_param { operation: SUM }')
        h = net.pool(model, name, h, number=name.removeprefix('fire'))
    h = net.add('drop9', 'Dropout', [h], h, f'dropout_param {{ dropout_ratio: {model.dropout} }}')
    h = net.convolution('conv10', model.conv10, h)
    h = net.add('pool10', 'Pooling', [h], parameters='pooling_param { pool: AVE global_pooling: true }')
    net.add('prob', 'Softmax', [h])
    return '\n'.join(net.lines) + '\n'


class _Net:
    """Layers as text; each method returns the name of what the layer computes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, kind: str, bottoms: list[str], top: str | None = None, parameters: str = '') -> str:
        top = top or name
        fields = [f'name: "{name}"', f'type: "{kind}"', *(f'bottom: "{bottom}"' for bottom in bottoms), f'top: "{top}"']
        fields += [parameters] if parameters else []
        self.lines += ['layer {', *(f'  {field}' for field in fields), '}']
        return top

    def convolution(self, name: str, link: Any, bottom: str, relu: bool = True) -> str:
        out_channels, _, ksize, _ = link.W.shape
        words = [f'num_output: {out_channels}', f'kernel_size: {ksize}']
        words += [f'stride: {link.stride[0]}'] if link.stride[0] > 1 else []
        words += [f'pad: {link.pad[0]}'] if link.pad[0] else []
        top = self.add(name, 'Convolution', [bottom], parameters=f'convolution_param {{ {" ".join(words)} }}')
        if relu:
            folder, _, own = name.rpartition('/')
            self.add('/'.join(filter(None, [folder, f'relu_{own}'])), 'ReLU', [top], top)
        return top

    def pool(self, model: PublishedSqueezeNet, after: str, bottom: str, number: str) -> str:
        """Caffe rounds the size of a pooled map up, as the published networks do."""
        if after not in model.pooled:
            return bottom
        parameters = 'pooling_param { pool: MAX kernel_size: 3 stride: 2 }'
        return self.add(f'pool{number}', 'Pooling', [bottom], parameters=parameters)
