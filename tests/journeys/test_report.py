"""The report of runs: what `main.py` writes as it goes, and what `python -m trainer.report --html` makes of records."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trainer.report.page import make_report
from trainer.run.records import read_run

ROOT = Path(__file__).parents[2]
VOID = {'br', 'img', 'meta'}
HOSTILE = '</td><script>alert(1)</script> & "q"'
FLAGS = ['--dataset', 'shapes', '--size', '32', '--limit', '4', '-b', '8', '-lr', '0.01', '--schedule', 'constant']


class Page(HTMLParser):
    """A page taken apart; fails unless every element is closed where it belongs."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], Counter(), [], []
        self.numbers, self.metas, self.sources, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [] and text.startswith('<!DOCTYPE html>')
        assert len(set(self.ids)) == len(self.ids)
        assert set(self.links) <= set(self.ids)

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        assert len(values) == len(attributes) and not [key for key in values if key.startswith('on')]
        self.tags[name] += 1
        self.ids += [values['id']] if 'id' in values else []
        self.links += [values['href'].removeprefix('#')] if 'href' in values else []
        self.numbers += [float(values['value'])] if name == 'data' else []
        self.sources += [values['src']] if 'src' in values else []
        self.metas += [values] if name == 'meta' else []
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if 'style' not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return ' '.join(self.texts)

    @property
    def refreshes(self):
        return any(meta.get('http-equiv') == 'refresh' for meta in self.metas)


