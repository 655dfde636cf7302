"""The C file against Python: the same pixels, logits and faults."""

import ctypes
import hashlib
import json
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from deployed import DATA, cifar_images, needs_data, photos
from PIL import Image

from squeeze_net import weights
from squeeze_net.classifier import Classifier
from squeeze_net.compression.quantise import to_e5m4
from squeeze_net.networks import make_network
from squeeze_net.weights import Weights
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.formats.sqz.tensor import CONSTANT, DENSE
from squeeze_net.weights.network import tensors_of
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS, Preprocessing

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / 'squeeze_net' / 'deploy' / 'c' / 'squeezenet.c'
SMALL = ROOT / 'results' / 'compression' / 'small.sqz'
STRICT = ['-std=c99', '-O2', '-Wall', '-Wextra', '-Werror', '-pedantic']
pytestmark = pytest.mark.skipif(shutil.which('cc') is None, reason='no C compiler `cc`')
CODES = tuple(
    word[4:].rstrip(',')
    for line in (SOURCE.parent / 'squeezenet.h').read_text().splitlines()
    for word in line.split()[:1]
    if word.startswith('SQZ_') and word not in ('SQZ_N_CODE', 'SQZ_MAX_SIDE')
)


def compiled(target, *flags):
    subprocess.run(['cc', *STRICT, *flags, '-o', target, '-lm'], check=True)
    return target


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    path = compiled(tmp_path_factory.mktemp('c') / 'squeezenet.so', '-fPIC', '-shared', SOURCE)
    found = ctypes.CDLL(str(path))
    found.sqz_logits.restype = ctypes.POINTER(ctypes.c_float)
    found.sqz_class_name.restype = found.sqz_message.restype = ctypes.c_char_p
    return found


class Net:
    """An archive that was opened, or the code of its fault."""

    def __init__(self, library, raw, missing=0):
        self.library, self.pointer, need = library, ctypes.c_void_p(), ctypes.c_size_t()
        size = ctypes.c_size_t(len(raw))
        self.code = library.sqz_memory(raw, size, ctypes.byref(need))
        if self.code == 0:
            self.block = (ctypes.c_uint8 * need.value)()
            room = ctypes.c_size_t(need.value - missing)
            self.code = library.sqz_open(raw, size, self.block, room, ctypes.byref(self.pointer))
        self.fault = CODES[self.code]

    def _picture(self, function, image, out):
        image = np.ascontiguousarray(image)
        height, width, n_channel = image.shape
        places = (array.ctypes.data_as(ctypes.c_void_p) for array in (image, out))
        return CODES[function(self.pointer, next(places), width, height, n_channel, next(places))]

    def cut(self, image):
        side = self.library.sqz_crop(self.pointer)
        out = np.zeros((side, side, 3), np.uint8)
        assert self._picture(self.library.sqz_cut, image, out) == 'OK'
        return out

    def classify(self, image):
        """Code, probabilities, logits."""
        n_class = self.library.sqz_n_class(self.pointer)
        code = self._picture(self.library.sqz_classify, image, p := np.zeros(n_class, np.float32))
        return code, p, np.ctypeslib.as_array(self.library.sqz_logits(self.pointer), (n_class,)).copy()


