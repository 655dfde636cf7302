"""What is odd about how the images of a data set are spread over its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

N_SHOWN = 5  # classes


def describe_gaps(train: np.ndarray, test: np.ndarray, classes: Sequence[str]) -> str | None:
    """One line on the classes without a training image; None if there are none.

    Args:
        train, test: labels (N,) int32 of the images.
        classes: the name of each label.
    """
    missing = np.setdiff1d(np.arange(len(classes)), train)
    if not len(missing):
        return None
    names = ', '.join(classes[label] for label in missing[:N_SHOWN]) + (', ...' if len(missing) > N_SHOWN else '')
    text = f'{len(missing)} of {len(classes)} classes have no training image ({names})'
    if n_tested := int(np.isin(test, missing).sum()):
        text += f'; {n_tested:,} test images are of these, and cannot be right'
    if missing.tolist() == [0]:
        text += '; labels begin at 0: are these numbered from 1?'
    return text
