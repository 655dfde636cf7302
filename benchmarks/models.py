"""What each network costs and how well it does, for the table of docs/weights.md; writes JSON.

python benchmarks/models.py --data ../shared/data --cifar10 DIR
python benchmarks/models.py --table

Times are of float32 on the CPU: inference of one image, and an epoch of training, computed from the time of a step at
batch 64 (plain Chainer: 8) and the images of an epoch. Accuracies are what `python -m squeeze_net.validate` says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import header, make_parser, row, run_command, save

import trainer  # before Chainer: makes it run on today's NumPy
import trainer.functions as F
from squeeze_net import NETWORKS
from squeeze_net.summary import summarise
from trainer import Config
from trainer.engine import ENGINES
from trainer.step.optimizer import make_optimizer
from trainer.step.predictor import Predictor

IMAGES = {'ImageNet': 1_281_167, 'CIFAR-10': 50_000}  # of an epoch
BATCH = {'fused': 64, 'plain': 8}


@dataclass(frozen=True)
class Model:
    """A row: a network, and weights for it if there are any."""

    title: str
    network: str
    dataset: str
    size: int  # px
    recipe: str  # file in configs/, or where the weights were published
    weights: str | None = None  # a file in weights/ of --data, or in the repository
    preprocess: str | None = None

    @property
    def n_class(self) -> int:
        return 1000 if self.dataset == 'ImageNet' else 10


PUBLISHED = 'published'
COMPRESSED = 'compressed_SqueezeNet.net'
OURS = 'results/squeezenet_jpeg/weights_best.npz'
OURS_FINE_TUNED = 'results/squeezenet_v1.1_finetuned/weights_best.npz'
MODELS = [
    Model('SqueezeNet v1.0', 'squeezenet_v1.0', 'ImageNet', 227, 'caffe_squeezenet_v1.0', 'squeezenet_v1.0.caffemodel'),
    Model('SqueezeNet v1.0, deep-compressed', 'squeezenet_v1.0', 'ImageNet', 227, PUBLISHED, COMPRESSED),
    Model('SqueezeNet v1.1', 'squeezenet_v1.1', 'ImageNet', 227, 'caffe_squeezenet_v1.1', 'squeezenet_v1.1.caffemodel'),
    Model('SqueezeNet v1.0, simple bypass', 'squeezenet_v1.0_simple', 'ImageNet', 227, 'caffe_squeezenet_v1.0'),
    Model('SqueezeNet v1.0, complex bypass', 'squeezenet_v1.0_complex', 'ImageNet', 227, 'caffe_squeezenet_v1.0'),
    Model('SqueezeNet v1.1, batch normalisation', 'squeezenet_v1.1_bn', 'ImageNet', 227, ''),
    Model('AlexNet', 'alexnet', 'ImageNet', 227, ''),
    Model('SqueezeNet, pre-activation', 'squeezenet', 'CIFAR-10', 122, 'experiment', OURS, 'experiment'),
    Model('SqueezeNet v1.1, fine-tuned', 'squeezenet_v1.1', 'CIFAR-10', 122, 'finetune_cifar10', OURS_FINE_TUNED),
    Model('AlexNet', 'alexnet', 'CIFAR-10', 122, ''),
    Model('VGG with batch normalisation', 'vgg_bn', 'CIFAR-10', 32, ''),
]


def measure_times(model: Model, engine: str, rounds: int) -> dict[str, float]:
    """Median seconds: of inference of one image, and of a training step per image."""
    import chainer

    config = Config(engine=engine)
    rng = np.random.default_rng(0)
    batch = BATCH[engine]
    with config.using_precision():
        network = NETWORKS[model.network](model.n_class, model.size)
        optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(network)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
        optimizer.lr = 1e-6
        x = rng.standard_normal((batch, 3, model.size, model.size), np.float32)
        t = rng.integers(0, model.n_class, batch).astype(np.int32)

        def step() -> None:
            network.cleargrads()
            F.softmax_cross_entropy(network(x), t).backward()
            optimizer.update()

        step_s = median_seconds(step, rounds) / batch
        predict = Predictor(network)
        return {'train_s_an_image': step_s, 'infer_s': median_seconds(lambda: predict(x[:1]), 5 * rounds)}


def median_seconds(run: Callable[[], Any], n: int) -> float:
    run()
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def validate(model: Model, data: Path, cifar10: Path | None) -> dict[str, Any] | None:
    """What the command says of the weights, if there are any and the images are at hand."""
    if model.weights is None:
        return None
    weights = model.weights if '/' in model.weights else str(data / 'weights' / model.weights)
    command = [sys.executable, '-m', 'squeeze_net.validate', weights, '--json']
    if model.dataset == 'ImageNet':
        command += ['--list', str(data / 'imagenet-sample' / 'val.txt')]
    elif cifar10 is not None:
        command += ['--dataset', 'cifar10', '--data', str(cifar10), '--batch', '100']
    else:
        return None
    if model.preprocess is not None:
        command += ['--preprocess', model.preprocess]
    record = json.loads(run_command(command, 'squeeze_net.validate'))
    return {name: record[name] for name in ('top1', 'top5', 'loss', 'n_images')} | {
        'preprocessing': record['preprocessing']['name']
    }


def measure(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one row; each engine is timed in a process of its own."""
    summary = summarise(model.network, model.size, model.n_class)
    command = [sys.executable, __file__, '--time', str(MODELS.index(model)), '--rounds', str(args.rounds), '--engine']
    times = {}
    for engine in ENGINES:
        times[engine] = json.loads(run_command([*command, engine], f'{model.title}, engine {engine},'))
    found = asdict(model) | {'parameters': summary.parameters, 'macs': summary.macs, 'times': times}
    return found | {'score': validate(model, args.data, args.cifar10)}