def execute(*words, cwd=ROOT):
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A short run with validation images."""
    place = tmp_path_factory.mktemp('trained')
    done = execute(ROOT / 'main.py', '-p', place, '--run', 'r', '-e', 2, '--validation', '25%', *FLAGS)
    assert done.returncode == 0, done.stderr
    return place, done


def records_of(folder):
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    return log, json.loads((folder / 'summary.json').read_text())


def test_a_run_writes_its_report(trained):
    place, done = trained
    path = place / 'img/report_r.html'
    assert f'report: {path}' in done.stdout
    page = Page(path.read_text(encoding='utf-8'))
    log, summary = records_of(place / 'results/r')
    assert not page.refreshes and 'finished, epoch 2 of 2' in page.text
    keys = 'lr', 'train_loss', 'val_loss', 'train_accuracy', 'val_accuracy', 'seconds', 'images_per_s'
    rows = [entry[key] for entry in log for key in keys]
    assert [page.numbers[i : i + len(rows)] for i in range(len(page.numbers))].count(rows) == 1
    assert {summary['test']['accuracy'], summary['test']['loss']} <= set(page.numbers)
    assert set(summary['test']['per_class_accuracy']) <= set(page.numbers)
    n_mistakes = sum(map(sum, summary['test']['confusion']))
    n_mistakes -= sum(row[i] for i, row in enumerate(summary['test']['confusion']))
    mistakes = json.loads((place / 'results/r/mistakes.json').read_text())
    assert (mistakes['images'], mistakes['n_wrong']) == ('test', n_mistakes)
    assert len(mistakes['mistakes']) == min(24, n_mistakes) > 0
    assert all(one['true'] != one['predicted'] for one in mistakes['mistakes'])
    assert page.sources == [one['picture'] for one in mistakes['mistakes']]
    sizes = {path.stat().st_size for path in (place / 'results/r').iterdir()}
    assert sizes <= set(page.numbers)
    layers = summary['layers']
    assert sum(layer['parameters'] for layer in layers) == summary['n_parameters'] in page.numbers
    assert layers[0] == {'name': 'conv1', 'output': [96, 15, 15], 'parameters': 14208, 'multiplications': 3175200}
    assert [layer['name'] for layer in layers] == ['conv1', *(f'fire{i}' for i in range(2, 10)), 'conv10']
    for version in summary['versions'].values():
        assert version in page.text


def test_nothing_is_fetched_and_nothing_runs(trained):
    text = (trained[0] / 'img/report_r.html').read_text(encoding='utf-8')
    page = Page(text)
    assert not page.tags.keys() & {'script', 'link', 'iframe', 'object', 'form'}
    assert all(source.startswith('data:image/') for source in page.sources)
    assert not re.findall(r'url\(|@import|https?://', text)
    assert 'prefers-color-scheme: dark' in text


def test_a_report_of_several_runs(trained, tmp_path):
    runs = [ROOT / 'results/squeezenet_jpeg', ROOT / 'results/alexnet_jpeg', trained[0] / 'results/r']
    done = execute('-m', 'trainer.report', *runs, '--html', 'all.html', '--baseline', 'alexnet', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['all.html']  # no pictures
    page = Page((tmp_path / 'all.html').read_text(encoding='utf-8'))
    assert page.tags['svg'] == 3 and not page.refreshes
    for run in runs:
        log, summary = records_of(run)
        assert run.name in page.text
        assert {entry['train_loss'] for entry in log} <= set(page.numbers)
        assert summary['n_parameters'] in page.numbers
    assert 'an earlier version recorded no layers' in page.text
    assert done.stdout.startswith('| run |')


@pytest.mark.parametrize('name', ['squeezenet_jpeg', 'alexnet_jpeg', 'squeezenet_fast'])
def test_a_run_of_an_earlier_version(name):
    page = Page(make_report([read_run(ROOT / 'results' / name)]))
    _, summary = records_of(ROOT / 'results' / name)
    right = sum(row[i] for i, row in enumerate(summary['confusion']))
    assert f'{right:,} of 10,000 test images right' in page.text
    assert set(summary['last']['per_class_accuracy']) <= set(page.numbers)


def test_names_are_texts(trained, tmp_path):
    """Also of a run that has not ended, and of classes, versions and hints."""
    folder = tmp_path / 'a <b>&amp; "run"'
    shutil.copytree(trained[0] / 'results/r', folder)
    summary = json.loads((folder / 'summary.json').read_text())
    summary['classes'] = [f'{HOSTILE}\u202e{i}' for i in range(10)]
    summary |= {'model': HOSTILE, 'hints': [HOSTILE], 'versions': {HOSTILE: HOSTILE}, 'finished': False}
    summary['layers'][0]['name'] = HOSTILE
    (folder / 'summary.json').write_text(json.dumps(summary))
    (folder / 'config.yaml').write_text(json.dumps({'dataset': HOSTILE, 'epoch': 9, HOSTILE: HOSTILE, 'lr': HOSTILE}))
    done = execute('-m', 'trainer.report', folder, '--html', tmp_path / 'x.html')
    assert done.returncode == 0, done.stderr
    text = (tmp_path / 'x.html').read_text(encoding='utf-8')
    page = Page(text)
    assert '<script' not in text and '\u202e' not in text
    assert page.text.count(HOSTILE) > 30 and folder.name in page.text
    assert 'not finished, epoch 2 of 9' in page.text


@pytest.mark.journeys
def test_what_cannot_be_reported(trained, tmp_path):
    run = trained[0] / 'results/r'
    html = ['--html', tmp_path / 'x.html']
    (tmp_path / 'x.html').write_text('somebody else has written this')
    done = execute('-m', 'trainer.report', run, *html)
    assert done.returncode == 2 and 'exists: choose another name' in done.stderr
    for _ in range(2):  # the second time it is a report that is replaced
        done = execute('-m', 'trainer.report', run, '--html', tmp_path / 'own.html')
        assert done.returncode == 0, done.stderr
    done = execute('-m', 'trainer.report', tmp_path / 'nothing', *html, '--overwrite')
    assert done.returncode == 2 and 'is not a folder' in done.stderr
    shutil.copytree(run, tmp_path / 'torn')
    torn = {'epoch': 1, 'images': 'test', 'n_wrong': 1, 'mistakes': [{'picture': 'javascript:alert(1)'}]}
    (tmp_path / 'torn/mistakes.json').write_text(json.dumps(torn))
    done = execute('-m', 'trainer.report', tmp_path / 'torn', *html, '--overwrite')
    assert done.returncode == 2 and "picture is 'javascript:alert(1)', expected a picture" in done.stderr
    assert 'Traceback' not in done.stderr


def test_tensorboard_without_its_package(tmp_path):
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        done = execute(ROOT / 'main.py', '-p', tmp_path, '--run', 'r', '-e', 1, '--tensorboard', *FLAGS)
        assert done.returncode == 2 and 'pip install tensorboardX' in done.stderr
        assert not (tmp_path / 'results').exists()
    else:
        pytest.skip('tensorboardX is installed')


@pytest.mark.journeys
def test_tensorboard_goes_on_where_a_run_is_resumed(tmp_path):
    pytest.importorskip('tensorboardX')
    for flags in (['-e', 1], ['-e', 2, '--resume']):
        done = execute(ROOT / 'main.py', '-p', tmp_path, '--run', 'r', '--tensorboard', *FLAGS, *flags)
        assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / 'results/r/tensorboard').iterdir()
    log, _ = records_of(tmp_path / 'results/r')
    assert len(log) == 2
    found = list(scalars_in(path))
    for entry in log:
        for key, name in {'train_loss': 'loss/training', 'test_accuracy': 'accuracy/test', 'lr': 'lr'}.items():
            assert found.count((name, entry['epoch'], pytest.approx(entry[key], rel=1e-6))) == 1


def scalars_in(path):
    """(name, step, value) of each scalar in an event file: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    raw, at = path.read_bytes(), 0
    while at < len(raw):
        n = int.from_bytes(raw[at : at + 8], 'little')
        event = Event.FromString(raw[at + 12 : at + 12 + n])
        for value in event.summary.value:
            yield value.tag, event.step, value.simple_value
        at += 12 + n + 4
