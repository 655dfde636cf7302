"""`validate` never scores with another class than the label means: it maps, says so, or refuses."""

import json
import shutil

import pytest
import substitutions as table
from test_commands import execute

SAMPLE = table.DATA / 'imagenet-sample'
V11 = table.DATA / 'weights/squeezenet_v1.1.caffemodel'
pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f'no published weights and images in {table.DATA}')


def validate(folder, *flags, weights=V11):
    done = execute(['-m', 'squeeze_net.validate', weights, *flags, '--json', '--workers', 2], folder)
    record = json.loads(done.stdout) if done.returncode == 0 else {}
    assert 'Traceback' not in done.stderr
    return done.returncode, record.get('top1'), done.stderr


def images_of(label):
    """The image of the class `label`, a multiple of 10."""
    lines = [line.split() for line in (SAMPLE / 'val.txt').read_text().splitlines()]
    return next(SAMPLE / path for path, number in lines if int(number) == label)


def class_folders(folder, **labels):
    """`train/` and `val/` with a folder for each name."""
    for split in 'train', 'val':
        for name, label in labels.items():
            (folder / split / name).mkdir(parents=True)
            shutil.copy(images_of(label), folder / split / name)


def test_folders_are_found_by_number_name_and_synonym(tmp_path):
    names = {'n01806143': 'peacock', 'Tinca_tinca': 'tench', 'safety pin': 'safety pin'}
    class_folders(tmp_path, **{'n01440764': 0, 'fringilla-montifringilla': 10, 'steel arch bridge': 821 // 10 * 10})
    code, top1, err = validate(tmp_path, '--dataset', 'folder', '--data', tmp_path)
    assert code == 2 or top1 is not None, names
    assert err
