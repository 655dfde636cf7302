"""Runs beside each other, their table, and the command that redraws them."""

import os

import pytest
import yaml

from trainer.errors import InputError
from trainer.report import __main__ as report
from trainer.report import tables
from trainer.run.records import peers, read_run, write_log, write_summary


def make_run(folder, model='net', n_epoch=2, written_at=None, finished=True, n_train=2000, first=1, **config):
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump({'model': model, 'size': 32, 'epoch': n_epoch} | config))
    log = [
        {
            'epoch': epoch,
            'lr': 0.1,
            'train_loss': 1 / epoch,
            'train_accuracy': 0.5,
            'test_loss': 1 / epoch,
            'test_accuracy': 0.5 + 0.01 * (epoch == first),
            'seconds': 30.0,
            'images_per_s': 1000.0 + epoch,
        }
        for epoch in range(first, n_epoch + 1)
    ]
    write_log(folder, log)
    write_summary(
        folder,
        {
            'run': folder.name,
            'model': model,
            'n_parameters': 747146,
            'last': log[-1],
            'best': log[0],
            'confusion': [[3, 1], [0, 4]],
            'classes': ['cat', 'dog'],
            'dataset': {'name': 'c', 'source': 'JPEG C', 'is_jpeg': True, 'n_train': n_train, 'n_test': 8},
            'device': 'CPU, 2 threads',
            'seconds': 3723.0,
            'finished': finished,
        },
    )
    if written_at is not None:
        os.utime(folder / 'log.jsonl', (written_at, written_at))
    return folder


def cells(row):
    return [cell.strip() for cell in row.strip('|').split(' | ')]


def test_peers_are_the_newest_of_each_other_model_with_the_same_data(tmp_path):
    own = make_run(tmp_path / 'own', 'net')
    make_run(tmp_path / 'twin', 'net')
    make_run(tmp_path / 'old', 'base', written_at=1000)
    make_run(tmp_path / 'new', 'base', written_at=2000)
    make_run(tmp_path / 'other', 'a', written_at=1000)
    make_run(tmp_path / 'less', 'a', written_at=2000, n_train=500)
    (make_run(tmp_path / 'broken', 'broken') / 'log.jsonl').write_text('{')
    (tmp_path / 'stray').mkdir()
    (tmp_path / 'stray' / 'log.jsonl').symlink_to(tmp_path / 'nowhere')
    assert [run.name for run in peers(own)] == ['other', 'new']
    (own / 'summary.json').unlink()
    assert peers(own) == []


def test_table(tmp_path):
    runs = [make_run(tmp_path / 'a|b', 'net'), make_run(tmp_path / 'cut', 'base', 3, finished=False, epoch=9)]
    runs.append(make_run(tmp_path / 'late', 'base', 300, first=101))
    text = tables.table([read_run(path) for path in runs])
    header, rule, first, cut, late, *notes = text.splitlines()
    assert len(cells(header)) == len(cells(rule)) == len(cells(cut)) == 10
    assert cells(first) == [
        r'a\|b', 'net', 'JPEG C (2,000)', '32', '2', '747,146',
        '50.00 %', '51.00 % (1)', '1,002<sup>1</sup>', '1 h 02 min',
    ]  # fmt: skip
    assert cells(cut)[4] == '3 of 9<sup>2</sup>'
    assert cells(late)[4] == '101 to 300'
    assert '<sup>1</sup> Trained on CPU, 2 threads.' in '\n'.join(notes)
    assert '<sup>2</sup> Broken off, or still running.' in '\n'.join(notes)


def test_table_says_what_was_chosen_on_what(tmp_path):
    """Of a run with validation images: the test at the best epoch, scored once; a dash while it goes on."""
    folders = [make_run(tmp_path / name, 'net', 3) for name in ('done', 'going')]
    for folder in folders:
        text = (folder / 'log.jsonl').read_text()
        (folder / 'log.jsonl').write_text(text.replace('"test_', '"val_'))
        summary = read_run(folder).summary
        summary['dataset']['n_validation'] = 40
        if folder.name == 'done':
            summary |= {'test': {'epoch': 1, 'accuracy': 0.4875, 'chosen_on': 'validation'}, 'stopped_early': 3}
        write_summary(folder, summary)
    runs = [read_run(path) for path in folders]
    assert [(run.watched, run.best['epoch']) for run in runs] == [('val', 1), ('val', 1)]
    text = tables.table(runs)
    done, going = map(cells, text.splitlines()[2:4])
    assert done[6:8] == ['–', '48.75 % (1)<sup>1</sup>']
    assert going[6:8] == ['–', '– (1)<sup>1</sup>']
    assert '<sup>1</sup> The epoch is picked on 40 validation images, the test images are scored once.' in text
    assert 'Stopped early: no better epoch came.' in text
    assert 'so this is optimistic' not in text
    assert 'so this is optimistic' in tables.table([*runs, read_run(make_run(tmp_path / 'tested'))])
    for entry in runs[1].log:
        entry['val_accuracy'] = None
    assert cells(tables.table(runs).splitlines()[3])[7] == '–'


