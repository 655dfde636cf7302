"""Runs of a small network on a few images: what a run leaves behind, and what it survives."""

import base64
import errno
import io
import json
import signal
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from PIL import Image

import trainer
from trainer import Config, InputError, TrainingError
from trainer.data.datasets import Data, Split
from trainer.functions import dropout
from trainer.parallel import ranks
from trainer.report import plots
from trainer.run import checkpoint, recorder

pytestmark = pytest.mark.usefixtures('no_rendering')
N_TRAIN, N_TEST, N_CLASS = 40, 15, 3


class Net(chainer.Chain):
    """Convolution, batch normalisation, dropout: one of each state that a checkpoint has to hold."""

    def __init__(self, has_bn=True, seed=0, on_forward=None):
        super().__init__()
        np.random.seed(seed)
        self.on_forward = on_forward
        with self.init_scope():
            self.conv = L.Convolution2D(3, 8, 5, stride=4)
            if has_bn:
                self.bn = L.BatchNormalization(8)
            self.fc = L.Linear(8, N_CLASS)

    def forward(self, x):
        if self.on_forward is not None:
            self.on_forward(chainer.config.train)
        h = self.conv(x)
        if hasattr(self, 'bn'):
            h = self.bn(h)
        return self.fc(dropout(F.mean(F.relu(h), axis=(2, 3)), 0.3))


def make_data(seed=0):
    """Images whose class is their brightest channel."""
    rng = np.random.default_rng(seed)
    splits = []
    for n in (N_TRAIN, N_TEST):
        labels = (np.arange(n) % N_CLASS).astype(np.int32)
        images = rng.integers(0, 200, (n, 3, 32, 32)).astype(np.uint8)
        images[np.arange(n), labels] += 55
        splits.append(Split(images, labels))
    return Data('blobs', *splits, ('red', 'green', 'blue'), 'made for a test', is_jpeg=False)


DATA = make_data()


def configure(folder, **flags):
    return Config(**({'size': 32, 'batch': 12, 'epoch': 5, 'lr': 0.05, 'save_path': str(folder), 'run': 'r'} | flags))


def run(folder, model=None, **flags):
    model = model or Net()
    return trainer.train(model, DATA, configure(folder, **flags)), model


def state(model):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return serializer.target


def assert_same_state(a, b):
    for name, value in state(a).items():
        np.testing.assert_array_equal(value, state(b)[name], err_msg=name)


def read_log(folder):
    return [json.loads(line) for line in (folder / 'results/r/log.jsonl').read_text().splitlines()]


def without_times(log):
    return [{k: v for k, v in entry.items() if k not in ('seconds', 'images_per_s')} for entry in log]


def stop_at(call, number=signal.SIGTERM, in_training=True):
    """A callback that raises a signal in the call-th forward pass of its kind."""
    count = iter(range(10**9))

    def on_forward(is_training):
        if is_training == in_training and next(count) == call:
            signal.raise_signal(number)

    return on_forward


@pytest.mark.parametrize(('variable', 'quota_cores', 'expected'), [(None, 2, [2]), (None, 64, []), ('3', 2, [])])
def test_under_a_cpu_quota_fewer_threads_compute(tmp_path, monkeypatch, variable, quota_cores, expected):
    set_to = []
    monkeypatch.setattr(ranks.engine, 'set_threads', set_to.append)
    monkeypatch.setattr(ranks, 'bound_cores', lambda: set(range(64)))
    monkeypatch.setattr(ranks, 'count_cores', lambda: quota_cores)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if variable is not None:
        monkeypatch.setenv('OMP_NUM_THREADS', variable)
    run(tmp_path, epoch=1)
    assert set_to == expected


