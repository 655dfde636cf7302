"""Train SqueezeNet with BN-ReLU-Conv Fire modules, or one of its baselines, on CIFAR-10.

Records go to results/<run>/, loss and accuracy curves beside the baselines' to img/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import trainer
from squeeze_net import BASELINES, NETWORKS, weights
from trainer import cli, parallel
from trainer.data import datasets
from trainer.data.augmentation import Sizes
from trainer.report.confusion import format_confusion
from trainer.run.log_file import copied_to
from trainer.run.progress import format_top5
from trainer.run.records import peers, read_run

EXAMPLES = """
# the experiment: CIFAR-10, on the first GPU
python main.py -p ./ -e 300 -b 64 -g 0
# your photos, in DIR/train/<class>/ and DIR/test/<class>/
python main.py --dataset folder --data DIR
# fine-tuning of published ImageNet weights
python main.py --config configs/finetune_cifar10.yaml --reset_classifier --pretrained squeezenet_v1.1_torchvision
# a quick look, without a download
python main.py --dataset shapes --size 32 -b 32 -lr 0.05 -e 10
"""
MAX_SHOWN = 20  # classes; of more, the confusion matrix is in summary.json alone


def main() -> int:
    config = cli.parse(NETWORKS, description=__doc__, examples=EXAMPLES)
    with parallel.join(config, cli.resume_command()) as ranks, copied_to(config.log_file if ranks.is_first else None):
        return run(config, ranks)


def run(config: trainer.Config, ranks: parallel.Alone) -> int:
    trainer.check(config, ranks)
    with ranks.first_on_host_first():
        data = datasets.load(
            config.dataset,
            config.data,
            limit=config.limit,
            max_side=Sizes.of(config.size).side_max,
            preprocess=config.preprocess,
        )
    print(f'{data.source}: {len(data.train.labels):,} training and {len(data.test.labels):,} test images')

    np.random.seed(config.seed)  # Chainer's initializers draw from NumPy's global generator
    options = {} if config.dropout is None else {'dropout': config.dropout}
    try:
        with config.using_precision():
            model = NETWORKS[config.model](data.n_class, config.size, **options)
    except ValueError as error:  # a size that leaves no map
        raise trainer.InputError(f'--model {config.model} --size {config.size}: {error}') from None
    print(f'{config.model}: {model.count_params():,} parameters')

    outcome = trainer.train(model, data, config, baselines=BASELINES, load_model=weights.loader(config), ranks=ranks)

    if outcome.exit_code:
        print(f'interrupted; go on with\n    {ranks.command(cli.resume_command())}')
        return outcome.exit_code
    if not ranks.is_first:
        return 0
    summary = outcome.summary
    if len(summary['classes']) <= MAX_SHOWN:
        print(format_confusion(summary['classes'], np.array(summary['confusion'])))
    for name in ('last', 'best'):
        entry = summary[name]
        print(f'{name} epoch {entry["epoch"]}: test accuracy {entry["test_accuracy"]:.2%}{format_top5(entry)}')
    print(f'records: {outcome.folder}   plots: {Path(config.save_path) / "img"}')
    if not any(run.model in BASELINES for run in [read_run(outcome.folder), *peers(outcome.folder)]):
        print('a baseline to plot beside it: the same command with --model alexnet')
    return 0


if __name__ == '__main__':
    with trainer.exit_with_message('main.py'):
        sys.exit(main())
