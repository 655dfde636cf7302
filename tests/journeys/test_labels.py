"""`validate` never scores with another class than the label means: it maps, says so, or refuses."""

import json
import shutil

import pytest
import substitutions as table
from test_commands import execute

SAMPLE = table.DATA / 'imagenet-sample'
V11 = table.DATA / 'weights/squeezenet_v1.1.caffemodel'
pytestmark = [
    pytest.mark.journeys,
    pytest.mark.skipif(not SAMPLE.is_dir(), reason=f'no published weights and images in {table.DATA}'),
]


def validate(folder, *flags):
    done = execute(['-m', 'squeeze_net.validate', V11, *flags, '--json', '--workers', 2], folder)
    assert 'Traceback' not in done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else done.returncode, done.stderr


def sample(n=100):
    """(path, label, WordNet's number) of the first images."""
    lines = [line.split() for line in (SAMPLE / 'val.txt').read_text().splitlines()[:n]]
    return [(SAMPLE / path, int(label), path.split('/')[1].split('_')[0]) for path, label in lines]


def write_list(folder, label_of, n=100):
    place = folder / 'list.txt'
    place.write_text(''.join(f'{row[0]} {label_of(row)}\n' for row in sample(n)))
    return place


def folders(place, names):
    for split in 'train', 'val':
        for name, label in names.items():
            (place / split / name).mkdir(parents=True)
            shutil.copy(sample()[label // 10][0], place / split / name)


@pytest.fixture(scope='module')
def as_published(tmp_path_factory):
    """The top-1 accuracy with the labels as they are."""
    record, err = validate(tmp_path_factory.mktemp('published'), '--list', SAMPLE / 'val.txt')
    assert not err and record['labels'] is None
    return record['top1']


def test_folders_are_found_by_number_name_and_synonym(tmp_path):
    folders(tmp_path, {'n02007558': 130, 'Irish-Wolfhound': 170, 'teddy bear': 850, 'zebra, whatever': 340})
    record, err = validate(tmp_path, '--dataset', 'folder', '--data', tmp_path)
    assert '4 classes of class folders of' in err and "found among the network's 1,000 by name" in err
    assert record['top1'] == 1 and record['n_images'] == 4


@pytest.mark.parametrize(
    ('name', 'words'),
    [('crane', "'crane', which may be 134 (n02012849) and 517 (n03126707)"), ('zebrra', "the nearest is 'zebra'")],
)
def test_folders_that_are_not_clear_are_refused(tmp_path, name, words):
    folders(tmp_path, {name: 340, 'flamingo': 130})
    code, err = validate(tmp_path, '--dataset', 'folder', '--data', tmp_path)
    assert code == 2 and words in err


def test_lists_with_wordnets_numbers_for_labels(tmp_path, as_published):
    record, err = validate(tmp_path, '--list', write_list(tmp_path, lambda row: row[2]))
    assert record['top1'] == as_published and '100 classes of' in err


def test_lists_that_count_from_1(tmp_path, as_published):
    place = write_list(tmp_path, lambda row: row[1] + 1)
    record, err = validate(tmp_path, '--list', place)
    assert record['top1'] < 0.05 and 'give --first_label 1' in err
    record, err = validate(tmp_path, '--list', place, '--first_label', 1)
    assert record['top1'] == as_published and not err
    place.write_text(f'{place.read_text()}{sample(1)[0][0]} 1000\n')
    code, err = validate(tmp_path, '--list', place)
    assert code == 2 and 'the labels are 1..1000: they look numbered from 1; give --first_label 1' in err


def test_root_of_a_list(tmp_path):
    place = tmp_path / 'list.txt'
    place.write_text((SAMPLE / 'val.txt').read_text().splitlines()[0])
    record, err = validate(tmp_path, '--list', place, '--root', SAMPLE)
    assert record['n_images'] == 1 and not err


@pytest.mark.parametrize(('name', 'kind'), [('x.rec', 'recordio'), ('shards', 'shards')])
def test_packed_folders(tmp_path, name, kind):
    folders(tmp_path / 'photos', {'n02007558': 130, 'zebra': 340})
    (tmp_path / 'packed').mkdir()
    for split in 'train', 'val':
        target = f'packed/{split}{".rec" if kind == "recordio" else ""}'
        done = execute(['-m', 'trainer.datasets.pack', f'photos/{split}', target], tmp_path)
        assert done.returncode == 0, done.stderr
    record, err = validate(tmp_path, '--dataset', kind, '--data', tmp_path / 'packed')
    assert record['top1'] == 1 and '2 classes of' in err
