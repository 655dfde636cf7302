"""The `.net` file of Deep Compression: a codebook of 256 values a layer, 8-bit codes, gaps of 4 bits between them.

No magic number, names or shapes: those are the convolutions of SqueezeNet v1.0, in their order. Little-endian:

    uint32 entries of each layer, then for each layer
        float32 codebook (256), float32 bias (out), uint8 codes (entries), gaps (two a byte, the low nibble first)

An entry moves gap + 1 places on from the one before and writes its code there; what is never written has code 0, whose
value is 0. An entry of code 0 and gap 15 is a filler that bridges a longer way.

Source: Han et al., "Deep Compression" (2016), section 2 (relative indices) and 3; the layout is that of the published
compressed SqueezeNet and of its decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from squeeze_net.weights.formats.layer_names import CONVOLUTIONS
from squeeze_net.weights.network import shapes_of
from squeeze_net.weights.record import Weights
from trainer.data.metadata import Metadata
from trainer.errors import InputError

N_CODE = 256
FILLER_GAP = 15  # the longest that 4 bits hold


class CodedLayer(NamedTuple):
    """A layer's weights as codes.

    Attributes:
        codebook: (256,) float32, its first value 0.
        codes: uint8, of the shape of the weights.
        bias: (out,) float32.
    """

    codebook: np.ndarray
    codes: np.ndarray
    bias: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """float32, of the shape of the codes."""
        return self.codebook[self.codes]


def read(raw: memoryview) -> Weights:
    """The deep-compressed SqueezeNet v1.0, the only network of which such a file was published."""
    layers = decode(raw, published_shapes())
    tensors = {}
    for name, layer in zip(CONVOLUTIONS, layers, strict=True):
        tensors[f'{name}/W'], tensors[f'{name}/b'] = layer.weights, layer.bias
    return Weights(tensors, Metadata(network='squeezenet_v1.0'))


def write(weights: Weights) -> bytes:
    """The file of a SqueezeNet v1.0 of few distinct weights.

    Raises:
        InputError: another network, or a layer with more distinct values than a codebook holds; names it.
    """
    tensors = weights.tensors
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in zip(CONVOLUTIONS, published_shapes(), strict=True):
        expected |= {f'{name}/W': shape, f'{name}/b': shape[:1]}
    is_other = weights.metadata.network not in (None, 'squeezenet_v1.0')  # which bypasses alone do not show
    if is_other or {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise InputError('.net holds neither names nor shapes: only SqueezeNet v1.0 with 1,000 classes can be written')
    layers = []
    for name in CONVOLUTIONS:
        kernel = tensors[f'{name}/W'].astype(np.float32)
        values = np.unique(kernel[kernel != 0])
        if len(values) >= N_CODE:
            raise InputError(f'{name} has {len(values)} distinct weights besides 0, but .net holds {N_CODE - 1}')
        codebook = np.zeros(N_CODE, np.float32)
        codebook[1 : len(values) + 1] = values
        codes = np.where(kernel == 0, 0, np.searchsorted(values, kernel) + 1).astype(np.uint8)
        layers.append(CodedLayer(codebook, codes, tensors[f'{name}/b'].astype(np.float32)))
    return encode(layers)


def published_shapes() -> list[tuple[int, ...]]:
    """Of the weights of SqueezeNet v1.0's convolutions at 1,000 classes, in the order of the file."""
    shapes = shapes_of('squeezenet_v1.0') | {'conv10/W': (1000, 512, 1, 1)}
    return [shapes[f'{name}/W'] for name in CONVOLUTIONS]


def decode(raw: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> list[CodedLayer]:
    """Read a file.

    Args:
        raw: all of it.
        shapes: of the weights of each layer, (out, in, kh, kw).
    Raises:
        InputError: it is cut short or longer than its header says, or an entry lies outside its layer.
    """
    if len(raw) < 4 * len(shapes):
        raise InputError(f'it has {len(raw)} bytes, less than a header of {len(shapes)} layers')
    counts = np.frombuffer(raw, '<u4', len(shapes)).astype(int).tolist()
    n_bytes = [4 * N_CODE + 4 * shape[0] + n + (n + 1) // 2 for n, shape in zip(counts, shapes, strict=True)]
    if 4 * len(shapes) + sum(n_bytes) != len(raw):
        raise InputError(f'it has {len(raw)} bytes, but its header says {4 * len(shapes) + sum(n_bytes)}')
    layers, start = [], 4 * len(shapes)
    for i, (n, shape) in enumerate(zip(counts, shapes, strict=True)):
        codebook = np.frombuffer(raw, '<f4', N_CODE, start)
        bias = np.frombuffer(raw, '<f4', shape[0], start + 4 * N_CODE)
        codes = np.frombuffer(raw, np.uint8, n, start + 4 * N_CODE + 4 * shape[0])
        nibbles = np.frombuffer(raw, np.uint8, (n + 1) // 2, start + 4 * N_CODE + 4 * shape[0] + n)
        start += n_bytes[i]
        gaps = np.stack((nibbles & 15, nibbles >> 4), 1).reshape(-1)
        if gaps[n:].any():
            raise InputError(f'the padding after the gaps of layer {i + 1} is not 0')
        places = np.cumsum(gaps[:n].astype(np.int64) + 1) - 1
        n_weight = math.prod(shape)
        if n and places[-1] >= n_weight:
            raise InputError(f'an entry of layer {i + 1} lies at place {places[-1]} of {n_weight} weights')
        full = np.zeros(n_weight, np.uint8)
        full[places] = codes
        layers.append(CodedLayer(codebook, full.reshape(shape), bias))
    return layers


def encode(layers: Sequence[CodedLayer]) -> bytes:
    """The file of these layers: of one that `decode` has read and that wastes no fillers, the same bytes.

    Raises:
        ValueError: a codebook that is not 256 values, or whose code 0 does not stand for 0.
    """
    counts, parts = [], []
    for codebook, full, bias in layers:
        if codebook.shape != (N_CODE,) or codebook[0] != 0:
            raise ValueError(
                f'a codebook of {codebook.shape} that begins with {codebook[0]}; expected 256, the first 0'
            )
        codes, gaps = entries(full.reshape(-1))
        counts.append(len(codes))
        padded = np.zeros(len(gaps) + len(gaps) % 2, np.uint8)
        padded[: len(gaps)] = gaps
        parts += [
            codebook.astype('<f4').tobytes(),
            bias.astype('<f4').tobytes(),
            codes.tobytes(),
            (padded[::2] | padded[1::2] << 4).tobytes(),
        ]
    return np.array(counts, '<u4').tobytes() + b''.join(parts)


def entries(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) uint8 as entries and the gaps before them, both uint8; longer runs of zeros get fillers."""
    (places,) = np.nonzero(codes)
    gaps = np.diff(places, prepend=-1) - 1
    n_filler = gaps // (FILLER_GAP + 1)
    own = np.cumsum(n_filler + 1) - 1  # where each code's own entry stands
    found = np.zeros(int(own[-1]) + 1 if len(own) else 0, np.uint8)
    found_gaps = np.full(len(found), FILLER_GAP, np.uint8)
    found[own] = codes[places]
    found_gaps[own] = gaps % (FILLER_GAP + 1)
    return found, found_gaps
