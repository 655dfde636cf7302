import chainer
import numpy as np
import pytest

from trainer.evaluate import Evaluation, evaluate


def test_scores_each_image_once_whatever_the_batch():
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((11, 3)).astype(np.float32), rng.integers(0, 3, 11).astype(np.int32)
    seen = []

    def view(index, device):
        seen.extend(index)
        return x[index], t[index]

    results = [
        evaluate(lambda x: chainer.as_variable(x), view, 11, 3, batch, chainer.get_device('@numpy'))
        for batch in (1, 4, 11)
    ]
    assert seen == list(range(11)) * 3
    for result in results:
        assert result.loss == pytest.approx(float(chainer.functions.softmax_cross_entropy(x, t).array), rel=1e-6)
        assert result.accuracy == (x.argmax(1) == t).mean()
        assert result.confusion.sum() == 11
        assert result.confusion[1, 2] == ((t == 1) & (x.argmax(1) == 2)).sum()


def test_class_without_images_has_no_accuracy():
    result = Evaluation(0.0, np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert result.per_class_accuracy[:2] == [0.75, 1.0]
    assert np.isnan(result.per_class_accuracy[2])
    assert result.accuracy == 5 / 6
