"""The README's example trains another network, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / 'README.md'


def test_example_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.DOTALL)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1
    assert (tmp_path / 'runs/tiny/results/tiny_shapes_32px/weights_best.npz').exists()
    assert (tmp_path / 'runs/tiny/img/accuracy.png').exists()
