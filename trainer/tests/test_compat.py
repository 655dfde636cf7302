import subprocess
import sys

import chainer
import numpy as np

import trainer  # noqa: F401


def test_chainer_imports_cleanly_behind_trainer():
    code = 'import trainer, chainer, chainer.functions as F, numpy; F.resize_images; print(chainer.__version__)'
    done = subprocess.run([sys.executable, '-W', 'error::FutureWarning', '-c', code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('7.8.1\n', '')


def test_names_gone_from_numpy_work_where_chainer_uses_them():
    x = chainer.Variable(np.arange(6, dtype=np.float32))
    y = chainer.functions.as_strided(x, (2, 3), (3, 1))
    chainer.functions.sum(y * y).backward()
    np.testing.assert_array_equal(x.grad, 2 * x.array)
    image = np.ones((1, 1, 2, 2), np.float32)
    assert chainer.functions.resize_images(image, (4, 4)).array.sum() == 16


def test_half_precision_reports_are_averaged_in_float64():
    summary = chainer.reporter.Summary()
    for _ in range(5000):
        summary.add(np.float16(2.3))
    assert abs(summary.compute_mean() - np.float16(2.3)) < 1e-6
