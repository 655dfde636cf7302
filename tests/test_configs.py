"""The recipes in configs/ are read, fit the networks they name, and say what their sources say."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from squeeze_net import NETWORKS
from squeeze_net.compression.plan import Plan, make_plan, read_plan
from trainer import Config, InputError, cli
from trainer.step.optimizer import make_optimizer
from trainer.step.parameters import freeze, multiply_rates

CONFIGS = Path(__file__).parents[1] / 'configs'
PATHS = sorted(CONFIGS.glob('*.yaml'))


def read(path, *argv):
    return cli.parse(NETWORKS, ['--config', str(path), *argv])


def named(name):
    return next(path for path in PATHS if path.stem == name)


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_every_value_is_taken(path):
    config = read(path)
    for name, value in yaml.safe_load(path.read_text()).items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_patterns_match_the_network(path):
    config = read(path)
    np.random.seed(0)
    model = NETWORKS[config.model](10, config.size)
    optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(model)
    multiply_rates(optimizer, config.lr_multiplier)
    freeze(model, config.freeze)
    if config.lr_multiplier == '*/b=2':
        for path, parameter in model.namedparams():
            assert getattr(parameter.update_rule, 'lr_multiplier', 1) == (2 if path.endswith('/b') else 1), path


def test_a_plan_of_compression_is_read():
    plan = Plan(**read_plan(CONFIGS / 'compression/small.yaml'))
    assert (plan.sparsity, plan.bits, plan.prune_epoch, plan.quantise_lr) == ('0.85', '4', 6, 1e-4)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('compression/*.yaml')), ids=lambda path: path.stem)
def test_plans_of_compression_go_together(path):
    given = read_plan(path)
    assert make_plan(given) == Plan(**given)  # which refuses settings that have no meaning for the others


def test_a_flag_may_make_settings_of_a_plan_useless():
    of_file = read_plan(CONFIGS / 'compression/distilled.yaml')
    plan = make_plan({'quantise': 'kmeans', 'bits': '4', 'prune_optimizer': 'momentum', 'distill': 0.0}, of_file)
    assert (plan.quantise, plan.bits, plan.prune_optimizer) == ('kmeans', '4', 'momentum')
    assert make_plan({'prune_epoch': 0}, of_file).rate == of_file['rate']
    with pytest.raises(InputError, match='--bits 4 has no meaning for --quantise rate'):
        make_plan({'bits': '4'}, of_file)
    assert (plan.rate, plan.prune_muon_lr) == (Plan.rate, Plan.prune_muon_lr)  # as if they were not there
    assert make_plan({'quantise': 'rate'}, {'rate': 0.008}).rate == 0.008  # useful with the flag
    assert make_plan({'prune_epoch': 0}, {**of_file, 'teacher': 'none.npz'}).teacher is None
    with pytest.raises(InputError, match=r'--quantise_lr 0\.1 has no meaning without retraining'):
        make_plan({'quantise_lr': 0.1}, of_file)
    with pytest.raises(InputError, match=r'--rate 0\.008 has no meaning for --quantise kmeans'):  # useless by itself
        make_plan({}, {'rate': 0.008})


def test_the_experiment_is_what_no_flag_gives():
    config = read(named('experiment'))
    assert config == Config(model='squeezenet', milestones=(150, 225))
    rates = [c.make_schedule(300)(epoch) for c in (config, Config()) for epoch in range(300)]
    assert rates[:300] == rates[300:]


@pytest.mark.parametrize('name', ['caffe_squeezenet_v1.0', 'caffe_squeezenet_v1.1'])
def test_caffes_rates(name):
    config = read(named(name))
    n_train = 1_281_167
    n_epoch = config.count_epochs(n_train)
    rate = config.make_schedule(n_epoch)
    assert n_epoch == pytest.approx(67.94, abs=0.01)
    for iteration in (0, 1000, 85_000, 169_999):
        assert rate(iteration * 512 / n_train) == pytest.approx(0.04 * (1 - iteration / 170_000), rel=1e-6)


def test_a_flag_on_the_command_line_replaces_the_length():
    config = read(named('caffe_squeezenet_v1.0'), '-e', '2')
    assert (config.epoch, config.iterations, config.schedule) == (2, None, 'poly')


def test_mxnets_and_mindcvs_rates():
    config = read(named('mxnet_squeezenet'))
    rate = config.make_schedule(config.epoch)
    assert [rate(epoch) for epoch in (0, 0.9, 1, 10)] == pytest.approx([0.04, 0.04, 0.0376, 0.04 * 0.94**10])
    config = read(named('mindcv_squeezenet'))
    rate = config.make_schedule(config.epoch)
    assert rate(2.5) < 0.05 < rate(5) < 0.1 and rate(200) == pytest.approx(0)
    assert config.smoothing == 0.1
