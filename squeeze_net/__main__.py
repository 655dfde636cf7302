"""Train SqueezeNet with BN-ReLU-Conv Fire modules, or one of its baselines, on CIFAR-10.

Records go to results/<run>/, loss and accuracy curves beside the baselines' to img/.
"""

from __future__ import annotations

import sys

import numpy as np

import trainer
from squeeze_net import BASELINES, NETWORKS, make_network, weights
from trainer import cli, parallel
from trainer.data import datasets
from trainer.errors import program_name
from trainer.report.results import format_results
from trainer.run.log_file import copied_to

EXAMPLES = """
# the experiment: CIFAR-10, on the first GPU
python main.py -p ./ -e 300 -b 64 -g 0
# fine-tuning of published ImageNet weights on your photos, in DIR/<class>/
python main.py --dataset folder --data DIR --finetune squeezenet_v1.1
# the same from nothing, for many photos
python main.py --dataset folder --data DIR
# a quick look, without a download
python main.py --dataset shapes --size 32 -b 32 -lr 0.05 -e 10
"""


def main() -> int:
    """Train as the command line asks; returns the exit code."""
    own = program_name()
    examples = EXAMPLES if own == 'main.py' else EXAMPLES.replace('python main.py', own)
    config = cli.parse(NETWORKS, description=__doc__, examples=examples, describe=weights.finetuning)
    with parallel.join(config, cli.resume_command()) as ranks, copied_to(config.log_file if ranks.is_first else None):
        return run(config, ranks)


def run(config: trainer.Config, ranks: parallel.Ranks) -> int:
    """The experiment, a line a stage; returns the exit code."""
    trainer.check(config, ranks)

    for source in (config.load_model if config.resume is None else None, config.teacher):
        if source is not None:
            weights.find(source)  # or a refusal, before minutes go into data
    with ranks.first_on_host_first():
        data = trainer.load_data(config)
    print(datasets.describe(data))

    teacher = weights.teacher(config, data.classes)
    np.random.seed(config.seed)  # Chainer's initializers draw from NumPy's global generator
    with config.using_precision():
        model = make_network(config.model, data.n_class, config.size, config.dropout)
    print(f'{config.model}: {model.count_params():,} parameters')

    load_model = weights.loader(config)
    outcome = trainer.train(model, data, config, BASELINES, load_model, ranks=ranks, teacher=teacher)

    if outcome.exit_code:
        print(f'interrupted; go on with\n    {ranks.command(cli.resume_command())}')
    elif ranks.is_first:
        baselines = BASELINES if config.size >= 32 else ()  # smaller pictures leave AlexNet no map
        print(format_results(outcome.folder, config, baselines))
    return outcome.exit_code


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net'):
        sys.exit(main())
