"""Memory for maps: what is handed out never overlaps, comes back, and is used again."""

import gc
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.engine import buffers
from trainer.engine.buffers import ALIGNMENT, Buffers, Ranges

BYTE = np.dtype(np.uint8)


def take(memory, n_byte):
    return memory.empty((n_byte,), (1,), n_byte, BYTE)


def address(array):
    return array.__array_interface__['data'][0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**16), st.integers(1, 40)), max_size=60))
def test_ranges_hold_what_is_left_sorted_merged_and_apart_from_what_is_taken(steps):
    total = 200
    ranges, live = Ranges(total), []
    for is_return, which, n in steps:
        if is_return and live:
            ranges.give_back(*live.pop(which % len(live)))
        else:
            fits = any(length >= n for _, length in ranges.free())
            offset = ranges.take(n)
            assert (offset >= 0) == fits
            if fits:
                live.append((offset, n))
        free = ranges.free()
        assert sorted(free) == free
        assert all(one + n < other for (one, n), (other, _) in pairwise(free))  # neighbours merge
        covered = sorted(live + free)
        assert sum(n for _, n in covered) == total
        assert all(one + n == other for (one, n), (other, _) in pairwise(covered))
        assert ranges.peak >= max((offset + n for offset, n in live), default=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**16), st.integers(1, 3 * ALIGNMENT)), max_size=40))
def test_arrays_keep_what_was_written_while_others_come_and_go(steps):
    memory, live = Buffers(16 * ALIGNMENT), {}  # small: now and then NumPy has to serve
    for i, (is_return, which, n) in enumerate(steps):
        if is_return and live:
            key = list(live)[which % len(live)]
            assert (live.pop(key) == key).all()
        else:
            live[i] = take(memory, n)
            live[i][...] = i
    assert all((array == key).all() for key, array in live.items())
    live.clear()
    assert memory.free() == [(0, 16 * ALIGNMENT)]


def test_a_freed_block_serves_the_next_request_of_its_size():
    memory = Buffers(1 << 20)
    first, kept = take(memory, 5000), take(memory, 5000)
    place = address(first)
    del first
    assert address(take(memory, 5000)) == place != address(kept)
    assert memory.peak == 4 * ALIGNMENT


def test_the_lowest_block_that_fits_serves():
    memory = Buffers(1 << 20)
    blocks = [take(memory, n * ALIGNMENT) for n in (1, 1, 3, 1)]
    start, place = address(blocks[0]), address(blocks[2])
    blocks[0] = blocks[2] = None  # a hole of one page, then one of three
    assert address(take(memory, 2 * ALIGNMENT)) == place
    assert address(take(memory, ALIGNMENT)) == start


def test_blocks_start_on_pages():
    memory = Buffers(1 << 20)
    assert all(address(take_one) % ALIGNMENT == 0 for take_one in [take(memory, n) for n in (1, 7, 4097, 1)])


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'uint8', 'bfloat16'])
def test_arrays_have_the_asked_shape_strides_and_dtype(dtype):
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    size = dtype.itemsize
    array = Buffers(1 << 20).empty((2, 3, 4), (12 * size, size, 3 * size), 24 * size, dtype)
    assert (array.dtype, array.shape, array.strides) == (dtype, (2, 3, 4), (12 * size, size, 3 * size))
    array[...] = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(array.astype(np.float64), np.arange(24).reshape(2, 3, 4))
    assert array.flags.writeable


def test_views_and_their_views_keep_the_block_and_the_last_gives_it_back():
    memory = Buffers(1 << 20)
    array = take(memory, 64).view(np.float32)
    view = array.reshape(4, 4)[1:].T[::2]
    del array
    assert memory.free() != [(0, 1 << 20)]
    del view
    assert memory.free() == [(0, 1 << 20)]


def test_a_block_in_a_cycle_comes_back_with_the_collection():
    memory = Buffers(1 << 20)
    cycle = [take(memory, 100)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert memory.free() == [(0, 1 << 20)]


class Garbage:
    """A cycle that gives its range back when it is collected."""

    def __init__(self, ranges, offset, n_byte):
        self.ranges, self.offset, self.n_byte, self.me = ranges, offset, n_byte, self

    def __del__(self):
        self.ranges.give_back(self.offset, self.n_byte)


def take_while_garbage_is_collected(memory, n_byte, make_garbage, threshold):
    """`memory.take(n_byte)` in which the collector runs after so many allocations."""
    gc.collect()
    gc.disable()
    old = gc.get_threshold()
    try:
        make_garbage()
        pairs = [(i, i) for i in range(5000)]  # leaves no pair in store: the next one is an allocation
        gc.set_threshold(gc.get_count()[0] + threshold)
        gc.enable()
        offset = memory.take(n_byte)
    finally:
        gc.set_threshold(*old)
        gc.enable()
    del pairs
    gc.collect()
    return offset


@pytest.mark.long
def test_a_collection_of_garbage_while_a_block_is_taken_confuses_nothing():
    for threshold in range(12):
        ranges = Ranges(1000)
        blocks = [ranges.take(10) for _ in range(20)]
        for i in (2, 6, 10):
            ranges.give_back(blocks.pop(i), 10)
        first = blocks.pop(0)
        taken = take_while_garbage_is_collected(ranges, 5, lambda r=ranges, o=first: Garbage(r, o, 10), threshold)
        rest = [ranges.take(5) for _ in range(200)]  # whatever is left
        live = [(taken, 5), *((offset, 10) for offset in blocks), *((offset, 5) for offset in rest if offset >= 0)]
        live.sort()
        assert all(one + n <= other for (one, n), (other, _) in pairwise(live)), 'overlap'
        assert sum(n for _, n in live) == 1000


def test_threads_never_hold_the_same_memory():
    memory, faults = Buffers(1 << 22), []

    def work(seed):
        rng = np.random.default_rng(seed)
        held = []
        for i in range(200):
            array = take(memory, int(rng.integers(1, 9000)))
            array[...] = mark = (seed * 50 + i) % 251
            held.append((mark, array))
            if len(held) > 5:
                mark, array = held.pop(int(rng.integers(len(held))))
                if not (array == mark).all():
                    faults.append((seed, i))
                del array

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert memory.free() == [(0, 1 << 22)]


def test_beyond_the_reservation_arrays_are_numpys_and_as_asked():
    memory = Buffers(2 * ALIGNMENT)
    arrays = [memory.empty((2, 3), (4, 8), 24, np.dtype(np.float32)) for _ in range(4)]
    for i, array in enumerate(arrays):
        array[...] = i
    assert [set(a.ravel().tolist()) for a in arrays] == [{0.0}, {1.0}, {2.0}, {3.0}]
    assert {(a.shape, a.strides, a.dtype.name) for a in arrays} == {((2, 3), (4, 8), 'float32')}
    assert memory.peak == 2 * ALIGNMENT
    del arrays, array
    assert memory.free() == [(0, 2 * ALIGNMENT)]


@pytest.mark.parametrize('error', [OSError, ValueError, OverflowError])
def test_where_no_address_space_can_be_reserved_numpy_serves(monkeypatch, error):
    def refuse(*args, **kwds):
        raise error('no')

    monkeypatch.setattr(buffers.mmap, 'mmap', refuse)
    memory = Buffers(1 << 40)
    arrays = [take(memory, 10) for _ in range(2)]
    arrays[0][...], arrays[1][...] = 1, 2
    assert (arrays[0] == 1).all()
    assert memory.peak == 0


def test_more_address_space_than_there_is_falls_back_too():
    take(Buffers(1 << 62), 10)[...] = 1
