"""The report's parts: escaping, charts, a run that goes on, and data of many classes."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from trainer.report.answers import _map_address
from trainer.report.html import Html, escape, tag
from trainer.report.page import make_report
from trainer.report.svg import Curve, draw_chart
from trainer.run.records import Run


def fake_run(path, n_class=10):
    losses = {'train_loss': 2.0, 'test_loss': 2.5, 'train_accuracy': 0.5, 'test_accuracy': 0.25}
    log = [{'epoch': epoch, 'lr': 0.1, **losses} for epoch in (1, 2, 3)]
    matrix = np.random.default_rng(0).integers(0, 9, (n_class, n_class)) + 50 * np.eye(n_class, dtype=int)
    summary = {'classes': [f'class {i}' for i in range(n_class)], 'confusion': matrix.tolist()}
    path.mkdir()
    return Run(path, path.name, {'model': 'net'}, log, summary)


def test_texts_are_escaped_and_html_is_not():
    assert tag('p', '<b>', Html('<i>x</i>'), None, ['&', 3]) == '<p>&lt;b&gt;<i>x</i>&amp;3</p>'
    assert tag('img', alt='"', class_=None, hidden=True) == '<img alt="&quot;" hidden>'
    assert escape('a\nb\x00\u202e\ud800') == 'a b\N{REPLACEMENT CHARACTER}' + 2 * '\N{REPLACEMENT CHARACTER}'


def test_a_run_that_goes_on_is_read_again(tmp_path):
    run = fake_run(tmp_path / 'r')
    assert '<meta http-equiv="refresh" content="10">' in make_report([run], refresh_s=10)
    assert 'running, epoch 3' in make_report([run], refresh_s=10)
    assert 'http-equiv="refresh"' not in make_report([run])


@pytest.mark.parametrize('n_class', [2, 21, 1000])
def test_any_number_of_classes(tmp_path, n_class):
    text = make_report([fake_run(tmp_path / 'r', n_class)])
    assert ('class="matrix"' in text) == (n_class <= 20) and ('class="map ' in text) == (n_class > 20)
    assert len(text) < 300_000


def test_a_map_shows_the_strongest_of_many_cells():
    counts = np.diag(np.full(1000, 4))
    counts[999, 0] = 12
    raw = base64.b64decode(_map_address(counts).partition(',')[2])
    pixels = np.asarray(Image.open(io.BytesIO(raw)))
    assert pixels.shape == (334, 334, 4)  # three classes a pixel
    assert pixels[333, 0].tolist() == [213, 94, 0, 221] and pixels[5, 5].tolist() == [0, 114, 178, 255]
    assert np.count_nonzero(pixels[..., 3]) == 335


def test_growing_pictures_are_marked(tmp_path):
    run = fake_run(tmp_path / 'r')
    sizes = dict(zip((1, 2, 3), (None, 64, 96), strict=True))
    log = [entry | {'size': sizes[entry['epoch']], 'test_accuracy': 1 / entry['epoch']} for entry in run.log]
    text = make_report([replace(run, log=log)])
    assert text.count('>96 px</text>') == 2 and '64 px' not in text and 'other sizes of pictures' in text
    assert 'size, px' in text and '<data value="96">96</data>' in text
    assert '</data> (epoch 3)' in text  # the best of the largest


def test_what_was_not_measured_is_a_dash(tmp_path):
    """Losses that are not numbers are null in the records."""
    run = fake_run(tmp_path / 'r')
    nothing = dict.fromkeys(run.log[0].keys() - {'epoch'})
    text = make_report([replace(run, log=[entry | nothing for entry in run.log], summary=None)])
    assert 'NaN' not in text and 'nan' not in text and 'None' not in text
    assert '<td class="n">\N{EN DASH}</td>' in text


def test_charts_have_gaps_where_nothing_was_measured():
    chart = draw_chart('loss', [Curve([1, 2, 3, 4, 5], [1.0, 2.0, None, 3.0, 4.0], 'red', 'x')], (0, 5))
    assert chart.count('<path') == 1 and chart.split(' d="')[1].split('"')[0].count('M') == 2
    assert chart.count('<circle') == 4
    many = [float(y) for y in np.arange(300)]
    assert '<circle' not in draw_chart('loss', [Curve(many, many, 'red', 'x')], (0, 300))
    assert draw_chart('loss', [Curve([1], [2.0], 'red', 'x')], (0, 3)).count('<circle') == 1
