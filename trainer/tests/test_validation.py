"""Runs with validation images, with patience, with class weights: what chooses what, and what they survive."""

import json
import signal

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import trainer
from trainer import Config, InputError, links
from trainer.data.augmentation import Sizes
from trainer.data.datasets import Data, Split
from trainer.functions import dropout
from trainer.run import checkpoint
from trainer.run.records import read_log, read_run
from trainer.step.evaluate import Evaluation

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
            self.fc = L.Linear(8, N_CLASS)

    def forward(self, x):
        if self.on_forward is not None:
            self.on_forward(chainer.config.train)
        return self.fc(dropout(F.mean(self.bn(self.conv(x), relu=True), axis=(2, 3)), 0.3))


def make_split(labels):
    labels = np.array(labels, np.int32)
    return Split(np.random.default_rng(0).integers(0, 255, (len(labels), 3, 32, 32)).astype(np.uint8), labels)


def make_data(labels):
    test = make_split(np.arange(N_TEST) % N_CLASS)
    return Data('noise', make_split(labels), test, tuple('abcdefghijkl'), 'made for a test', is_jpeg=False)


DATA = make_data(np.arange(N_TRAIN) % N_CLASS)
SKEWED = make_data(np.repeat(np.arange(4), [30, 4, 3, 3]))


def run(folder, model=None, data=DATA, **flags):
    model = model or Net()
    common = {'size': 32, 'batch': 12, 'lr': 0.05, 'epoch': 4, 'save_path': str(folder), 'run': 'r'}
    return trainer.train(model, data, Config(**(common | {'schedule': 'constant'} | flags))), model


def assert_same_state(a, b):
    states = []
    for model in a, b:
        serializer = chainer.serializers.DictionarySerializer()
        serializer.save(model)
        states.append(serializer.target)
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


def stop_at(call, in_training=True):
    count = iter(range(10**9))

    def on_forward(is_training):
        if is_training == in_training and next(count) == call:
            signal.raise_signal(signal.SIGTERM)

    return on_forward


def records(folder):
    """The log and the summary, without times and parts."""
    read = read_run(folder / 'results/r')
    log = [{k: v for k, v in entry.items() if k not in ('seconds', 'images_per_s')} for entry in read.log]
    return log, {k: v for k, v in read.summary.items() if k not in ('seconds', 'last', 'best', 'parts')}


def scripted(monkeypatch, accuracies):
    """Epochs are scored with these accuracies, of 100 images; returns the numbers of images that were scored."""
    scored, rest = [], iter(accuracies)

    def evaluate(model, view, n, *_):
        scored.append(n)
        right = round(100 * next(rest))
        confusion = np.zeros((12, 12), np.int64)
        confusion[0, :2] = right, 100 - right
        return Evaluation(1.0, confusion, 0.5)

    monkeypatch.setattr('trainer.run.testing.evaluate', evaluate)
    return scored


def test_the_test_images_are_looked_at_once_at_the_end(tmp_path):
    looked, passes = [], []  # the test images looked at; of each forward pass, whether it trains, and how many before

    class Watched(Data):
        def pictures(self, *arguments):
            pictures = super().pictures(*arguments)
            look = pictures.test._look
            pictures.test._look = lambda epoch, index, device: looked.extend(index) or look(epoch, index, device)
            return pictures

    data = Watched(**{name: getattr(DATA, name) for name in Data.__dataclass_fields__})
    model = Net(on_forward=lambda is_training: passes.append((is_training, len(looked))))
    outcome, _ = run(tmp_path, model, data, validation='25%')
    assert sorted(looked) == list(range(N_TEST))
    n_test_pass = 2  # 15 images, 12 at a time
    assert {n_looked for _, n_looked in passes[:-n_test_pass]} == {0}
    assert not any(is_training for is_training, _ in passes[-n_test_pass - 1 :])  # after the last validation
    test = outcome.summary['test']
    assert np.sum(test['confusion']) == N_TEST and np.sum(outcome.summary['confusion']) == 10
    log, summary = records(tmp_path)
    assert not [key for entry in log for key in entry if key.startswith('test')]
    assert summary['dataset'] == {
        'name': 'noise',
        'source': 'made for a test',
        'is_jpeg': False,
        'n_train': 30,
        'n_test': N_TEST,
        'n_validation': 10,
        'held_out': '25% of the training images, by seed 0',
    }


