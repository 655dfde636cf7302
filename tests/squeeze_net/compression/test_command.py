"""The command, as a user runs it: a small run to its end, one stopped and gone on with, and what is wrong."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chainer
import numpy as np
import pytest
import yaml
from PIL import Image

import trainer
import trainer.functions as F
import trainer.links as L
from squeeze_net import NETWORKS, weights
from squeeze_net.compression.__main__ import main, with_facts
from squeeze_net.compression.pipeline import Compression
from squeeze_net.validate import main as validate
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights.formats.sqz import archive
from trainer.data.augmentation import Sizes
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

ROOT = Path(__file__).parents[3]
QUICK = ['--dataset', 'shapes', '--limit', '20', '--batch', '20', '--bits', '4', '--sparsity', '0.5']
QUICK += ['--prune_epoch', '1', '--quantise_epoch', '1']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Weights of a network that has learnt a little."""
    folder = tmp_path_factory.mktemp('trained')
    config = trainer.Config(
        model='squeezenet', dataset='shapes', size=32, epoch=4, batch=20, lr=0.02, save_path=str(folder), run='r'
    )
    data = trainer.datasets.load('shapes', limit=20)
    np.random.seed(0)
    trainer.train(NETWORKS['squeezenet'](data.n_class, 32), data, config)
    return folder / 'results/r/weights_last.npz'


def command(*argv):
    return [sys.executable, '-m', 'squeeze_net.compression', *map(str, argv)]