def test_table_of_a_run_without_a_summary(tmp_path):
    folder = make_run(tmp_path / 'run')
    (folder / 'summary.json').unlink()
    row = cells(tables.table([read_run(folder)]).splitlines()[2])
    assert row[5:8] == ['–', '50.00 %', '51.00 % (1)']


@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_replace_between_markers(tmp_path, newline):
    path = tmp_path / 'README.md'
    old = ['# Ä', 'say `<!-- results -->`', '<!-- results -->', 'old', '<!-- /results -->', 'end', '']
    path.write_bytes(newline.join(old).encode())
    for _ in range(2):  # the second time changes nothing
        tables.replace_between_markers(path, '| a\\1 |\n| b |\n', 'results')
        new = [*old[:3], '', '| a\\1 |', '| b |', '', *old[4:]]
        assert path.read_bytes() == newline.join(new).encode()


@pytest.mark.parametrize(
    'text',
    [
        '',
        '<!-- results -->\n',
        '<!-- /results -->\n<!-- results -->\n',
        '<!-- results -->\n<!-- results -->\n<!-- /results -->\n',
    ],
)
def test_missing_markers_are_refused(tmp_path, text):
    path = tmp_path / 'README.md'
    path.write_text(text)
    with pytest.raises(InputError, match=r'README\.md must hold the lines "<!-- results -->"'):
        tables.replace_between_markers(path, 'new', 'results')
    assert path.read_text() == text
    with pytest.raises(InputError, match='cannot be read'):
        tables.replace_between_markers(tmp_path / 'missing.md', 'new', 'results')


def test_command(tmp_path, capsys):
    make_run(tmp_path / 'results' / 'base', 'base')
    make_run(tmp_path / 'results' / 'net', 'net')
    (make_run(tmp_path / 'results' / 'torn', 'net') / 'log.jsonl').write_text('{')
    readme = tmp_path / 'README.md'
    readme.write_text('<!-- results -->\n<!-- /results -->\n')
    output = tmp_path / 'new' / 'img'
    runs = [str(tmp_path / 'results'), str(tmp_path / 'results' / 'net')]
    report.main([*runs, '-o', str(output), '--baseline', 'base', '--readme', str(readme)])
    out, err = capsys.readouterr()
    assert [cells(row)[0] for row in out.splitlines()[2:4]] == ['net', 'base']  # baselines last, each run once
    assert all(not line or line.startswith(('|', '<sup>', 'Last')) for line in out.splitlines())
    assert 'torn' in err
    assert 'torn' not in out
    assert sorted(path.name for path in output.iterdir()) == ['accuracy.png', 'confusion_net.png', 'loss.png']
    assert readme.read_text() == f'<!-- results -->\n\n{out}\n<!-- /results -->\n'


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path, capsys):
    runs = [str(make_run(tmp_path / folder / 'mine')) for folder in ('a/results', 'b/results')]
    report.main(
        [*runs, str(make_run(tmp_path / 'other')), '-o', str(tmp_path / 'img'), '--html', str(tmp_path / 'page.html')]
    )
    names = [cells(row)[0] for row in capsys.readouterr().out.splitlines()[2:5]]
    assert names == ['a/results/mine', 'b/results/mine', 'other']
    assert 'b/results/mine' in (tmp_path / 'page.html').read_text()
    assert (tmp_path / 'img' / 'confusion_a_results_mine.png').exists()


def test_command_refuses_what_holds_no_run(tmp_path):
    with pytest.raises(InputError, match='neither a run'):
        report.main([str(tmp_path)])
    with pytest.raises(InputError, match='missing is not a folder'):
        report.main([str(tmp_path / 'missing')])
    run = make_run(tmp_path / 'run')
    with pytest.raises(InputError, match='--baseline alexnet: no such run; the models here: net'):
        report.main([str(run), '--baseline', 'alexnet', '-o', str(tmp_path)])
    with pytest.raises(InputError, match='cannot be made a folder'):
        report.main([str(run), '-o', str(run / 'config.yaml')])
    (run / 'log.jsonl').write_text('')
    with pytest.raises(InputError, match='no run with a finished epoch'):
        report.main([str(run), '-o', str(tmp_path)])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match='0'):
        report.main(['--help'])
    assert '--readme docs/results.md' in capsys.readouterr().out
