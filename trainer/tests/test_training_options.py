"""Whole runs with the options of recipes: how long, what is averaged, mixed, frozen; stopped and gone on with."""

import json
import signal
from itertools import groupby

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import trainer
from trainer import Config, InputError, links
from trainer.data.datasets import Data, Split
from trainer.functions import dropout
from trainer.run import checkpoint
from trainer.run.records import read_log

pytestmark = pytest.mark.usefixtures('no_rendering')
N_TRAIN, N_TEST, N_CLASS = 40, 15, 12


class Net(chainer.Chain):
    def __init__(self, seed=0, on_forward=None):
        super().__init__()
        np.random.seed(seed)
        self.on_forward = on_forward
        with self.init_scope():
            self.conv = links.Convolution2D(3, 8, 5, stride=4)
            self.bn = links.BatchNormalization(8)
            self.hidden = links.Convolution2D(8, 8, 1)
            self.fc = L.Linear(8, N_CLASS)

    def forward(self, x):
        if self.on_forward is not None:
            self.on_forward(chainer.config.train)
        return self.fc(dropout(F.mean(self.hidden(self.bn(self.conv(x), relu=True)), axis=(2, 3)), 0.3))


def make_data():
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 255, (n, 3, 32, 32)).astype(np.uint8), (np.arange(n) % N_CLASS).astype(np.int32))
        for n in (N_TRAIN, N_TEST)
    ]
    return Data('noise', *splits, tuple('abcdefghijkl'), 'made for a test', is_jpeg=False)


DATA = make_data()


def run(folder, model=None, **flags):
    model = model or Net()
    common = {'size': 32, 'batch': 12, 'lr': 0.05, 'save_path': str(folder), 'run': 'r', 'schedule': 'poly'}
    return trainer.train(model, DATA, Config(**(common | flags))), model


def state(model):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return {name: np.array(value) for name, value in serializer.target.items()}


def assert_same_state(a, b):
    for name, value in state(a).items():
        np.testing.assert_array_equal(value, state(b)[name], err_msg=name)


def without_times(folder):
    log = read_log(folder / 'results/r/log.jsonl')
    return [{k: v for k, v in entry.items() if k not in ('seconds', 'images_per_s')} for entry in log]


def stop_at(call, in_training=True):
    count = iter(range(10**9))

    def on_forward(is_training):
        if is_training == in_training and next(count) == call:
            signal.raise_signal(signal.SIGTERM)

    return on_forward


OPTIONS = [
    {'iterations': 12, 'ema': 0.9, 'smoothing': 0.1},
    {'epoch': 3, 'mixup': 0.2, 'cutmix': 1.0, 'lr_multiplier': 'fc=3'},
    {'epoch': 3, 'ema': 0.99, 'freeze': 'conv,bn', 'optimizer': 'adam', 'lr': 0.01},
    {'epoch': 4, 'optimizer': 'muon', 'progressive_size': '24=1,28=2', 'pad': 2, 'mixup': 0.2, 'train_batch_divide': 2},
    {'iterations': 11, 'freeze': 'conv', 'schedule': 'factor', 'factor': 0.5},
]


@pytest.mark.parametrize('flags', OPTIONS, ids=str)
@pytest.mark.parametrize('engine', ['fused', pytest.param('plain', marks=pytest.mark.long)])
def test_stopped_and_resumed_equals_unbroken_to_the_bit(tmp_path, flags, engine):
    """Stopped in the middle of the run, then in an evaluation."""
    in_one, unbroken = run(tmp_path / 'unbroken', engine=engine, **flags)
    n_check = 1 + flags.get('progressive_size', '').count('=')  # forward passes in test mode before the training
    for seed, on_forward in ((0, stop_at(4)), (9, stop_at(n_check, in_training=False))):
        outcome, _ = run(tmp_path / 'broken', Net(seed, on_forward), engine=engine, resume='auto', **flags)
        assert outcome.exit_code == 128 + signal.SIGTERM
    outcome, model = run(tmp_path / 'broken', Net(9), engine=engine, resume='auto', **flags)
    assert outcome.exit_code == 0 and outcome.summary['finished']
    assert_same_state(model, unbroken)
    assert without_times(tmp_path / 'broken') == without_times(tmp_path / 'unbroken')
    first, *others = outcome.summary['parts']
    assert first == {'after_iteration': 0} | {key: outcome.summary[key] for key in ('device', 'versions')}
    assert others and all(part['after_iteration'] > 0 for part in others) and 'parts' not in in_one.summary
    again, _ = run(tmp_path / 'broken', Net(9), engine=engine, resume='auto', **flags)  # only draws
    assert again.summary['parts'] == outcome.summary['parts']


