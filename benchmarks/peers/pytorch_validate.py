"""PyTorch's validation of a list of images: a DataLoader that decodes in processes, the published network.

Prints one line of JSON: {"images_per_s": ..., "top1": ..., "seconds": ...}, the time from before the loader is made to
after the last batch, as the project's command counts its own.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN_BGR = 104, 117, 123
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOLED = {'v1.0': (4, 8), 'v1.1': (3, 5)}  # after these Fires


class Fire(nn.Module):
    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.squeeze1x1(x), inplace=True)
        return torch.cat((F.relu(self.expand1x1(s), inplace=True), F.relu(self.expand3x3(s), inplace=True)), 1)


class SqueezeNet(nn.Module):
    """Twin of `squeeze_net.SqueezeNetV10` and `SqueezeNetV11`."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version
        channels, ksize = (96, 7) if version == 'v1.0' else (64, 3)
        self.conv1 = nn.Conv2d(3, channels, ksize, stride=2)
        for n, (squeeze, expand) in enumerate(FIRES, 2):
            self.add_module(f'fire{n}', Fire(channels, squeeze, expand))
            channels = 2 * expand
        self.conv10 = nn.Conv2d(channels, 1000, 1, padding=1 if version == 'v1.0' else 0)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 3, 2, ceil_mode=True)
        for n in range(2, 10):
            h = self.get_submodule(f'fire{n}')(h)
            if n in POOLED[self.version]:
                h = F.max_pool2d(h, 3, 2, ceil_mode=True)
        return F.relu(self.conv10(h), inplace=True).mean((2, 3))


class Images(Dataset[tuple[Tensor, int]]):
    """Squashed to 256 px, the central 227, as uint8: the cheapest to send from process to process."""

    def __init__(self, path: Path) -> None:
        lines = [line.rsplit(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
        self.rows = [(path.parent / name, int(label)) for name, label in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        name, label = self.rows[i]
        with Image.open(name) as image:
            pixels = np.asarray(image.convert('RGB').resize((256, 256), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels[14:241, 14:241].copy()), label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', type=Path, required=True, help='an .npz with the names of the published layers')
    parser.add_argument('--version', choices=tuple(POOLED), required=True)
    parser.add_argument('--list', type=Path, required=True)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--compile', action='store_true')
    args = parser.parse_args()
    model = SqueezeNet(args.version)
    with np.load(args.weights) as weights:
        renamed = {'W': 'weight', 'b': 'bias'}
        pairs = [(name.replace('/', '.').rpartition('.'), weights[name]) for name in weights.files]
        model.load_state_dict({f'{layer}.{renamed[kind]}': torch.from_numpy(w) for (layer, _, kind), w in pairs})
    model = model.eval().to(memory_format=torch.channels_last)
    predict = torch.compile(model) if args.compile else model
    mean = torch.tensor(MEAN_BGR, dtype=torch.float32)
    right = n = 0
    with torch.inference_mode():
        if args.compile:  # not counted, in its favour
            predict(torch.zeros(args.batch, 3, 227, 227).to(memory_format=torch.channels_last))
        started = time.perf_counter()
        for pixels, labels in DataLoader(Images(args.list), args.batch, num_workers=args.workers):
            x = (pixels.flip(3).float() - mean).permute(0, 3, 1, 2)  # BGR, channels last
            right += int((predict(x).argmax(1) == labels).sum())
            n += len(labels)
        seconds = time.perf_counter() - started
    print(json.dumps({'images_per_s': n / seconds, 'top1': right / n, 'seconds': seconds, 'torch': torch.__version__}))


if __name__ == '__main__':
    main()
