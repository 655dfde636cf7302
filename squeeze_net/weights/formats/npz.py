"""NumPy's archives: what this project and Chainer write, checkpoints and snapshots, and the published `<layer>.W`."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib

import numpy as np

from squeeze_net.weights.formats.layer_names import unwrapped
from squeeze_net.weights.record import MAX_TENSOR_BYTES, Weights
from trainer.data.datasets.archive import read_zip_member
from trainer.data.metadata import KEY, Metadata
from trainer.errors import InputError
from trainer.run.checkpoint import MODEL

MAX_ARRAYS, MAX_HEADER, MAX_CONFIG = 1 << 14, 10_000, 1 << 16
CONFIG = 'config'  # of a checkpoint
RESERVED = {KEY, CONFIG, 'file', 'allow_pickle'}  # the latter are arguments of NumPy's
# What zipfile and NumPy raise of files that are broken, locked, or packed in ways they do not know.
FAULTS: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, LookupError, OverflowError, RuntimeError)
FAULTS += (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error)


def read(raw: memoryview) -> Weights:
    """The arrays; of a checkpoint, or of a snapshot of Chainer's, only those of the network.

    Raises:
        InputError: no .npz, one with arrays of other things than numbers, or one that unfolds beyond MAX_TENSOR_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_ARRAYS:
                raise InputError(f'it holds more than {MAX_ARRAYS} arrays')
            arrays = {}
            prefix = MODEL if any(info.filename.startswith(MODEL) for info in infos) else ''
            budget = MAX_TENSOR_BYTES
            for info in infos:
                name = info.filename.removesuffix('.npy')
                if name not in (KEY, CONFIG) and not name.startswith(prefix):
                    continue
                budget -= info.file_size
                if budget < 0:
                    raise InputError(f'its arrays take more than {MAX_TENSOR_BYTES >> 20} MB')
                arrays[name.removeprefix(prefix)] = _read_array(read_zip_member(archive, info), name)
    except InputError:
        raise
    except FAULTS as error:
        raise InputError(f'it is not a .npz file, or a broken one ({" ".join(str(error).split())[:100]})') from None
    metadata = _metadata(arrays.pop(KEY, None), arrays.pop(CONFIG, None))
    if odd := [name for name, array in arrays.items() if array.dtype.kind not in 'fiu']:
        raise InputError(f'{odd[0][:80]} holds {arrays[odd[0]].dtype} values, expected numbers')
    if not arrays:
        raise InputError('it holds no tensor')
    # The published archives have a dot before the last word: fire2/squeeze1x1.W
    renamed = {name.replace('.', '/') if name[-2:] in ('.W', '.b') else name: array for name, array in arrays.items()}
    return Weights(unwrapped(renamed, '/') if metadata.network is None else renamed, metadata)


def _read_array(raw: bytes, name: str) -> np.ndarray:
    """An array of which the header says no more than there is."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise InputError(f'{name[:80]} is of the version {version} of .npy, expected 1.0 or 2.0')
    shape, is_fortran, dtype = read_header[version](file, max_header_size=MAX_HEADER)
    n_byte = math.prod(shape) * dtype.itemsize
    if dtype.kind not in 'fiuU' or len(raw) - file.tell() != n_byte:
        raise InputError(f'{name[:80]} declares {dtype} {shape}, but has {len(raw) - file.tell()} bytes')
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order='F' if is_fortran else 'C')


def _metadata(text: np.ndarray | None, config: np.ndarray | None) -> Metadata:
    if text is not None:
        return Metadata.loads(str(text) if text.dtype.kind == 'U' and text.ndim == 0 else None)
    if config is None or config.dtype.kind != 'U' or config.ndim or config.dtype.itemsize > 4 * MAX_CONFIG:
        return Metadata()
    try:  # checkpoints from before there were metadata
        values = json.loads(str(config))
    except (ValueError, RecursionError):
        return Metadata()
    network = values.get('model') if isinstance(values, dict) else None
    return Metadata(network=network if isinstance(network, str) else None)


def write(weights: Weights) -> bytes:
    """As `chainer.serializers.save_npz` writes them, with the metadata beside.

    Raises:
        InputError: a tensor has a name that NumPy or this project uses for something else.
    """
    if taken := weights.tensors.keys() & RESERVED:
        raise InputError(f'a tensor called {min(taken)!r} cannot be written to .npz')
    file = io.BytesIO()
    np.savez_compressed(file, **weights.tensors, **{KEY: np.array(weights.metadata.dumps())})  # type: ignore[arg-type]
    return file.getvalue()
