"""Training on images that are read and decoded as they are needed: from any source, by any number of processes."""

import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from PIL import Image

import trainer
from trainer import Config, InputError, training
from trainer.data.datasets import Stream, folder, load, make_shapes, pack
from trainer.data.sources import ImageList
from trainer.parallel import ONE_PROCESS
from trainer.run.mistakes import record_mistakes
from trainer.run.records import read_mistakes, read_run
from trainer.step.evaluate import Evaluation, Mistake, evaluate

pytestmark = pytest.mark.usefixtures('no_rendering')
N_CLASS = 4


class Net(chainer.Chain):
    def __init__(self, seed=0, on_forward=None):
        super().__init__()
        np.random.seed(seed)
        self.on_forward = on_forward
        with self.init_scope():
            self.conv = L.Convolution2D(3, 8, 5, stride=4)
            self.bn = L.BatchNormalization(8)
            self.fc = L.Linear(8, N_CLASS)

    def forward(self, x):
        if self.on_forward is not None:
            self.on_forward(x)
        return self.fc(F.mean(F.relu(self.bn(self.conv(x))), axis=(2, 3)))


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """The same drawn shapes, JPEGs of several sizes, as a list, class folders, tar shards and RecordIO."""
    root = tmp_path_factory.mktemp('data')
    data = make_shapes(n_train=6, n_test=3)
    sizes = np.random.default_rng(0).integers(30, 80, (1000, 2)).tolist()
    for split, name in (data.train, 'train'), (data.test, 'val'):
        lines = []
        for i in np.flatnonzero(split.labels < N_CLASS):
            path = root / 'list' / name / data.classes[split.labels[i]] / f'{i:03d}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i].transpose(1, 2, 0)).resize(sizes[i]).save(path, quality=90)
            lines.append(f'{path.relative_to(root / "list")} {split.labels[i]}\n')
        (root / 'list' / f'{name}.txt').write_text(''.join(lines))
    (root / 'list' / 'classes.txt').write_text(''.join(f'{name}\n' for name in data.classes[:N_CLASS]))
    for kind, suffix in ('shards', ''), ('rec', '.rec'):
        (root / kind).mkdir()
        for name in ('train', 'val'):
            source = ImageList(root / 'list' / f'{name}.txt', class_list=root / 'list' / 'classes.txt')
            pack.pack(source, root / kind / f'{name}{suffix}', shard_bytes=20_000)
    assert len(list((root / 'shards' / 'train').glob('*.tar'))) > 1
    return root


def run(save_path, data, model=None, **flags):
    defaults = {'size': 32, 'batch': 10, 'epoch': 3, 'lr': 0.05, 'save_path': str(save_path), 'run': 'r', 'workers': 0}
    model = model or Net()
    return trainer.train(model, data, Config(**(defaults | flags))), model


def assert_same_state(a, b):
    a, b = (dict(model.namedparams()) for model in (a, b))
    for name, parameter in a.items():
        np.testing.assert_array_equal(parameter.array, b[name].array, err_msg=name)


def read_log(save_path):
    entries = [json.loads(line) for line in (save_path / 'results/r/log.jsonl').read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ('seconds', 'images_per_s')} for entry in entries]


@pytest.fixture(scope='module')
def unbroken(places, tmp_path_factory):
    save_path = tmp_path_factory.mktemp('unbroken')
    outcome, model = run(save_path, load('imagelist', places / 'list'))
    return save_path, outcome, model


def test_a_list_trains(unbroken):
    save_path, outcome, _ = unbroken
    assert outcome.exit_code == 0
    assert [entry['epoch'] for entry in read_log(save_path)] == [1, 2, 3]
    assert outcome.summary['dataset'] == {
        'name': 'list',
        'source': 'image lists of list',
        'is_jpeg': True,
        'n_train': 24,
        'n_test': 12,
    }
    assert np.sum(outcome.summary['confusion']) == 12
    name = outcome.folder.name
    pictures = {'loss.png', 'accuracy.png', f'confusion_{name}.png', f'report_{name}.html'}
    assert {path.name for path in (save_path / 'img').iterdir()} == pictures


def test_mistakes_of_files_have_pictures(unbroken):
    _, outcome, _ = unbroken
    mistakes = read_mistakes(read_run(outcome.folder))
    confusion = np.array(outcome.summary['confusion'])
    assert mistakes['n_wrong'] == len(mistakes['mistakes']) == confusion.sum() - np.trace(confusion) > 0


def test_a_mistake_whose_file_has_gone_is_left_out(places, tmp_path):
    data = load('imagelist', places / 'list')
    mistakes = [Mistake(0, 1, 0.75), Mistake(1, 1, 0.5)]
    read = data.test.read
    data.test.read = lambda i: read(i) if i else b'not an image'
    record_mistakes(tmp_path, data, 'test', 4, Evaluation(1.0, np.array([[0, 2], [0, 0]]), None, mistakes))
    kept = json.loads((tmp_path / 'mistakes.json').read_text())
    assert (kept['epoch'], kept['n_wrong']) == (4, 2)
    assert [(m['image'], m['predicted'], m['probability']) for m in kept['mistakes']] == [(1, 1, 0.5)]


