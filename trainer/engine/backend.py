"""What a backend offers: the contract between `trainer.functions` and `trainer.engine.onednn`, `trainer.engine.cuda`.

A backend is a package whose modules offer the functions of the protocols below. Each package lets the type checker
compare its modules with them. The bodies have nothing in common: one drives oneDNN on NumPy's arrays, the other cuDNN
and kernels of its own on CuPy's.

What holds for all of them, unless a function says otherwise:

* Maps are channels last (`trainer.engine.maps`). What a function is given may be in any layout; it makes a copy if it
  must. What it returns is a map without gaps.
* All maps of one call have one dtype, one that the backend `takes`. Parameters, their gradients and statistics are
  float32, and sums are made in float32, whatever the maps.
* Gradients of parameters are written to where the caller says (`gW`, `gb`, `ggamma`, `gbeta`), so that they can go
  straight into the flat array of an optimizer.
* A function raises `EngineError` if its library refuses; the caller then computes with plain Chainer.

Names: x and y are input and output, gx and gy the gradients of the loss with respect to them, W and b weights and bias;
N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from trainer.engine.dropout import DropoutKey
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map, Pair, Shape

MAX, AVERAGE = 'max', 'average'

# ---- records ----


class Convolution(NamedTuple):
    """The geometry of a convolution; strides, pads and dilations are (vertical, horizontal), px."""

    x_shape: Shape
    weight_shape: Shape  # (out, in / groups, kh, kw)
    stride: Pair
    pad: Pair
    dilate: Pair
    groups: int

    @property
    def y_shape(self) -> Shape:
        """(N, out, H', W') with H' = (H + 2 pad - dilate (kh - 1) - 1) // stride + 1."""
        size = [
            (length + 2 * p - d * (k - 1) - 1) // s + 1
            for length, k, s, p, d in zip(
                self.x_shape[2:], self.weight_shape[2:], self.stride, self.pad, self.dilate, strict=True
            )
        ]
        return self.x_shape[0], self.weight_shape[0], *size


class Pooling(NamedTuple):
    """The windows of a pooling, (vertical, horizontal), px, and the size of its output."""

    algorithm: str  # MAX or AVERAGE
    kernel: Pair
    stride: Pair
    pad: Pair  # above and to the left; below and to the right as much as the last window needs
    y_size: Pair

    def y_shape(self, x_shape: Shape) -> Shape:
        """(N, C, H', W') of the output, given that of x."""
        return (*x_shape[:2], *self.y_size)


class Running(NamedTuple):
    """Statistics that follow those of the batches: running = decay * running + (1 - decay) * batch's."""

    mean: Array  # (C,) float32
    variance: Array  # (C,) float32, unbiased
    decay: float


class BatchStatistics(NamedTuple):
    """What the backward pass of a batch normalisation needs besides x and gamma."""

    mean: Array  # (C,) float32
    variance: Array  # (C,) float32, biased
    relu: bool
    signs: Any  # the backend's own: which elements the rectifier set to 0


class ResponseWindow(NamedTuple):
    """Parameters of a local response normalisation: y = x / (k + alpha * sum of x^2 over n channels) ** beta."""

    n: int
    k: float
    alpha: float
    beta: float


class DropoutMask(Protocol):
    """A mask for one tensor, or for the maps that make it up."""

    def apply(self, x: Array, first_channel: int = 0) -> Array:
        """x * mask / (1 - ratio); of a map that is the channels from `first_channel` on of the whole."""

    def as_array(self) -> Array:
        """0 or 1, of the shape of the whole."""


# ---- the parts of a backend ----


class Memory(Protocol):
    """Arrays in the memory of the backend."""

    def zeros(self, shape: Shape) -> Array:
        """Float32, in C order."""

    def empty_map(self, shape: Shape, dtype: DType) -> Map:
        """An uninitialised map (N, C, H, W) without gaps."""

    def empty_like_parameter(self, parameter: Array) -> Array:
        """Uninitialised float32 for the gradient of a parameter, in the layout in which the backend writes it."""