@pytest.mark.parametrize('flags', [{}, {'ema': 0.9}, {'engine': 'plain', 'test_batch_divide': 2}], ids=str)
def test_the_best_validation_epoch_is_tested(tmp_path, flags):
    outcome, model = run(tmp_path, validation='10', **flags)
    log, summary = records(tmp_path)
    best = max(log, key=lambda entry: entry['val_accuracy'])
    test = summary['test']
    assert (test['epoch'], test['chosen_on']) == (best['epoch'], 'validation')
    assert outcome.summary['best']['epoch'] == best['epoch']

    loaded = Net(seed=9)
    chainer.serializers.load_npz(outcome.folder / 'weights_best.npz', loaded)
    view = DATA.pictures(Sizes.of(32), 'experiment').test
    x, t = view(np.arange(N_TEST))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        y = loaded(x)
    assert test['loss'] == pytest.approx(float(F.softmax_cross_entropy(y, t).array), rel=1e-4)
    assert test['accuracy'] == pytest.approx(float(F.accuracy(y, t).array))

    last = Net(seed=9)
    chainer.serializers.load_npz(outcome.folder / 'weights_last.npz', last)
    assert_same_state(model, last)  # the network leaves with the weights of the last epoch, as without validation


def test_without_these_flags_nothing_changes(tmp_path):
    outcome, _ = run(tmp_path)
    log, summary = records(tmp_path)
    assert {'test_loss', 'test_accuracy', 'test_top5'} < log[0].keys()
    assert not {'test', 'stopped_early'} & summary.keys()
    assert summary['dataset'].keys() == {'name', 'source', 'is_jpeg', 'n_train', 'n_test'}
    with np.load(outcome.folder / 'checkpoint_last.npz') as arrays:
        assert len(json.loads(str(arrays['extensions/Recorder/state']))) == 7


def test_stopped_anywhere_and_resumed_equals_unbroken_to_the_bit(tmp_path):
    """In training, in a validation, and in the test at the end, which then is done by the resumed run."""
    flags = {'validation': '20%', 'class_weights': 'balanced', 'ema': 0.9}
    _, unbroken = run(tmp_path / 'unbroken', **flags)
    # Before it trains, a run computes one image in test mode.
    stops = [stop_at(4), stop_at(2, in_training=False), stop_at(0), stop_at(3, in_training=False)]
    for seed, stop in enumerate(stops):
        outcome, _ = run(tmp_path / 'broken', Net(seed, stop), resume='auto', **flags)
        assert outcome.exit_code == 128 + signal.SIGTERM
        assert not outcome.summary.get('finished') and 'test' not in outcome.summary
    assert outcome.summary['last']['epoch'] == 4  # all but the test
    outcome, model = run(tmp_path / 'broken', Net(9), resume='auto', **flags)
    assert outcome.summary['finished']
    assert records(tmp_path / 'broken') == records(tmp_path / 'unbroken')
    assert_same_state(model, unbroken)


@pytest.mark.parametrize(
    'where', ['trainer.run.recorder.Recorder.score_test', 'trainer.run.checkpoint.Checkpoint.finish']
)
def test_killed_about_the_test_and_resumed(tmp_path, monkeypatch, where):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    flags = {'validation': '20%'}
    run(tmp_path / 'unbroken', **flags)
    with monkeypatch.context() as patch:
        patch.setattr(where, kill)
        with pytest.raises(Killed):
            run(tmp_path / 'broken', **flags)
    run(tmp_path / 'broken', Net(9), resume='auto', **flags)
    assert records(tmp_path / 'broken') == records(tmp_path / 'unbroken')


def test_a_finished_run_is_not_tested_again_unless_it_goes_on(tmp_path, monkeypatch, capsys):
    run(tmp_path, validation='10')
    before = records(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr('trainer.run.testing.evaluate', lambda *_: pytest.fail('scored'))
        run(tmp_path, Net(9), validation='10', resume='auto')
    assert 'it has ended, and is only drawn again' in capsys.readouterr().out
    assert records(tmp_path) == before
    run(tmp_path, Net(9), validation='10', resume='auto', epoch=6)
    run(tmp_path / 'whole', validation='10', epoch=6)
    assert records(tmp_path) == records(tmp_path / 'whole')


def test_resumed_elsewhere_the_best_weights_come_along(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2])
    run(tmp_path, validation='10', epoch=2)
    path = str(tmp_path / 'results/r/checkpoint_last.npz')
    scripted(monkeypatch, [0.3, 0.2, 0.7])
    outcome, _ = run(tmp_path, Net(9), validation='10', run='other', resume=path)
    assert outcome.summary['best']['epoch'] == 1 and outcome.summary['test']['accuracy'] == 0.7
    best = [Net(1), Net(2)]
    for model, name in zip(best, ('r', 'other'), strict=True):
        checkpoint.load_model(tmp_path / 'results' / name / 'weights_best.npz', model)
    assert_same_state(*best)


def test_best_weights_that_are_missing_are_named(tmp_path):
    run(tmp_path, Net(on_forward=stop_at(4, in_training=False)), validation='10')  # in the test
    (tmp_path / 'results/r/weights_best.npz').unlink()
    log = read_log(tmp_path / 'results/r/log.jsonl')
    if max(log, key=lambda entry: entry['val_accuracy']) is log[-1]:
        pytest.skip('the last epoch is the best, whose weights come back')
    with pytest.raises(InputError, match=r'weights_best.npz is missing, which the test images are scored with'):
        run(tmp_path, validation='10', resume='auto')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'validation': '40'}, r'--validation 40: 40 of 40 images to hold out, expected 1\.\.28'),
        ({'validation': 'some'}, r"--validation is 'some'; expected a number of images"),
        ({'patience': 0}, r'--patience is 0'),
        ({'class_weights': 'x'}, r'--class_weights is .x.; expected one of none, balanced'),
    ],
)
def test_flags_that_do_not_fit_are_named(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, **flags)