@pytest.mark.parametrize(('name', 'kind'), [('shards', 'shards'), ('recordio', 'rec')])
def test_other_sources_train_to_the_same_bits(places, unbroken, tmp_path, name, kind):
    data = load(name, places / kind)
    assert isinstance(data, Stream)
    _, model = run(tmp_path, data)
    assert_same_state(model, unbroken[2])
    assert read_log(tmp_path) == read_log(unbroken[0])


@pytest.mark.parametrize(('workers', 'divide'), [(1, 1), pytest.param(2, 3, marks=pytest.mark.long)])
def test_processes_do_not_change_a_bit(places, unbroken, tmp_path, workers, divide):
    data = load('imagelist', places / 'list')
    expected = unbroken[2] if divide == 1 else run(tmp_path / 'alone', data, train_batch_divide=divide)[1]
    _, model = run(tmp_path / 'processes', data, workers=workers, train_batch_divide=divide)
    assert_same_state(model, expected)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.long)])
def test_stopped_and_resumed_equals_unbroken_to_the_bit(places, unbroken, tmp_path, workers):
    data = load('imagelist', places / 'list')
    calls = iter(range(1000))

    def stop(x):
        if chainer.config.train and next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)

    outcome, _ = run(tmp_path, data, Net(on_forward=stop), workers=workers)
    assert outcome.exit_code == 128 + signal.SIGTERM
    outcome, model = run(tmp_path, data, Net(seed=9), workers=workers, resume='auto')
    assert outcome.exit_code == 0
    assert_same_state(model, unbroken[2])
    assert read_log(tmp_path) == read_log(unbroken[0])


@pytest.mark.parametrize('preprocess', ['caffe', 'caffe-opencv', 'five-crop', 'torchvision'])
def test_other_preprocessings_train_class_folders(places, tmp_path, preprocess):
    data = load('folder', places / 'list', preprocess=preprocess)
    assert isinstance(data, Stream)
    assert data.n_class == N_CLASS
    shapes = set()
    outcome, _ = run(tmp_path, data, Net(on_forward=lambda x: shapes.add(x.shape[1:])), preprocess=preprocess, epoch=1)
    assert np.sum(outcome.summary['confusion']) == 12
    assert shapes == {(3, 32, 32)}


def test_a_folder_is_streamed_where_it_has_to_be(places, monkeypatch):
    kept = load('folder', places / 'list', max_side=40)
    assert not isinstance(kept, Stream)
    monkeypatch.setattr(folder, 'MAX_IN_MEMORY', 36 * 3 * 40**2 - 1)
    streamed = load('folder', places / 'list', max_side=40, limit=3)
    assert not isinstance(streamed, Stream)  # 3 images of a class are few enough
    streamed = load('folder', places / 'list', max_side=40)
    assert isinstance(streamed, Stream)
    assert sorted(streamed.classes) == sorted(kept.classes)


def test_a_limit_is_of_each_class(places):
    data = load('imagelist', places / 'list', limit=2)
    assert np.bincount(data.train.labels).tolist() == [2] * N_CLASS
    assert np.bincount(data.test.labels).tolist() == [2] * N_CLASS


def test_the_usual_size_is_that_of_the_preprocessing():
    assert Config().size == Config(preprocess='caffe').size == 122
    assert Config(dataset='imagelist').size == 122
    assert Config(dataset='imagelist', preprocess='caffe').size == 227
    assert Config(dataset='recordio', preprocess='torchvision', size=96).size == 96


def test_unreadable_images_are_told_or_fatal(places, tmp_path, capsys):
    good = load('imagelist', places / 'list')

    class Damaged:
        """Images 5 of training and 2 of the test are broken."""

        def __init__(self, source, i):
            self.source, self.i = source, i
            self.labels, self.classes, self.place, self.name = source.labels, source.classes, source.place, source.name

        def __len__(self):
            return len(self.source)

        def read(self, i):
            return self.source.read(i)[: 100 if i == self.i else None]

    data = Stream('damaged', Damaged(good.train, 5), Damaged(good.test, 2), good.classes, 'made for a test', True)
    with pytest.raises(InputError, match=r'\.jpg \(.*\) is unreadable; --unreadable skip goes on'):
        run(tmp_path, data)
    capsys.readouterr()
    outcome, _ = run(tmp_path, data, unreadable='skip', overwrite=True)
    out = capsys.readouterr().out
    assert out.count('1 of 24 training images could not be read and were replaced by the next ones: ') == 1
    assert out.count('1 of 12 test images could not be read and were left out: ') == 1
    assert np.sum(outcome.summary['confusion']) == 11


