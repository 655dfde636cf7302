import chainer
import chainer.gradient_check
import numpy as np
import pytest

from trainer.functions import DropoutKey, dropout


def masks(shape, key, ratio=0.5):
    with chainer.using_config('dropout_key', key):
        return dropout(np.ones(shape, np.float32), ratio).array


@pytest.mark.parametrize('ratio', [0.25, 0.5, 0.9])
def test_keeps_the_mean_and_scales(ratio):
    y = masks((64, 100, 9), DropoutKey(seed=3, iteration=5), ratio)
    assert set(np.unique(y)) == {0, np.float32(1 / (1 - ratio))}
    n = y.size
    assert abs((y == 0).sum() - ratio * n) < 5 * np.sqrt(n * ratio * (1 - ratio))


@pytest.mark.parametrize('ratio', [-0.5, 1.0])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=f'dropout has the ratio {ratio}; expected 0 <= ratio < 1'):
        dropout(np.ones((2, 3), np.float32), ratio)


def test_mask_is_a_function_of_seed_iteration_layer_and_row():
    y = masks((6, 10), DropoutKey(3, 5))
    np.testing.assert_array_equal(y, masks((6, 10), DropoutKey(3, 5)))
    assert (y != masks((6, 10), DropoutKey(4, 5))).any()
    assert (y != masks((6, 10), DropoutKey(3, 6))).any()
    key = DropoutKey(3, 5)
    assert (masks((6, 10), key) != masks((6, 10), key)).any()  # a second layer


def test_a_batch_in_parts_gets_the_masks_of_the_whole():
    whole = masks((7, 3, 5, 5), DropoutKey(1, 2))
    parts = [masks((2, 3, 5, 5), DropoutKey(1, 2, 0)), masks((5, 3, 5, 5), DropoutKey(1, 2, 2))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_processes_that_share_a_batch_get_the_masks_of_the_whole():
    whole = masks((7, 3, 5, 5), DropoutKey(1, 2))
    for rank in range(3):
        key = DropoutKey(1, 2, first_row=rank, row_step=3)
        np.testing.assert_array_equal(whole[rank::3], masks((len(whole[rank::3]), 3, 5, 5), key))


def test_gradient():
    rng = np.random.default_rng(0)
    x, gy, ggx = (rng.standard_normal((3, 7)) for _ in range(3))

    def function(x):
        with chainer.using_config('dropout_key', DropoutKey(0, 0)):
            return dropout(x, 0.3)

    chainer.gradient_check.check_backward(function, x, gy, dtype=np.float64)
    chainer.gradient_check.check_double_backward(function, x, gy, ggx, dtype=np.float64)


def test_identity_in_test_mode_and_at_ratio_0():
    x = np.ones((2, 8), np.float32)
    with chainer.using_config('train', False):
        assert (dropout(x).array == 1).all()
    assert (dropout(x, 0).array == 1).all()


def test_without_a_key_it_is_chainers():
    np.random.seed(0)
    y = dropout(np.ones((100, 100), np.float32), 0.5).array
    np.random.seed(0)
    np.testing.assert_array_equal(y, chainer.functions.dropout(np.ones((100, 100), np.float32), 0.5).array)