def test_leaves_records_weights_checkpoints_and_plots(tmp_path):
    outcome, model = run(tmp_path, epoch=3)
    assert outcome.exit_code == 0
    assert {path.name for path in outcome.folder.iterdir()} == {
        'config.yaml',
        'log.jsonl',
        'summary.json',
        'mistakes.json',
        'checkpoint_last.npz',
        'checkpoint_best.npz',
        'weights_last.npz',
        'weights_best.npz',
    }
    name = outcome.folder.name
    pictures = {'loss.png', 'accuracy.png', f'confusion_{name}.png', f'report_{name}.html'}
    assert {path.name for path in (tmp_path / 'img').iterdir()} == pictures
    log = read_log(tmp_path)
    assert [entry['epoch'] for entry in log] == [1, 2, 3]
    assert [entry['lr'] for entry in log] == [0.05, 0.005, 0.0005]
    assert set(log[0]) == {
        'epoch',
        'iteration',
        'lr',
        'train_loss',
        'train_accuracy',
        'test_loss',
        'test_accuracy',
        'test_top5',
        'per_class_accuracy',
        'seconds',
        'images_per_s',
    }
    summary = outcome.summary
    assert summary['finished'] is True
    assert summary['last'] == log[-1]
    assert summary['best']['test_accuracy'] == max(entry['test_accuracy'] for entry in log)
    assert summary['n_parameters'] == model.count_params()
    assert np.sum(summary['confusion']) == N_TEST
    assert summary['dataset'] == {
        'name': 'blobs',
        'source': 'made for a test',
        'is_jpeg': False,
        'n_train': N_TRAIN,
        'n_test': N_TEST,
    }
    loaded = Net(seed=1)
    chainer.serializers.load_npz(outcome.folder / 'weights_last.npz', loaded)
    assert_same_state(loaded, model)


@pytest.fixture
def reports(monkeypatch):
    """What is written as reports: the last epoch, whether the run has finished, whether it is read again."""
    written = []

    def write(runs, path, refresh_s):
        path.write_text('<meta name="generator" content="chainer-image-trainer">')
        written.append((path.name, runs[0].last['epoch'], runs[0].summary['finished'], refresh_s is not None))

    monkeypatch.setattr(plots, 'write_report', write)
    return written


def test_the_report_follows_the_run(tmp_path, reports):
    run(tmp_path, epoch=3)
    epochs = [(1, False, True), (2, False, True), (3, False, True), (3, False, False), (3, True, False)]
    assert reports == [('report_r.html', *epoch) for epoch in epochs]


def test_the_report_of_a_run_that_fails_is_not_read_again(tmp_path, reports):
    count = iter(range(5))  # training passes, of which four are those of the first epoch
    with pytest.raises(StopIteration):
        run(tmp_path, Net(on_forward=lambda is_training: is_training and next(count)), epoch=3)
    assert reports == [('report_r.html', 1, False, True), ('report_r.html', 1, False, False)]


def test_a_fault_in_the_report_ends_no_run(tmp_path, monkeypatch, capsys):
    def write(runs, path, refresh_s):
        raise ValueError('a fault')

    monkeypatch.setattr(plots, 'write_report', write)
    outcome, _ = run(tmp_path, epoch=2)
    assert outcome.summary['finished']
    assert capsys.readouterr().out.count('report_r.html is not written: a fault') == 1


def test_mistakes_are_those_of_the_last_score(tmp_path):
    place = tmp_path / 'results/r/mistakes.json'
    run(tmp_path, Net(on_forward=stop_at(5)), epoch=3, lr=1e-6)  # learns nothing
    assert json.loads(place.read_text())['epoch'] == 1
    outcome, _ = run(tmp_path, epoch=3, lr=1e-6, resume='auto')
    mistakes = json.loads(place.read_text())
    confusion = np.array(outcome.summary['confusion'])
    n_wrong = confusion.sum() - np.trace(confusion)
    assert (mistakes['epoch'], mistakes['images'], mistakes['n_wrong']) == (3, 'test', n_wrong)
    assert len(mistakes['mistakes']) == n_wrong > 0
    for mistake in mistakes['mistakes']:
        assert mistake['true'] == DATA.test.labels[mistake['image']] != mistake['predicted']
        raw = base64.b64decode(mistake['picture'].partition(',')[2])
        pixels = np.asarray(Image.open(io.BytesIO(raw))).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, DATA.test.images[mistake['image']])
    run(tmp_path, epoch=1, lr=1e-6, overwrite=True, schedule='constant')
    assert json.loads(place.read_text())['epoch'] == 1