class Convert(Protocol):
    """Copies into another layout or precision; the `as_` functions return x itself where it is as asked."""

    def convert(self, x: Array, out: Array) -> Array:
        """Copy x to `out`, of the same shape, whatever the layouts and precisions of both."""

    def as_map(self, x: Array, dtype: DType | None = None) -> Map:
        """x (N, C, H, W), channels last, perhaps a slice of the channels of a wider map."""

    def as_dense_map(self, x: Array) -> Map:
        """x (N, C, H, W), channels last and without gaps."""

    def as_rows(self, x: Array) -> Array:
        """x in C order."""

    def as_dtype(self, x: Array, dtype: DType) -> Array:
        """x in another precision; maps stay maps."""


class Convolutions(Protocol):
    """Nothing is saved for the backward pass: it is given x, W and gy again."""

    def as_weights(self, W: Array) -> Array:
        """W (out, in / groups, kh, kw) float32 in a layout that the others take."""

    def forward(self, conv: Convolution, x: Map, W: Array, b: Array | None, y: Map, add: Map | None = None) -> Map:
        """x * W + b [+ add], into y.

        `add` may be y itself: then y is added to, or where the library does not do that in place, another map returned.
        W may be the columns W[:, i:j] of weights, which belong to the channels i:j of a concatenation.
        """

    def backward_data(self, conv: Convolution, W: Array, gy: Map, gx: Map) -> Map:
        """The gradient of x, into gx."""

    def backward_weights(self, conv: Convolution, x: Map, gy: Map, gW: Array, gb: Array | None) -> None:
        """The gradients of W and b; gW may be columns of the gradient of all weights."""


class FullyConnected(Protocol):
    """Nothing is saved for the backward pass. Arrays are in C order."""

    def forward(self, x: Array, W: Array, b: Array | None) -> Array:
        """y = x W^T + b: x (N, inputs), W (outputs, inputs), b (outputs,)."""

    def backward_data(self, W: Array, gy: Array) -> Array:
        """The gradient of x."""

    def backward_weights(self, x: Array, gy: Array, gW: Array, gb: Array | None) -> None:
        """The gradients of W and b."""


class Elementwise(Protocol):
    """Sums, rectifier and masks. Arrays of one call have one shape."""

    def add(self, x: Array, other: Array, out: Array) -> Array:
        """out = x + other; `other` in any layout, `out` without gaps and laid out as x. It may be x or other."""

    def sum_of(self, x: Array, other: Array) -> Array:
        """x + other, both in any layout."""

    def accumulate(self, x: Array, total: Array) -> Array:
        """total += x: gradients of a parameter."""

    def relu(self, x: Array) -> Array:
        """max(x, 0). The backward pass needs y alone."""

    def relu_backward(self, y: Array, gy: Array) -> Array:
        """gy where y > 0, else 0."""

    def dropout_mask(self, shape: Shape, ratio: float, key: DropoutKey | None) -> DropoutMask:
        """The next mask of a pass, of which a fraction `ratio` is 0; without a key, from the global generator."""


class Poolings(Protocol):
    """Maximum, average and global average."""

    def forward(self, pooling: Pooling, x: Map, training: bool) -> tuple[Map, Array | None]:
        """y, and for a maximum in training, in which place of its window each came from: all that is saved."""

    def backward(self, pooling: Pooling, x_shape: Shape, gy: Map, chosen: Array | None) -> Map:
        """The gradient of x, given what `forward` saved."""

    def places_of_maxima(self, chosen: Array, y_shape: Shape, n_place: int) -> Array:
        """What `forward` saved as (N, C, H', W'): numbers of places, rows first, of windows of `n_place` elements."""

    def global_average(self, x: Map) -> Array:
        """(N, C) float32, the mean over the rows and columns of a map."""

    def global_average_backward(self, gy: Array, x_shape: Shape, dtype: DType) -> Map:
        """The gradient of x, a map of `dtype`."""