@pytest.fixture(scope='module')
def compressed(trained, tmp_path_factory):
    """The archive, and the arguments that made it."""
    target = tmp_path_factory.mktemp('compressed') / 'small.sqz'
    argv = ['compress', str(trained), '-o', str(target), *QUICK]
    done = subprocess.run(command(*argv), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return target, argv


def test_a_run_from_weights_to_an_archive(compressed):
    target, _ = compressed
    record = json.loads(target.with_suffix('.json').read_text())
    assert [stage['name'] for stage in record['stages']] == ['trained', 'pruned', 'quantised', 'archived']
    sizes = [stage['n_byte'] for stage in record['stages']]
    assert sizes[0] == 4 * record['n_parameters'] > sizes[1] > sizes[2] > sizes[3] == target.stat().st_size
    for layer in record['layers']:
        if layer['name'].endswith('/W'):
            assert layer['n_codebook'] <= 16
    total = sum(layer['n_value'] for layer in record['layers'] if layer['name'].endswith('/W'))
    kept = sum(layer['n_nonzero'] for layer in record['layers'] if layer['name'].endswith('/W'))
    assert kept / total == pytest.approx(0.5, abs=0.01)

    for picture in ('stages', 'layers', 'weights'):
        assert Image.open(target.with_name(f'small_{picture}.png')).size[0] > 1000
    assert record['config']['size'] == 32  # as the network was trained


@pytest.mark.long
def test_what_is_there_already_is_not_made_again(compressed, capsys):
    target, argv = compressed
    record = json.loads(target.with_suffix('.json').read_text())
    assert main(argv) == 0 and 'epoch 1/1' not in capsys.readouterr().out
    assert json.loads(target.with_suffix('.json').read_text()) == record
    # Vectors of fewer bits are a matter of the archive alone.
    assert main([*argv, '--vectors', 'e5m4']) == 0 and 'epoch 1/1' not in capsys.readouterr().out
    assert target.stat().st_size < record['stages'][-1]['n_byte'] - 1500
    # Other flags do not mix with these stages, and say which of them has to go.
    with pytest.raises(trainer.InputError, match='results/quantised was made with another --bits, 4: remove it'):
        main([*argv, '--bits', '5'])
    with pytest.raises(trainer.InputError, match='results/pruned was made with another --seed, 0'):
        main([*argv, '--seed', '1'])
    stages = target.with_name('small.sqz.stages')
    kept = (stages / 'pruned.json').read_text()
    _, *checksums = json.loads(kept)['the data']
    (stages / 'pruned.json').write_text(kept.replace(checksums[0], 'of other images'))  # of the same name
    with pytest.raises(trainer.InputError, match='results/pruned was made with another data: remove it'):
        main(argv)
    (stages / 'pruned.json').write_text(kept)
    shutil.rmtree(stages / 'results/quantised')
    capsys.readouterr()
    assert main([*argv, '--bits', '5']) == 0 and capsys.readouterr().out.count('epoch 1/1') == 1
    (stages / 'pruned.json').write_text('no')
    other = subprocess.run(command(*argv), capture_output=True, text=True, cwd=ROOT)
    assert (
        other.returncode == 2
        and len(other.stderr.splitlines()) == 1
        and 'pruned.json, line 1: not JSON' in other.stderr
    )


class Fixed(chainer.Chain):
    """Takes images of one size only, as AlexNet and VGG do, which take long to encode."""

    fixed_size = True

    def __init__(self, n_class, size):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(3, 8, 3, pad=1)
            self.bn = L.BatchNormalization(8)
            self.fc = L.Linear(8 * (size // 4) ** 2, n_class)

    def forward(self, x):
        return self.fc(F.max_pooling_2d(self.bn(self.conv(x), relu=True), 4))


@pytest.mark.parametrize(
    ('network', 'size', 'preprocess'),
    [
        ('squeezenet', 32, 'experiment'),
        ('squeezenet_v1.1_simple', 40, 'caffe'),
        ('fixed', 32, 'experiment'),
    ],
)
def test_validation_of_the_archive_says_what_the_report_says(tmp_path, capsys, monkeypatch, network, size, preprocess):
    monkeypatch.setitem(NETWORKS, 'fixed', Fixed)
    monkeypatch.setattr(Compression, 'draw', lambda self: [])
    np.random.seed(0)
    model = NETWORKS[network](10, size)
    view = replace(PREPROCESSINGS[preprocess], side=size, crop=size)
    weights.write(Weights(tensors_of(model), Metadata(network, 10, view)), tmp_path / 'a.npz')
    plan = ['--prune_epoch', '0', '--quantise_epoch', '0', '--sparsity', '0', '--bits', '*=2']
    argv = ['compress', str(tmp_path / 'a.npz'), '-o', str(tmp_path / 'a.sqz'), '--dataset', 'shapes', '--limit', '5']
    assert main([*argv, *plan, '--size', str(size), '--preprocess', preprocess]) == 0
    record = json.loads((tmp_path / 'a.json').read_text())
    view = archive.Archive((tmp_path / 'a.sqz').read_bytes()).metadata.preprocessing
    fixed_size = NETWORKS[network].fixed_size
    assert (view.crop, view.side) == (Sizes.of(size, fixed_size).test_crop, Sizes.of(size, fixed_size).test)
    capsys.readouterr()
    assert validate([str(tmp_path / 'a.sqz'), '--dataset', 'shapes', '--limit', '5', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['top1'] == pytest.approx(record['stages'][-1]['accuracy'])


@pytest.mark.long
def test_stopped_and_gone_on_with(trained, tmp_path):
    whole, broken = tmp_path / 'whole.sqz', tmp_path / 'broken.sqz'
    argv = [*QUICK, '--prune_epoch', '3']
    done = subprocess.run(command('compress', trained, '-o', whole, *argv), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    line = command('compress', trained, '-o', broken, *argv)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for text in process.stdout:
            if text.startswith('epoch 1/3'):
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and 'the same command resumes it' in rest
    assert not broken.exists()
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.long
def test_retraining_sees_what_training_saw(trained, tmp_path):
    """The flags of the images and of the loss reach the run; what it learns depends on each of them."""
    flags = {'--pad': '2', '--smoothing': '0.1', '--weight_decay': '0.01', '--mixup': '0.5', '--distill': '0.9'}
    flags['--prune_optimizer'] = 'muon'
    argv = ['compress', str(trained), *QUICK, '--quantise_epoch', '0', '-o']
    assert main([*argv, str(tmp_path / 'plain.sqz')]) == 0
    seen = {(tmp_path / 'plain.sqz').read_bytes()}
    for flag, value in flags.items():
        target = tmp_path / f'{flag[2:]}.sqz'
        assert main([*argv, str(target), flag, value]) == 0
        seen.add(target.read_bytes())
        record = json.loads(target.with_suffix('.json').read_text())
        assert str((record['plan'] | record['config'])[flag[2:]]) == value
        with pytest.raises(trainer.InputError, match=f'results/pruned was made with another {flag}, '):
            main([*argv, str(target)])
    assert len(seen) == 1 + len(flags)


@pytest.mark.long
def test_another_network_teaches(trained, tmp_path):
    """Its answers count; without --distill, of other classes, or for other images it is refused."""
    argv = ['compress', str(trained), *QUICK, '--quantise_epoch', '0', '--distill', '0.9', '-o']
    other = tmp_path / 'other.npz'
    facts = replace(weights.read(trained).metadata, network='squeezenet_v1.1_bn')
    tensors = tensors_of(NETWORKS['squeezenet_v1.1_bn'](facts.n_class, 32))
    weights.write(Weights(tensors, facts), other)
    made = set()
    for extra in ([], ['--teacher', str(other)]):
        target = tmp_path / f'{len(extra)}.sqz'
        assert main([*argv, str(target), *extra]) == 0
        made.add(target.read_bytes())
    assert len(made) == 2 and json.loads(target.with_suffix('.json').read_text())['plan']['teacher'] == str(other)
    with pytest.raises(trainer.InputError, match='results/pruned was made with another --teacher, '):
        main([*argv, str(target)])
    fewer = tensors_of(NETWORKS['squeezenet_v1.1_bn'](7, 32))
    weights.write(Weights(fewer, replace(facts, n_class=7, classes=None)), tmp_path / 'seven.npz')
    view = next(view for name, view in PREPROCESSINGS.items() if name != facts.preprocessing.name)
    weights.write(Weights(tensors, replace(facts, preprocessing=view)), tmp_path / 'view.npz')
    for flags, message in [
        (['--teacher', str(tmp_path / 'seven.npz')], 'of 7 classes, expected one of .* with the 10 classes'),
        (['--teacher', str(tmp_path / 'view.npz')], f'expects images of --preprocess {view.name}, the network those'),
        (['--teacher', str(other), '--distill', '0'], 'has no meaning without --distill'),
        (['--teacher', 'squeezenet1_1.pth'], 'squeezenet1_1.pth'),
    ]:
        with pytest.raises(trainer.InputError, match=message):
            main([*argv, str(tmp_path / 'b.sqz'), *flags])


@pytest.mark.long
def test_stages_of_earlier_versions_are_gone_on_with(trained, tmp_path, capsys):
    argv = ['compress', str(trained), *QUICK, '--quantise_epoch', '0', '-o', str(tmp_path / 'a.sqz')]
    assert main(argv) == 0
    run = yaml.safe_load((tmp_path / 'a.sqz.stages/results/pruned/config.yaml').read_text())
    assert run['muon_lr'] == trainer.Config().muon_lr  # which no unfinished run may find changed
    for path in (tmp_path / 'a.sqz.stages').glob('*.json'):
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in kept.items() if name not in ('distill', 'pad')}))
    capsys.readouterr()
    assert main(argv) == 0 and 'epoch 1/1' not in capsys.readouterr().out


@pytest.mark.long
def test_scan_draws_how_much_each_layer_can_be_pruned(trained, tmp_path, capsys):
    argv = ['compress', str(trained), '-o', str(tmp_path / 'a.sqz'), '--dataset', 'shapes', '--limit', '4', '--scan']
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert re.search(r'^fire9/expand3x3/conv/W .*%$', shown, re.MULTILINE)
    assert Image.open(tmp_path / 'a_scan.png').size[0] > 1000
    assert not (tmp_path / 'a.sqz').exists()
    kept = (tmp_path / 'a.sqz.stages/scan.json').stat().st_mtime_ns
    assert main(argv) == 0  # at once: it is there already
    assert (tmp_path / 'a.sqz.stages/scan.json').stat().st_mtime_ns == kept
    assert capsys.readouterr().out.splitlines()[-5:] == shown.splitlines()[-5:]


def test_accuracy_against_size_of_several(tmp_path, capsys):
    sizes = {'trained': 4000, 'pruned': 1000, 'quantised': 300, 'archived': 200}
    stages = [{'name': name, 'accuracy': 0.8, 'n_byte': n} for name, n in sizes.items()]
    layers = [{'name': 'conv/W', 'n_nonzero': 10, 'n_value': 50}]
    for bits in (4, 5):
        plan = {'sparsity': '0.8', 'bits': str(bits)}
        record = {'network': 'n', 'plan': plan, 'stages': stages, 'layers': layers, 'data': 'd'}
        (tmp_path / f'{bits}.json').write_text(json.dumps(record))
    argv = ['draw', str(tmp_path / '4.json'), str(tmp_path / '5.json'), '-o', str(tmp_path / 'all.png')]
    assert main(argv) == 0
    assert capsys.readouterr().out.count('20.0x') == 2 and Image.open(tmp_path / 'all.png').size[0] > 1000
    (tmp_path / '5.json').write_text('[]')
    with pytest.raises(trainer.InputError, match=r'5\.json, line 1: \[\] is not an object'):
        main(argv)


def test_lossless_inspect_decompress(tmp_path, capsys):
    model = NETWORKS['squeezenet_v1.1'](10)
    for _, p in model.namedparams():
        p.array[...] = np.round(p.array, 1)
    weights.write(Weights(tensors_of(model)), tmp_path / 'a.npz')
    assert main(['compress', str(tmp_path / 'a.npz'), '-o', str(tmp_path / 'a.sqz'), '--lossless']) == 0
    assert (tmp_path / 'a.sqz').stat().st_size < 0.2 * 4 * model.count_params()
    capsys.readouterr()
    assert main(['inspect', str(tmp_path / 'a.sqz')]) == 0
    shown = capsys.readouterr().out
    assert 'squeezenet_v1.1, 10 classes' in shown and 'fire9/expand3x3/W' in shown
    assert main(['inspect', str(tmp_path / 'a.sqz'), '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record['n_byte'] == (tmp_path / 'a.sqz').stat().st_size and len(record['layers']) == 52
    assert main(['decompress', str(tmp_path / 'a.sqz'), str(tmp_path / 'b.safetensors')]) == 0
    found = weights.read(tmp_path / 'b.safetensors')
    for name, tensor in tensors_of(model).items():
        assert found.tensors[name].tobytes() == tensor.tobytes()


def test_bad_input_is_one_sentence(tmp_path, trained):
    (tmp_path / 'no.sqz').write_bytes(archive.MAGIC + b'nothing')
    small = str(tmp_path / 'x.sqz')
    for argv, message in (
        (['inspect', str(tmp_path / 'no.sqz')], 'cannot be read as an archive'),
        (['inspect', str(tmp_path / 'none.sqz')], 'none.sqz cannot be read'),
        (['decompress', str(tmp_path / 'no.sqz'), 'b.npz'], 'cannot be read as .sqz'),
        (['compress', str(trained), '-o', 'x.zip', '--lossless'], 'must end in .sqz'),
        (['compress', str(trained), '-o', small, *QUICK, '--bits', '12'], 'expected 1 .. 8'),
        (['compress', str(trained), '-o', small, *QUICK, '--sparsity', '1.5'], 'sparsity'),
        (['compress', str(trained), '-o', small, '--dataset', 'cifar10', '--data', 'nowhere'], 'nowhere'),
    ):
        with pytest.raises(trainer.InputError, match=message):
            main(argv)
    assert not (tmp_path / 'x.sqz').exists()


def test_nothing_else_is_replaced(tmp_path, trained, capsys):
    (tmp_path / 'x.json').write_text('{"mine": 1}')
    with pytest.raises(trainer.InputError, match=r'x\.json is not a report'):
        main(['compress', str(trained), '-o', str(tmp_path / 'x.sqz'), *QUICK])
    assert main(['compress', str(trained), '-o', str(tmp_path / 'a.sqz'), '--lossless']) == 0
    before = (tmp_path / 'a.sqz').read_bytes()
    with pytest.raises(trainer.InputError, match='is the file to compress'):
        main(['compress', str(tmp_path / 'a.sqz'), '-o', str(tmp_path / 'a.sqz'), *QUICK])
    for flags in QUICK, ['--lossless']:
        with pytest.raises(trainer.InputError, match=r'a\.sqz exists: .* --overwrite'):
            main(['compress', str(trained), '-o', str(tmp_path / 'a.sqz'), *flags])
    assert (tmp_path / 'a.sqz').read_bytes() == before
    assert main(['compress', str(trained), '-o', str(tmp_path / 'a.sqz'), '--lossless', '--overwrite']) == 0


def test_flags_without_a_meaning_are_refused(tmp_path, trained):
    for flags, message in (
        (['--lossless', '--bits', '4'], '--lossless only encodes: --bits does not'),
        (['--lossless', '--data', 'nowhere'], '--data nowhere has no meaning for --lossless'),
        (['--drop', '0.1'], '--drop 0.1 has no meaning without --sparsity scan'),
        (['--distill', '0.5', '--prune_epoch', '0', '--quantise_epoch', '0'], '--distill 0.5 has no meaning without'),
        (['--prune_muon_lr', '0.1'], '--prune_muon_lr 0.1 has no meaning without --prune_optimizer muon'),
        (
            ['--prune_epoch', '0', '--prune_optimizer', 'muon'],
            '--prune_optimizer muon has no meaning without retraining',
        ),
    ):
        with pytest.raises(trainer.InputError, match=message):
            main(['compress', str(trained), '-o', str(tmp_path / 'x.sqz'), *flags])
    with pytest.raises(trainer.InputError, match=r'x\.pdf: the name must end in \.png'):
        main(['draw', str(tmp_path / 'x.json'), '-o', str(tmp_path / 'x.pdf')])


def test_the_network_keeps_its_own_names_of_classes(tmp_path, trained):
    source = weights.read(trained)
    names = source.metadata.classes
    weights.write(source.with_metadata(classes=names[1:] + names[:1]), tmp_path / 'other.npz')
    with pytest.raises(trainer.InputError, match=f'another order: class 0 is {names[1]!r}, not {names[0]!r}'):
        main(['compress', str(tmp_path / 'other.npz'), '-o', str(tmp_path / 'x.sqz'), *QUICK])
    with pytest.raises(trainer.InputError, match='these are weights of squeezenet, not of alexnet'):
        main(['compress', str(trained), '-o', str(tmp_path / 'x.sqz'), '--lossless', '--network', 'alexnet'])
    data, config = trainer.datasets.load('shapes', limit=2), trainer.Config(model='squeezenet', size=32)
    longer, numbers = tuple(f'{name}, a shape' for name in names), tuple(map(str, range(len(names))))
    for own, kept in (longer, longer), (numbers, names), (None, names):
        assert with_facts(source.with_metadata(classes=own), config, data).metadata.classes == kept


@pytest.mark.parametrize('output', ['folder.sqz', 'file/x.sqz'])
def test_outputs_that_cannot_be_written_are_told_before_anything_is_trained(trained, tmp_path, output):
    (tmp_path / 'folder.sqz').mkdir()
    (tmp_path / 'file').write_text('')
    for flags in [*QUICK], ['--lossless']:
        argv = command('compress', trained, '-o', tmp_path / output, *flags)
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert str(tmp_path / output).partition('/x')[0] in done.stderr