def test_a_run_of_iterations_ends_with_the_last_and_its_schedule_too(tmp_path):
    """12 images of 40 a batch: 8 iterations are 2.4 epochs."""
    outcome, _ = run(tmp_path, iterations=8, lr=0.1)
    log = without_times(tmp_path)
    assert [(entry['epoch'], entry['iteration']) for entry in log] == [(1, 4), (2, 7), (3, 8)]
    assert [entry['lr'] for entry in log] == pytest.approx([0.1 * (1 - epoch / 2.4) for epoch in (0, 1, 2)])
    assert all(entry['test_loss'] is not None for entry in log)
    with np.load(outcome.folder / 'checkpoint_last.npz') as arrays:
        assert arrays['updater/iteration'] == 8
    again, _ = run(tmp_path, iterations=8, lr=0.1, resume='auto')
    assert without_times(tmp_path) == log and again.summary['finished']


def test_growing_pictures_are_tested_as_they_are_trained_and_the_largest_choose_the_best_epoch(tmp_path):
    sizes = []

    class Watching(Net):
        def forward(self, x):
            if not chainer.config.train:
                sizes.append(x.shape[-1])
            return super().forward(x)

    outcome, _ = run(tmp_path, Watching(0), epoch=4, size=40, progressive_size='24=1,32=3', engine='plain')
    assert [size for size, _ in groupby(sizes)][-3:] == [30, 32, 46]  # 32 px is the small set, tested as it is
    log = without_times(tmp_path)
    assert [entry['size'] for entry in log] == [24, 32, 32, 40]
    assert outcome.summary['best']['epoch'] == 4


def test_growing_pictures_reach_the_last_size_before_a_run_ends(tmp_path):
    with pytest.raises(InputError, match=r'--progressive_size 24=3 leaves no epoch of --iterations 4 for --size 40'):
        run(tmp_path, iterations=4, size=40, progressive_size='24=3')
    flags = {'lr': 0, 'freeze': 'bn', 'patience': 1}  # all epochs of one size are alike
    outcome, _ = run(tmp_path, epoch=8, size=40, progressive_size='24=4', **flags)
    assert outcome.summary['stopped_early'] == 6 and outcome.summary['best']['epoch'] == 5


class Deep(Net):
    """Of images below 16 px nothing is left."""

    def forward(self, x):
        return super().forward(F.average_pooling_2d(x, 16, 1))


def test_sizes_that_the_network_cannot_compute_are_told_before_the_training(tmp_path):
    with pytest.raises(InputError, match=r'--progressive_size has 8 px, which the network cannot compute'):
        run(tmp_path, Deep(0), epoch=4, size=40, progressive_size='8=1')
    with pytest.raises(InputError, match=r'--progressive_size has 4 px; expected 8 .. 1024'):
        run(tmp_path, epoch=4, size=40, progressive_size='4=1')


def test_a_run_by_muon_is_continued_by_hand(tmp_path):
    """40 images in batches of 10: no batch spans two epochs, so that epoch 2 can be started by hand."""
    flags = {'batch': 10, 'optimizer': 'muon', 'schedule': 'constant'}
    _, unbroken = run(tmp_path / 'whole', epoch=2, **flags)
    half, _ = run(tmp_path / 'half', epoch=1, **flags)
    files = {'load_model': 'weights_last.npz', 'load_optimizer': 'checkpoint_last.npz'}
    files = {name: str(half.folder / file) for name, file in files.items()}
    _, rest = run(tmp_path / 'rest', Net(9), epoch=2, start_epoch=2, **files, **flags)
    assert_same_state(rest, unbroken)