def test_learns(tmp_path):
    outcome, _ = run(tmp_path, epoch=20)
    log = read_log(tmp_path)
    assert log[-1]['train_loss'] < 0.7 * log[0]['train_loss']
    assert outcome.summary['best']['test_accuracy'] > 0.6


@pytest.mark.parametrize('optimizer', ['momentum', 'nesterov', 'adam'])
def test_stopped_and_resumed_equals_unbroken_to_the_bit(tmp_path, optimizer):
    """Stopped in every epoch of 5, on both sides of the milestones after 2 and 3; 40 images make 3 1/3 batches."""
    flags = {'optimizer': optimizer, 'lr': 0.01}
    _, unbroken = run(tmp_path / 'unbroken', **flags)
    n_stop = 0
    for call in (1, 3, 2, 4, 1):
        outcome, model = run(
            tmp_path / 'broken', Net(seed=9 * n_stop, on_forward=stop_at(call)), resume='auto', **flags
        )
        n_stop += outcome.exit_code == 128 + signal.SIGTERM
    assert n_stop == 5
    outcome, model = run(tmp_path / 'broken', Net(seed=9), resume='auto', **flags)
    assert outcome.exit_code == 0
    assert_same_state(model, unbroken)
    logs = [read_log(tmp_path / folder) for folder in ('unbroken', 'broken')]
    assert without_times(logs[0]) == without_times(logs[1])
    assert [entry['lr'] for entry in logs[1]] == [0.01, 0.01, 0.001, 0.0001, 0.0001]


def test_stopped_in_an_evaluation_evaluates_before_it_trains_on(tmp_path):
    _, unbroken = run(tmp_path / 'unbroken', epoch=3)
    stop = stop_at(3, signal.SIGINT, in_training=False)  # 2 passes an evaluation: in the second one
    outcome, _ = run(tmp_path / 'broken', Net(on_forward=stop), epoch=3)
    assert outcome.exit_code == 130
    assert len(read_log(tmp_path / 'broken')) == 1
    outcome, model = run(tmp_path / 'broken', Net(seed=9), epoch=3, resume='auto')
    assert_same_state(model, unbroken)
    assert without_times(read_log(tmp_path / 'unbroken')) == without_times(read_log(tmp_path / 'broken'))


def test_a_test_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    """An update that overflows shows in the weights before it shows in a loss."""

    has_trained = []

    def poison(is_training):
        if is_training:
            has_trained.append(True)
        elif has_trained:
            model.fc.W.array[...] = np.inf

    model = Net(on_forward=poison)
    with pytest.raises(TrainingError, match=r'the test loss is nan after epoch 1 \(lr 0.05\): try a lower --lr'):
        run(tmp_path, model)
    assert not list((tmp_path / 'results/r').glob('*.npz'))


def test_best_files_lost_by_a_kill_come_back_with_the_resumed_run(tmp_path):
    run(tmp_path, epoch=2, milestones=(1,))
    best = max(read_log(tmp_path), key=lambda entry: entry['test_accuracy'])['epoch']
    for name in ('weights_last.npz', 'weights_best.npz', 'checkpoint_best.npz'):
        (tmp_path / 'results/r' / name).unlink()
    run(tmp_path, epoch=2, milestones=(1,), resume='auto')
    assert (tmp_path / 'results/r/weights_last.npz').exists()
    assert (tmp_path / 'results/r/checkpoint_best.npz').exists() == (best == 2)


