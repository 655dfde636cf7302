"""The published dense SqueezeNet v1.0 quantised without retraining: accuracy against bits a weight; JSON and a picture.

python benchmarks/bits.py --data ../shared/data --out /tmp/bits.json --image /tmp/bits.png

Each layer gets a codebook of 2 to 256 values by k-means, from each of the three initialisations, and the archive is
opened like any file of weights and asked for the 100 sample images: how many it gets right (top-1, top-5), and in how
many its first answer is that of the dense network. Bits a weight are those of the archive, codebooks included.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import chart, header, make_parser, save
from tqdm import tqdm

import trainer
from squeeze_net import weights
from squeeze_net.classifier import Classifier
from squeeze_net.compression.quantise import INITIALISATIONS, quantise
from squeeze_net.weights import Weights
from squeeze_net.weights.formats.sqz import archive
from trainer.report.curves import COLOURS, LABEL

BITS = range(1, 9)


class Sample:
    """The sample images, cut as the published networks expect them, and their classes."""

    def __init__(self, folder: Path) -> None:
        lines = [line.split() for line in (folder / 'val.txt').read_text().splitlines()]
        self.photos = [Image.open(folder / name).convert('RGB') for name, _ in lines]
        self.labels = np.array([int(label) for _, label in lines])

    def answers(self, path: Path) -> np.ndarray:
        """(N, 5) classes, the likeliest first."""
        classifier = Classifier.open(path, preprocess='caffe', batch=50)
        views = np.stack([classifier.preprocessing.cut(photo).transpose(2, 0, 1) for photo in self.photos])
        return np.argsort(-classifier(views), axis=1, kind='stable')[:, :5]


def measure(dense: Weights, bits: int, initialisation: str, sample: Sample, expected: np.ndarray) -> dict[str, Any]:
    tensors = {
        name: quantise(tensor, bits, initialisation) if name.endswith('/W') else tensor
        for name, tensor in dense.tensors.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'quantised.sqz'
        coded = archive.save(Weights(tensors, dense.metadata), path)
        answers = sample.answers(path)
        n_byte = path.stat().st_size
    layers = [one for name, one in coded.items() if name.endswith('/W')]
    return {
        'bits': bits,
        'initialisation': initialisation,
        'bits_a_weight': round(8 * sum(len(one.raw) for one in layers) / sum(one.n_value for one in layers), 3),
        'archive_bytes': n_byte,
        'top1': float((answers[:, 0] == sample.labels).mean()),
        'top5': float((answers == sample.labels[:, None]).any(1).mean()),
        'same_as_dense': float((answers[:, 0] == expected[:, 0]).mean()),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    labels = 'bits per weight in the archive, codebooks included', 'right, of 100 sample images'
    with chart(path, 6.4, labels, ['SqueezeNet v1.0 quantised without retraining'], ncols=3) as axes:
        for name, style in ('top1', '-'), ('top5', '--'):
            title = name.replace('top', 'top-')
            for initialisation, colour in zip(INITIALISATIONS, COLOURS, strict=False):
                rows = [row for row in record['rows'] if row['initialisation'] == initialisation]
                x, y = [row['bits_a_weight'] for row in rows], [100 * row[name] for row in rows]
                axes.plot(x, y, f'{style}o', color=colour, markersize=5, label=f'{initialisation}: {title}')
            dense = 100 * record['dense'][name]
            axes.axhline(dense, color='0.5', linestyle=style, linewidth=1, zorder=0)
            axes.annotate(f'dense, {title}', (0.2, dense + 1), color='0.4', fontsize=LABEL - 3)
        axes.set_xlim(0)


def main() -> None:
    parser = make_parser(__doc__, 'bits.json')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='holds weights/ and imagenet-sample/')
    parser.add_argument('--image', type=Path, default=Path('docs/img/compression/bits.png'))
    args = parser.parse_args()
    path = args.data / 'weights' / 'squeezenet_v1.0_dense.npz'
    if not path.is_file():
        raise trainer.InputError(f'{path} does not exist: --data must name a folder with weights/ and imagenet-sample/')
    sample, dense = Sample(args.data / 'imagenet-sample'), weights.read(path)
    expected = sample.answers(path)
    right = {
        'top1': float((expected[:, 0] == sample.labels).mean()),
        'top5': float((expected == sample.labels[:, None]).any(1).mean()),
    }
    jobs = [(bits, initialisation) for initialisation in INITIALISATIONS for bits in BITS]
    rows = [measure(dense, *job, sample, expected) for job in tqdm(jobs, desc='networks', disable=None)]
    for row in rows:
        print(json.dumps(row))
    record = header('quantisation without retraining') | {'network': 'squeezenet_v1.0', 'images': len(sample.labels)}
    record |= {'dense': right, 'rows': rows}
    save(record, args.out)
    draw(record, args.image)


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/bits.py'):
        main()
