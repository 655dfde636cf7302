"""Time one batch of training views, beside Pillow doing the same image by image; writes a JSON record.

python benchmarks/augmentation.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

import trainer
from trainer import device
from trainer.data.augmentation import Draws, Sizes, draw_train, normalise, warp
from trainer.files import atomic_write

KERNELS = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def warp_with_pillow(images: np.ndarray, draws: Draws, size: int) -> np.ndarray:
    """What `warp` does, one image at a time; rounded to grey levels between its steps."""
    y = np.empty((len(images), 3, size, size), np.float32)
    for n, (side, top, left, kernel, flip) in enumerate(zip(*draws, strict=True)):
        image = Image.fromarray(images[n].transpose(1, 2, 0)).resize((side, side), KERNELS[kernel])
        image = image.crop((left, top, left + size, top + size))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        y[n] = np.asarray(image).transpose(2, 0, 1)
    return y


def measure(contestants: dict[str, Callable[[], np.ndarray]], n_round: int) -> dict[str, dict[str, float]]:
    """Alternate the contestants; milliseconds of each, the first two rounds not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n_round + 2):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - started))
    results = {}
    for name, values in times.items():
        p10, median, p90 = np.percentile(values[2:], (10, 50, 90))
        results[name] = {'median_ms': round(median, 2), 'p10_ms': round(p10, 2), 'p90_ms': round(p90, 2)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('-o', '--output', type=Path, default=Path('results/bench/augmentation.json'))
    args = parser.parse_args()

    sizes, rng = Sizes.of(122), np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch, 3, 32, 32)).astype(np.uint8)
    draws = draw_train(rng, args.batch, sizes)
    sides = sizes.side_min, sizes.side_max
    difference = np.abs(np.rint(warp(images, draws, sizes.crop, sides)) - warp_with_pillow(images, draws, sizes.crop))
    contestants = {
        'trainer.augmentation': lambda: normalise(warp(images, draws, sizes.crop, sides)),
        'Pillow': lambda: normalise(warp_with_pillow(images, draws, sizes.crop)),
    }
    cpu = device.open_device(-1)
    record = {
        'name': 'one batch of training views: resize, crop, mirror, normalise',
        'commit': subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip(),
        'device': device.describe(cpu),
        'versions': device.versions(cpu) | {'pillow': PIL.__version__},
        'shape': {'images': images.shape, 'views': [args.batch, 3, sizes.crop, sizes.crop]},
        'dtype': 'uint8 -> float32',
        'n': args.rounds,
        'max_difference_grey_levels': float(difference.max()),
        'results': measure(contestants, args.rounds),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output, 'w') as file:
        file.write(json.dumps(record, indent=2) + '\n')
    print(json.dumps(record['results'], indent=2))


if __name__ == '__main__':
    with trainer.exit_with_message('augmentation.py'):
        main()
