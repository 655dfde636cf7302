"""The summary against the published figures, and in each of its forms."""

import json
import subprocess
from pathlib import Path

import pytest

import trainer
from squeeze_net import NETWORKS, summary
from squeeze_net.summary import as_dot, as_json, as_markdown, as_text, summarise

EXAMPLE = Path(__file__).parents[2] / 'results/squeezenet_fast/weights_last.npz'


@pytest.mark.parametrize(
    ('name', 'parameters', 'macs'),
    [
        ('squeezenet_v1.0', 1_248_424, 861_339_936),
        ('squeezenet_v1.1', 1_235_496, 387_747_520),
        ('squeezenet_v1.0_simple', 1_248_424, 861_339_936),
        ('squeezenet_v1.0_complex', 1_589_672, None),
        pytest.param('alexnet', 60_965_224, None, marks=pytest.mark.long),
    ],
)
def test_totals_are_the_published_ones(name, parameters, macs):
    found = summarise(name)
    assert found.parameters == parameters
    assert found.bytes == 4 * parameters
    assert macs is None or found.macs == macs


def test_the_rows_are_those_of_table_1():
    rows = {layer.name: layer for layer in summarise('squeezenet_v1.0').layers}
    assert list(rows) == [
        *('input', 'conv1', 'maxpool1', 'fire2', 'fire3', 'fire4', 'maxpool4', 'fire5', 'fire6', 'fire7', 'fire8'),
        *('maxpool8', 'fire9', 'conv10', 'avgpool'),
    ]
    assert rows['conv1'].output == (96, 111, 111) and rows['conv1'].window == '7x7/2 (x96)'
    assert rows['maxpool4'].output == (256, 27, 27) and rows['maxpool4'].window == '3x3/2'
    # parameters of table 1, before pruning
    table = {'conv1': 14_208, 'fire2': 11_920, 'fire3': 12_432, 'fire4': 45_344, 'fire5': 49_440}
    table |= {'fire6': 104_880, 'fire7': 111_024, 'fire8': 188_992, 'fire9': 197_184, 'conv10': 513_000}
    assert {name: rows[name].parameters for name in table} == table
    fire = rows['fire6']
    assert (fire.s1x1, fire.e1x1, fire.e3x3, fire.depth) == (48, 192, 192, 2)
    assert rows['avgpool'].output == (1000,) and rows['avgpool'].window == '15x15'


@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_of_every_network_is_in_some_row(name):
    found = summarise(name, 64, 7)
    assert found.parameters == NETWORKS[name](7, 64).count_params()
    names = [layer.name for layer in found.layers]
    assert len(set(names)) == len(names) and all(layer.output for layer in found.layers)


def test_pools_within_a_layer_belong_to_it():
    rows = {layer.name: layer for layer in summarise('airbench94', 64, 10).layers}
    blocks = [f'block{i}_{j}' for i in (1, 2, 3) for j in (1, 2)]
    assert list(rows) == ['input', 'avgpool', 'conv1', *blocks, 'maxpool3', 'fc']
    assert rows['avgpool'].output == (3, 32, 32) and rows['avgpool'].window == '2x2/2'
    assert rows['block1_1'].output == (64, 15, 15) and rows['maxpool3'].output == (256, 1, 1)


def test_published_names_are_taken_too(monkeypatch, capsys):
    monkeypatch.setattr(summary.weights, 'find', lambda name: EXAMPLE)
    assert summary.main(['squeezenet_v1.1_torchvision']) == 0
    assert '747,146' in capsys.readouterr().out


def test_bypasses_are_told():
    layers = summarise('squeezenet_v1.0_complex', 64).layers
    assert [layer.bypass for layer in layers if layer.s1x1] == ['complex', 'simple'] * 4
    assert [layer.bypass for layer in summarise('squeezenet', 64).layers if layer.s1x1] == ['none', 'simple'] * 4


def test_text_markdown_and_json_hold_the_same():
    found = summarise('squeezenet_v1.1')
    text, markdown = as_text(found).splitlines(), as_markdown(found).splitlines()
    facts = json.loads(as_json(found))
    assert len(text) == len(found.layers) + 4 and len(markdown) == len(found.layers) + 3
    assert '387,747,520' in text[-1] and '387,747,520' in markdown[-1]
    assert facts['total'] == {'parameters': 1_235_496, 'macs': 387_747_520, 'bytes': 4_941_984}
    assert [layer['name'] for layer in facts['layers']] == [layer.name for layer in found.layers]
    assert max(map(len, text)) <= 120


def test_the_graph_has_every_layer_and_every_bypass():
    found = summarise('squeezenet_v1.0_simple', 64)
    dot = as_dot(found)
    assert dot.count('->') == len(found.layers) - 1 + 4
    assert dot.count('style=dashed') == 4
    assert all(f'"{layer.name}" [label=' in dot for layer in found.layers)


def test_without_graphviz_only_a_dot_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(summary.shutil, 'which', lambda name: None)
    with pytest.raises(trainer.InputError, match=r'net\.svg is drawn by Graphviz, which is not installed'):
        summary.main(['squeezenet_v1.1', '--size', '64', '--graph', str(tmp_path / 'net.svg')])
    assert not list(tmp_path.iterdir())
    assert summary.main(['squeezenet_v1.1', '--size', '64', '--graph', str(tmp_path / 'net.dot')]) == 0
    assert (tmp_path / 'net.dot').read_text().startswith('digraph "squeezenet_v1.1"')


def test_what_graphviz_says_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(summary.shutil, 'which', lambda name: name)
    failed = subprocess.CompletedProcess([], 1, b'', b'Format: "png" not recognized\n')
    monkeypatch.setattr(summary.subprocess, 'run', lambda *args, **options: failed)
    with pytest.raises(trainer.InputError, match=r'net\.png: Graphviz fails: Format: "png" not recognized'):
        summary.main(['squeezenet_v1.1', '--size', '64', '--graph', str(tmp_path / 'net.png')])


def test_with_graphviz_it_is_drawn(tmp_path, capsys, monkeypatch):
    def run(command, input, **options):
        assert command == ['dot', '-Tpng']
        return subprocess.CompletedProcess(command, 0, b'drawn ' + input[:7])

    monkeypatch.setattr(summary.shutil, 'which', lambda name: '/bin/dot')
    monkeypatch.setattr(summary.subprocess, 'run', run)
    summary.main(['squeezenet_v1.1', '--size', '64', '--graph', str(tmp_path / 'net.png')])
    assert (tmp_path / 'net.png').read_bytes() == b'drawn digraph'


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['squeezenet_v1.0', '--size', '20'], 'images of 20 px leave no map: SqueezeNetV10 needs 21 px or more'),
        (['squeezenet_v1.0', '--n_class', '0'], '--n_class is 0, expected 1 .. 65536'),
        (['squeezenet_v1.0', '--n_class', '100000000000'], '--n_class is 100000000000, expected 1 .. 65536'),
        (['vgg_bn', '--size', '-3'], '--size is -3, expected 1 .. 1024 px'),
        (['squeezenet', '--size', '0'], '--size is 0, expected 1 .. 1024 px'),
        (['squeezenet_v1.0', '--graph', 'net.jpg'], 'net.jpg: the name must end in .svg, .png or .dot'),
    ],
)
def test_faults_are_named(argv, words):
    with pytest.raises(trainer.InputError, match=words):
        summary.main(argv)