@pytest.mark.long
def test_images_held_out_are_streamed_and_the_test_is_read_at_the_end(places, tmp_path):
    data = load('imagelist', places / 'list')
    n_before = []  # log entries when a test image is read

    class Watched:
        def __init__(self, source):
            self.source = source
            self.labels, self.classes, self.place, self.name = source.labels, source.classes, source.place, source.name

        def __len__(self):
            return len(self.source)

        def read(self, i):
            n_before.append(len((tmp_path / 'results/r/log.jsonl').read_text().splitlines()))
            return self.source.read(i)

    outcome, _ = run(tmp_path, replace(data, test=Watched(data.test)), validation='25%')
    assert outcome.summary['dataset']['n_train'] == 18 and outcome.summary['dataset']['n_validation'] == 6
    confusion = np.array(outcome.summary['test']['confusion'])
    assert confusion.sum() == 12 and np.sum(outcome.summary['confusion']) == 6
    n_pictures = 12 - np.trace(confusion)  # of the mistakes
    assert n_before == [3] * (12 + n_pictures)  # all epochs were over
    again, _ = run(tmp_path / 'processes', data, validation='25%', workers=2)
    assert again.summary['test'] == outcome.summary['test']


def test_nothing_to_score_is_an_error(places):
    def view(index, device):
        return np.empty((0, 3, 32, 32), np.float32), np.empty(0, np.int32)

    with pytest.raises(InputError, match='not one of the images to score can be read'):
        evaluate(Net(), view, 4, N_CLASS, 2, chainer.get_device('@numpy'))


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({}, r'train\.txt does not exist; a folder of image lists holds train\.txt and val\.txt or test\.txt'),
        ({'train.txt': 'a.jpg 0\n'}, r'val\.txt does not exist'),
        (
            {'train.txt': 'a.jpg 0\n', 'val.txt': 'a.jpg 3\n', 'classes.txt': 'a\nb\n'},
            r'val\.txt: the label 3 is outside',
        ),
    ],
)
def test_folders_that_do_not_hold_it(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load('imagelist', tmp_path)


def test_splits_have_the_same_classes(tmp_path):
    for name in ('train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'val/c/1.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="the class 'c' of val has no training images"):
        load('folder', tmp_path, preprocess='caffe')


def test_streams_on_a_gpu_compute_in_float32_or_bf16(places, monkeypatch):
    data = load('imagelist', places / 'list')
    monkeypatch.setattr(training.device, 'open_device', lambda gpu: SimpleNamespace(xp='cupy'))
    monkeypatch.setattr(training.device.engine, 'is_available', lambda of=None: True)

    def choose(data, precision='auto'):
        config = Config(gpu=0, precision=precision)
        return training._on_device(config, ONE_PROCESS, data.capture_obstacle).precision

    assert choose(data) == 'float32'
    assert choose(data, 'bf16') == 'bf16'
    with pytest.raises(InputError, match='--precision fp16 needs iterations captured on the GPU, but list is read'):
        choose(data, 'fp16')
    assert choose(make_shapes(2, 2)) == 'fp16'


@pytest.mark.gpu
def test_a_gpu_trains_as_the_cpu_does(places, tmp_path):
    """In float64, where rounding has no time to grow."""
    data = load('imagelist', places / 'list')
    flags = {'precision': 'float64', 'engine': 'plain', 'epoch': 2, 'preprocess': 'torchvision', 'workers': 2}
    losses = []
    for gpu in (-1, 0):
        with chainer.using_config('dtype', np.dtype(np.float64)):
            run(tmp_path / str(gpu), data, Net(), gpu=gpu, **flags)
        losses.append([(entry['train_loss'], entry['test_loss']) for entry in read_log(tmp_path / str(gpu))])
    np.testing.assert_allclose(*losses, rtol=1e-8)


@pytest.mark.gpu
@pytest.mark.cudnn
@pytest.mark.parametrize('precision', ['auto', 'bf16'])
def test_the_engine_of_a_gpu_trains_uncaptured(places, tmp_path, precision):
    data = load('imagelist', places / 'list')
    run(tmp_path, data, Net(), gpu=0, precision=precision, epoch=2)
    run(tmp_path / 'cpu', data, Net(), epoch=2)
    losses = [[entry['train_loss'] for entry in read_log(path)] for path in (tmp_path, tmp_path / 'cpu')]
    np.testing.assert_allclose(*losses, rtol=1e-3 if precision == 'auto' else 0.1)


def test_lists_with_validation_and_test_images(tmp_path):
    for name, labels in (('train', (0, 1)), ('val', (0, 1, 1)), ('test', (1, 0, 1, 1))):
        (tmp_path / f'{name}.txt').write_text(''.join(f'{i}.jpg {label}\n' for i, label in enumerate(labels)))
    data = load('imagelist', tmp_path)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [2, 3, 4]
    (tmp_path / 'test.txt').write_text('0.jpg 0\n1.jpg 0\n')  # as Caffe's, which have no labels
    data = load('imagelist', tmp_path)
    assert data.validation is None and len(data.test.labels) == 3
    assert data.notes == ('test.txt is left out: all its labels are 0',)
    (tmp_path / 'train.txt').unlink()
    assert len(load('imagelist', tmp_path, needs_train=False).test.labels) == 3
    with pytest.raises(InputError, match=r'train\.txt does not exist'):
        load('imagelist', tmp_path)
