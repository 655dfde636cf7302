import chainer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.step.evaluate import N_MISTAKE, Evaluation, evaluate, true_ranks


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


@given(st.integers(1, 12), st.integers(6, 30), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_top5_is_that_of_a_stable_sort(n, n_class, seed, has_ties):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, n_class)).astype(np.float32)
    if has_ties:
        y = np.round(y)
    t = rng.integers(0, n_class, n).astype(np.int32)
    first_five = np.argsort(-y, axis=1, kind='stable')[:, :5]
    expected = np.mean([label in row for label, row in zip(t, first_five, strict=True)])
    device = chainer.get_device('@numpy')
    found = evaluate(chainer.as_variable, lambda index, device: (y[index], t[index]), n, n_class, 5, device)
    assert found.top5 == expected
    np.testing.assert_array_equal(true_ranks(y, t) == 0, y.argmax(axis=1) == t)


def test_five_classes_have_no_top5():
    y, t = np.eye(5, dtype=np.float32), np.arange(5, dtype=np.int32)
    device = chainer.get_device('@numpy')
    assert evaluate(chainer.as_variable, lambda index, device: (y[index], t[index]), 5, 5, 5, device).top5 is None


def test_class_without_images_has_no_accuracy():
    result = Evaluation(0.0, np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert result.per_class_accuracy[:2] == [0.75, 1.0]
    assert np.isnan(result.per_class_accuracy[2])
    assert result.accuracy == 5 / 6


@pytest.mark.parametrize('batch', [1, 7, 60])
def test_the_surest_mistakes(batch):
    rng = np.random.default_rng(1)
    y, t = rng.standard_normal((60, 3)).astype(np.float32), rng.integers(0, 3, 60).astype(np.int32)
    y[5] = np.nan  # is no mistake
    found = evaluate(
        chainer.as_variable, lambda i, device: (y[i], t[i]), 60, 3, batch, chainer.get_device('@numpy')
    ).mistakes
    probability = chainer.functions.softmax(y).array
    wrong = [i for i in range(60) if y[i].argmax() != t[i] and i != 5]
    assert len(wrong) > N_MISTAKE == len(found)
    assert [mistake.image for mistake in found] == sorted(wrong, key=lambda i: -probability[i].max())[:N_MISTAKE]
    for mistake in found:
        assert mistake.predicted == y[mistake.image].argmax()
        assert mistake.probability == pytest.approx(probability[mistake.image].max(), rel=1e-6)


def test_no_mistakes_are_told_where_images_are_missing():
    """Which of a batch could not be read is not known."""
    y, t = np.eye(3, dtype=np.float32), np.array([1, 0, 2], np.int32)

    def view(index, device):
        return (y[index], t[index]) if 0 not in index else (y[1:2], t[1:2])

    found = evaluate(chainer.as_variable, view, 3, 3, 2, chainer.get_device('@numpy'))
    assert found.mistakes == [] and found.confusion.sum() == 2