def model_table(record: dict[str, Any]) -> str:
    """Markdown: a row a model."""
    titles = ('model', 'images, px', 'top-1', 'top-5', 'parameters', 'MACs (M)')
    titles += ('an epoch of training: engine, plain', 'inference of an image: engine, plain', 'recipe', 'weights')
    alignments = [' ---: ' if 2 <= i < 8 else ' --- ' for i in range(len(titles))]
    lines = [row(titles), f'|{"|".join(alignments)}|']
    for found in record['models']:
        score, fused, plain = found['score'] or {}, found['times']['fused'], found['times']['plain']
        top1, top5 = (
            f'{score[k]:.1%}'.replace('%', ' %') if score.get(k) is not None else '–' for k in ('top1', 'top5')
        )
        n = IMAGES[found['dataset']]
        recipe = found['recipe']
        if recipe and recipe != PUBLISHED:
            recipe = f'[{recipe}](../configs/{recipe}.yaml)'
        cells = [
            found['title'],
            f'{found["dataset"]}, {found["size"]}',
            top1,
            top5,
            f'{found["parameters"]:,}',
            f'{found["macs"] / 1e6:,.0f}',
            f'{duration(fused["train_s_an_image"] * n)}, {duration(plain["train_s_an_image"] * n)}',
            f'{1e3 * fused["infer_s"]:.1f} ms, {1e3 * plain["infer_s"]:.0f} ms',
            recipe or '–',
            f'`{found["weights"]}`' if found['weights'] else '–',
        ]
        lines.append(row(cells))
    return '\n'.join(lines)


def duration(seconds: float) -> str:
    if seconds < 3600:
        return f'{seconds / 60:.1f} min'
    return f'{seconds / 3600:.1f} h'


def main() -> None:
    parser = make_parser(__doc__, 'models.json', rounds=5)
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='holds weights/, imagenet-sample/')
    parser.add_argument('--cifar10', type=Path, help='where CIFAR-10 is')
    path = parser.get_default('out')
    parser.add_argument('--table', nargs='?', type=Path, const=path, help='print it from a record, measure nothing')
    parser.add_argument('--time', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--engine', choices=ENGINES, default='fused', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table is not None:
        print(model_table(json.loads(args.table.read_text(encoding='utf-8'))))
        return
    if args.time is not None:
        print(json.dumps(measure_times(MODELS[args.time], args.engine, args.rounds)))
        return
    name = 'models: parameters, multiplications, accuracies, times of float32'
    record = header(name) | {'rounds': args.rounds, 'models': []}
    for model in MODELS:
        record['models'].append(measure(model, args))
        print(model.title, model.dataset, json.dumps(record['models'][-1]['times']), flush=True)
    save(record, args.out)


if __name__ == '__main__':
    with trainer.exit_with_message('models.py'):
        main()
