"""Accuracy against bytes without retraining: pruned and clustered, or by rate and distortion; JSON and a picture.

python benchmarks/rate_distortion.py results/squeezenet_jpeg/weights_best.npz --data cifar10-jpeg --limit 200

Each network is compressed as `python -m squeeze_net.compression compress` does it with --prune_epoch 0 and
--quantise_epoch 0: the old way by sparsity and bits, the new way by rate. Bytes are those of the whole
archive, accuracy is that of the archive on CIFAR-10's test images. The record is written after each compression; the
same command goes on where it was stopped, and other networks in the record stay.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

from record import chart, header, make_parser, save
from tqdm import tqdm

import trainer
from squeeze_net import weights
from squeeze_net.compression.__main__ import N_STAGE, size_of, with_facts
from squeeze_net.compression.pipeline import Compression
from squeeze_net.compression.plan import Plan
from squeeze_net.weights import Weights
from trainer import Config
from trainer.data.datasets import Data, Stream
from trainer.report.curves import COLOURS
from trainer.run.records import read_json

SPARSITIES, BITS = (0.0, 0.2, 0.4, 0.5, 0.6), (4, 5, 6)
RATES = 0.005, 0.01, 0.02, 0.04, 0.06, 0.08
TITLE = 'Accuracy against bytes,', 'pruned and clustered, or by rate and distortion'
LOSSES = 0.005, 0.01, 0.02  # of accuracy


def plans(calibration: int) -> dict[str, list[Plan]]:
    """Name of the way -> its compressions."""
    plain: dict[str, Any] = {'prune_epoch': 0, 'quantise_epoch': 0}
    by_rate = plain | {'sparsity': '0', 'quantise': 'rate', 'calibration': calibration}
    ways = {}
    for bits in BITS:
        ways[f'pruned, k-means of {bits} bits'] = [Plan(sparsity=f'{x:g}', bits=f'{bits}', **plain) for x in SPARSITIES]
    ways['by rate'] = [Plan(rate=rate, **by_rate) for rate in RATES]
    return ways


class ScoredOnce(Compression):
    """Tests the archive alone, not the stages before it."""

    def accuracy(self, model: Any) -> float:
        return super().accuracy(model) if len(self.stages) == N_STAGE - 1 else float('nan')


def settings_of(plan: Plan) -> dict[str, Any]:
    """Those that differ from point to point of its way."""
    names = ('rate',) if plan.quantise == 'rate' else ('sparsity', 'bits')
    return {name: getattr(plan, name) for name in names}


def measure(source: Weights, config: Config, data: Data | Stream, plan: Plan) -> dict[str, Any]:
    """One compression: its settings, bytes and accuracy."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        compression = ScoredOnce(source, Path(folder) / 'a.sqz', plan, config, data)
        compression.run()
    layers = [one for name, one in compression.coded.items() if name.endswith('/W')]
    return settings_of(plan) | {
        'n_byte': compression.stages[-1].n_byte,
        'n_weight_byte': sum(len(one.raw) for one in layers),
        'kept': round(sum(one.n_nonzero for one in layers) / sum(one.n_value for one in layers), 4),
        'accuracy': compression.stages[-1].accuracy,
    }


def bytes_at(rows: list[dict[str, Any]], accuracy: float) -> int | None:
    """The fewest bytes of those that are at least so accurate; None if there are none."""
    return min((row['n_byte'] for row in rows if row['accuracy'] >= accuracy), default=None)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    labels = 'archive, kB', 'test accuracy, %, not retrained'
    accuracies = [row['accuracy'] for record in records for rows in record['ways'].values() for row in rows]
    with chart(path, 8, labels, TITLE, 2, 100 * min(accuracies) - 1) as axes:  # from 0 on, all lines would lie in one
        for record, mark in zip(records, 'os^Dv' * len(records), strict=False):
            ways = record['ways'].items()
            for (name, rows), colour in zip(ways, COLOURS * len(ways), strict=False):
                x, y = [row['n_byte'] / 1e3 for row in rows], [100 * row['accuracy'] for row in rows]
                style = '-' if name.startswith('by rate') else '--'
                axes.plot(
                    x,
                    y,
                    style,
                    marker=mark,
                    color=colour,
                    linewidth=2,
                    label=f'{Path(record["weights"]).parent.name}: {name}',
                )
            axes.axhline(100 * record['whole'], color='0.4', linestyle=':', linewidth=1.5)
        axes.set_xlim(0)