def test_resuming_at_other_rates_than_the_run_had_is_refused(tmp_path):
    run(tmp_path, epoch=4)
    with pytest.raises(
        InputError, match=r'epoch 3 of this run had the learning rate 0.005, not the 0.05 that --epoch 8'
    ):
        run(tmp_path, epoch=8, resume='auto')
    run(tmp_path, epoch=5, milestones=(2, 3), resume='auto')


def test_resuming_onto_another_run_does_not_replace_it(tmp_path):
    run(tmp_path, epoch=1)
    run(tmp_path, epoch=1, run='other')
    path = str(tmp_path / 'results/r/checkpoint_last.npz')
    with pytest.raises(InputError, match=r'results/other holds an earlier run'):
        run(tmp_path, epoch=2, milestones=(5,), run='other', resume=path)
    run(tmp_path, epoch=1, run='third', resume=path)


def test_resumed_from_its_best_epoch_a_run_keeps_that(tmp_path):
    run(tmp_path, epoch=2, milestones=(5,))
    folder = tmp_path / 'results/r'
    (folder / 'checkpoint_best.npz').write_bytes((folder / 'checkpoint_last.npz').read_bytes())
    run(tmp_path, epoch=3, milestones=(5,), resume='auto')
    best = str(folder / 'checkpoint_best.npz')
    before = (folder / 'checkpoint_best.npz').read_bytes()
    outcome, _ = run(tmp_path, Net(on_forward=stop_at(0)), epoch=3, milestones=(5,), resume=best)
    assert outcome.exit_code == 128 + signal.SIGTERM
    assert (folder / 'checkpoint_best.npz').read_bytes() == before
    with np.load(folder / 'checkpoint_last.npz') as arrays:
        assert arrays['updater/iteration'] == 8  # of 4 an epoch: one more than the best


def test_a_run_that_begins_with_anothers_checkpoint_leaves_nothing_of_the_one_it_replaces(tmp_path):
    run(tmp_path, epoch=1)
    path = str(tmp_path / 'results/r/checkpoint_last.npz')
    run(tmp_path, epoch=3, lr=0.1, run='s')
    run(tmp_path, Net(on_forward=stop_at(0, in_training=False)), epoch=2, run='s', resume=path, overwrite=True)
    run(tmp_path, epoch=2, run='s', resume='auto')
    run(tmp_path, epoch=2, run='t', resume=path)
    assert_same_state(*(load(tmp_path / f'results/{name}/weights_last.npz') for name in 'st'))


def load(path):
    model = Net(seed=7)
    chainer.serializers.load_npz(path, model)
    return model


def test_resuming_with_more_or_fewer_images_is_refused_and_others_are_told(tmp_path, capsys):
    run(tmp_path, epoch=1)
    again = configure(tmp_path, epoch=2, milestones=(5,), resume='auto')
    fewer = {name: replace(DATA, **{name: getattr(DATA, name).limited(4)}) for name in ('train', 'test')}
    with pytest.raises(InputError, match=r'other data, whose training images are 40 of checksum \w+, not 12 of'):
        trainer.train(Net(), fewer['train'], again)
    with pytest.raises(InputError, match=r'other data, whose test images are 15 of checksum \w+, not 12 of'):
        trainer.train(Net(), fewer['test'], again)
    with pytest.raises(InputError, match=r'other data, whose validation images are none, not 15 of'):
        trainer.train(Net(), replace(DATA, validation=DATA.test), again)
    trainer.train(Net(), make_data(1), again)
    assert 'the training images are other ones, or decoded otherwise: 40 of checksum' in capsys.readouterr().out


def test_checkpoints_of_earlier_versions_know_no_images(tmp_path, capsys):
    run(tmp_path, epoch=1)
    path = tmp_path / 'results/r/checkpoint_last.npz'
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != 'images'}
    np.savez(path, **kept)
    run(tmp_path, epoch=2, milestones=(5,), resume='auto')
    assert 'other ones' not in capsys.readouterr().out