class BatchNormalizations(Protocol):
    """Of the parts xs of a concatenation, which are normalised as the whole is: gamma, beta and statistics are (C,)."""

    def forward(
        self,
        xs: Sequence[Map],
        gamma: Array,
        beta: Array,
        eps: float,
        relu: bool,
        running: Running | None = None,
        known: BatchStatistics | None = None,
    ) -> tuple[list[Map], BatchStatistics]:
        """y = gamma (x - mean) / sqrt(variance + eps) + beta, [rectified], over the batch, the rows and the columns.

        Args:
            running: moved along, in place.
            known: of the same xs, from an earlier call; a backend that computes them in the same pass ignores it.
        Returns:
            The parts of y, or y itself where the backend concatenates them.
        """

    def forward_fixed(
        self,
        xs: Sequence[Map],
        gamma: Array,
        beta: Array,
        mean: Array,
        variance: Array,
        eps: float,
        relu: bool,
    ) -> list[Map]:
        """The same with statistics that are given."""

    def backward(
        self,
        xs: Sequence[Map],
        gamma: Array,
        statistics: BatchStatistics,
        gys: Sequence[Map | None],
        eps: float,
        ggamma: Array,
        gbeta: Array,
        earlier: Sequence[Map | None],
    ) -> list[Map | None]:
        """The gradients of xs, each plus the `earlier` one that x had from elsewhere; those of gamma and beta."""


class ResponseNormalizations(Protocol):
    """Local response normalisation, across channels."""

    def is_supported(self, window: ResponseWindow, x: Map) -> bool:
        """Whether the backend computes it, and correctly."""

    def forward(self, x: Map, window: ResponseWindow, training: bool) -> tuple[Map, Array | None]:
        """y, and in training what the backward pass needs besides x."""

    def backward(self, x: Map, workspace: Array | None, gy: Map, window: ResponseWindow) -> Map:
        """The gradient of x, given what `forward` saved."""


class Losses(Protocol):
    """Softmax cross entropy."""

    def softmax_cross_entropy(
        self, x: Array, t: Array, smoothing: float = 0.0, class_weight: Array | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """The mean over the rows whose label is not -1, () float32, and what the backward pass needs besides x and t.

        Args:
            x: (N, n_class) logits.
            t: (N,) int32.
            smoothing: of the labels, 0..1.
            class_weight: (n_class,) float32, which multiply the losses of rows by their labels, or None.
        """

    def softmax_cross_entropy_backward(
        self,
        x: Array,
        t: Array,
        saved: tuple[Array, Array],
        gy: Array,
        smoothing: float = 0.0,
        class_weight: Array | None = None,
    ) -> Array:
        """The gradient of the logits, given that of the loss, one float32 number on the device."""


Parts = tuple[
    Memory,
    Convert,
    Convolutions,
    FullyConnected,
    Elementwise,
    Poolings,
    BatchNormalizations,
    ResponseNormalizations,
]


class Backend(Protocol):
    """`trainer.engine.onednn` or `trainer.engine.cuda`."""

    @property
    def memory(self) -> Memory: ...
    @property
    def convert(self) -> Convert: ...
    @property
    def convolution(self) -> Convolutions: ...
    @property
    def linear(self) -> FullyConnected: ...
    @property
    def elementwise(self) -> Elementwise: ...
    @property
    def pooling(self) -> Poolings: ...
    @property
    def batch_normalization(self) -> BatchNormalizations: ...
    @property
    def response_normalization(self) -> ResponseNormalizations: ...
    @property
    def loss(self) -> Losses | None:
        """None where Chainer's own is as fast."""

    def why_unavailable(self) -> EngineError | None:
        """None if it can be used, else why not; asked of the library once."""

    def takes(self, dtype: DType) -> bool:
        """Whether maps may be of this precision."""

    def computes_in(self, dtype: DType) -> bool:
        """Whether it pays to compute in this `compute_dtype`; warns once if it does not."""
