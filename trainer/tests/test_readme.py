"""The README's example trains another network, as it stands there, and its lines for prediction name what is on a photo."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import trainer

README = Path(__file__).parents[1] / 'README.md'
CHANCE = 0.1


@pytest.mark.slow
def test_example_learns_and_predicts_as_it_stands(tmp_path):
    """It ended at 88 to 90 % over five seeds."""
    text = README.read_text(encoding='utf-8')
    (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (lines,) = re.findall(r'(?:^ {4}.*\n)*^ {4}.*load_classifier.*\n(?:^ {4}.*\n)+', text, re.MULTILINE)
    assert len(lines.splitlines()) == 3
    data = trainer.datasets.load('shapes', limit=1)
    photo = Image.fromarray(data.test.images[0].transpose(1, 2, 0))
    photo.resize((96, 96)).save(tmp_path / 'photo.png')  # of another size than the network's images
    program = code + re.sub('^ {4}', '', lines, flags=re.MULTILINE)
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, accuracy, first, _, _ = done.stdout.splitlines()
    assert float(accuracy) > 0.8 > CHANCE
    probability, name = first.split(maxsplit=1)
    assert name in data.classes and float(probability.rstrip('%')) > 100 * CHANCE
    assert (tmp_path / 'runs/tiny/img/accuracy.png').exists()
