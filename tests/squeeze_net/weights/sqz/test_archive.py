"""Archives: to the bit, a layer at a time, checked before anything is believed; the published network in few bytes."""

import json
import os
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.formats.sqz.archive import Archive
from squeeze_net.weights.formats.sqz.tensor import CODED, CONSTANT, DENSE, KINDS, SPARSE, decode, encode
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[5] / 'shared' / 'data')) / 'weights'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights in {DATA}')
METADATA = Metadata('squeezenet_v1.1', 2, PREPROCESSINGS['caffe'], ('cat', 'dog'))
GOLDEN = Path(__file__).parent  # golden_1.sqz and golden_2.sqz, by the version that wrote them


def small():
    """A tensor of each kind, without a random generator, whose stream a version might change."""
    place, places = np.arange(600), np.arange(3600)
    sparse = np.where(places**2 % 41 == 1, 1 / (places + 1), 0).astype(np.float32).reshape(40, 30, 3, 1)
    return Weights(
        {
            'conv1/W': sparse,
            'conv1/b': ((place[:90] ** 2 % 101 - 50) / 64).astype(np.float32),
            'conv2/W': (place * 104729 % 16 / 16).astype(np.float32).reshape(30, 20),
            'conv2/b': np.zeros(30, np.float32),
            'bn/N': np.array(12345, np.float32),
        },
        METADATA,
    )


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
        elements=st.sampled_from([0, 0, 0, -0.0, 1, 0.5, -2]) | st.floats(width=16),
    )
)
def test_tensors_to_the_bit(tensor):
    one = encode(tensor)
    found = decode(one.raw, one.kind, tensor.shape, tensor.dtype)
    assert found.dtype == tensor.dtype and found.tobytes() == tensor.tobytes()
    assert (one.n_value, one.n_nonzero) == (tensor.size, np.count_nonzero(tensor))
    assert sum(one.parts.values()) == len(one.raw)


def test_the_shortest_kind_is_taken():
    found = {name: encode(tensor).kind for name, tensor in small().tensors.items()}
    assert found == {'conv1/W': SPARSE, 'conv1/b': DENSE, 'conv2/W': CODED, 'conv2/b': CONSTANT, 'bn/N': CONSTANT}


def test_archives_to_the_bit_and_one_layer_alone(tmp_path):
    expected = small()
    archive.save(expected, tmp_path / 'a.sqz')
    opened = Archive((tmp_path / 'a.sqz').read_bytes())
    assert opened.metadata == METADATA
    assert opened['conv2/W'].tobytes() == expected.tensors['conv2/W'].tobytes()
    found = weights.read(tmp_path / 'a.sqz')  # like any weights file
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].tobytes() == tensor.tobytes() and found.tensors[name].shape == tensor.shape
    with pytest.raises(trainer.InputError, match="holds no tensor 'fc'"):
        opened['fc']


def test_one_layer_is_read_without_the_others():
    raw, _ = archive.pack(small())
    opened = Archive(raw)
    entry = opened.entries['conv2/W']
    opened._raw = bytes(entry.offset) + bytes(opened._raw[entry.offset : entry.offset + entry.n_byte])
    assert opened['conv2/W'].tobytes() == small().tensors['conv2/W'].tobytes()


def test_half_precision_loses_what_it_does_not_hold_and_says_so():
    raw, coded = archive.pack(small(), frozenset(['conv1/b']))
    np.testing.assert_array_equal(Archive(raw)['conv1/b'], small().tensors['conv1/b'].astype(np.float16))
    assert coded['conv1/b'].kind == DENSE
    with pytest.raises(trainer.InputError, match='a/b holds numbers that are not finite in float16'):
        archive.pack(Weights({'a/b': np.array([1e6, 2], np.float32)}), frozenset(['a/b']))


