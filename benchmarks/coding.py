"""How few bytes the weights of the published compressed SqueezeNet take under each entropy coder; writes JSON.

python benchmarks/coding.py --data ../shared/data [--out results/bench/coding.json]

The codes and gaps of `compressed_SqueezeNet.net` are coded layer by layer by bitarray's canonical Huffman and by
constriction's rANS and range coder, with gaps of every width, or with 0 as a code like the others and no gaps at all.
Bytes include what the decoder has to know: lengths of Huffman codes (5 bits a symbol), counts as the archive writes
them. Codebooks and biases, the same for all, are counted apart, but for the archive. Times: medians, of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import bitarray
import bitarray.util
import constriction
import numpy as np

import trainer
from squeeze_net import weights
from squeeze_net.weights.formats import net
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.formats.sqz.entropy import Writer, from_levels, to_levels, write_levels
from trainer import device
from trainer.files import atomic_write

WIDTHS = range(2, 9)  # bits of a gap
LENGTH_BITS = 5  # of the length of a Huffman code


class Huffman:
    """bitarray's canonical codes."""

    def encode(self, symbols: np.ndarray) -> tuple[Any, int]:
        counts = np.bincount(symbols)
        table, lengths, order = bitarray.util.canonical_huffman({i: int(n) for i, n in enumerate(counts) if n})
        bits = bitarray.bitarray()
        bits.encode(table, symbols.tolist())
        return (bits, lengths, order), math.ceil((len(bits) + LENGTH_BITS * len(counts)) / 8)

    def decode(self, coded: Any, n: int) -> np.ndarray:
        return np.fromiter(bitarray.util.canonical_decode(*coded), np.int64, n)


class Constriction:
    """A coder of constriction, with counts as the archive rounds and writes them."""

    def encode(self, symbols: np.ndarray) -> tuple[Any, int]:
        levels = to_levels(np.bincount(symbols))
        told = Writer()
        write_levels(told, levels)
        counts = from_levels(levels)
        used = np.flatnonzero(counts)
        place = np.zeros(counts.size, np.int32)
        place[used] = np.arange(used.size)
        model = constriction.stream.model.Categorical(counts[used] / counts.sum(), perfect=False)
        words = self.to_words(place[symbols], model)
        return (words, used, model), 4 * len(words) + len(told.getvalue())

    def decode(self, coded: Any, n: int) -> np.ndarray:
        words, used, model = coded
        return used[self.from_words(words, model, n)]

    def to_words(self, symbols: np.ndarray, model: Any) -> np.ndarray:
        raise NotImplementedError

    def from_words(self, words: np.ndarray, model: Any, n: int) -> np.ndarray:
        raise NotImplementedError


class RANS(Constriction):
    def to_words(self, symbols: np.ndarray, model: Any) -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    def from_words(self, words: np.ndarray, model: Any, n: int) -> np.ndarray:
        return constriction.stream.stack.AnsCoder(words).decode(model, n)


class RangeCoder(Constriction):
    def to_words(self, symbols: np.ndarray, model: Any) -> np.ndarray:
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(symbols, model)
        return coder.get_compressed()

    def from_words(self, words: np.ndarray, model: Any, n: int) -> np.ndarray:
        return constriction.stream.queue.RangeDecoder(words).decode(model, n)


CODERS = {
    'canonical Huffman (bitarray)': Huffman(),
    'rANS (constriction)': RANS(),
    'range coder (constriction)': RangeCoder(),
}


def entropy_bytes(streams: Sequence[np.ndarray]) -> float:
    """What no coder of first order can fall below, each stream with probabilities of its own."""
    bits = 0.0
    for stream in streams:
        counts = np.bincount(stream)
        counts = counts[counts > 0]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def measure(coder: Any, streams: Sequence[np.ndarray], rounds: int) -> dict[str, Any]:
    """Bytes, and milliseconds to encode and decode all streams, which come back the same."""
    times: dict[str, list[float]] = {'encode': [], 'decode': []}
    for _ in range(rounds):
        start = time.perf_counter()
        coded = [coder.encode(stream) for stream in streams]
        times['encode'].append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        decoded = [coder.decode(one, len(stream)) for (one, _), stream in zip(coded, streams, strict=True)]
        times['decode'].append(1e3 * (time.perf_counter() - start))
        if not all(np.array_equal(a, b) for a, b in zip(decoded, streams, strict=True)):
            raise AssertionError(f'{type(coder).__name__} gives other symbols back')
    return {
        'bytes': sum(n for _, n in coded),
        **{f'{name}_ms': round(statistics.median(values), 1) for name, values in times.items()},
        **{f'{name}_ms_range': [round(min(values), 1), round(max(values), 1)] for name, values in times.items()},
    }


def timed(function: Callable[[], Any], rounds: int) -> tuple[Any, dict[str, Any]]:
    values = []
    for _ in range(rounds):
        start = time.perf_counter()
        found = function()
        values.append(1e3 * (time.perf_counter() - start))
    return found, {
        'ms': round(statistics.median(values), 1),
        'ms_range': [round(min(values), 1), round(max(values), 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='holds weights/')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path('results/bench/coding.json'))
    args = parser.parse_args()
    path = args.data / 'weights' / 'compressed_SqueezeNet.net'
    if not path.is_file():
        raise trainer.InputError(f'{path} does not exist: --data has to hold weights/compressed_SqueezeNet.net')
    raw = path.read_bytes()
    layers = net.decode(raw, net.published_shapes())
    flat = [layer.codes.reshape(-1).astype(np.int64) for layer in layers]
    ways = {'zeros as a code': flat}
    for width in WIDTHS:
        ways[f'gaps of {width} bits'] = [part for codes in flat for part in net.entries(codes, (1 << width) - 1)]

    rows = {}
    for way, streams in ways.items():
        rows[way] = {
            'symbols': sum(map(len, streams)),
            'entropy_bytes': round(entropy_bytes(streams)),
            **{name: measure(coder, streams, args.rounds) for name, coder in CODERS.items()},
        }
        cells = '   '.join(f'{name} {rows[way][name]["bytes"]:,}' for name in CODERS)
        print(f'{way:16}  entropy {rows[way]["entropy_bytes"]:,}   {cells}', flush=True)

    tensors = weights.read(path)
    (packed, coded), encoding = timed(lambda: archive.pack(tensors), args.rounds)
    opened, decoding = timed(lambda: archive.Archive(packed).weights(), args.rounds)
    if not all(opened.tensors[name].tobytes() == tensor.tobytes() for name, tensor in tensors.tensors.items()):
        raise AssertionError('the archive gives other numbers back')
    others = {
        'published_file': len(raw),
        'codebooks': sum(layer.codebook.nbytes for layer in layers),
        'biases': sum(layer.bias.nbytes for layer in layers),
    }
    ours = {
        'bytes': len(packed),
        'payload': archive.payload(coded),
        'codes': sum(one.parts.get('codes', 0) for one in coded.values()),
        'codebooks': sum(one.parts.get('codebook', 0) for one in coded.values()),
        'values': sum(one.parts.get('values', 0) for one in coded.values()),
        'encode': encoding,
        'decode': decoding,
    }
    print(f'archive: {ours}')
    record = {
        'machine': device.describe(device.open_device(-1)),
        'python': sys.version.split()[0],
        'versions': {name: version(name) for name in ('bitarray', 'constriction', 'numpy')},
        'rounds': args.rounds,
        'file': others,
        'ways': rows,
        'archive': ours,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out, 'w') as file:
        json.dump(record, file, indent=1)
        file.write('\n')


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/coding.py'):
        main()