def compare(library, path, images):
    """The same cut to one grey level, logits within 1e-3 of Python's from the same cut, the same five best."""
    net, classifier = Net(library, path.read_bytes()), Classifier.open(path, batch=1)
    assert net.fault == 'OK'
    for image in images:
        cut = net.cut(np.asarray(image))
        expected = classifier.preprocessing.cut(image)
        assert np.abs(cut.astype(int) - expected).max() <= 1
        code, probabilities, logits = net.classify(np.asarray(image))
        wanted = classifier(cut.transpose(2, 0, 1)[None])[0]
        assert code == 'OK'
        np.testing.assert_allclose(logits, wanted, atol=1e-3)
        assert set(np.argsort(-logits)[:5]) == set(np.argsort(-wanted)[:5])
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def drawn(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize('name', ['small.sqz', 'fast_rate.sqz'])  # codebooks; uniform grids, and another size
def test_the_experiments_archives(library, name):
    path = SMALL.with_name(name)
    compare(library, path, [drawn(32, 32), drawn(200, 90)])
    assert library.sqz_class_name(Net(library, path.read_bytes()).pointer, 0) is not None


PUBLISHED = 'squeezenet_v1.1.caffemodel', 'compressed_SqueezeNet.net', 'squeezenet_v1.0.caffemodel'


@needs_data
@pytest.mark.parametrize(
    ('file', 'n'),
    [(PUBLISHED[0], 3), (PUBLISHED[1], 3), *(pytest.param(file, 100, marks=pytest.mark.long) for file in PUBLISHED)],
)
def test_published_weights_and_photos(library, tmp_path, file, n):
    view = PREPROCESSINGS['caffe']
    archive.save(weights.read(DATA / 'weights' / file).with_metadata(preprocessing=view), tmp_path / 'a.sqz')
    compare(library, tmp_path / 'a.sqz', [Image.open(photo).convert('RGB') for photo in photos(n)])


@needs_data
@pytest.mark.long
def test_1000_cifar_images(library):
    compare(library, SMALL, cifar_images(1000))


def random_weights(network, n_class=3, crop=40, view=None):
    """Of any network, with statistics that differ from channel to channel."""
    rng = np.random.default_rng(1)
    tensors = tensors_of(make_network(network, n_class, crop))
    for name, tensor in tensors.items():
        if not name.endswith(('/W', '/N')):
            tensors[name] = rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
    view = view or Preprocessing('torchvision', 'short', crop + 3, crop, mean=(1, 2, 3), std=(50, 60, 70))
    metadata = Metadata(network, n_class, view, tuple('aß\U0001f600' for _ in range(n_class)))
    return Weights({name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}, metadata)


@pytest.mark.parametrize(
    'network',
    [
        'squeezenet_v1.0_bn',
        'squeezenet_v1.0_complex',
        'squeezenet_v1.1_simple_bn',
        'squeezenet_v1.1_complex_bn',
        pytest.param('vgg_bn', marks=pytest.mark.long),
    ],
)
def test_variants(library, tmp_path, network):
    archive.save(random_weights(network), path := tmp_path / 'a.sqz')
    net = Net(library, path.read_bytes())
    assert library.sqz_class_name(net.pointer, 2).decode() == 'aß\U0001f600'
    compare_logits(net, path)


def compare_logits(net, path):
    _, _, logits = net.classify(np.asarray(drawn(61, 50)))
    wanted = Classifier.open(path, batch=1)(net.cut(np.asarray(drawn(61, 50))).transpose(2, 0, 1)[None])[0]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('is_half', [False, True])
def test_numbers_of_few_bits_and_constants(library, tmp_path, is_half):
    found = random_weights('squeezenet_v1.1_simple_bn')
    vectors = [name for name in found.tensors if not name.endswith(('/W', '/N'))]
    for i, name in enumerate(vectors):
        tensor = to_e5m4(found.tensors[name])
        # Those that are alike in float16 only are constants of float16.
        found.tensors[name] = tensor[0] + np.float32(1e-5 * (i % 2)) * (np.arange(tensor.size) % 2) if i % 3 else tensor
    coded = archive.save(found, path := tmp_path / 'a.sqz', frozenset(vectors if is_half else ()))
    assert {coded[name].kind for name in vectors} >= {CONSTANT, DENSE}
    assert all(len(one.raw) < one.n_value * 1.25 + 30 for name, one in coded.items() if name in vectors)
    net = Net(library, path.read_bytes())
    assert net.fault == 'OK'
    compare_logits(net, path)


@pytest.mark.parametrize('size', [(1, 1), (3, 500), (500, 3), (128, 128), (127, 300), (1000, 700)])
@pytest.mark.parametrize('resize', ['squash', 'short'])
@pytest.mark.parametrize('filter', ['bilinear', 'linear'])
def test_resizing(library, base, size, resize, filter):
    view = Preprocessing('caffe', resize, 37, 32, filter, 'BGR', (1, 2, 3))
    net = Net(library, repacked(base, lambda header: set_view(header, view.as_dict())))
    image = drawn(*size)
    assert np.abs(net.cut(np.asarray(image)).astype(int) - view.cut(image)).max() <= 1
    rgba = np.dstack([np.asarray(image), np.zeros(size[::-1], np.uint8)])
    assert (net.cut(rgba) == net.cut(np.asarray(image))).all()


# ---- faults ----


@pytest.fixture(scope='module')
def base():
    """A small archive: nearly all weights are 0."""
    found = random_weights('squeezenet', 3, 16, Preprocessing('experiment', 'squash', 16, 16))
    for name, tensor in found.tensors.items():
        if name.endswith('/W') and name != 'conv1/W':
            tensor[...] = 0
    found.tensors['fire2/squeeze1x1/conv/W'][:, ::3] = 0.25
    found.tensors['fire3/squeeze1x1/conv/W'][:, 5] = np.random.default_rng(0).normal(size=(16, 1, 1))
    return archive.write(found)


def sealed(raw):
    return raw[:20] + hashlib.sha256(raw[52:]).digest() + raw[52:]


def repacked(raw, change, body=None):
    """The archive with another header, and a right checksum."""
    n_packed = struct.unpack('<I', raw[12:16])[0]
    header = json.loads(zlib.decompress(raw[52 : 52 + n_packed]))
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(header).encode()
    packed = zlib.compress(text)
    rest = raw[52 + n_packed :] if body is None else body
    return sealed(raw[:12] + struct.pack('<II', len(packed), len(text)) + bytes(32) + packed + rest)


def set_view(header, view):
    set_metadata(header, preprocessing=view)


def set_metadata(header, **changes):
    header['metadata'] = json.dumps(json.loads(header['metadata']) | changes)


def row(name, index, value):
    def change(header):
        next(row for row in header['tensors'] if row[0] == name)[index] = value

    return change


FAULTS = {
    'HEADER': lambda header: b'{"metadata": [',
    'METADATA': lambda header: set_metadata(header, n_class=4),
    'PREPROCESSING': lambda header: set_metadata(header, preprocessing=None),
    'NETWORK': lambda header: set_metadata(header, network='resnet'),
    'ALEXNET': lambda header: set_metadata(header, network='alexnet'),
    'TENSOR_ROW': row('conv1/b', 2, [1 << 20, 1 << 20]),
    'SURPLUS': row('conv1/b', 0, 'conv1/c'),
    'SHAPE': row('conv1/b', 2, [2, 48]),
    'CODED': row('conv1/b', 1, 1),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_headers(library, base, fault):
    assert Net(library, repacked(base, FAULTS[fault])).fault == fault


def test_other_faults(library, base):
    assert Net(library, base).fault == 'OK'
    assert Net(library, b'PK' + base).fault == 'NOT_AN_ARCHIVE'
    assert Net(library, base[:8] + b'\3' + base[9:]).fault == 'VERSION'
    assert Net(library, base[:-1] + bytes([base[-1] ^ 1])).fault == 'CHECKSUM'
    assert Net(library, base, missing=1).fault == 'MEMORY'
    assert CODES[library.sqz_memory(None, ctypes.c_size_t(0), None)] == 'ARGUMENT'
    assert (
        CODES[library.sqz_memory(base, ctypes.c_size_t((1 << 29) + 1), ctypes.byref(ctypes.c_size_t()))] == 'TOO_LARGE'
    )
    tiny = Preprocessing('caffe', 'squash', 5, 5, mean=(1, 2, 3)).as_dict()
    small = repacked(base, lambda header: set_metadata(header, network='squeezenet_v1.1', preprocessing=tiny))
    assert Net(library, small).fault == 'NO_MAP'
    found = random_weights('squeezenet_v1.1')
    del found.tensors['conv1/b']
    assert Net(library, archive.write(found)).fault == 'MISSING'
    found = random_weights('squeezenet_v1.1_bn')
    found.tensors['conv1_bn/avg_var'][0] = -1
    assert Net(library, archive.write(found)).fault == 'NOT_FINITE'
    net = Net(library, base)
    assert net._picture(library.sqz_classify, np.zeros((0, 4, 3), np.uint8), np.zeros(3, np.float32)) == 'PICTURE'
    assert library.sqz_close(net.pointer) == 0
    assert net.classify(np.zeros((4, 4, 3), np.uint8))[0] == 'CLOSED'


def test_every_code_has_a_message(library):
    messages = {library.sqz_message(code) for code in range(len(CODES))}
    assert len(messages) == len(CODES)
    assert b'no such code' in library.sqz_message(len(CODES))


def test_truncated_archives(library, base):
    for n in [*range(60), *range(60, len(base), 997)]:
        assert Net(library, base[:n]).code != 0
        assert Net(library, sealed(base[:n])).code != 0


@pytest.mark.long
def test_mutated_archives(tmp_path, base):
    """Two processes of the fuzzer, built with sanitisers; SQUEEZE_NET_MUTANTS sets how many archives each reads."""
    (tmp_path / 'base.sqz').write_bytes(base)
    # Optimised code checks 100,000 mutants in a third of an hour; what gcc warns of then, bounds rule out.
    flags = ['-O2', '-g', '-Wno-error', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']
    try:
        program = compiled(tmp_path / 'fuzz', *flags, f'-I{SOURCE.parent}', Path(__file__).parent / 'fuzz_sqz.c')
    except subprocess.CalledProcessError:
        pytest.skip('the C compiler has no address sanitiser')
    commands = [
        [program, os.environ.get('SQUEEZE_NET_MUTANTS', '1000'), str(seed), tmp_path / 'base.sqz'] for seed in (1, 2)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    for process in running:
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output[-4000:]
        assert len(output.splitlines()) > 5


def test_command(tmp_path):
    program = compiled(tmp_path / 'squeezenet', '-DSQZ_MAIN', SOURCE)
    image = drawn(32, 24)
    image.save(tmp_path / 'a.ppm')
    (tmp_path / 'a.rgb').write_bytes(image.tobytes())
    done = subprocess.run([program, SMALL, tmp_path / 'a.ppm'], capture_output=True, text=True, check=True)
    (name, share), *_ = Classifier.open(SMALL).classify(image)
    assert done.stdout.splitlines()[0] == f'{100 * share:6.2f} %  {name}'
    raw = subprocess.run([program, SMALL, tmp_path / 'a.rgb', '32', '24'], capture_output=True, text=True)
    assert raw.stdout == done.stdout
    bad = subprocess.run([program, tmp_path / 'a.ppm', tmp_path / 'a.ppm'], capture_output=True, text=True)
    assert bad.returncode == 2
    assert 'does not begin as an archive' in bad.stderr
    for name, width, height, sentence in (
        ('a.rgb', '32', '23', 'The size of the file does not fit: expected RGB, three bytes for each pixel.'),
        ('a.ppm', '32', '24', 'The size of the file does not fit'),
        ('a.rgb', '32px', '24', 'The picture has no pixels'),
    ):
        bad = subprocess.run([program, SMALL, tmp_path / name, width, height], capture_output=True, text=True)
        assert bad.returncode == 2 and sentence in bad.stderr and bad.stdout == ''
