"""The command: what it writes and leaves out, what it refuses, and that nothing of the user's is lost."""

import shutil
from dataclasses import replace

import pytest
from deployed import random_weights

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.deploy.__main__ import FORMS, Form, main
from squeeze_net.deploy.job import LeftOut
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

pytest.importorskip('onnx')


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'weights.npz'
    weights.write(random_weights(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'a' / 'deployed'


def deploy(path, folder, *flags):
    return main([str(path), '-o', str(folder), *flags])


def contents(folder):
    return {place.name: place.read_bytes() for place in folder.iterdir()}


def test_forms_that_are_asked_for(path, folder, capsys):
    assert deploy(path, folder, '--only', 'onnx') == 0
    assert contents(folder).keys() == {'README.md', 'model.onnx'}
    out = capsys.readouterr().out
    assert f'wrote {folder / "model.onnx"}: {(folder / "model.onnx").stat().st_size:,} bytes' in out
    text = (folder / 'README.md').read_text()
    assert '# squeezenet, 7 classes' in text and 'Classes, from 0 on: a, b, c, d, e, f, g.' in text
    assert (
        'an image turned upright, laid on white, squashed to 32 x 32 px (bilinear, averaging where it shrinks' in text
    )
    assert 'divided by their standard deviation (at least 1 / sqrt(3 x 32 x 32))' in text


def test_what_cannot_be_written_is_left_out_or_refused(path, folder, capsys, monkeypatch):
    def write(job):
        raise LeftOut('it is Monday')

    monkeypatch.setitem(FORMS, 'c', Form(write, ()))
    monkeypatch.setitem(FORMS, 'page', Form(write, ()))
    assert deploy(path, folder) == 0
    out = capsys.readouterr().out
    assert 'int8 is left out: it is calibrated on training images' in out and 'page is left out: it is Monday' in out
    assert 'c is left out: it is Monday' in (folder / 'README.md').read_text()
    assert contents(folder).keys() == {'README.md', 'model.onnx'}
    with pytest.raises(trainer.InputError, match='--only c: it is Monday'):
        deploy(path, folder / 'new', '--only', 'onnx,c')
    assert not (folder / 'new').exists()


def test_a_folder_with_files_is_refused_or_keeps_them(path, folder, capsys, monkeypatch):
    folder.mkdir(parents=True)
    assert deploy(path, folder, '--only', 'onnx') == 0  # an empty one is not
    (folder / 'mine.txt').write_text('mine')
    for name in ('README.md', 'model_int8.onnx'):
        (folder / name).write_text('old')
    before = contents(folder)
    with pytest.raises(trainer.InputError, match=r'deployed is not empty: choose another folder, or .* --overwrite'):
        deploy(path, folder, '--only', 'onnx')
    assert contents(folder) == before

    def fail(job):
        job.put('model.onnx', b'half')
        raise trainer.InputError('no')

    with monkeypatch.context() as patch:
        patch.setitem(FORMS, 'onnx', Form(fail, ()))
        with pytest.raises(trainer.InputError, match='no'):
            deploy(path, folder, '--only', 'onnx', '--overwrite')
    assert contents(folder) == before  # nothing half written, and no part of it
    assert deploy(path, folder, '--only', 'onnx', '--overwrite') == 0
    assert contents(folder).keys() == before.keys() and (folder / 'mine.txt').read_text() == 'mine'
    assert (folder / 'README.md').read_text() != 'old' and (folder / 'model_int8.onnx').read_text() == 'old'
    assert f'note: {folder / "model_int8.onnx"} is from before, maybe of other weights' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--only', 'onnx,tflite'], "--only onnx,tflite: 'tflite' is not a form; expected some of onnx,int8,c,page"),
        (['--only', ''], "'' is not a form"),
        (['--only', 'int8'], '--only int8: it is calibrated on training images: give --data DIR'),
        (['--only', 'c', '--plain'], '--plain is for onnx and int8, which --only c leaves out'),
        (['--only', 'c', '--batch', '1'], '--batch is for onnx and int8, which --only c leaves out'),
        (['--only', 'onnx', '--single_file'], '--single_file is for page, which --only onnx leaves out'),
        (['--only', 'onnx', '--dataset', 'shapes'], '--data is for int8, which --only onnx leaves out'),
        (['--batch', '0'], '--batch is 0, but must be 1 .. 65,536'),
        (['--batch', '9' * 20], 'but must be 1 .. 65,536'),
        (['--only', 'int8', '--dataset', 'shapes', '--limit', '0'], '--limit is 0'),
        (['--only', 'int8', '--dataset', 'shapes', '--seed', '-1'], '--seed is -1'),
        (['--only', 'onnx', '--limit', '3'], '--limit 3 goes with --data or --dataset, which are missing'),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, path, folder):
    with pytest.raises(trainer.InputError) as caught:
        deploy(path, folder, *flags)
    assert message in str(caught.value) and not folder.parent.exists()


def test_other_weights_and_places_are_refused(path, folder, tmp_path):
    with pytest.raises(trainer.InputError, match=r'none\.npz does not exist; expected a weights file'):
        deploy(tmp_path / 'none.npz', folder)
    with pytest.raises(trainer.InputError, match=r'weights\.npz is not a folder: choose another name'):
        deploy(path, path)
    (folder / 'model.onnx').mkdir(parents=True)
    (folder / 'README.md').write_text('mine')
    with pytest.raises(trainer.InputError, match=r'model\.onnx is a folder, where a file is to be written'):
        deploy(path, folder, '--overwrite')
    assert (folder / 'README.md').read_text() == 'mine'
    shutil.rmtree(folder)
    weights.write(random_weights().with_metadata(preprocessing=None), path)
    with pytest.raises(trainer.InputError, match='does not say what images it expects: give --preprocess'):
        deploy(path, folder)
    assert not folder.exists()


def test_networks_of_one_size_take_no_other(tmp_path, folder):
    model = NETWORKS['vgg_bn'](10, 32)
    view = PREPROCESSINGS['experiment']
    metadata = Metadata('vgg_bn', 10, replace(view, side=38, crop=32))
    weights.write(weights.Weights(weights.tensors_of(model), metadata), tmp_path / 'vgg.npz')
    with pytest.raises(trainer.InputError, match=r'vgg\.npz does not take images of 227 px, as caffe makes them'):
        deploy(tmp_path / 'vgg.npz', folder, '--only', 'onnx', '--preprocess', 'caffe')
    with pytest.raises(trainer.InputError, match=r'--only c: the C file makes images of at most 1024 px, .* 1030 px'):
        weights.write(
            random_weights().with_metadata(preprocessing=replace(view, side=1030, crop=1030)), tmp_path / 'a.npz'
        )
        deploy(tmp_path / 'a.npz', folder, '--only', 'c')


def test_a_form_named_twice_is_written_once(path, folder):
    assert deploy(path, folder, '--only', 'onnx,onnx') == 0
    assert (folder / 'README.md').read_text().count(': `model.onnx`') == 1
