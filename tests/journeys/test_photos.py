"""Photos as people have them, through the commands: turned, nested, without a test, broken, of every suffix."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from substitutions import DATA, ROOT

pytestmark = pytest.mark.journeys

V11 = DATA / 'weights/squeezenet_v1.1.caffemodel'
needs_weights = pytest.mark.skipif(not V11.exists(), reason=f'{V11} is absent')
TRAIN = ['--dataset', 'folder', '--size', '32', '-e', '1', '-b', '4', '-lr', '0.01', '--threads', '1']


def run(*words, cwd, code=0):
    """What the command printed, to stdout and stderr."""
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout, done.stderr


def draw_photos(folder, names, side=40):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)


def turned(image, path, orientation=6):
    """Store a photo as a phone does that was held upright: on its side, with a note in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(Image.Transpose.ROTATE_90).save(path, quality=98, exif=exif)


@needs_weights
def test_a_turned_photo_gets_the_answer_of_its_upright_twin(tmp_path):
    photo = sorted((DATA / 'imagenet-sample/images').iterdir())[43]
    image = Image.open(photo).convert('RGB')
    image.save(tmp_path / 'upright.jpg', quality=98)
    turned(image, tmp_path / 'turned.jpg')
    out, _ = run('-m', 'squeeze_net.infer', 'upright.jpg', 'turned.jpg', '-w', V11, '--format', 'jsonl', cwd=tmp_path)
    upright, other = (json.loads(line)['top'] for line in out.splitlines())
    assert [one['class'] for one in upright] == [one['class'] for one in other]
    assert abs(upright[0]['probability'] - other[0]['probability']) < 0.03
    for name in ('upright', 'turned'):
        (tmp_path / f'{name}.txt').write_text(f'{name}.jpg {upright[0]["class"]}\n')
    losses = []
    for name in ('upright', 'turned'):
        out, _ = run('-m', 'squeeze_net.validate', V11, '--list', f'{name}.txt', '--json', cwd=tmp_path)
        losses.append(json.loads(out)['loss'])
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_class_folders_alone_are_enough_and_validate_sees_the_same_test(tmp_path):
    draw_photos(tmp_path, [f'pets/{name}/{i}.png' for name in ('cat', 'dog') for i in range(10)], 32)
    out, _ = run(ROOT / 'main.py', *TRAIN, '--data', 'pets', '--run', 'pets', cwd=tmp_path)
    assert 'images of pets: 16 training and 4 test images' in out
    assert 'pets has no test folder: 4 of its 20 images are held out as the test (seed 0)' in out
    summary = json.loads((tmp_path / 'results/pets/summary.json').read_text())
    weights = 'results/pets/weights_last.npz'
    out, err = run(
        *('-m', 'squeeze_net.validate', weights, '--dataset', 'folder', '--data', 'pets', '--json'), cwd=tmp_path
    )
    record = json.loads(out)
    assert (record['n_images'], record['top1']) == (4, summary['last']['test_accuracy'])
    assert 'held out as the test' in err


def test_what_lies_among_photos(tmp_path):
    names = [f'{split}/{name}/{i}' for split in ('train', 'val', 'test') for name in ('a cat', 'dog') for i in range(4)]
    draw_photos(tmp_path / 'x', [*(f'{name}.PNG' for name in names), 'train/dog/deep/er/5.jfif', 'train/dog/6.avif'])
    for name in (
        'train/dog/film.mp4',
        'train/.ipynb_checkpoints/x.png',
        '__MACOSX/train/dog/._1.png',
        'train/dog/Thumbs.db',
    ):
        (tmp_path / 'x' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'x' / name).write_bytes(b'')
    (tmp_path / 'x/train/dog/broken.jpg').write_bytes(b'\xff\xd8')
    command = [ROOT / 'main.py', *TRAIN, '--data', 'x', '--run', 'x']
    _, err = run(*command, cwd=tmp_path, code=2)
    assert 'broken.jpg cannot be read as an image' in err and '--unreadable skip goes on without it' in err
    out, _ = run(*command, '--unreadable', 'skip', cwd=tmp_path)
    assert 'images of x (JPEG files): 10 training, 8 validation and 8 test images' in out
    assert 'left out: files that are no images: 1 .mp4' in out
    assert '1 images could not be read and are left out: x/train/dog/broken.jpg' in out


def test_a_strip_neither_fills_memory_nor_ends_the_run(tmp_path):
    draw_photos(
        tmp_path, [f'{split}/{name}/{i}.png' for split in ('train', 'val') for name in 'ab' for i in range(4)], 64
    )
    Image.new('L', (100_000, 1)).save(tmp_path / 'train/a/strip.png')
    command = [ROOT / 'main.py', *TRAIN, '--data', '.', '--preprocess', 'torchvision', '--workers', '2']
    _, err = run(*command, cwd=tmp_path, code=2)
    assert 'strip.png (100000 x 1 px: one side is more than 100 times the other) is unreadable' in err
    out, _ = run(*command, '--overwrite', '--unreadable', 'skip', cwd=tmp_path)
    assert '1 of 9 training images could not be read' in out
