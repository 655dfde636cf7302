"""`compress --quantise rate`, as typed: a trained network into an archive, stopped and resumed; and what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from squeeze_net import weights

pytestmark = pytest.mark.journeys

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / 'results/squeezenet_jpeg/weights_best.npz'
DATA = ROOT.parent / 'shared/data/cifar10-jpeg.tar.xz'
QUICK = ['--sparsity', '0', '--prune_epoch', '0', '--quantise_epoch', '0', '--quantise', 'rate']


def run(*argv):
    line = [sys.executable, '-m', 'squeeze_net.compression', *map(str, argv)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.skipif(not DATA.exists(), reason=f'{DATA} is missing')
def test_a_trained_network_by_rate_and_resumed(tmp_path):
    target = tmp_path / 'small.sqz'
    images = ['--dataset', 'folder', '--data', DATA, '--limit', '3', '--size', '64', '--calibration', '16']
    argv = ['compress', TRAINED, '-o', target, *images, *QUICK, '--rate', '0.05']
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    record = json.loads(target.with_suffix('.json').read_text())
    assert record['plan']['quantise'] == 'rate' and record['plan']['rate'] == 0.05
    assert record['stages'][-1]['n_byte'] == target.stat().st_size < 2_988_584 / 12
    kept = weights.read(target).tensors
    for row in record['layers']:
        if row['name'].endswith('/W'):
            values = np.unique(kept[row['name']])
            assert values.size == row['n_codebook'] <= 255
            np.testing.assert_allclose(values / np.diff(values).min() % 1 % 0.99, 0, atol=0.01)  # one step

    # The archive is lost: what was quantised is still there, and gives the same bits.
    raw, quantised = target.read_bytes(), tmp_path / 'small.sqz.stages/results/absorbed/weights_last.npz'
    target.unlink()
    before = quantised.stat().st_mtime_ns
    assert run(*argv).returncode == 0
    assert target.read_bytes() == raw and quantised.stat().st_mtime_ns == before
    # So is it after a stop before that.
    quantised.unlink()
    target.unlink()
    assert run(*argv).returncode == 0 and target.read_bytes() == raw
    done = run(*argv[:-1], '0.2')
    assert done.returncode == 2
    assert 'results/absorbed was made with another --rate, 0.05: remove it' in done.stderr


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--rate', '0.1'], '--rate 0.1 has no meaning for --quantise kmeans'),
        (['--quantise', 'rate', '--bits', '4'], '--bits 4 has no meaning for --quantise rate'),
        (['--quantise', 'rate_kmeans', '--step', '2'], '--step 2 has no meaning for --quantise rate_kmeans'),
        (['--quantise', 'rate', '--rate', '-1'], '--rate is -1.0; expected a number of at least 0'),
        (['--quantise', 'rate', '--rate', 'nan'], '--rate is nan; expected'),
        (['--quantise', 'rate', '--step', '0'], '--step is 0.0; expected'),
        (['--quantise', 'rate', '--calibration', '0'], '--calibration is 0; expected'),
        (['--quantise', 'best'], "invalid choice: 'best'"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, flags, message):
    done = run('compress', TRAINED, '-o', tmp_path / 'a.sqz', '--dataset', 'shapes', *flags)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())