def test_resuming_by_a_link(tmp_path):
    run(tmp_path, epoch=1)
    (tmp_path / 'latest.npz').symlink_to('results/r/checkpoint_last.npz')
    run(tmp_path, epoch=1, run='s', resume=str(tmp_path / 'latest.npz'))
    (tmp_path / 'results/r/checkpoint_last.npz').unlink()
    run(tmp_path, epoch=2, milestones=(5,), run='s', resume='auto')


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    refused = []

    def again(is_training):
        if not refused:
            with pytest.raises(InputError, match=r'another process trains in .*results/r: .* --run NAME') as error:
                trainer.check(configure(tmp_path))
            refused.append(error)

    run(tmp_path, Net(on_forward=again), epoch=1)
    assert refused
    trainer.check(configure(tmp_path, resume='auto'))


def test_resuming_needs_no_file_that_the_run_began_with(tmp_path):
    run(tmp_path, epoch=1)
    weights = tmp_path / 'w.npz'
    (tmp_path / 'results/r/weights_last.npz').rename(weights)
    run(tmp_path, epoch=2, milestones=(5,), run='s', load_model=str(weights))
    weights.unlink()
    run(tmp_path, epoch=3, milestones=(5,), run='s', load_model=str(weights), resume='auto')


def test_stopped_in_the_first_epoch_behind_a_loaded_log(tmp_path):
    run(tmp_path, epoch=2, milestones=(5,))
    log = str(tmp_path / 'results/r/log.jsonl')
    flags = {'run': 's', 'start_epoch': 3, 'epoch': 4, 'milestones': (5,), 'load_log': log}
    outcome, _ = run(tmp_path, Net(on_forward=stop_at(1)), **flags)
    assert outcome.exit_code == 128 + signal.SIGTERM
    assert outcome.summary == {}
    outcome, _ = run(tmp_path, resume='auto', **flags)
    assert outcome.summary['best']['epoch'] in (3, 4)
    assert (outcome.folder / 'weights_best.npz').exists()


def test_a_log_that_lacks_fields_is_refused(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"epoch": 1}\n')
    with pytest.raises(InputError, match=r'epoch 1 lacks images_per_s, lr,'):
        run(tmp_path, start_epoch=2, load_log=str(tmp_path / 'log.jsonl'))


def test_finished_run_resumes_to_more_epochs_and_to_none(tmp_path, capsys):
    run(tmp_path, epoch=2, milestones=(1,))
    assert 'it has ended' not in capsys.readouterr().out
    before = (tmp_path / 'results/r/log.jsonl').read_text()
    outcome, _ = run(tmp_path, epoch=2, milestones=(1,), resume='auto')
    assert 'it has ended' in capsys.readouterr().out
    assert (tmp_path / 'results/r/log.jsonl').read_text() == before
    assert outcome.summary['finished'] is True
    run(tmp_path, epoch=3, milestones=(1,), resume='auto')
    assert [entry['epoch'] for entry in read_log(tmp_path)] == [1, 2, 3]


def test_seconds_of_an_epoch_count_once_whatever_is_saved_within_it(tmp_path, monkeypatch):
    clock = count()
    monkeypatch.setattr(recorder, 'time', SimpleNamespace(monotonic=lambda: float(next(clock))))
    run(tmp_path, epoch=2, checkpoint_minutes=1e-9)  # after each iteration
    assert 0 < sum(entry['seconds'] for entry in read_log(tmp_path)) < next(clock)


def test_an_earlier_run_is_not_lost(tmp_path):
    run(tmp_path, epoch=1)
    with pytest.raises(InputError, match=r'results/r holds an earlier run'):
        run(tmp_path, epoch=1)
    run(tmp_path, epoch=1, overwrite=True)
    run(tmp_path, epoch=1, run='other')


