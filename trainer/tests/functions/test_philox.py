import numpy as np
import pytest

from trainer.functions.philox import philox4x32

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ('counter', 'seed', 'expected'),
    [  # the known answers that come with Random123 (kat_vectors, philox4x32 10)
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, ONES << 32 | ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, seed, expected):
    words = philox4x32(tuple(np.array([word], np.uint32) for word in counter), seed)
    assert tuple(int(word[0]) for word in words) == expected


def test_counters_broadcast():
    rows, columns = np.arange(3, dtype=np.uint32)[:, None], np.arange(5, dtype=np.uint32)[None, :]
    zero = np.zeros((1, 1), np.uint32)
    words = philox4x32((columns, rows, zero, zero), 1)
    assert all(word.shape == (3, 5) and word.dtype == np.uint32 for word in words)
    one = philox4x32((columns[:, 4:], rows[2:], zero, zero), 1)
    assert all(a[2, 4] == b[0, 0] for a, b in zip(words, one, strict=True))
