import numpy as np
import pytest

from trainer.data import rng
from trainer.data.augmentation import BICUBIC, BILINEAR, NEAREST, Sizes, draw_test, draw_train, take

N = 40_000


def draw(n=N, seed=0, epoch=0, size=122):
    return draw_train(rng.generator(seed, epoch, rng.AUGMENTATION), n, Sizes.of(size))


def assert_frequencies(counts, probabilities):
    """Pearson's chi-square lies below its 1 - 1e-4 quantile (Wilson and Hilferty's approximation)."""
    expected = np.asarray(probabilities) * np.sum(counts)
    chi_square = ((np.asarray(counts) - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    normal_quantile = 3.719
    limit = freedom * (1 - 2 / (9 * freedom) + normal_quantile * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi_square < limit


def test_types_and_shapes():
    draws = draw(n=7)
    assert [(column.shape, column.dtype) for column in draws] == [
        ((7,), np.int32),
        ((7,), np.int32),
        ((7,), np.int32),
        ((7,), np.int8),
        ((7,), bool),
    ]


def test_sides_are_uniform_and_both_ends_occur():
    sides, counts = np.unique(draw().side, return_counts=True)
    assert sides.tolist() == list(range(124, 133))
    assert_frequencies(counts, np.full(9, 1 / 9))


def test_kernels_are_25_25_50_percent():
    counts = np.bincount(draw().kernel)
    assert (NEAREST, BILINEAR, BICUBIC) == (0, 1, 2)
    assert_frequencies(counts, [0.25, 0.25, 0.5])


def test_half_are_mirrored():
    assert_frequencies(np.bincount(draw().flip), [0.5, 0.5])


@pytest.mark.parametrize('offset', ['top', 'left'])
def test_offsets_are_uniform_within_each_side(offset):
    draws = draw()
    for side in range(124, 133):
        n_place = side - 122 + 1
        counts = np.bincount(getattr(draws, offset)[draws.side == side])
        assert len(counts) == n_place
        assert_frequencies(counts, np.full(n_place, 1 / n_place))


def test_columns_are_independent():
    draws = draw()
    room = draws.side - 122
    columns = [draws.side, draws.top / room, draws.left / room, draws.kernel, draws.flip]
    correlation = np.corrcoef(np.array(columns, float)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 4 / N**0.5


def test_small_set_may_leave_no_room_for_the_crop():
    draws = draw(size=32)
    smallest = draws.side == 32
    assert smallest.any()
    assert not draws.top[smallest].any() and not draws.left[smallest].any()
    assert draws.top.max() == 4


def test_draws_are_a_pure_function_of_seed_and_epoch():
    same = [np.array_equal(a, b) for a, b in zip(draw(seed=3, epoch=5), draw(seed=3, epoch=5), strict=True)]
    assert all(same)


@pytest.mark.parametrize('other', [{'seed': 4, 'epoch': 5}, {'seed': 3, 'epoch': 6}])
def test_another_seed_or_epoch_draws_anew(other):
    for a, b in zip(draw(seed=3, epoch=5), draw(**other), strict=True):
        assert 0.1 < np.mean(a != b) < 0.95


def test_draws_of_a_seed_stay_what_they_were():
    """A change here makes every run differ from those before it: say so in the changelog."""
    side, top, left, kernel, flip = (column.tolist() for column in draw(n=4))
    assert side == [124, 127, 130, 129]
    assert (top, left) == ([0, 5, 3, 0], [1, 4, 8, 1])
    assert kernel == [BICUBIC, BILINEAR, NEAREST, BICUBIC]
    assert flip == [False, True, False, False]


def test_test_view_is_bilinear_and_whole():
    draws = draw_test(3, Sizes.of(122))
    assert [column.tolist() for column in draws] == [[128] * 3, [0] * 3, [0] * 3, [BILINEAR] * 3, [False] * 3]


def test_test_view_of_a_network_of_fixed_size_is_the_centre():
    draws = draw_test(2, Sizes.of(122, fixed_size=True))
    assert [column.tolist() for column in draws] == [[128] * 2, [3] * 2, [3] * 2, [BILINEAR] * 2, [False] * 2]


def test_drawing_nothing_gives_empty_columns():
    assert [len(column) for column in draw(n=0)] == [0] * 5


def test_take_selects_rows_of_every_column():
    draws = draw(n=10)
    taken = take(draws, np.array([3, 3, 9]))
    assert [column.tolist() for column in taken] == [[c[3], c[3], c[9]] for c in map(np.ndarray.tolist, draws)]
    assert [len(column) for column in take(draws, slice(2, 6))] == [4] * 5
