"""When a run says that other processes slow it down, and in which words."""

from itertools import count
from types import SimpleNamespace

import chainer
import numpy as np
import pytest

import trainer
from trainer import training
from trainer.config import Config
from trainer.data.datasets import Data, Split
from trainer.engine.cores import Usage
from trainer.parallel import Ranks
from trainer.run import extensions
from trainer.run.contention import SECONDS_BEFORE_FIRST, SECONDS_BETWEEN, ContentionNotice, describe
from trainer.run.stop import StopRequest

QUIET, SLOWED = Usage(0.06, 0.05), Usage(0.7, 0.7)


def said(usages, times, capsys):
    """When a notice is printed that is asked at `times` and measures `usages`, and how many it took."""
    now, left = [0.0], list(usages)

    class Measured:
        def measure(self):
            return left.pop(0)

    notice = ContentionNotice(Measured, lambda: now[0])
    found = []
    for now[0] in times:
        notice(None)
        if capsys.readouterr().out:
            found.append(now[0])
    return found, len(usages) - len(left)


SECONDS = np.arange(0, 120, 1.0)


@pytest.mark.parametrize(
    ('usages', 'expected', 'n_measured'),
    [
        ([SLOWED] * 9, [6], 1),  # one line, however long it lasts
        ([QUIET, QUIET, SLOWED, QUIET], [66], 3),
        ([QUIET] * 9, [], 4),
        ([Usage(0.0, 4.0)] * 9, [], 4),  # its own threads wait for each other
        ([Usage(1.0, 0.02)] * 9, [], 4),  # others compute on cores that it leaves idle
        ([None] * 9, [], 1),
    ],
)
def test_one_line_when_others_take_cores_and_its_threads_wait(usages, expected, n_measured, capsys):
    assert said(usages, SECONDS, capsys) == (expected, n_measured)


def test_a_long_iteration_delays_it(capsys):
    assert said([QUIET, SLOWED], [0, 5, 50, 60, 79, 81], capsys) == ([81], 2)
    assert SECONDS_BEFORE_FIRST == 6
    assert SECONDS_BETWEEN == 30


def test_the_words_say_how_much_and_what_to_expect():
    assert describe(SLOWED, 2).startswith(
        'other processes keep 0.7 of 2 cores busy: this run takes up to twice as long'
    )
    assert '0.7 of 1 core busy' in describe(SLOWED, 1)


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.fc = chainer.links.Linear(3, 2)

    def forward(self, x):
        return self.fc(chainer.functions.mean(x, axis=(2, 3)))


SPLIT = Split(np.zeros((8, 3, 32, 32), np.uint8), np.zeros(8, np.int32))
DATA = Data('black', SPLIT, SPLIT, ('a', 'b'), 'made for a test', is_jpeg=False)


def test_a_run_prints_it_once_with_its_other_lines_and_resumes_without_a_trace(tmp_path, monkeypatch, capsys):
    slowed = SimpleNamespace(measure=lambda: SLOWED)
    monkeypatch.setattr(extensions, 'ContentionNotice', lambda: ContentionNotice(lambda: slowed, count(0, 10).__next__))
    log_file = tmp_path / 'lines'
    flags = {'size': 32, 'batch': 2, 'save_path': str(tmp_path), 'run': 'r', 'log_file': str(log_file)}
    trainer.train(Net(), DATA, Config(epoch=2, **flags))
    for text in capsys.readouterr().out, log_file.read_text():
        assert text.count('other processes keep 0.7 of') == 1
    with np.load(tmp_path / 'results/r/checkpoint_last.npz') as checkpoint:
        assert not [name for name in checkpoint.files if 'Contention' in name or 'Closing' in name]


class OneOfTwo(Ranks):
    """The first of two ranks, the other here or on another machine."""

    size = 2

    def __init__(self, local_size):
        self.local_size = local_size


@pytest.mark.parametrize(('local_size', 'expected'), [(1, True), (2, False)])
def test_ranks_of_one_machine_do_not_accuse_each_other(tmp_path, monkeypatch, local_size, expected):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    config = Config(size=32, batch=4, epoch=1, save_path=str(tmp_path), precision='float32')
    extensions = training.build(Net(), DATA, config, StopRequest(), ranks=OneOfTwo(local_size))._extensions
    assert ('ContentionNotice' in extensions) == expected
