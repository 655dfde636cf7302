import numpy as np
import pytest

from trainer.data.holdout import count_held, hold_out, split_off
from trainer.errors import InputError

LABELS = np.repeat(np.array([0, 1, 2, 4], np.int32), (100, 50, 10, 1))


@pytest.mark.parametrize('n', [1, 16, 40, 120])
def test_each_class_gives_its_share(n):
    kept, held = hold_out(LABELS, n, seed=3)
    assert len(held) == n
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(LABELS)))
    assert np.array_equal(np.unique(LABELS[kept]), [0, 1, 2, 4])
    count = np.bincount(LABELS)
    assert (np.abs(np.bincount(LABELS[held], minlength=5) - count * n / len(LABELS)) <= 1).all()


def test_the_seed_decides():
    first, again, other = (hold_out(LABELS, 40, seed).held for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize('n', [0, 158, -1])
def test_every_class_keeps_one(n):
    with pytest.raises(InputError, match=r'expected 1\.\.157'):
        hold_out(LABELS, n, seed=0)


@pytest.mark.parametrize(
    ('amount', 'n'), [('500', 500), ('10%', 100), (' 2.5 % ', 25), ('0.01%', 0), ('99.9%', 999), ('1', 1)]
)
def test_amounts(amount, n):
    assert count_held(amount, 1000) == n


@pytest.mark.parametrize('amount', ['', '%', '0', '-3', '0%', '100%', '-1%', '1.5', 'nan%', 'inf%', 'a tenth', '1e3'])
def test_amounts_that_are_none(amount):
    with pytest.raises(InputError, match=r'--validation is .*; expected a number of images such as 500, or a share'):
        count_held(amount, 1000)


@pytest.mark.parametrize('amount', ['158', '99%', '0.1%'])
def test_amounts_out_of_range(amount):
    with pytest.raises(InputError, match=rf'--validation {amount}: \d+ of 161 images to hold out, expected 1\.\.157'):
        split_off(LABELS, amount, seed=0)