def test_another_number_of_iterations_is_another_run(tmp_path):
    run(tmp_path, iterations=3)
    with pytest.raises(InputError, match=r'was trained with --iterations 3, not 9'):
        run(tmp_path, iterations=9, resume='auto')
    with pytest.raises(InputError, match=r'--start_epoch 3 comes after the last iteration, --iterations 3: 40 images'):
        run(tmp_path, iterations=3, start_epoch=3, overwrite=True)


def test_the_averaged_weights_are_tested_and_saved_and_the_checkpoint_holds_both(tmp_path):
    outcome, model = run(tmp_path, epoch=2, ema=0.9)
    _, plain = run(tmp_path / 'plain', epoch=2)
    saved, own = Net(1), Net(1)
    chainer.serializers.load_npz(outcome.folder / 'weights_last.npz', saved)
    checkpoint.load_model(outcome.folder / 'checkpoint_last.npz', own)
    assert_same_state(saved, model)
    assert_same_state(own, plain)
    assert not np.array_equal(saved.fc.W.array, own.fc.W.array)
    losses = [[entry['test_loss'] for entry in without_times(folder)] for folder in (tmp_path, tmp_path / 'plain')]
    assert losses[0] != losses[1]
    assert [e['train_loss'] for e in without_times(tmp_path)] == [
        e['train_loss'] for e in without_times(tmp_path / 'plain')
    ]
    chainer.global_config.train = False
    try:
        from trainer.data.augmentation import Sizes, TestView
        from trainer.step.evaluate import evaluate

        found = evaluate(saved, TestView(DATA.test, Sizes.of(32)), N_TEST, N_CLASS, 12, chainer.get_device('@numpy'))
    finally:
        chainer.global_config.train = True
    assert found.loss == pytest.approx(losses[0][-1], rel=1e-6)
    assert found.top5 == without_times(tmp_path)[-1]['test_top5']


def test_frozen_links_keep_what_was_loaded(tmp_path):
    outcome, first = run(tmp_path / 'a', epoch=1)
    before = state(first)
    weights = str(outcome.folder / 'weights_last.npz')
    _, model = run(tmp_path / 'b', Net(5), epoch=2, load_model=weights, freeze='conv,bn')
    after = state(model)
    for name, value in before.items():
        assert name == 'bn/N' or np.array_equal(after[name], value) == name.startswith(('conv/', 'bn/')), name


def test_a_pattern_that_matches_nothing_ends_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"--freeze: 'konv' matches no link or parameter; close are conv"):
        run(tmp_path, epoch=1, freeze='konv')
    assert not (tmp_path / 'results').exists()


def test_what_is_printed_is_in_the_log_file_too(tmp_path, capsys):
    for epoch in (1, 2):  # the second goes on behind the first
        run(tmp_path, epoch=epoch, schedule='constant', log_file=str(tmp_path / 'run.log'), resume='auto')
    printed = capsys.readouterr().out.splitlines()
    assert [line[21:] for line in (tmp_path / 'run.log').read_text().splitlines()] == printed
    lines = [line for line in printed if line.startswith('epoch ')]
    assert len(lines) == 2 and all(', top-5 ' in line for line in lines)  # of twelve classes


def test_logs_of_earlier_versions_are_read_and_wrong_values_are_not(tmp_path):
    run(tmp_path, epoch=1)
    path = tmp_path / 'results/r/log.jsonl'
    entry = json.loads(path.read_text())
    (tmp_path / 'old.jsonl').write_text(
        json.dumps({k: v for k, v in entry.items() if k not in ('test_top5', 'iteration')}) + '\n'
    )
    run(tmp_path / 'on', epoch=2, start_epoch=2, load_log=str(tmp_path / 'old.jsonl'))
    path.write_text(json.dumps(entry | {'test_top5': 1.5}) + '\n')
    with pytest.raises(InputError, match=r'test_top5 is 1.5, expected a fraction 0..1'):
        read_log(path)
