"""What pruning costs, before retraining, by how the zeros are shared out among the layers; JSON and a picture.

python benchmarks/pruning.py --data DIR --limit 200

The trained networks in results/ are pruned at once, by magnitude within each layer, to the same sparsity over all
layers: each layer alike, under one threshold for magnitudes, and under one for the scores of
`squeeze_net.compression.prune`. Accuracy is that of CIFAR-10's test images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import chart, header, make_parser, save
from tqdm import tqdm

import trainer
from squeeze_net import weights
from squeeze_net.compression.pipeline import Compression
from squeeze_net.compression.plan import Plan
from squeeze_net.compression.prune import by_threshold, mask_of, weights_of
from squeeze_net.weights.network import fill
from trainer import Config
from trainer.data import datasets
from trainer.data.augmentation import Sizes
from trainer.report.curves import COLOURS

NETWORKS = {'squeezenet_v1.1_finetuned': 'caffe', 'squeezenet_jpeg': 'experiment'}  # run -> preprocessing
SPARSITIES = 0.3, 0.4, 0.5, 0.6, 0.7, 0.8
SIZE = 122


def alike(model: Any, sparsity: float) -> dict[str, float]:
    return dict.fromkeys(weights_of(model), sparsity)


def by_magnitude(model: Any, sparsity: float) -> dict[str, float]:
    magnitudes = {name: np.abs(p.array).ravel() for name, p in weights_of(model).items()}
    threshold = np.quantile(np.concatenate(list(magnitudes.values())), sparsity)
    return {name: float((values < threshold).mean()) for name, values in magnitudes.items()}


WAYS: dict[str, Callable[[Any, float], dict[str, float]]] = {
    'each layer alike': alike,
    'one threshold for magnitudes': by_magnitude,
    'one threshold for layer-adaptive scores': by_threshold,
}


def measure(run: str, preprocess: str, folder: str, limit: int | None, bar: tqdm[Any]) -> dict[str, Any]:
    found = weights.read(Path('results') / run / 'weights_best.npz')
    config = Config(
        model=str(found.metadata.network),
        data=folder,
        limit=limit,
        size=SIZE,
        preprocess=preprocess,
        precision='float32',
    )
    data = datasets.load('cifar10', folder, limit=limit, max_side=Sizes.of(SIZE).side_max, preprocess=preprocess)
    network = Compression(found, Path('unused.sqz'), Plan(), config, data)
    model, _ = weights.load_model(Path('results') / run / 'weights_best.npz')
    record: dict[str, Any] = {'run': run, 'whole': network.accuracy(model), 'n_test': len(data.test.labels), 'ways': {}}
    for name, share in WAYS.items():
        rows = []
        for sparsity in SPARSITIES:
            fill(model, found.tensors)
            sparsities = share(model, sparsity)
            for layer, parameter in weights_of(model).items():
                parameter.array *= mask_of(parameter.array, sparsities[layer])
            least = 1 - max(sparsities.values())
            rows.append({'sparsity': sparsity, 'accuracy': network.accuracy(model), 'least_density': round(least, 4)})
            bar.update()
        record['ways'][name] = rows
    return record


def draw(records: list[dict[str, Any]], path: Path) -> None:
    labels = 'weights set to 0, % of all', 'test accuracy, %, not retrained'
    with chart(path, 8, labels, ['How zeros are shared out among the layers'], ncols=1) as axes:
        for record, style in zip(records, ('-o', '--s'), strict=True):
            for (name, rows), colour in zip(record['ways'].items(), COLOURS, strict=False):
                x = [0, *(100 * row['sparsity'] for row in rows)]
                y = [100 * record['whole'], *(100 * row['accuracy'] for row in rows)]
                axes.plot(x, y, style, color=colour, linewidth=2, label=f'{record["run"]}: {name}')
        axes.set_xlim(0)


def main() -> None:
    parser = make_parser(__doc__, 'pruning.json')
    parser.add_argument('--data', required=True, help='where CIFAR-10 is, as for main.py')
    parser.add_argument('--limit', type=int, metavar='N', help='only the first N test images of each class')
    parser.add_argument('--image', type=Path, default=Path('docs/img/compression/pruning.png'))
    args = parser.parse_args()
    with tqdm(total=len(NETWORKS) * len(WAYS) * len(SPARSITIES), desc='prunings', disable=None) as bar:
        records = [measure(*network, args.data, args.limit, bar) for network in NETWORKS.items()]
    for record in records:
        for name, rows in record['ways'].items():
            print(f'{record["run"]}, {name}: ' + ', '.join(f'{100 * row["accuracy"]:.1f}' for row in rows))
    save(header('pruning without retraining') | {'networks': records}, args.out)
    draw(records, args.image)


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/pruning.py'):
        main()
