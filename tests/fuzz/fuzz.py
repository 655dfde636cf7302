"""Mutate valid files of every foreign format and read them: nothing but InputError may come out, in bounded memory.

python tests/fuzz/fuzz.py [-n 100000] [--readers npz onnx ...] [--seed 0] [--processes 2]

Each reader gets so many mutated files, in processes whose memory is limited to LIMIT_MIB above what they start with and
whose every file is given SECONDS. Prints one line of JSON a reader; exit code 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / 'squeeze_net' / 'weights')]

import numpy as np  # noqa: E402
import samples  # noqa: E402
from PIL import Image  # noqa: E402

import trainer  # noqa: E402
from squeeze_net.compression import report  # noqa: E402
from squeeze_net.weights import Weights  # noqa: E402
from squeeze_net.weights import io as weights_io  # noqa: E402
from squeeze_net.weights.formats import net  # noqa: E402
from squeeze_net.weights.formats.sqz import archive  # noqa: E402
from trainer.data.datasets.cifar import CIFAR10, read_cifar  # noqa: E402
from trainer.data.datasets.restricted_pickle import read_pickle  # noqa: E402
from trainer.data.images import decode  # noqa: E402
from trainer.data.metadata import Metadata  # noqa: E402
from trainer.data.sources import ImageList, RecordIO, Shards  # noqa: E402
from trainer.engine.cores import count_cores  # noqa: E402

LIMIT_MIB, SECONDS = 512, 20
BOUNDARIES = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def weight_reader(suffix: str) -> Callable[[bytes], Any]:
    return lambda raw: weights_io.parse(memoryview(raw), suffix, 'file')


def read_external(raw: bytes) -> Any:
    """A model whose tensors lie in a file beside it, and that file as it is."""
    folder = Path(tempfile.gettempdir()) / f'fuzz_{os.getpid()}' / 'onnx'
    if not folder.is_dir():
        folder.mkdir(parents=True)
        (folder / 'model.onnx.data').write_bytes(samples.onnx_external()[1])
    return weights_io.parse(memoryview(raw), '.onnx', 'file', folder)


def read_net(raw: bytes) -> Any:
    return net.decode(raw, [layer.codes.shape for layer in samples.net_layers()])


def compressed() -> bytes:
    tensors, rng = dict(samples.tensors()), np.random.default_rng(0)
    tensors['codes'] = rng.choice(np.float32([0, 0, 0, 1, 2, 3]), (20, 30))
    tensors['sparse'] = np.where(rng.random((20, 30)) < 0.1, rng.normal(size=(20, 30)), 0).astype(np.float32)
    return archive.pack(Weights(tensors, Metadata(network='squeezenet', n_class=10)))[0]


def read_archive(raw: bytes) -> Any:
    """With its checksum put right: what is behind that has to bear any bytes, too."""
    if len(raw) > archive._HEAD.size:
        body = raw[archive._HEAD.size :]
        raw = raw[: archive._HEAD.size - 32] + sha256(body).digest() + body
    return archive.read(memoryview(raw))


def archive_header() -> bytes:
    """The JSON in an archive, unpacked."""
    raw = compressed()
    return zlib.decompress(raw[archive._HEAD.size : archive.Archive(raw).n_header])


def read_archive_of_header(text: bytes) -> Any:
    """An archive of any JSON, and of tensors that some other one describes."""
    raw = compressed()
    packed = zlib.compress(text)
    rest = packed + raw[archive.Archive(raw).n_header :]
    head = (archive.MAGIC, archive.VERSION, 0, len(packed), len(text), sha256(rest).digest())
    opened = archive.Archive(archive._HEAD.pack(*head) + rest)
    for entry in opened.entries.values():
        report.entry_row(entry)
    return opened.weights()


def read_source(kind: Any, name: str) -> Callable[[bytes], Any]:
    """Open a source on a file of these bytes, and read all of it."""

    def read(raw: bytes) -> int:
        path = Path(tempfile.gettempdir()) / f'fuzz_{os.getpid()}' / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        source = kind(path)
        for i in range(min(len(source), 20)):
            try:
                source.read(i)
            except trainer.InputError:
                continue
        return len(source)

    return read


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3)).save(file, 'JPEG')
    return file.getvalue()


def image(form: str) -> bytes:
    """Transparent where the format can be, and turned."""
    file = io.BytesIO()
    mode = 'RGB' if form in ('JPEG', 'PPM') else 'RGBA'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient('L').resize((10, 12)).convert(mode).save(file, form, exif=exif)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for i in range(3):
            for suffix, raw in (('jpg', jpeg()), ('cls', str(i).encode())):
                info = tarfile.TarInfo(f'{i:03}.{suffix}')
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


def record_io() -> bytes:
    parts = []
    for i in range(3):
        content = struct.pack('<IfQQ', 0, float(i), i, 0) + jpeg()
        parts.append(struct.pack('<II', 0xCED7230A, len(content)) + content + b'\0' * (-len(content) % 4))
    return b''.join(parts)


def pickled() -> bytes:
    import pickle

    return pickle.dumps({b'data': np.arange(48, dtype=np.uint8).reshape(2, 24), b'labels': [1, 2]}, protocol=2)


def parquet_file() -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    images = [{'bytes': cifar_image(i), 'path': None} for i in range(6)]
    file = io.BytesIO()
    write_table(pa.table({'img': images, 'label': list(range(6))}), file)
    return file.getvalue()


def cifar_image(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def cifar_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in CIFAR10.sha1:
            archive.writestr(f'{CIFAR10.binary_folder}/{name}', bytes(2 * 3073))
    return file.getvalue()


def read_cifar_file(name: str) -> Callable[[bytes], Any]:
    """Read CIFAR-10 from a file of these bytes; Parquet files of train and test are the same."""

    def read(raw: bytes) -> Any:
        folder = Path(tempfile.gettempdir()) / f'fuzz_{os.getpid()}'
        folder.mkdir(exist_ok=True)
        for path in (folder / name, folder / name.replace('train', 'test')):
            path.write_bytes(raw)
        return read_cifar(CIFAR10, folder / name)

    return read


def readers() -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    """Name -> a valid file, and what reads it; a new format is a line here."""
    table = {name: (raw, weight_reader(suffix)) for name, (suffix, raw) in samples.all_files().items()}
    return table | {
        'onnx_external': (samples.onnx_external()[0], read_external),
        'sqz': (compressed(), read_archive),
        'sqz_header': (archive_header(), read_archive_of_header),
        'net': (net.encode(samples.net_layers()), read_net),
        'shards': (tar(), read_source(Shards, 'a.tar')),
        'recordio': (record_io(), read_source(RecordIO, 'a.rec')),
        'imagelist': (b'a b.jpg 3\nc.jpg 0\n\nd/e.png 999\n', read_source(ImageList, 'list.txt')),
        **({'parquet': (parquet_file(), read_cifar_file('train.parquet'))} if find_spec('pyarrow') else {}),
        'zip': (cifar_zip(), read_cifar_file('cifar.zip')),
        **{f'image_{form}': (image(form), decode) for form in ('JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'AVIF', 'PPM')},
        'pickle': (pickled(), lambda raw: read_pickle(raw, 'file')),
    }


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, lengths set to boundaries, pieces cut out, doubled or moved, a shorter file."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(8):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + rng.choice((1, 4, 64))]
            case 4:
                piece = data[at : at + rng.choice((1, 8, 200))]
                where = rng.randrange(len(data))
                data[where:where] = piece * rng.choice((1, 1, 50))
            case 5:  # a number of fixed size
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(BOUNDARIES) & (256**size - 1)
                data[at : at + size] = value.to_bytes(size, rng.choice(('little', 'big')))
            case 6:  # a varint
                data[at : at + 1] = b'\xff' * rng.randrange(9) + bytes([rng.randrange(128)])
            case 7:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3, 30))))
    return bytes(data)


def run(name: str, n: int, seed: int) -> dict[str, Any]:
    """Read n mutated files; what became of them, and the failures."""
    warnings.simplefilter('ignore')
    raw, read = readers()[name]
    read(raw)  # as it is, it is valid; and what has to be imported is
    virtual = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (LIMIT_MIB << 20),) * 2)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f'more than {SECONDS} s')))
    rng = random.Random(f'{name} {seed}')
    counts = {'accepted': 0, 'refused': 0}
    failures: list[dict[str, str]] = []
    slowest = 0.0
    for i in range(n):
        mutated = mutate(raw, rng)
        started = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            read(mutated)
            counts['accepted'] += 1
        except trainer.InputError:
            counts['refused'] += 1
        except BaseException as error:
            failures.append({'file': str(i), 'error': f'{type(error).__name__}: {str(error)[:200]}'})
            if len(failures) <= 3:
                Path(tempfile.gettempdir(), f'fuzz_{name}_{seed}_{i}').write_bytes(mutated)
            if len(failures) > 20:
                break
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return counts | {'slowest_ms': round(1e3 * slowest, 1), 'peak_mib': round(peak), 'failures': failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-n', type=int, default=100_000, help='files a reader (default: 100,000)')
    parser.add_argument('--readers', nargs='*', default=list(readers()), choices=list(readers()), metavar='NAME')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=count_cores())
    args = parser.parse_args()
    is_sound = True
    context = get_context('forkserver')  # each share has a process of its own, forked from one that has imported these:
    context.set_forkserver_preload(['squeeze_net.compression.report', 'trainer.data.sources', 'PIL.Image'])
    with context.Pool(args.processes, maxtasksperchild=1) as pool:
        for name in args.readers:
            share = -(-args.n // args.processes)
            jobs = [(name, share, args.seed + k) for k in range(args.processes)]
            parts = pool.starmap(run, jobs, chunksize=1)
            failures = [failure for part in parts for failure in part['failures']]
            is_sound &= not failures
            result = {
                'reader': name,
                'files': share * args.processes,
                'accepted': sum(part['accepted'] for part in parts),
                'refused': sum(part['refused'] for part in parts),
                'slowest_ms': max(part['slowest_ms'] for part in parts),
                'peak_mib': max(part['peak_mib'] for part in parts),
                'failures': len(failures),
                'examples': failures[:3],
            }
            print(json.dumps(result), flush=True)
    return 0 if is_sound else 1


if __name__ == '__main__':
    sys.exit(main())
