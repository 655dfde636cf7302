"""The design space: dimensions by the paper's formula, a small sweep, stopped and gone on with, and its pictures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import trainer
from squeeze_net import SqueezeNetV10, SqueezeNetV11
from squeeze_net.explore import sweep
from squeeze_net.explore.__main__ import main
from squeeze_net.explore.metaparameters import Metaparameters, cross, grid
from squeeze_net.explore.plots import draw, front, marks
from squeeze_net.explore.point import Point, load_data
from squeeze_net.explore.sweep import Sweep, check_conditions, read_points
from trainer import Config

ROOT = Path(__file__).parents[2]


def test_the_papers_metaparameters_make_squeezenet():
    assert Metaparameters().fires == SqueezeNetV10.fires == SqueezeNetV11.fires
    for macro, n_parameters in (('v1.0', 1_248_424), ('v1.1', 1_235_496)):
        assert Metaparameters().network(macro, batch_norm=False)(1000).count_params() == n_parameters


def test_figures_of_the_paper():
    """Section 5.2 and 5.3: 4.8 MB at SR 0.125, 19 MB at 0.75; 13 MB at SR 0.5 with half of the filters 3x3.

    The paper rounds, and does not say whether a MB is 10^6 or 2^20 bytes: it comes out between the two.
    """
    size = {
        (sr, pct): 4 * Metaparameters(SR=sr, pct3x3=pct).network('v1.0', batch_norm=False)(1000).count_params() / 2**20
        for sr, pct in ((0.125, 0.5), (0.75, 0.5), (0.5, 0.5))
    }
    assert size[0.125, 0.5] == pytest.approx(4.8, abs=0.1)
    assert size[0.75, 0.5] == pytest.approx(19, abs=0.6)
    assert size[0.5, 0.5] == pytest.approx(13, abs=0.5)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(0, 300), st.integers(1, 9), st.floats(0.01, 1), st.floats(0.01, 0.99))
def test_dimensions_follow_the_formula(base_e, incr_e, freq, ratio, share):
    for i, (s, e1x1, e3x3) in enumerate(Metaparameters(base_e, incr_e, freq, ratio, share).fires.values()):
        e = base_e + incr_e * (i // freq)
        assert e1x1 + e3x3 == e and min(s, e1x1, e3x3) >= 1
        assert abs(s - ratio * e) <= 1 and abs(e3x3 - share * e) <= 1


def test_lines_and_grids():
    points = cross((0.125, 0.5, 1.0), (0.25, 0.5, 0.75), Metaparameters(), ratio=0.5)
    assert [(p.SR, p.pct3x3) for p in points] == [(0.125, 0.5), (0.5, 0.5), (1.0, 0.5), (0.5, 0.25), (0.5, 0.75)]
    assert len(grid((0.125, 0.5, 0.5), (0.25, 0.5, 0.75), Metaparameters())) == 6
    assert Metaparameters(SR=1.0).name == Metaparameters(SR=1).name == 'e128+128_2_SR1_pct0.5'
    assert Metaparameters(pct3x3=0.01).name == 'e128+128_2_SR0.125_pct0.01'
    assert Metaparameters(SR=0.1 + 0.2).name != Metaparameters(SR=0.3).name


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'SR': 0}, 'SR is 0'),
        ({'SR': 1.5}, 'SR is 1.5'),
        ({'SR': float('nan')}, 'SR is nan'),
        ({'pct3x3': 1}, 'pct3x3 is 1'),
        ({'freq': 0}, 'freq is 0'),
        ({'base_e': 1 << 20}, 'base_e is 1048576'),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(trainer.InputError, match=message):
        Metaparameters(**values)


@pytest.mark.parametrize('name', ['share', 'ratio'])
def test_a_grid_has_no_middle(tmp_path, name):
    with pytest.raises(trainer.InputError, match=f'--{name} 0.25 has no meaning with --grid, .* all of --{name}s'):
        main(['-o', str(tmp_path), '--grid', f'--{name}', '0.25'])


def row(ratio, megabytes, accuracy, seed=0):
    values = {'base_e': 128, 'incr_e': 128, 'freq': 2, 'SR': ratio, 'pct3x3': 0.5}
    return values | {'seed': seed, 'bytes': megabytes * 1e6, 'test_accuracy': accuracy}


def test_all_seeds_have_the_same_test_images(tmp_path):
    for i in range(20):
        path = tmp_path / f'{"ab"[i % 2]}/{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8), (12 * i, 0, 0)).save(path)
    one, other = (
        load_data(Config(dataset='folder', data=str(tmp_path), size=32, seed=seed)).test.images for seed in (0, 3)
    )
    np.testing.assert_array_equal(one, other)
    assert len(one) == 4


def test_the_front_is_what_nothing_smaller_equals():
    rows = [row(0.1, 1, 0.5), row(0.2, 2, 0.5), row(0.3, 3, 0.7), row(0.4, 4, 0.6), row(0.5, 5, 0.8)]
    assert [mark.point.SR for mark in front(marks(rows))] == [0.1, 0.3, 0.5]
    (mark,) = marks([row(0.1, 1, 0.5), row(0.1, 1, 0.7, seed=1)])
    assert (mark.mean, mark.lowest, mark.highest) == pytest.approx((60, 50, 70))


def test_lines_are_of_points_that_differ_in_one_thing(tmp_path):
    rows = [row(ratio, 1 + ratio, 0.5) for ratio in (0.1, 0.2, 0.3)]
    rows += [row(ratio, 9, 0.9) | {'base_e': 64} for ratio in (0.15, 0.25)]
    draw(rows, tmp_path / 'all', 'title')
    draw(rows[:3], tmp_path / 'line', 'title')
    assert (tmp_path / 'all/squeeze_ratio.png').read_bytes() == (tmp_path / 'line/squeeze_ratio.png').read_bytes()


def flags(folder):
    argv = ['-o', str(folder), '--dataset', 'shapes', '--limit', '10', '--size', '32', '-e', '1', '-b', '20']
    argv += ['--ratios', '0.125,0.5', '--shares', '0.25,0.5', '--freq', '4']
    return [*argv, '--base_e', '16', '--incr_e', '16']


def command(folder, *more):
    return [sys.executable, '-m', 'squeeze_net.explore', *flags(folder), *more]


@pytest.mark.long
def test_a_sweep_its_pictures_and_what_is_there_already(tmp_path, capsys):
    done = subprocess.run(command(tmp_path, '--processes', '2'), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = read_points(tmp_path / 'points.jsonl')
    assert [(r['SR'], r['pct3x3']) for r in rows] == [(0.125, 0.5), (0.5, 0.5), (0.5, 0.25)]
    assert all(0 <= r['test_accuracy'] <= 1 and r['bytes'] == 4 * r['n_parameters'] for r in rows)
    for name in ('squeeze_ratio', 'share_3x3', 'pareto'):
        with Image.open(tmp_path / f'{name}.png') as picture:
            assert np.asarray(picture.convert('L')).std() > 5
    capsys.readouterr()
    assert main([*flags(tmp_path), '--grid']) == 0
    assert '4 networks to train, 3 already done' in capsys.readouterr().out
    again = read_points(tmp_path / 'points.jsonl')
    assert len(again) == 4 and all(r in again for r in rows)
    # A process of its own or not, a network of the same seed learns the same.
    assert main([*flags(tmp_path / 'b'), '--ratios', '0.5', '--shares', '0.5']) == 0
    (same,) = read_points(tmp_path / 'b' / 'points.jsonl')
    assert abs(same['test_accuracy'] - rows[1]['test_accuracy']) < 0.2  # threads sum in another order
    with pytest.raises(SystemExit) as ended, trainer.exit_with_message('explore'):
        main([*flags(tmp_path), '-e', '2'])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and 'choose another -o' in errors and errors.count('\n') == 1


@pytest.mark.long
@pytest.mark.parametrize('processes', ['1', '2'])
def test_stopped_and_gone_on_with(tmp_path, processes):
    argv = command(tmp_path, '--shares', '0.5', '-b', '50', '-e', '9', '--processes', processes)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_for(lambda: list(tmp_path.glob('runs/results/*/log.jsonl')))
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, (out, errors)
    assert 'the same command resumes it' in out and 'Traceback' not in errors
    left = [path for path in Path('/proc').glob('[0-9]*/cmdline') if _is_mine(path, tmp_path)]
    assert not left
    epochs = {log.parent.name: len(log.read_text().splitlines()) for log in tmp_path.glob('runs/results/*/log.jsonl')}
    assert epochs
    done = subprocess.run([*argv, '--processes', '2'], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in epochs:
        log = (tmp_path / 'runs/results' / name / 'log.jsonl').read_text().splitlines()
        assert [json.loads(line)['epoch'] for line in log] == list(range(1, 10))


@pytest.mark.parametrize('is_ignored', [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_terminal_that_closes_stops_the_processes_unless_under_nohup(tmp_path, is_ignored):
    argv = command(tmp_path, '--processes', '2', '-e', '2', '--ratios', '0.5', '--shares', '0.5')
    argv = ['nohup', *argv] if is_ignored else [*argv, '-e', '400']
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_for(lambda: len(Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()) >= 1)
        process.send_signal(signal.SIGHUP)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == (0 if is_ignored else 128 + signal.SIGHUP), (out, errors)
    assert ('resumes it' in out) is not is_ignored and 'Traceback' not in errors


class Ended:
    """A process that has ended."""

    def __init__(self, exit_code=0):
        self.returncode = exit_code

    def poll(self):
        return self.returncode


def test_a_signal_between_two_processes_is_heard(tmp_path, monkeypatch):
    made, started = make_sweep(tmp_path), []
    points = [made.point(Metaparameters(SR=ratio)) for ratio in (0.1, 0.2, 0.3)]

    def write_rows(*_):
        os.kill(os.getpid(), signal.SIGTERM)  # while no process runs
        return [asdict(started[-1].metaparameters) | {'seed': 0, 'bytes': 1, 'test_accuracy': 0.5}]

    def start(point):
        started.append(point)
        return Ended()

    monkeypatch.setattr(sweep, 'start', start)
    monkeypatch.setattr(sweep, 'write_rows', write_rows)
    assert sweep.run_side_by_side(made, points, points, 1) == 128 + signal.SIGTERM
    assert started == points[:1]


@pytest.mark.parametrize(
    ('exit_code', 'found', 'message'),
    [
        (-9, 137, r'ended by signal 9 \(Killed\)'),
        (2, 2, 'error: no memory'),
        (143, 143, 'error: no memory'),
    ],
)
def test_why_a_process_ended_is_told(tmp_path, monkeypatch, capsys, exit_code, found, message):
    monkeypatch.setattr(sweep, 'start', lambda _: Ended(exit_code))
    made = make_sweep(tmp_path)
    points = [made.point(Metaparameters()), made.point(Metaparameters(SR=0.5))]
    log = points[0].log
    log.parent.mkdir(parents=True)
    log.write_text('epoch 1\nerror: no memory\n')
    assert sweep.run_side_by_side(made, points, points, 1) == found
    assert re.search(f'seed 0: {message} \\(see {re.escape(str(log))}\\)', capsys.readouterr().err)


def test_a_point_as_json_is_the_same_point(tmp_path):
    point = make_sweep(tmp_path, batch=20).point(Metaparameters(SR=0.5), 7)
    assert Point.from_json(point.as_json()) == point


def test_a_point_trains_what_stdin_describes(tmp_path):
    command = [sys.executable, '-m', 'squeeze_net.explore.point']
    done = subprocess.run(command, input='{}\n', capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and 'stdin does not describe a point' in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.long
def test_processes_end_with_the_one_that_started_them(tmp_path):
    argv = command(tmp_path, '--processes', '2', '-e', '400')
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        wait_for(lambda: list(tmp_path.glob('runs/results/*/log.jsonl')))
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        assert len(children) == 2
        process.kill()
    wait_for(lambda: not any(Path(f'/proc/{child}').exists() for child in children))


def test_stopped_before_anything_is_trained(tmp_path):
    argv = command(tmp_path, '--processes', '2', '-e', '40')
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_for(lambda: len(Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()) >= 1)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and 'resumes it' in out and 'Traceback' not in errors


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def make_sweep(folder, source='drawn shapes', **values):
    config = Config(dataset='shapes', size=32, epoch=1, precision='bf16', save_path=str(folder / 'runs'))
    return Sweep(folder, 'v1.1', True, replace(config, **values), 1, source)


@pytest.mark.parametrize(('changed', 'values'), [('size', {'size': 40}), ('source', {'source': 'photographs'})])
def test_points_of_one_folder_have_their_conditions_in_common(tmp_path, changed, values):
    check_conditions(make_sweep(tmp_path, precision='float32'))
    check_conditions(make_sweep(tmp_path))  # there is nothing yet
    run = tmp_path / 'runs/results/stopped'
    run.mkdir(parents=True)
    for held in run / 'checkpoint_last.npz', tmp_path / 'points.jsonl':
        held.write_text(json.dumps(row(0.5, 1, 0.5)) + '\n')
        check_conditions(make_sweep(tmp_path))
        with pytest.raises(trainer.InputError, match=f'holds runs of {changed} .* choose another -o'):
            check_conditions(make_sweep(tmp_path, **values))
        with pytest.raises(trainer.InputError, match='holds runs of precision bf16, not of float32'):
            check_conditions(make_sweep(tmp_path, precision='float32'))
        (run / 'checkpoint_last.npz').unlink(missing_ok=True)
    (tmp_path / 'conditions.json').unlink()
    with pytest.raises(trainer.InputError, match=r'conditions\.json cannot be read: it is missing'):
        check_conditions(make_sweep(tmp_path))


def test_earlier_conditions_lack_the_data_and_the_precision(tmp_path):
    known = make_sweep(tmp_path).conditions
    (tmp_path / 'points.jsonl').write_text(json.dumps(row(0.5, 1, 0.5)) + '\n')
    text = json.dumps({name: value for name, value in known.items() if name not in ('source', 'precision')})
    (tmp_path / 'conditions.json').write_text(text)
    check_conditions(make_sweep(tmp_path))
    assert json.loads((tmp_path / 'conditions.json').read_text()) == known


def test_the_published_points_can_be_drawn(tmp_path):
    assert main(['-o', str(ROOT / 'results/explore'), '--draw_only', '--images', str(tmp_path)]) == 0
    assert len(list(tmp_path.glob('*.png'))) == 3


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--size', '9', '--processes', '2'], '--size 9: .* 17 px or more'),
        (['--ratios', 'a'], "'a' is not a list of numbers such as 0.25,0.5"),
        (['-o', 'FILE'], 'FILE: File exists'),
        (['-o', '/proc/x'], '/proc/x: '),
        (['--images', 'FILE'], 'FILE: File exists'),
        (['-o', 'FOLDER', '--processes', '2'], 'FOLDER/runs'),
        (['-o', 'NONE', '--draw_only'], r'NONE/points\.jsonl cannot be read'),
    ],
)
def test_refusals_are_one_sentence_before_training(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr('squeeze_net.explore.__main__.run', lambda *_: pytest.fail('it trains'))
    monkeypatch.chdir(tmp_path)
    Path('FILE').touch()
    Path('FOLDER').mkdir()
    Path('FOLDER/runs').touch()
    with pytest.raises(SystemExit) as ended, trainer.exit_with_message('explore'):
        main([*flags('a'), *more])
    out, errors = capsys.readouterr()
    assert ended.value.code == 2 and re.search(message, errors.splitlines()[-1]) and out == ''
    assert not Path('a/points.jsonl').exists() and not Path('a/conditions.json').exists()
    assert not Path('NONE').exists()


@pytest.mark.parametrize(
    'text',
    [
        None,
        '',
        '{',
        '[]',
        '{}',
        '{"macro": "v1.1", "dataset": "shapes", "size": "a", "epoch": 1, "limit": null}',
        '{"macro": "v1.1", "dataset": "shapes", "size": 32, "epoch": 1}',
    ],
)
def test_conditions_that_are_none(tmp_path, text):
    (tmp_path / 'points.jsonl').write_text(json.dumps(row(0.5, 1, 0.5)) + '\n')
    if text is not None:
        (tmp_path / 'conditions.json').write_text(text)
    with pytest.raises(trainer.InputError, match=r'conditions\.json'):
        main(['-o', str(tmp_path), '--draw_only'])


@pytest.mark.parametrize(
    'change', [{'SR': 'a'}, {'test_accuracy': None}, {'bytes': 0}, {'bytes': 10**400}, {'seed': 'a'}]
)
def test_rows_that_are_none(tmp_path, change):
    lines = [row(0.1, 1, 0.5), row(0.5, 1, 0.5) | change]
    (tmp_path / 'points.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with pytest.raises(trainer.InputError, match=r'points\.jsonl, line 2: .* is not a point'):
        read_points(tmp_path / 'points.jsonl')


def _is_mine(path, folder):
    try:
        return str(folder).encode() in path.read_bytes()
    except OSError:
        return False


def test_points_that_are_none(tmp_path):
    (tmp_path / 'points.jsonl').write_text('{"SR": 1}\n')
    with pytest.raises(trainer.InputError, match=r'line 1: .* is not a point'):
        read_points(tmp_path / 'points.jsonl')
    with pytest.raises(trainer.InputError, match='cannot be read'):
        read_points(tmp_path / 'none.jsonl')
    with pytest.raises(trainer.InputError, match='squeeze ratio SR is 3'):
        main(['-o', str(tmp_path), '--ratios', '3'])
