"""What is coded comes back to the bit, near its entropy; what was not coded is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import trainer
from squeeze_net.weights.formats.sqz import entropy
from squeeze_net.weights.formats.sqz.entropy import Reader, Writer


def coded(write, *args):
    out = Writer()
    write(out, *args)
    return out.getvalue()


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 35)))
def test_numbers(values):
    out = Writer()
    for value in values:
        out.number(value)
    source = Reader(out.getvalue())
    assert [source.number(1 << 35) for _ in values] == values
    source.end()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(0, 3000), st.floats(0, 4), st.integers(0, 2**32 - 1))
def test_symbols(n, count, skew, seed):
    symbols = (n * np.random.default_rng(seed).random(count) ** (1 + skew)).astype(np.int64)
    raw = coded(entropy.write_symbols, symbols, n)
    source = Reader(raw)
    np.testing.assert_array_equal(entropy.read_symbols(source, count, n), symbols)
    source.end()


@pytest.mark.parametrize('n', [2, 30, 255])
def test_symbols_take_what_their_entropy_says(n):
    symbols = np.minimum(np.random.default_rng(n).geometric(min(3 / n, 0.8), 100_000) - 1, n - 1)
    share = np.bincount(symbols, minlength=n) / symbols.size
    n_ideal = -(share[share > 0] * np.log2(share[share > 0])).sum() * symbols.size / 8
    n_byte = len(coded(entropy.write_symbols, symbols, n))
    assert n_ideal <= n_byte < 1.004 * n_ideal + n + 16


@settings(deadline=None)
@given(st.integers(0, (1 << 30) - 1))
def test_counts_are_rounded_to_two_significant_bits(count):
    (level,) = entropy.to_levels(np.array([count]))
    (quarters,) = entropy.from_levels(np.array([level]))
    assert abs(quarters / 4 - count) <= count / 8
    assert (level == 0) == (count == 0)


floats = hnp.arrays(
    st.sampled_from([np.dtype('<f4'), np.dtype('<f2')]), st.integers(0, 200), elements=st.floats(width=16)
)


@settings(deadline=None, max_examples=60)
@given(floats)
def test_floats_to_the_bit(values):
    raw = coded(entropy.write_floats, values)
    source = Reader(raw)
    assert entropy.read_floats(source, values.size, values.dtype).tobytes() == values.tobytes()
    source.end()
    assert len(raw) <= 1 + values.nbytes


def test_normal_floats_shrink():
    values = np.random.default_rng(0).normal(0, 0.05, 5000).astype(np.float32)
    assert len(coded(entropy.write_floats, values)) < 0.85 * values.nbytes


@pytest.mark.parametrize(('dtype', 'n_mantissa'), [('<f2', 10), ('<f4', 23)])
def test_low_bits_that_no_mantissa_has_take_no_room(dtype, n_mantissa):
    values = np.random.default_rng(0).normal(0, 0.05, 800).astype(dtype)
    sizes = []
    for n_zero in (0, 6, n_mantissa):
        mask = ~((1 << n_zero) - 1) & ((1 << 8 * values.itemsize) - 1)
        short = (values.view(f'<u{values.itemsize}') & mask).astype(f'<u{values.itemsize}').view(dtype)
        raw = coded(entropy.write_floats, short)
        assert entropy.read_floats(Reader(raw), 800, values.dtype).tobytes() == short.tobytes()
        sizes.append(len(raw) + 100 * n_zero)
    assert max(sizes) - min(sizes) <= 4


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0), min_size=1, max_size=300)
)
def test_rising_codebooks(values):
    codebook = np.sort(np.array(list(values), np.float32))
    raw = coded(entropy.write_rising, codebook)
    source = Reader(raw)
    assert entropy.read_rising(source, codebook.size).tobytes() == codebook.tobytes()
    source.end()


def test_bytes_behind_the_last_symbol_are_refused():
    out, symbols = Writer(), np.random.default_rng(0).integers(0, 9, 1000)
    entropy.write_symbols(out, symbols, 9)
    source, longer = Reader(out.getvalue()), Writer()
    longer.block(source.block())
    longer.block(source.block() + bytes(range(200)))
    with pytest.raises(trainer.InputError, match='goes on after its last symbol'):
        entropy.read_symbols(Reader(longer.getvalue()), 1000, 9)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60), st.integers(0, 5000), st.integers(1, 300))
def test_bytes_that_nobody_wrote(raw, count, n):
    for read in (
        lambda: entropy.read_symbols(Reader(raw), count, n),
        lambda: entropy.read_floats(Reader(raw), count, np.dtype('<f4')),
        lambda: entropy.read_rising(Reader(raw), count),
    ):
        try:
            found = read()
        except trainer.InputError:
            continue
        assert found.shape == (count,)
