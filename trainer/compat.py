"""Chainer 7.8.1 on today's NumPy and CuPy.

Chainer's last release is from January 2022.  Four small repairs make it run on NumPy 2 and on Python 3.12, where
`numpy.distutils` is gone; with CuPy 14 it runs without cuDNN (its own fallback).  `install()` must come before
the first `import chainer`; importing `trainer` does it.
"""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import numpy as np


def install() -> None:
    """Put the repairs in place; calling it again does nothing more.

    Raises:
        ImportError: Chainer was imported before on a NumPy it does not know and is left half-initialised.
    """
    _restore_numpy_names()
    _skip_environment_check()
    warnings.filterwarnings('ignore', message='cuDNN is not enabled')  # CuPy 14 has none, and says so at import
    _sum_reports_in_float64()


def _restore_numpy_names() -> None:
    """`np.sctypes` (functions/array/as_strided.py) and `np.float` (functions/array/resize_images.py).

    They go on the numpy module itself: behind a proxy, Chainer's tests `xp is numpy` would fail.
    """
    if 'sctypes' not in np.__dict__:
        np.sctypes = {  # type: ignore[attr-defined]  # noqa: NPY201
            'int': [np.int8, np.int16, np.int32, np.int64],
            'float': [np.float16, np.float32, np.float64],
        }
    if 'float' not in np.__dict__:
        np.float = float  # type: ignore[attr-defined]  # noqa: NPY001


def _skip_environment_check() -> None:
    """The check for old macOS and Python 3.5.0 imports `numpy.distutils` and `pkg_resources`, which are gone."""
    stub = types.ModuleType('chainer._environment_check')
    stub.check = lambda: None  # type: ignore[attr-defined]
    sys.modules.setdefault('chainer._environment_check', stub)


def _sum_reports_in_float64() -> None:
    """Under NEP 50 `Summary` adds float16 reports in float16: 5000 times 2.3 averages to 1.64."""
    from chainer import reporter

    if getattr(reporter.Summary.add, 'is_float64', False):
        return
    add = reporter.Summary.add

    def add_float64(self: Any, value: Any, weight: Any = 1) -> None:
        add(self, value.astype('f8') if getattr(value, 'dtype', None) == np.float16 else value, weight)

    add_float64.is_float64 = True  # type: ignore[attr-defined]
    reporter.Summary.add = add_float64  # type: ignore[method-assign]
