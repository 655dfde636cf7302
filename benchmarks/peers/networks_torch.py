"""The project's networks in PyTorch, layer by layer and by the same names; see `squeeze_net` for their tables."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers.task import DROPOUT, N_CLASS

EPS = 2e-5  # Chainer's, of batch normalisation
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RENAMED = {  # Chainer's parameters: PyTorch's
    'W': 'weight',
    'b': 'bias',
    'gamma': 'weight',
    'beta': 'bias',
    'avg_mean': 'running_mean',
    'avg_var': 'running_var',
    'N': 'num_batches_tracked',
}


class BNReLUConv(nn.Module):
    """y = conv(relu(bn(x)))."""

    def __init__(self, in_channels: int, out_channels: int, ksize: int, pad: int = 0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels, eps=EPS)
        self.conv = nn.Conv2d(in_channels, out_channels, ksize, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(x), inplace=True))


class Fire(nn.Module):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side, with a bypass if asked."""

    def __init__(self, in_channels: int, squeeze: int, expand: int, bypass: bool = False) -> None:
        super().__init__()
        self.bypass = bypass
        self.squeeze1x1 = BNReLUConv(in_channels, squeeze, 1)
        self.expand1x1 = BNReLUConv(squeeze, expand, 1)
        self.expand3x3 = BNReLUConv(squeeze, expand, 3, pad=1)

    def forward(self, x: Tensor) -> Tensor:
        s = self.squeeze1x1(x)
        y = torch.cat((self.expand1x1(s), self.expand3x3(s)), 1)
        return y + x if self.bypass else y


class SqueezeNet(nn.Module):
    """Twin of `squeeze_net.SqueezeNet`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2, padding=2)
        self.fire2 = Fire(96, 16, 64)
        self.fire3 = Fire(128, 16, 64, bypass=True)
        self.fire4 = Fire(128, 32, 128)
        self.fire5 = Fire(256, 32, 128, bypass=True)
        self.fire6 = Fire(256, 48, 192)
        self.fire7 = Fire(384, 48, 192, bypass=True)
        self.fire8 = Fire(384, 64, 256)
        self.fire9 = Fire(512, 64, 256, bypass=True)
        self.conv10 = BNReLUConv(512, N_CLASS, 1)
        self.max_pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.max_pool(self.conv1(x))
        h = self.fire4(self.fire3(self.fire2(h)))
        h = self.max_pool(h)
        h = self.fire8(self.fire7(self.fire6(self.fire5(h))))
        h = self.max_pool(h)
        h = F.dropout(self.fire9(h), DROPOUT, self.training)
        return self.conv10(h).mean((2, 3))


def normalize_responses(x: Tensor) -> Tensor:
    """Local response normalisation, y = x / (k + alpha * sum of x^2 over 5 channels)^beta, as in `AlexNet`'s paper.

    The same as `nn.LocalResponseNorm`, which pools in three dimensions and takes two to three times as long; one is
    enough over channels that lie last.
    """
    N, C, H, W = x.shape
    squares = x.square().permute(0, 2, 3, 1).reshape(N, H * W, C)  # a view in channels_last
    mean = F.avg_pool1d(squares, 5, stride=1, padding=2).view(N, H, W, C).permute(0, 3, 1, 2)
    return x / (2 + 5 * 1e-4 * mean).pow(0.75)


class AlexNet(nn.Module):
    """Twin of `squeeze_net.AlexNet` at 122 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4, padding=5)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 3**2, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, N_CLASS)
        self.max_pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.max_pool(normalize_responses(F.relu(self.conv1(x), inplace=True)))
        h = self.max_pool(normalize_responses(F.relu(self.conv2(h), inplace=True)))
        h = F.relu(self.conv3(h), inplace=True)
        h = F.relu(self.conv4(h), inplace=True)
        h = self.max_pool(F.relu(self.conv5(h), inplace=True))
        h = F.dropout(F.relu(self.fc6(h.flatten(1)), inplace=True), DROPOUT, self.training)
        h = F.dropout(F.relu(self.fc7(h), inplace=True), DROPOUT, self.training)
        return self.fc8(h)


class ConvBNReLU(nn.Module):
    """y = relu(bn(conv3x3(x))), the height and width kept."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class VGGBN(nn.Module):
    """Twin of `squeeze_net.VGGBN` at 32 px."""

    def __init__(self) -> None:
        super().__init__()
        in_channels = 3
        for s, stage in enumerate(STAGES, 1):
            for c, out_channels in enumerate(stage, 1):
                self.add_module(f'conv{s}_{c}', ConvBNReLU(in_channels, out_channels))
                in_channels = out_channels
        self.fc1 = nn.Linear(512, 512)
        self.bn1 = nn.BatchNorm1d(512, eps=EPS)
        self.fc2 = nn.Linear(512, N_CLASS)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for s, stage in enumerate(STAGES, 1):
            for c in range(1, len(stage) + 1):
                if c > 1:
                    h = F.dropout(h, (0.6 if s == 1 else 0.8) * DROPOUT, self.training)
                h = self.get_submodule(f'conv{s}_{c}')(h)
            h = F.max_pool2d(h, 2, stride=2, ceil_mode=True)
        h = F.dropout(h.flatten(1), DROPOUT, self.training)
        h = F.relu(self.bn1(self.fc1(h)), inplace=True)
        return self.fc2(F.dropout(h, DROPOUT, self.training))


NETWORKS: dict[str, type[nn.Module]] = {'squeezenet': SqueezeNet, 'alexnet': AlexNet, 'vgg_bn': VGGBN}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `chainer.serializers.save_npz` has written of the twin; every name must be there, and no other."""
    state = {}
    with np.load(path) as weights:
        for name in weights.files:
            *links, parameter = name.split('/')
            state['.'.join([*links, RENAMED[parameter]])] = torch.from_numpy(weights[name])
    model.load_state_dict(state)
