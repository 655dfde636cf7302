"""Whether pruned weights are computed with faster as sparse matrices; needs SciPy; writes JSON.

python benchmarks/sparse.py [--out results/bench/sparse.json]

The 1x1 convolutions of SqueezeNet v1.0 at 227 px are products of a matrix (out, in) with one (in, pixels). Of random
matrices at several densities, SciPy's compressed rows are timed beside NumPy's dense product, of one image and one
thread; they take turns, and the medians are compared. 3x3 convolutions would be worse off, as sparse rows gather from
nine places.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'

import numpy as np

import trainer
from trainer import device
from trainer.files import atomic_write

LAYERS = {'fire2/expand1x1': (64, 16, 55), 'fire5/squeeze1x1': (32, 256, 27), 'fire9/squeeze1x1': (64, 512, 13)}
LAYERS['conv10'] = (1000, 512, 13)
DENSITIES = (0.5, 0.33, 0.2, 0.1, 0.05, 0.02)


def main() -> None:
    from scipy.sparse import csr_array

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--out', type=Path, default=Path('results/bench/sparse.json'))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for name, (n_out, n_in, side) in LAYERS.items():
        x = rng.normal(size=(n_in, side * side)).astype(np.float32)
        for density in DENSITIES:
            dense = rng.normal(size=(n_out, n_in)).astype(np.float32)
            dense[rng.random(dense.shape) >= density] = 0
            sparse = csr_array(dense)
            times: dict[str, list[float]] = {'dense': [], 'sparse': []}
            for _ in range(args.rounds):
                for kind, matrix in ('dense', dense), ('sparse', sparse):
                    start = time.perf_counter()
                    y = matrix @ x
                    times[kind].append(1e6 * (time.perf_counter() - start))
            np.testing.assert_allclose(y, dense @ x, atol=1e-3)
            micros = {kind: round(statistics.median(values), 1) for kind, values in times.items()}
            ratio = micros['sparse'] / micros['dense']
            rows.append({'layer': name, 'density': density, 'microseconds': micros, 'sparse_to_dense': round(ratio, 2)})
            print(
                f'{name:18} density {density:4.0%}   dense {micros["dense"]:8.1f} us   sparse {ratio:5.2f} times that'
            )
    record = {
        'machine': device.describe(device.open_device(-1)),
        'versions': {name: version(name) for name in ('numpy', 'scipy')},
        'rows': rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out, 'w') as file:
        json.dump(record, file, indent=1)
        file.write('\n')


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/sparse.py'):
        main()