def test_images_for_validation_of_their_own(tmp_path):
    data = DATA.with_validation('10', seed=7)
    outcome, _ = run(tmp_path, data=data)
    assert outcome.summary['dataset']['n_validation'] == 10 and 'held_out' not in outcome.summary['dataset']
    assert np.sum(outcome.summary['test']['confusion']) == N_TEST
    with pytest.raises(InputError, match=r'--validation 5: noise has validation images of its own; leave the flag out'):
        run(tmp_path / 'both', data=data, validation='5')


# ---- patience ----


def test_patience_ends_a_run(tmp_path, monkeypatch, capsys):
    scored = scripted(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.55])
    outcome, _ = run(tmp_path, validation='10', patience=2, epoch=30)
    summary = outcome.summary
    assert (summary['finished'], summary['stopped_early'], summary['best']['epoch']) == (True, 4, 2)
    assert scored == [10, 10, 10, 10, N_TEST] and summary['test']['accuracy'] == 0.55
    assert [entry['epoch'] for entry in read_log(tmp_path / 'results/r/log.jsonl')] == [1, 2, 3, 4]
    out = capsys.readouterr().out
    assert 'stopped after epoch 4: no higher validation accuracy for 2 epochs, the best is that of epoch 2\n' in out
    assert 'flatters' not in out
    scripted(monkeypatch, [])
    again, _ = run(tmp_path, Net(9), validation='10', patience=2, epoch=30, resume='auto')
    assert again.summary == summary
    assert 'it has ended, and is only drawn again' in capsys.readouterr().out
    scripted(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.1])
    longer, _ = run(tmp_path, Net(9), validation='10', patience=3, epoch=8, resume='auto')
    assert (longer.summary['best']['epoch'], longer.summary['last']['epoch']) == (5, 8)
    assert 'stopped_early' not in longer.summary  # its last epoch has come, too


def test_patience_without_validation_watches_the_test_and_says_so(tmp_path, monkeypatch, capsys):
    scored = scripted(monkeypatch, [0.5, 0.4, 0.4])
    outcome, _ = run(tmp_path, patience=1, epoch=30)
    assert outcome.summary['stopped_early'] == 2 and 'test' not in outcome.summary
    assert scored == [N_TEST, N_TEST]
    out = capsys.readouterr().out
    assert (
        out.count('--patience uses the test images, as there are no validation images, so their accuracy is optimistic')
        == 1
    )
    assert 'stopped after epoch 2: no higher test accuracy for 1 epoch, the best is that of epoch 1' in out


def test_patience_of_a_run_that_goes_on_by_hand_counts_its_own_epochs(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.9, 0.8, 0.1, 0.2, 0.15])
    run(tmp_path, epoch=2)
    log = str(tmp_path / 'results/r/log.jsonl')
    outcome, _ = run(tmp_path, run='s', start_epoch=3, epoch=9, load_log=log, patience=1)
    assert outcome.summary['stopped_early'] == 5


# ---- class weights ----


def test_class_weights_weigh_the_training_alone(tmp_path, capsys):
    """At rate 0, weights are those at the start: the loss of the training is weighted, that of the test is not."""
    weighted, even = tmp_path / 'weighted', tmp_path / 'even'
    flags = {'lr': 0.0, 'epoch': 1, 'dropout': 0, 'batch': 40}
    _, model = run(weighted, data=SKEWED, class_weights='balanced', **flags)
    out = capsys.readouterr().out
    assert out.count("class 'a' has 30 images, 'c' 3: losses are weighted by class, from 0.333 to 3.33\n") == 1
    _, other = run(even, data=SKEWED, **flags)
    assert_same_state(model, other)
    (one,), (two,) = records(weighted)[0], records(even)[0]
    assert one['test_loss'] == two['test_loss'] and one['train_accuracy'] == two['train_accuracy']
    assert one['train_loss'] != pytest.approx(two['train_loss'], rel=1e-3)


@pytest.mark.parametrize(
    ('dataset', 'weights', 'n'), [('folder', 'none', 1), ('x', 'none', 0), ('folder', 'balanced', 0)]
)
def test_skewed_classes_of_the_users_own_are_told(tmp_path, capsys, dataset, weights, n):
    run(tmp_path, data=SKEWED, dataset=dataset, class_weights=weights, epoch=1)
    line = "class 'a' has 30 images, 'c' 3: consider --class_weights balanced\n"
    assert capsys.readouterr().out.count(line) == n
