"""What is said of a run that does not learn, and that nothing is said of one that does, or has had no time to."""

import math
import re

import numpy as np
import pytest

from trainer import Config
from trainer.run.hints import find_sign

N_CLASS, CHANCE = 10, math.log(10)
EVEN = np.full((N_CLASS, N_CLASS), 5)
RIGHT = np.eye(N_CLASS, dtype=int) * 50
ONE_ANSWER = np.zeros((N_CLASS, N_CLASS), int)
ONE_ANSWER[:, 3] = 50


def entry(train_loss, table=EVEN, test_loss=None, train_accuracy=0.1, iteration=782):
    return {
        'iteration': iteration,
        'train_loss': train_loss,
        'train_accuracy': train_accuracy,
        'test_loss': train_loss if test_loss is None else test_loss,
        'test_accuracy': np.trace(table) / np.sum(table),
        'per_class_accuracy': (np.diag(table) / table.sum(1)).tolist(),
    }


def sign(*entries, table=EVEN, is_last=False, n_train=50_000, **flags):
    train_counts = np.full(N_CLASS, n_train // N_CLASS)
    return find_sign(entries, Config(**flags), train_counts, table.sum(1), is_last)


@pytest.mark.parametrize(
    ('flags', 'train_loss', 'advice'),
    [
        ({'lr': 0.1}, 2.31, r'try --lr 0\.01 or --warmup 1, or a higher rate, --lr 1$'),
        ({'lr': 0.1, 'optimizer': 'muon'}, 2.31, r'try --muon_lr 0\.002 --lr 0\.01 or --warmup 1, or .* --lr 1$'),
        ({'lr': 0.1, 'warmup': 1}, 2.29, r'try --lr 0\.01, or a higher rate'),
        ({'lr': 0.1}, CHANCE, r'the rate may be too high; try --lr 0\.01 or --warmup 1$'),  # all logits are equal
        ({'lr': 0.1}, 7.5, r'the rate may be too high; try --lr 0\.01'),
        ({'lr': 0.1, 'n_train': 60}, 2.31, r', or begin with published weights by --finetune$'),
        ({'lr': 0.1, 'n_train': 60, 'load_model': 'x.npz'}, 2.31, r'--lr 1$'),
    ],
)
def test_a_loss_of_chance_after_an_epoch(flags, train_loss, advice):
    key, hint = sign(entry(train_loss), **flags)
    assert key == 'not learning'
    assert hint.startswith(f'after 782 updates the training loss is {train_loss:.4g}, and guessing has 2.303: ')
    assert re.search(advice, hint), hint


def test_few_updates_are_said_to_be_few_at_the_end_alone():
    first, last = entry(2.3, iteration=5), entry(2.3, iteration=10)
    assert sign(first) is None and sign(first, last) is None
    assert sign(first, is_last=True) is None  # of a run of one epoch, nothing is expected
    key, hint = sign(first, last, is_last=True, n_train=60)
    assert key == 'not learning'
    assert 'try more epochs, or a smaller --batch, which makes more updates, or begin with published weights' in hint


def test_a_thousand_classes_need_more_patience():
    loss, table = math.log(1000), np.full((1000, 1000), 1)
    early, late = ((entry(loss + 0.01, table, iteration=n),) for n in (5_000, 21_000))
    counts = table.sum(1)
    assert find_sign(early, Config(), 1000 * counts, counts, False) is None
    assert find_sign(late, Config(), 1000 * counts, counts, False)[0] == 'not learning'


def test_a_test_loss_far_above_chance():
    wild = entry(1.9, test_loss=1448.0, table=ONE_ANSWER)
    assert sign(wild, table=ONE_ANSWER)[0] != 'exploded'  # one epoch may do that, and recover
    assert sign(entry(1.9), wild, is_last=True)[0] == 'exploded'
    key, hint = sign(wild, wild)
    assert key == 'exploded'
    assert hint.startswith('the test loss is 1448, and guessing has 2.3: the rate is too high')
    assert hint.endswith('try --lr 0.01 or --warmup 1, or more epochs')
    over = entry(0.001, RIGHT, test_loss=4.0)  # over-fitted
    assert sign(over, over, table=RIGHT, is_last=True) is None


def test_one_answer_for_all_images():
    key, hint = sign(entry(1.5, ONE_ANSWER), table=ONE_ANSWER)
    assert key == 'constant'
    assert hint.startswith(
        'every test image is predicted as class 3, but no class has more than 10% of them: try --lr 0.01'
    )
    skewed = np.diag([2] * 9 + [500])  # most images are of one class
    skewed[:9, 9], skewed[range(9), range(9)] = 2, 0
    assert sign(entry(0.2, skewed, train_accuracy=0.96), table=skewed) is None


def test_training_images_learnt_and_test_images_guessed():
    mixed_up = entry(0.05, train_accuracy=0.99)
    assert sign(mixed_up, mixed_up) is None
    key, hint = sign(mixed_up, mixed_up, mixed_up)
    assert key == 'guessing'
    assert hint.startswith('the training images are learnt (99%), test accuracy is at chance (10%): see whether')
    slow = entry(2.1, train_accuracy=0.2)
    assert sign(slow, slow, slow) == (
        'guessing',
        'test accuracy is at chance (10%): try --lr 0.01 or --warmup 1, or more epochs',
    )


@pytest.mark.parametrize('loss', [0.3, 1.7, 2.2])
@pytest.mark.parametrize('is_last', [False, True])
def test_nothing_is_said_of_a_run_that_learns(loss, is_last):
    good = entry(loss, RIGHT, train_accuracy=0.9)
    assert sign(good, good, good, table=RIGHT, is_last=is_last) is None


def test_mixed_images_keep_the_loss_near_chance_and_learn():
    assert sign(entry(2.28, RIGHT), table=RIGHT, mixup=1.0, smoothing=0.1) is None


def test_validation_images_are_called_so():
    bad = {key.replace('test_', 'val_'): value for key, value in entry(1.5, ONE_ANSWER).items()}
    counts = ONE_ANSWER.sum(1)
    assert find_sign([bad], Config(), counts * 100, counts, False, watched='val')[1].startswith(
        'every validation image'
    )
