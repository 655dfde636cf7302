"""Scores against their definitions; the command on real images and published weights, and on what is wrong."""

import os
from pathlib import Path

import numpy as np
import pytest

import trainer
from squeeze_net.classifier import default_class_names, softmax
from squeeze_net.validate import Score, main
from trainer.step.evaluate import true_ranks

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[3] / 'shared' / 'data'))
SAMPLE = DATA / 'imagenet-sample'
needs_data = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f'no published weights and images in {DATA}')


def random_logits(n, n_class, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (n, n_class)).astype(np.float32), rng.integers(0, n_class, n)  # with many ties


def test_ranks_are_places_in_a_stable_order():
    logits, labels = random_logits(200, 12)
    order = np.argsort(-logits, axis=1, kind='stable')
    assert true_ranks(logits, labels).tolist() == [list(row).index(t) for row, t in zip(order, labels, strict=True)]


def test_what_is_not_a_number_is_never_right():
    logits = np.full((2, 8), np.nan, np.float32)
    assert (true_ranks(logits, np.array([0, 3])) >= 5).all()
    logits[1, 3] = 1
    assert true_ranks(logits, np.array([0, 3]))[1] == 7


def test_scores_are_sums_over_batches():
    logits, labels = random_logits(50, 12)
    score = Score(12)
    for start in range(0, 50, 16):
        score.add(logits[start : start + 16], labels[start : start + 16])
    own = np.take_along_axis(softmax(logits), labels[:, None], 1)
    order = np.argsort(-logits, axis=1, kind='stable')
    assert score.n == 50
    assert score.loss == pytest.approx(-np.log(own).mean())
    assert score.top1 == (order[:, 0] == labels).mean()
    assert score.top5 == (order[:, :5] == labels[:, None]).any(1).mean()
    assert score.confusion.sum(1).tolist() == np.bincount(labels, minlength=12).tolist()
    assert score.confusion.sum(0).tolist() == np.bincount(order[:, 0], minlength=12).tolist()


def test_class_names():
    names = default_class_names(1000)
    assert len(names) == 1000 and names[0] == 'tench' and names[999] == 'toilet tissue'
    assert default_class_names(3) == ('0', '1', '2')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--dataset', 'shapes', '--limit', '0'], '--limit is 0; expected a number of at least 1'),
        (['--dataset', 'shapes', '--workers', '-1'], '--workers is -1'),
        (['--list', 'x', '--limit', '1'], '--limit 1 goes with --dataset, not with --list'),
        (['--list', 'x', '--data', 'x'], '--data x goes with --dataset, not with --list'),
        (['--dataset', 'shapes', '--root', 'x'], '--root x goes with --list, not with --dataset'),
        (['--list', 'x', '--per_class', 'a/a.csv', '--confusion', 'a/a.csv'], 'both a/a.csv, expected two files'),
        (['--list', 'x', '--per_class', 'file/a.csv'], 'file'),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_read(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises((trainer.InputError, OSError), match=message):
        main(['missing.npz', *flags])