def measure_all(
    path: Path,
    args: argparse.Namespace,
    ways: dict[str, list[Plan]],
    record: dict[str, Any],
    done: Callable[[], object],
) -> None:
    """One network, compressed in all ways but those that its record has already.

    Args:
        record: is added to.
        done: is called after each compression.
    """
    source = weights.read(path)
    view = source.metadata.preprocessing
    if view is None:
        raise trainer.InputError(f'{path} does not say what images it expects: choose one that main.py wrote')
    size, network = size_of(source, view.crop), str(source.metadata.network)
    config = Config(
        model=network,
        dataset=args.dataset,
        data=args.data,
        limit=args.limit,
        size=size,
        preprocess=view.name,
        precision='float32',
    )
    data = trainer.load_data(config)
    facts = with_facts(source, config, data)
    conditions = {
        'weights': str(path),
        'sha256': sha256(path.read_bytes()).hexdigest(),
        'data': data.source,
        'n_test': len(data.test.labels),
        'calibration': args.calibration,
    }
    if any(record.get(name, value) != value for name, value in conditions.items()):
        model, _ = weights.load_model(path)
        whole = Compression(facts, Path('unused.sqz'), Plan(), config, data).accuracy(model)
        record.clear()
        record.update(conditions, whole=whole, ways={})
    for name, several in ways.items():
        rows = record['ways'].setdefault(name, [])
        for plan in several:
            if not any(settings_of(plan).items() <= row.items() for row in rows):
                rows.append(measure(facts, config, data, plan))
            done()


def main() -> None:
    parser = make_parser(__doc__, 'rate_distortion.json')
    parser.add_argument('weights', type=Path, nargs='+', help='weights files that say what images they expect')
    parser.add_argument('--dataset', default='cifar10', help='as for main.py; default: %(default)s')
    parser.add_argument('--data', required=True, help='where CIFAR-10 is, as for main.py')
    parser.add_argument('--limit', type=int, metavar='N', help='only the first N images of each class')
    parser.add_argument(
        '--calibration', type=int, default=256, metavar='N', help='training images; default: %(default)s'
    )
    parser.add_argument('--image', type=Path, default=Path('docs/img/compression/rate_distortion.png'))
    args = parser.parse_args()
    ways = plans(args.calibration)
    n = len(args.weights) * sum(map(len, ways.values()))
    earlier = read_json(args.out).get('networks', []) if args.out.exists() else []
    records: dict[str, dict[str, Any]] = {record['weights']: record for record in earlier}
    about = header('accuracy against bytes')
    with tqdm(total=n, desc='compressions', disable=None) as bar:

        def keep() -> None:
            bar.update()
            save(about | {'networks': [record for record in records.values() if record]}, args.out)

        for path in args.weights:
            measure_all(path, args, ways, records.setdefault(str(path), {}), keep)
    for record in records.values():
        print(f'{record["weights"]}: {record["whole"]:.2%} of {record["n_test"]:,} test images')
        for loss in LOSSES:
            fewest = {name: bytes_at(rows, record['whole'] - loss) for name, rows in record['ways'].items()}
            texts = [f'{name} {n_byte:,}' for name, n_byte in fewest.items() if n_byte is not None]
            print(f'bytes with at most {100 * loss:g} points less: {", ".join(texts) or "in none of the ways"}')
    draw(list(records.values()), args.image)


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/rate_distortion.py'):
        main()
