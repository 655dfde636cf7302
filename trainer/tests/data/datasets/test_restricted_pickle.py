import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer import InputError
from trainer.data.datasets import restricted_pickle
from trainer.data.datasets.restricted_pickle import read_pickle

PLAIN_DTYPES = ['?', 'u1', 'i1', '<i2', '>i2', '<i8', '>u4', '<f2', '<f4', '>f8']
CORE = b'cnumpy.core.multiarray\n'
# A pickled array up to its state, as Python 2 wrote it: _reconstruct(ndarray, (0,), 'b')
RECONSTRUCT = CORE + b'_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
UINT8 = b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'

STATE = b'(K\x01K\x01\x85' + UINT8 + b'\x89U\x01xtb'


def assert_same(found, expected):
    assert found.dtype.newbyteorder('=') == expected.dtype.newbyteorder(
        '='
    )  # NumPy restores most arrays in native order
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('dtype', PLAIN_DTYPES)
def test_arrays_of_plain_dtypes_round_trip(protocol, dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(dtype)
    found = read_pickle(pickle.dumps({'a': array, b'b': [array[0], array[1, 2]]}, protocol), 'file')
    assert_same(found['a'], array)
    assert_same(found[b'b'][0], array[0])
    assert found[b'b'][1] == array[1, 2]


@pytest.mark.parametrize('protocol', range(2, 5))
def test_column_major_arrays_round_trip(protocol):
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert_same(read_pickle(pickle.dumps(array, protocol), 'file'), array)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_round_trip(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol), 'file') == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_give_an_input_error_or_a_value(data):
    array = data.draw(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5))))
    raw = bytearray(pickle.dumps({'data': array, 'labels': [1, 2]}, data.draw(st.sampled_from([2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_pickle(bytes(raw[: data.draw(st.integers(0, len(raw)))]), 'file')
    except InputError as error:
        assert str(error).startswith('file cannot be read')


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_code_runs(tmp_path, protocol):
    raw = pickle.dumps([Payload(os.mkdir, str(tmp_path / 'made'))], protocol)
    with pytest.raises(InputError, match=r'batch_1 cannot be read .* it names .*mkdir'):
        read_pickle(raw, 'batch_1')
    assert not (tmp_path / 'made').exists()


HOSTILE = {
    'objects in an array': pickle.dumps(np.array([[], {}], object), 4),
    'a structured dtype': pickle.dumps(np.zeros(2, [('a', 'u1')]), 4),
    'a date': pickle.dumps(np.zeros(2, 'M8[s]'), 4),
    'another class of numpy': pickle.dumps(np.ma.zeros(2), 4),
    'a shape larger than its data': RECONSTRUCT + b'(K\x01J\xff\xff\xff\x7f\x85' + UINT8 + b'\x89U\x01xtb.',
    'a negative shape': RECONSTRUCT + b'(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86' + UINT8 + b'\x89U\x01xtb.',
    'a large array before its state': RECONSTRUCT.replace(b'K\x00\x85', b'J\xff\xff\xff\x7f\x85') + b'.',
    'a string longer than the file': b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.',
    'a buffer longer than the file': b'\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7fx.',
    'a persistent id': b'P0\n.',
    'an extension code': b'\x80\x02\x82\x01.',
    'an instance': b'(ios\ngetcwd\n.',
    'keys that nest': b'}' + b')' + b'\x85' * 100_000 + b'Ns.',
    'an unhashable key': b'}]Ns.',
    'items without a mark': b']K\x01e.',
    'items for a number': b'K\x00K\x01a.',
    'an odd dict': b'(K\x01d.',
    'a pop of nothing': b'\x86.',
    'the state of a number': b'K\x01}K\x00K\x01sb.',
    'a second state of an array': RECONSTRUCT + STATE + STATE + b'.',
    'a call of a number': b'K\x01)R.',
    'nothing': b'',
    'no end': b'K\x01',
    'no pickle': b'\xff\xd8\xff\xe0JFIF',
    'a page': b'<!DOCTYPE html><html>',
}


@pytest.mark.parametrize('raw', HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(raw):
    with pytest.raises(InputError, match=r'^file cannot be read as a pickle of plain arrays: '):
        read_pickle(raw, 'file')


def test_a_large_place_in_the_memo_allocates_nothing():
    start = time.perf_counter()
    with pytest.raises(InputError, match='a place 2147483647 in the memo'):
        read_pickle(b'K\x07r\xff\xff\xff\x7f.', 'file')
    assert time.perf_counter() - start < 1


def test_the_same_bytes_are_not_unfolded_again_and_again():
    text = b'X' + (100_000).to_bytes(4, 'little') + b'x' * 100_000 + b'q\x00'
    encode = b'c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R'
    assert read_pickle(b'\x80\x02' + text + encode + b'.', 'file') == b'x' * 100_000
    with pytest.raises(InputError, match=r'again and again'):
        read_pickle(b'\x80\x02' + text + encode * 1000 + b'.', 'file')


def test_large_files_are_refused(monkeypatch):
    raw = pickle.dumps(list(range(200)))
    monkeypatch.setattr(restricted_pickle, 'MAX_BYTES', 100)
    with pytest.raises(InputError, match=rf'it has {len(raw)} bytes, more than 100'):
        read_pickle(raw, 'file')
    monkeypatch.undo()
    monkeypatch.setattr(restricted_pickle, 'MAX_OPCODES', 100)
    with pytest.raises(InputError, match=r'more than 100 opcodes'):
        read_pickle(raw, 'file')


def test_attributes_that_a_file_gives_a_function_last_no_longer_than_the_file():
    function = CORE + b'_reconstruct\n'
    slots = b'N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b'
    read_pickle(b'\x80\x02' + function + slots + b'.', 'file')
    assert_same(read_pickle(pickle.dumps(np.arange(3), 2), 'file'), np.arange(3))
