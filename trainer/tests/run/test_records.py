"""What is written is read back; what is malformed is refused with file, line and fault."""

import json

import numpy as np
import pytest

from trainer.errors import InputError
from trainer.run.records import Run, read_log, read_run, strict_json, write_log, write_summary


def make_run(folder, entries=(), summary=None, config='model: tiny\nepoch: 3\n'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.yaml').write_text(config)
    write_log(folder, entries)
    if summary is not None:
        write_summary(folder, summary)
    return folder


def test_strict_json_takes_numpy_and_no_nan():
    text = strict_json({'a': np.float32('nan'), 'b': [float('inf'), np.int64(3)], 'c': np.array([[0.5, -np.inf]])})
    assert json.loads(text) == {'a': None, 'b': [None, 3], 'c': [[0.5, None]]}
    assert strict_json((np.bool_(True), np.longdouble(2), np.array(1), 'ä')) == '[true, 2.0, 1, "ä"]'
    with pytest.raises(TypeError):
        strict_json({'a': object()})


def test_round_trip(tmp_path):
    entries = [{'epoch': 1, 'test_accuracy': 0.25, 'test_loss': float('nan')}, {'epoch': 2, 'test_accuracy': 0.5}]
    summary = {'model': 'tiny', 'confusion': np.eye(2, dtype=int), 'classes': ['cat', 'dog'], 'last': entries[-1]}
    run = read_run(make_run(tmp_path / 'first', entries, summary))
    assert (run.name, run.model, run.config['epoch']) == ('first', 'tiny', 3)
    assert run.log == [entries[0] | {'test_loss': None}, entries[1]]
    assert run.summary == summary | {'confusion': [[1, 0], [0, 1]]}
    assert (run.last['epoch'], run.best['epoch']) == (2, 2)
    assert not list(tmp_path.glob('**/*.part'))


def test_a_run_before_its_first_epoch(tmp_path):
    (tmp_path / 'config.yaml').write_text('model: tiny\n')
    run = read_run(tmp_path)
    assert (run.log, run.summary, run.last, run.best, run.dataset) == ([], None, {}, {}, {})


def test_the_first_of_equally_good_epochs_is_best(tmp_path):
    accuracies = [None, 0.5, 0.25, 0.5]
    log = [{'epoch': i, 'test_accuracy': accuracy} for i, accuracy in enumerate(accuracies, 1)]
    assert Run(tmp_path, 'run', {}, log, None).best['epoch'] == 2


def test_the_best_epoch_is_one_of_the_run_itself(tmp_path):
    log = [{'epoch': i, 'test_accuracy': accuracy} for i, accuracy in enumerate([0.9, 0.5, 0.6], 1)]
    assert Run(tmp_path, 'run', {'start_epoch': 2}, log, None).best['epoch'] == 3


@pytest.mark.parametrize(
    'dataset, label',
    [
        ({'source': 'JPEG re-encoding of CIFAR-10', 'is_jpeg': True}, 'JPEG re-encoding of CIFAR-10'),
        ({'source': 'photographs', 'is_jpeg': True}, 'JPEG photographs'),
        ({'name': 'cifar10', 'is_jpeg': False}, 'cifar10'),
        ({}, 'shapes'),
    ],
)
def test_dataset_label_says_jpeg(tmp_path, dataset, label):
    assert Run(tmp_path, 'run', {'dataset': 'shapes'}, [], {'dataset': dataset}).dataset_label == label


@pytest.mark.parametrize(
    'line, fault',
    [
        ('{"epoch": 2, "lr"', 'not JSON'),
        ('{"epoch": 2, "lr": NaN}', 'NaN'),
        ('{"epoch": 2, "lr": 1e999}', 'lr is inf'),
        ('{"epoch": 2, "lr": "0.1"}', "lr is '0.1', expected a number"),
        ('{"epoch": 2, "lr": true}', 'lr is True'),
        ('{"epoch": 2, "test_accuracy": 61.2}', 'test_accuracy is 61.2, expected a fraction 0..1'),
        ('{"epoch": 2, "per_class_accuracy": [0.5, 2]}', 'per_class_accuracy'),
        ('{"epoch": 1}', 'epoch is 1, expected more than 1'),
        ('{"lr": 0.1}', 'epoch is None'),
        ('{"epoch": 1.5}', 'epoch is 1.5, expected a count'),
        ('[2]', 'is not an object'),
        ('[' * 100_000, 'log.jsonl, line 2'),
        ('{"epoch": ' + '9' * 5000 + '}', 'log.jsonl, line 2'),
        (b'{"epoch": 2, "note": "\xff"}', 'byte 0xff is not UTF-8'),
    ],
)
def test_a_malformed_log_is_refused(tmp_path, line, fault):
    path = tmp_path / 'log.jsonl'
    path.write_bytes(b'{"epoch": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n')
    with pytest.raises(InputError) as error:
        read_log(path)
    assert f'{path}, line 2' in str(error.value)
    assert fault in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    'summary, fault',
    [
        ('{\n"model": 3}', 'model is 3, expected a text'),
        ('{\n"model": "a"\n"run"}', 'line 3: not JSON'),
        ('{"confusion": [[1, 2], [3]], "classes": ["a", "b"]}', 'expected a square matrix of counts'),
        ('{"confusion": [[1, -2], [3, 4]], "classes": ["a", "b"]}', 'expected a square matrix of counts'),
        ('{"confusion": [[1]], "classes": ["a", "b"]}', 'confusion has 1 rows, expected one for each of 2 classes'),
        ('{"dataset": {"n_train": "many"}}', "dataset: n_train is 'many', expected a count"),
        ('{"best": {"test_accuracy": -1}}', 'best: test_accuracy is -1'),
        ('{"last": {"val_accuracy": 2}}', 'last: val_accuracy is 2'),
        ('{"test": {"accuracy": 2}}', 'test: accuracy is 2'),
        ('{"test": {"confusion": [[1]]}, "classes": ["a", "b"]}', 'confusion has 1 rows, expected one for each of 2'),
        ('{"stopped_early": "yes"}', "stopped_early is 'yes', expected a count"),
        ('null', 'None is not an object'),
    ],
)
def test_a_malformed_summary_is_refused(tmp_path, summary, fault):
    make_run(tmp_path)
    (tmp_path / 'summary.json').write_text(summary)
    with pytest.raises(InputError) as error:
        read_run(tmp_path)
    assert str(tmp_path / 'summary.json') in str(error.value)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    'config, fault',
    [
        ('model: tiny\nlr: [1, 2\n', 'line 3'),
        ('- a\n- b\n', 'is not a mapping'),
        ('a: &a [1]\nb: [*a, *a]\n', 'alias'),
        ('a: !!python/object/apply:os.getcwd []\n', 'could not determine a constructor'),
        ('day: 2000-99-99\n', 'not YAML'),
        ('a: ' + '[' * 60000, 'too deep nesting'),
        ('a: \x07\n', 'not YAML'),
    ],
)
def test_a_malformed_config_is_refused(tmp_path, config, fault):
    with pytest.raises(InputError, match=r'config\.yaml') as error:
        read_run(make_run(tmp_path, config=config))
    assert fault in str(error.value)


def test_large_files_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(InputError, match='nothing is not a folder'):
        read_run(tmp_path / 'nothing')
    with pytest.raises(InputError, match=r'config\.yaml cannot be read: it is missing'):
        read_run(tmp_path)
    make_run(tmp_path)
    with (tmp_path / 'log.jsonl').open('wb') as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(InputError, match='more than 67,108,864 bytes'):
        read_run(tmp_path)
