"""Softmax cross entropy, its gradient, and the count of what a run reports."""

from __future__ import annotations

from trainer.engine.cuda.convert import as_rows
from trainer.engine.cuda.kernel import FLOAT32, N_THREAD, grid_of, launch
from trainer.engine.cuda.memory import counters, empty
from trainer.engine.maps import Array

N_LOSS_THREAD = 128  # as in loss.cu


def softmax_cross_entropy(
    x: Array, t: Array, smoothing: float = 0.0, class_weight: Array | None = None
) -> tuple[Array, tuple[Array, Array]]:
    """The mean over the rows whose label is not -1, () float32, and what the gradient needs.

    Args:
        x: (N, n_class) logits, a storage type.
        t: (N,) int32.
        smoothing: of the labels, 0..1.
        class_weight: (n_class,) float32, which multiply the losses of rows by their labels, or None.
    """
    x = as_rows(x)
    n, n_class = x.shape
    log_sum, row_loss = empty((n,), FLOAT32), empty((n,), FLOAT32)
    loss, coefficient = empty((1,), FLOAT32), empty((1,), FLOAT32)
    arguments = [x, n_class, t, n_class, n, smoothing, class_weight, log_sum, row_loss, counters(), loss, coefficient]
    launch('loss', 'cross_entropy', (n,), (N_LOSS_THREAD,), arguments, x.dtype)
    return loss.reshape(()), (log_sum, coefficient)


def softmax_cross_entropy_backward(
    x: Array,
    t: Array,
    saved: tuple[Array, Array],
    gy: Array,
    smoothing: float = 0.0,
    class_weight: Array | None = None,
) -> Array:
    """The gradient of the logits, given that of the loss, one float32 number on the device."""
    x = as_rows(x)
    gx = empty(x.shape, x.dtype)
    log_sum, coefficient = saved
    arguments = [x, x.shape[1], t, x.shape[1], smoothing, class_weight, log_sum, coefficient, gy, gx, x.size]
    launch('loss', 'cross_entropy_gradient', grid_of(x.size), (N_THREAD,), arguments, x.dtype)
    return gx


def tally(
    x: Array,
    t: Array,
    loss: Array,
    sums: Array,
    confusion: Array | None = None,
    n_top5: Array | None = None,
    share: float = 1.0,
    answers: tuple[Array, Array, Array] | None = None,
) -> None:
    """Add a batch to what is counted, on the device.

    Args:
        x, t: logits and labels.
        loss: its mean loss, one float32 number.
        sums: (3,) float64: loss times images, images classified correctly, images.
        confusion: (n_class, n_class) uint64, images by label and prediction, or None.
        n_top5: (1,) uint64, images with fewer than five logits before their class's, or None.
        share: what the sums are multiplied by.
        answers: (1,) int64, the place of the batch in the two others; (M,) int32 predictions; and (M,) float32, their
            probabilities where they are wrong, else 0. Or None.
    """
    x = as_rows(x)
    n, n_class = x.shape
    arguments = [x, n_class, t, n_class, n, loss, share, sums, confusion, n_top5, *(answers or (None, None, None))]
    launch('loss', 'tally', (1,), (N_LOSS_THREAD,), arguments, x.dtype)