def test_weights_of_the_user_in_the_folder_of_a_run_stay(tmp_path):
    mine = tmp_path / 'results/r/mine.npz'
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'1')
    run(tmp_path, epoch=1)
    run(tmp_path, epoch=1, overwrite=True)
    assert mine.read_bytes() == b'1'


def test_divided_batch_has_the_same_gradients_and_the_true_loss(tmp_path):
    models = []
    for divide in (1, 3, 12):
        _, model = run(tmp_path / str(divide), Net(has_bn=False), epoch=2, train_batch_divide=divide)
        models.append(model)
    losses = [[entry['train_loss'] for entry in read_log(tmp_path / str(divide))] for divide in (1, 3, 12)]
    for i in (1, 2):
        np.testing.assert_allclose(losses[i], losses[0], rtol=1e-5)
        for name, value in state(models[0]).items():
            np.testing.assert_allclose(state(models[i])[name], value, rtol=1e-4, atol=1e-6)


def test_test_batch_divide_changes_nothing(tmp_path):
    for divide in (1, 5):
        run(tmp_path / str(divide), epoch=1, test_batch_divide=divide)
    whole, parts = (read_log(tmp_path / str(divide))[0] for divide in (1, 5))
    assert parts['test_loss'] == pytest.approx(whole['test_loss'], rel=1e-6)
    assert parts['per_class_accuracy'] == whole['per_class_accuracy']


def test_start_epoch_model_optimizer_and_log_continue_a_run_by_hand(tmp_path):
    """40 images in batches of 10: no batch spans two epochs, so that epoch 3 can be started by hand."""
    flags = {'batch': 10, 'epoch': 4, 'milestones': (3,)}
    _, unbroken = run(tmp_path / 'whole', Net(has_bn=True), **flags)
    run(tmp_path / 'half', epoch=2, batch=10, milestones=(3,))
    half = tmp_path / 'half/results/r'
    model = Net(seed=9)
    run(
        tmp_path / 'rest',
        model,
        start_epoch=3,
        load_model=str(half / 'weights_last.npz'),
        load_optimizer=str(half / 'checkpoint_last.npz'),
        load_log=str(half / 'log.jsonl'),
        **flags,
    )
    assert_same_state(model, unbroken)
    log = read_log(tmp_path / 'rest')
    assert [(entry['epoch'], entry['lr']) for entry in log] == [(1, 0.05), (2, 0.05), (3, 0.05), (4, 0.005)]
    assert without_times(log) == without_times(read_log(tmp_path / 'whole'))


def test_checkpoint_serves_as_model_file(tmp_path):
    _, trained = run(tmp_path, epoch=1)
    model = Net(seed=9)
    checkpoint.load_model(tmp_path / 'results/r/checkpoint_last.npz', model)
    assert_same_state(model, trained)


def test_saves_between_epochs(tmp_path):
    """With an interval of nothing every iteration saves; the run then dies as by SIGKILL and loses nothing."""

    def die(is_training, count=iter(range(100))):  # noqa: B008
        if is_training and next(count) == 5:
            raise KeyboardInterrupt

    _, unbroken = run(tmp_path / 'unbroken', epoch=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'broken', Net(on_forward=die), epoch=2, checkpoint_minutes=1e-9)
    with np.load(tmp_path / 'broken/results/r/checkpoint_last.npz') as arrays:
        assert arrays['updater/iteration'] == 5
    _, model = run(tmp_path / 'broken', Net(seed=9), epoch=2, resume='auto')
    assert_same_state(model, unbroken)


def test_infinite_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    def poison(is_training):
        if is_training and len(list((tmp_path / 'results/r').glob('weights_last.npz'))):
            model.fc.W.array[...] = np.nan

    model = Net(on_forward=poison)
    with pytest.raises(TrainingError, match=r'loss is nan in iteration 5 \(epoch 2, lr 0.05\): .*checkpoint_last'):
        run(tmp_path, model, milestones=(3,))
    fresh = Net()
    checkpoint.load_model(tmp_path / 'results/r/checkpoint_last.npz', fresh)
    assert np.isfinite(fresh.fc.W.array).all()