def test_few_distinct_values_in_half_precision_are_codes():
    """Rounded as float16 does, and shorter than 16 bits each."""
    signs = np.where(np.random.default_rng(0).uniform(size=300) < 0.5, -1, 1) * (1 + 1e-7 * np.arange(300) % 3e-7)
    raw, coded = archive.pack(Weights({'a/gamma': signs.astype(np.float32)}), frozenset(['a/gamma']))
    assert len(coded['a/gamma'].raw) < 300 / 8 + 40
    np.testing.assert_array_equal(archive.Archive(raw).weights().tensors['a/gamma'], np.sign(signs))


@pytest.mark.parametrize('version', [1, 2])
def test_earlier_versions_are_read(version):
    opened = Archive((GOLDEN / f'golden_{version}.sqz').read_bytes())
    for name, tensor in small().tensors.items():
        assert opened[name].tobytes() == tensor.tobytes()


def test_the_format_stays():
    """A change of these bits, or of what they mean, is a version 3."""
    raw, expected = archive.pack(small())[0], (GOLDEN / 'golden_2.sqz').read_bytes()
    assert raw[Archive(raw).n_header :] == expected[Archive(expected).n_header :]


# ---- what is not an archive ----


def sealed(header, body=b'', n_text=None, version=1):
    """An archive of any header, with its checksum."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = zlib.compress(text)
    rest = packed + body
    head = (archive.MAGIC, version, 0, len(packed), len(text) if n_text is None else n_text, sha256(rest).digest())
    return struct.pack('<8sHHII32s', *head) + rest


def header(*rows):
    return {'metadata': '{}', 'tensors': list(rows)}


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        (b'', 'does not begin'),
        (archive.MAGIC, 'does not begin'),
        (sealed({}, version=3), r'version 3\.0, expected 1\.0 \.\. 2\.0'),
        (sealed({}), "header cannot be read \\('metadata'"),
        (sealed(b'[' * 100_000), 'header cannot be read'),
        (sealed(header(), n_text=1 << 31), 'header declares'),
        (sealed(b'0' * (1 << 22), n_text=100), 'does not unpack'),
        (sealed(header()), 'lists no tensors'),
        (sealed(header(['a', 0, [1], 'float32', 0, 0])), 'cannot be read'),
        (sealed(header(['a', 0, [-1], 'float32', 0, 0, 0])), 'is not a tensor'),
        (sealed(header(['a', 0, [1], 'object', 0, 0, 0])), 'is not a tensor'),
        (sealed(header(['a', 0, [1 << 28], 'float32', 0, 0, 0])), 'shape'),
        (sealed(header(['a', 0, [0, 1 << 70], 'float32', 0, 0, 0])), 'is not a tensor'),
        (sealed(header(['a', 0, [1], 'float32', 0, 0, 10**400])), 'is not a tensor'),
        (sealed(header(['a', 0, [1], 'float32', 0, 0, 2])), '2 not 0'),
        (sealed(header(['a', 1, [1], 'float32', 0, 5000, 0])), '5000 distinct'),
        (sealed(header(['\ud800', 0, [1], 'float32', 0, 0, 0])), 'is not a tensor'),
        (sealed(header(['\x1b[2J', 0, [1], 'float32', 0, 0, 0])), 'is not a tensor'),
        (sealed(header(['a', 7, [1], 'float32', 0, 0, 0])), 'kind 7'),
        (sealed(header(*[[f'a{i}', 2, [1 << 26], 'float32', 0, 0, 0] for i in range(5)])), 'more than'),
        (sealed(header(['a', 0, [1], 'float32', 5, 0, 0], ['a', 0, [1], 'float32', 5, 0, 0])), 'twice'),
        (sealed(header(['a', 0, [1], 'float32', 5, 0, 0]), b'1234'), 'take 5 bytes, but 4 follow'),
    ],
)
def test_what_is_no_archive(raw, message):
    tracemalloc.start()
    try:
        with pytest.raises(trainer.InputError, match=message):
            Archive(raw)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_damage_is_found_before_anything_is_believed():
    raw, _ = archive.pack(small())
    for at in range(48, len(raw), 7):
        with pytest.raises(trainer.InputError, match='checksum'):
            Archive(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    for n in range(0, len(raw), 5):
        with pytest.raises(trainer.InputError, match=r'does not begin|checksum'):
            Archive(raw[:n])


def test_numbers_that_are_not_finite():
    body = b'\0' + np.float32([np.nan]).tobytes()
    opened = Archive(sealed(header(['a', DENSE, [1], 'float32', len(body), 0, 1]), body))
    with pytest.raises(trainer.InputError, match='a holds numbers that are not finite'):
        opened['a']


@pytest.mark.long
@pytest.mark.parametrize('make', [lambda rng: rng.normal(size=1 << 21), lambda rng: rng.integers(0, 9, 1 << 21)])
def test_memory_of_large_tensors(make):
    """AlexNet's first linear layer has 38 million values."""
    tensor = make(np.random.default_rng(0)).astype(np.float32)
    tracemalloc.start()
    try:
        coded = encode(tensor)
        assert tracemalloc.get_traced_memory()[1] < 80 * tensor.size
        tracemalloc.reset_peak()
        found = decode(coded.raw, coded.kind, tensor.shape, tensor.dtype)
        assert tracemalloc.get_traced_memory()[1] < 80 * tensor.size
    finally:
        tracemalloc.stop()
    assert found.tobytes() == tensor.tobytes()


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(range(len(KINDS))), st.binary(max_size=80), st.integers(0, 4000))
def test_tensors_that_nobody_wrote(kind, raw, n):
    with suppress(trainer.InputError):
        assert decode(raw, kind, (n,), np.dtype('<f4')).shape == (n,)


