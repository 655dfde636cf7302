"""The formats of weights files, a module each; a new one is a module and a line of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from squeeze_net.weights.formats import caffemodel, hdf5, mindspore, mxnet, net, npz, onnx, paddle, pth, safetensors
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.record import Weights


@dataclass(frozen=True)
class Format:
    """What is done with files of a suffix.

    Attributes:
        read: bytes to weights; raises InputError for bytes of anything else.
        write: weights to bytes; None for formats that are only read.
        preprocessing: a name of `PREPROCESSINGS`: what the publishers of such files feed their networks, where the
            file does not say.
        companion: suffix and contents of a text that is written beside the file.
        has_siblings: `read` also takes the folder of the file, in which its tensors may lie.
        fits: whether bytes begin as such a file; asked only where several formats have the same suffix.
    """

    read: Callable[..., Weights]
    write: Callable[[Weights], bytes] | None = None
    preprocessing: str | None = None
    companion: tuple[str, Callable[[Weights], bytes]] | None = None
    has_siblings: bool = False
    fits: Callable[[memoryview], bool] = lambda raw: True


TORCH = Format(pth.read, preprocessing='torchvision', fits=pth.fits)
HDF5 = Format(hdf5.read)
# Suffix -> the formats that use it, of which the first that fits is taken; only the first is written.
FORMATS = {
    '.npz': [Format(npz.read, npz.write)],
    '.caffemodel': [Format(caffemodel.read, caffemodel.write, 'caffe', ('.prototxt', caffemodel.write_prototxt))],
    '.net': [Format(net.read, net.write, 'caffe')],
    '.safetensors': [Format(safetensors.read, safetensors.write)],
    '.pth': [TORCH],
    '.pt': [TORCH],
    '.tar': [TORCH],
    '.ckpt': [TORCH, Format(mindspore.read, fits=mindspore.fits)],
    '.bin': [TORCH],
    '.onnx': [Format(onnx.read, onnx.write, has_siblings=True)],
    '.pdparams': [Format(paddle.read)],
    '.params': [Format(mxnet.read)],
    '.h5': [HDF5],
    '.hdf5': [HDF5],
    '.sqz': [Format(archive.read, archive.write)],
}
WRITTEN = tuple(suffix for suffix, forms in FORMATS.items() if forms[0].write is not None)