def test_out_of_memory_suggests_a_divided_batch(tmp_path):
    def exhaust(is_training):
        raise MemoryError

    with pytest.raises(TrainingError, match=r'out of memory at --batch 12 --size 32: .* -trb 2'):
        run(tmp_path, Net(on_forward=exhaust))


def test_out_of_memory_by_single_images_suggests_smaller_ones(tmp_path):
    def exhaust(is_training):
        raise MemoryError

    with pytest.raises(TrainingError, match=r'--batch 2 --size 32: .* smaller --size'):
        run(tmp_path, Net(on_forward=exhaust), batch=2, train_batch_divide=2, test_batch_divide=2)


def test_full_disk_is_found_before_the_first_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r'has 0 MB left, but checkpoints need'):
        run(tmp_path, Net(on_forward=lambda is_training: is_training and pytest.fail('trained')))


def test_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    savez = np.savez

    def fill_up(file, **arrays):
        savez(file, **arrays)
        if len(list((tmp_path / 'results/r').glob('weights_best.npz'))):
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('numpy.savez', fill_up)
    with pytest.raises(TrainingError, match=r'No space left on device; the last checkpoint is'):
        run(tmp_path)
    fresh = Net()
    checkpoint.load_model(tmp_path / 'results/r/checkpoint_last.npz', fresh)
    assert not list((tmp_path / 'results/r').glob('*.part'))


def test_save_path_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'cannot be written .*--save_path'):
        run(tmp_path / 'file')


def test_plots_that_cannot_be_written_are_found_before_the_first_epoch(tmp_path):
    (tmp_path / 'img').write_text('')
    with pytest.raises(InputError, match=r'cannot be written .*--save_path'):
        run(tmp_path, Net(on_forward=lambda is_training: is_training and pytest.fail('trained')))


def test_of_very_many_classes_no_confusion_matrix_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, 'MAX_MATRIX_CLASSES', 2)
    outcome, _ = run(tmp_path, epoch=1)
    assert outcome.summary['confusion'] == [] and outcome.summary['last']['test_accuracy'] > 0
    run(tmp_path, epoch=2, milestones=(5,), resume='auto')


def test_a_batch_is_lowered_to_the_training_images(tmp_path, capsys):
    run(tmp_path, batch=64, epoch=1)
    assert f'a batch of 64 is more than the {N_TRAIN} training images: --batch {N_TRAIN}' in capsys.readouterr().out
    assert f'batch: {N_TRAIN}\n' in (tmp_path / 'results/r/config.yaml').read_text()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'resume': 'nowhere.npz'}, r'--resume nowhere\.npz is not a file'),
        ({'load_model': 'nowhere.npz'}, r'nowhere\.npz does not exist'),
        ({'load_log': 'nowhere.jsonl', 'start_epoch': 2}, r'nowhere\.jsonl'),
        ({'size': 4}, r'size 4'),
        ({'gpu': 99}, r'-g 99'),
    ],
)
def test_flags_that_do_not_fit_are_named(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, **flags)


def test_float64(tmp_path):
    with chainer.using_config('dtype', np.float64):
        model = Net()
    seen = []
    model.on_forward = lambda is_training: seen.append(chainer.config.dtype)
    outcome, _ = run(tmp_path, model, epoch=1, precision='float64')
    assert set(seen) == {np.dtype('float64')}
    assert outcome.exit_code == 0


def test_a_run_does_not_replace_the_weights_that_it_begins_with(tmp_path):
    outcome, _ = run(tmp_path, epoch=1)
    weights = outcome.folder / 'weights_best.npz'
    with pytest.raises(InputError, match=r'lies in the run that would be replaced: keep it by another --run NAME'):
        run(tmp_path, epoch=1, load_model=str(weights), overwrite=True)
    assert weights.exists()
    run(tmp_path, epoch=1, load_model=str(weights), run='other')