# ---- the published network ----


@needs_data
def test_published_network_takes_545_000_bytes_at_most():
    found = weights.read(DATA / 'compressed_SqueezeNet.net')
    started = time.process_time()
    raw, coded = archive.pack(found)
    encode_s = time.process_time() - started
    started = time.process_time()
    again = archive.read(memoryview(raw))
    decode_s = time.process_time() - started
    assert again.tensors.keys() == found.tensors.keys()
    for name, tensor in found.tensors.items():
        assert again.tensors[name].tobytes() == tensor.tobytes()
    assert archive.payload(coded) <= 545_000
    assert len(raw) - archive.payload(coded) < 2_000
    assert encode_s < 60 and decode_s < 5  # loops over weights would take longer; docs/compression.md has the figures


@needs_data
def test_the_published_file_both_ways(tmp_path):
    path = DATA / 'compressed_SqueezeNet.net'
    published = weights.read(path)
    weights.write(published, tmp_path / 'a.sqz')
    weights.write(weights.read(tmp_path / 'a.sqz'), tmp_path / 'b.net')
    assert (tmp_path / 'b.net').stat().st_size == path.stat().st_size  # codes in another order, as many of them
    for found in weights.read(tmp_path / 'a.sqz'), weights.read(tmp_path / 'b.net'):
        assert found.metadata == published.metadata
        for name, tensor in published.tensors.items():
            assert found.tensors[name].tobytes() == tensor.tobytes()


def test_what_the_published_format_cannot_hold(tmp_path):
    model = NETWORKS['squeezenet_v1.0'](1000)
    with pytest.raises(trainer.InputError, match=r'but \.net holds 255'):
        weights.write(Weights(tensors_of(model)), tmp_path / 'a.net')
    rounded = {name: np.round(tensor, 1) for name, tensor in tensors_of(model).items()}
    for found in (
        small(),
        Weights(rounded, Metadata('squeezenet_v1.0_simple')),
        Weights({name: tensor for name, tensor in rounded.items() if name.endswith('/W')}),
        Weights(rounded | {'conv1/b': np.zeros(95, np.float32)}),
        Weights(rounded | {'conv1/bn/gamma': np.zeros(96, np.float32)}),
    ):
        with pytest.raises(trainer.InputError, match='only SqueezeNet v1'):
            weights.write(found, tmp_path / 'a.net')
