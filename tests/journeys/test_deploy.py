"""From weights to a folder that classifies without the project, as typed."""

import json
import shutil
import subprocess
import sys

import pytest
from browser import chromium, find_chromium
from deployed import CIFAR, ROOT, cifar_images, lines_of, needs_data, random_weights

from squeeze_net import weights
from trainer.data import datasets

SMALL = ROOT / 'results/compression/small.sqz'
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


def run(*words, code=0, cwd=None):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == code and 'Traceback' not in done.stderr, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def deploy(*words, code=0):
    return run('-m', 'squeeze_net.deploy', *words, code=code)


@pytest.mark.journeys
@needs_data
def test_the_lines_of_the_readme_name_a_photo_as_infer_does(tmp_path):
    folder, photo = tmp_path / 'deployed', tmp_path / 'cat.jpg'
    cifar_images(1)[0].resize((80, 60)).save(photo, quality=95)
    out = deploy(CIFAR, '-o', folder, '--only', 'onnx')
    assert f'wrote {folder / "model.onnx"}' in out
    (folder / 'cat.jpg').write_bytes(photo.read_bytes())
    named = run('-c', lines_of((folder / 'README.md').read_text()), cwd=folder)
    (answer,) = run('-m', 'squeeze_net.infer', photo, '-w', CIFAR, '--format', 'jsonl').splitlines()
    assert named.strip() == json.loads(answer)['top'][0]['name']
    message = deploy(CIFAR, '-o', folder, '--only', 'onnx', code=2)
    assert f'error: -o {folder} is not empty' in message and len(message.splitlines()) == 1


@needs_data
@pytest.mark.journeys
@pytest.mark.skipif(shutil.which('cc') is None, reason='no C compiler')
def test_the_lines_for_c_name_a_photo_as_infer_does(tmp_path):
    folder, photo = tmp_path / 'deployed', tmp_path / 'cat.ppm'
    cifar_images(1)[0].save(photo)
    out = deploy(SMALL, '-o', folder, '--only', 'c')
    assert f'wrote {folder / "model.sqz"}: {SMALL.stat().st_size:,} bytes' in out
    (folder / 'cat.ppm').write_bytes(photo.read_bytes())
    lines = lines_of((folder / 'README.md').read_text(), 'sh')
    named = subprocess.run(['sh', '-ec', lines], capture_output=True, text=True, cwd=folder, check=True).stdout
    (answer,) = run('-m', 'squeeze_net.infer', photo, '-w', SMALL, '--format', 'jsonl').splitlines()
    assert named.splitlines()[0].split('%')[1].strip() == json.loads(answer)['top'][0]['name']


@needs_data
@pytest.mark.journeys
@pytest.mark.skipif(find_chromium() is None, reason='no Chromium')
def test_the_page_names_a_photo_as_infer_does(tmp_path):
    photo, flags = tmp_path / 'cat.jpg', ['--only', 'page', '--single_file']
    cifar_images(1)[0].save(photo)
    out = deploy(SMALL, '-o', tmp_path / 'site', *flags)
    assert f'wrote {tmp_path / "site/index.html"}: ' in out and len(out.splitlines()) == 2
    with chromium() as browser:
        page = browser.open((tmp_path / 'site/index.html').as_uri())
        page.choose(photo)
        named = page.wait("document.querySelector('#best span')?.textContent")
    (answer,) = run('-m', 'squeeze_net.infer', photo, '-w', SMALL, '--format', 'jsonl').splitlines()
    assert named == json.loads(answer)['top'][0]['name']


@pytest.mark.journeys
def test_int8_from_a_data_set(tmp_path):
    classes = datasets.load('shapes', limit=1).classes
    found = random_weights(n_class=len(classes)).with_metadata(classes=classes)
    weights.write(found, tmp_path / 'weights.npz')
    flags = ['--only', 'onnx,int8', '--dataset', 'shapes', '--limit', '3', '--batch', '1']
    out = deploy(tmp_path / 'weights.npz', '-o', tmp_path / 'deployed', *flags)
    assert f'measured on {3 * len(classes)} test images' in out and '| int8 | ' in out
    assert (tmp_path / 'deployed/model_int8.onnx').exists()
    assert '| float32 | ' in (tmp_path / 'deployed/README.md').read_text()
