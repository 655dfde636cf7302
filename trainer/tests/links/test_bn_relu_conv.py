import chainer.functions as F
import chainer.gradient_check
import numpy as np

from trainer.links import BNReLUConv


def test_is_conv_of_relu_of_bn():
    np.random.seed(0)
    link = BNReLUConv(4, 6, ksize=3, stride=2, pad=1)
    x = np.random.default_rng(0).standard_normal((2, 4, 7, 5)).astype(np.float32)
    y = link(x)
    assert y.shape == (2, 6, 4, 3)
    expected = F.convolution_2d(
        F.relu(F.batch_normalization(x, link.bn.gamma, link.bn.beta)), link.conv.W, link.conv.b, 2, 1
    )
    np.testing.assert_allclose(y.array, expected.array, rtol=1e-5, atol=1e-5)


def test_starts_with_he_weights_and_zero_biases():
    np.random.seed(0)
    link = BNReLUConv(64, 256, ksize=3)
    assert abs(link.conv.W.array.std() / np.sqrt(2 / (64 * 9)) - 1) < 0.01
    assert not link.conv.b.array.any()


def test_gradient():
    np.random.seed(0)
    rng = np.random.default_rng(0)
    with chainer.using_config('dtype', np.float64):
        link = BNReLUConv(3, 4, ksize=3, pad=1)
    link.bn.gamma.array[...] = rng.uniform(0.5, 1.5, 3)
    link.bn.beta.array[...] = rng.standard_normal(3)
    x, gy = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 4, 4, 4))
    parameters = (link.bn.gamma, link.bn.beta, link.conv.W)
    chainer.gradient_check.check_backward(link, x, gy, parameters, dtype=np.float64, atol=1e-4, rtol=1e-4)
