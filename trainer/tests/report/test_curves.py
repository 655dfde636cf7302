"""The pictures: what they show, read from the figures' objects, and that the files are reproducible."""

import sys

import numpy as np
import pytest
from PIL import Image

from trainer.errors import InputError
from trainer.report import confusion, curves
from trainer.run.records import Run

CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def fake_log(n_epoch, first=1, lr=lambda epoch: 0.1):
    rng = np.random.default_rng(n_epoch)
    log = []
    for epoch in range(first, n_epoch + 1):
        accuracy = 0.9 - 0.6 * np.exp(-epoch / 5) + 0.02 * rng.random()
        log.append(
            {
                'epoch': epoch,
                'lr': lr(epoch),
                'train_loss': 2 * (1 - accuracy),
                'train_accuracy': accuracy,
                'test_loss': 2.2 * (1 - accuracy),
                'test_accuracy': accuracy - 0.03,
            }
        )
    return log


def fake_run(path, model, log, n_class=10, source='JPEG re-encoding of CIFAR-10'):
    dataset = {'name': 'cifar10', 'source': source, 'is_jpeg': True, 'n_train': 50000, 'n_test': 10000}
    classes = CLASSES if n_class == 10 else [f'class {i}' for i in range(n_class)]
    matrix = np.random.default_rng(0).integers(0, 9, (n_class, n_class)) + 50 * np.eye(n_class, dtype=int)
    summary = {'dataset': dataset, 'classes': classes, 'confusion': matrix.tolist()}
    return Run(path / model, model, {'model': model}, log, summary)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curves_of(figure):
    """Lines of the plot that hold one point an epoch (the marks of lr drops are vertical lines of two points)."""
    return [line for line in figure.axes[0].lines if line.get_linestyle() != ':']


@pytest.mark.parametrize('n_epoch', [1, 40])
def test_pictures_are_reproducible(tmp_path, n_epoch):
    runs = [fake_run(tmp_path, 'net', fake_log(n_epoch)), fake_run(tmp_path, 'base', fake_log(2))]
    for folder in (tmp_path / 'a', tmp_path / 'b'):
        folder.mkdir()
        curves.draw_curves(runs, folder, dashed=['base'])
        confusion.draw_confusion(runs[0], folder)
    for name in ('loss.png', 'accuracy.png', 'confusion_net.png'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
        with Image.open(tmp_path / 'a' / name) as image:
            assert 1400 <= image.width <= 1700
            assert 900 <= image.height <= 1600
            assert image.info.keys() == {'dpi', 'Software'}
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == ['accuracy.png', 'confusion_net.png', 'loss.png']


def test_names_that_no_font_has_are_told_once(tmp_path, capsys, recwarn, installed_fonts):
    installed_fonts()
    curves._say_what_lacks.cache_clear()
    run = fake_run(tmp_path, 'net', fake_log(2))
    run.summary['classes'] = ['猫', *run.summary['classes'][1:]]
    for _ in range(2):
        confusion.draw_confusion(run, tmp_path)
    assert capsys.readouterr().err.count('the font of the plots lacks some characters') == 1 and not recwarn.list


def test_names_that_the_font_lacks_are_drawn_by_an_installed_one(tmp_path, capfd, recwarn, installed_fonts):
    installed_fonts('STIXGeneral.ttf')
    run = fake_run(tmp_path, 'net', fake_log(2))
    pictures = []
    for name in ('⤀', '⤁'):
        run.summary['classes'] = [name, *run.summary['classes'][1:]]
        pictures.append(confusion.draw_confusion(run, tmp_path).read_bytes())
    assert pictures[0] != pictures[1] and capfd.readouterr().err == '' and not recwarn.list


def test_names_that_are_not_text_are_drawn(tmp_path):
    run = fake_run(tmp_path, 'n\udce9t $x$', fake_log(2), source='caf\udce9')
    run.summary['classes'] = ['\udce9', 'a' * 200, *run.summary['classes'][2:]]
    assert legend_of(curves._curve_figure([run], 'loss', ()))[0].startswith(r'n?t \$x\$')
    curves.draw_curves([run], tmp_path)
    confusion.draw_confusion(run, tmp_path)
    names = [label.get_text() for label in figure_of(run).axes[0].get_yticklabels()]
    assert names[:2] == ['?', 'a' * 27 + '…']


def figure_of(run):
    return confusion._confusion_figure(run, run.summary['classes'], np.array(run.summary['confusion']))


def test_long_names_leave_room_for_the_plot(tmp_path):
    runs = [fake_run(tmp_path, f'{"long " * 40}{i}', fake_log(2)) for i in range(12)]
    figure = curves._curve_figure(runs, 'loss', ())
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 0.25 * figure.bbox.height


def test_the_title_counts_the_images_where_all_runs_have_as_many(tmp_path):
    runs = [fake_run(tmp_path, name, fake_log(2)) for name in ('net', 'base')]
    assert '50,000 training and 10,000 test images' in curves._curve_figure(runs, 'loss', ()).get_suptitle()
    runs[1].summary['dataset']['n_train'] = 8000
    assert 'images' not in curves._curve_figure(runs, 'loss', ()).get_suptitle().splitlines()[-1].split(' of ')[0]


def test_the_best_epoch_is_that_of_the_table(tmp_path):
    run = fake_run(tmp_path, 'net', fake_log(4))
    run.log[1]['test_accuracy'] = 0.99
    run.config['start_epoch'] = 3  # the epochs before are of another run
    assert f'best {100 * run.best["test_accuracy"]:.1f} %' in legend_of(curves._curve_figure([run], 'accuracy', ()))[0]


def test_pyplot_is_left_alone(tmp_path):
    sys.modules.pop('matplotlib.pyplot', None)
    curves.draw_curves([fake_run(tmp_path, 'net', fake_log(2))], tmp_path)
    assert 'matplotlib.pyplot' not in sys.modules


def test_validation_lines_are_called_so(tmp_path):
    run = fake_run(tmp_path, 'net', fake_log(5))
    log = [{key.replace('test_', 'val_'): value for key, value in entry.items()} for entry in run.log]
    test = {'epoch': 4, 'accuracy': 0.5, 'loss': 1.5, 'confusion': np.eye(10, dtype=int).tolist()}
    run.summary['dataset']['n_validation'] = 500
    run = Run(run.path, 'net', run.config, log, run.summary)
    figure = curves._curve_figure([run], 'accuracy', [])
    np.testing.assert_allclose(curves_of(figure)[1].get_ydata(), [100 * entry['val_accuracy'] for entry in log])
    assert legend_of(figure)[0].startswith('net validation, last ')
    assert '50,000 training, 500 validation and 10,000 test images' in figure.get_suptitle()
    title = confusion._confusion_figure(run, CLASSES, np.eye(10)).get_suptitle()
    assert 'after epoch 5' in title and '10 of 10 validation images right' in title
    run.summary['test'] = test
    assert legend_of(curves._curve_figure([run], 'accuracy', []))[0].endswith('; test 50.0 %')
    assert legend_of(curves._curve_figure([run], 'loss', []))[0].endswith('; test 1.500')
    title = confusion._confusion_figure(run, CLASSES, np.eye(10)).get_suptitle()
    assert 'after epoch 4' in title and '10 of 10 test images right' in title


def test_test_lines_are_strong_and_baselines_dashed(tmp_path):
    runs = [fake_run(tmp_path, 'net', fake_log(5)), fake_run(tmp_path, 'base', fake_log(3))]
    figure = curves._curve_figure(runs, 'accuracy', ['base'])
    train, test, base_train, base_test = curves_of(figure)
    assert train.get_color() == test.get_color() != base_test.get_color() == base_train.get_color()
    assert train.get_linewidth() < test.get_linewidth()
    assert [line.get_linestyle() for line in (train, test, base_train, base_test)] == ['-', '-', '--', '--']
    np.testing.assert_allclose(base_test.get_ydata(), [100 * entry['test_accuracy'] for entry in runs[1].log])
    last, best = runs[0].log[-1]['test_accuracy'], max(entry['test_accuracy'] for entry in runs[0].log)
    assert legend_of(figure)[0] == f'net test, last {100 * last:.1f} %, best {100 * best:.1f} %'
    assert 'training' in legend_of(figure)[-1]
    assert figure.get_suptitle() == ('Accuracy on JPEG re-encoding of CIFAR-10\n50,000 training and 10,000 test images')


def test_nulls_are_gaps_and_lone_points_have_markers(tmp_path):
    log = fake_log(40)
    log[10]['test_loss'] = log[12]['test_loss'] = None
    test = curves_of(curves._curve_figure([fake_run(tmp_path, 'net', log)], 'loss', ()))[1]
    assert np.flatnonzero(np.isnan(test.get_ydata())).tolist() == [10, 12]
    assert test.get_markevery() == [11]


def test_epochs_are_whole_and_may_start_late(tmp_path):
    for first, last in ((1, 1), (1, 3), (101, 104)):
        axes = curves._curve_figure([fake_run(tmp_path, 'net', fake_log(last, first))], 'loss', ()).axes[0]
        left, right = axes.get_xlim()
        assert 0 < left < first
        assert last < right
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert ticks
        assert all(tick == round(tick) >= first for tick in ticks)


@pytest.mark.parametrize('n_epoch', [3, 12, 300])
def test_a_wild_first_epoch_does_not_flatten_the_rest(tmp_path, n_epoch):
    log = fake_log(n_epoch)
    calm = curves._curve_figure([fake_run(tmp_path, 'net', log)], 'loss', ()).axes[0]
    assert calm.get_ylabel() == 'loss'
    assert calm.get_ylim()[1] > max(entry['test_loss'] for entry in log)
    log[0]['train_loss'] = 80.0
    if n_epoch > 6:
        log[5]['test_loss'] = 70.0  # a single spike
    axes = curves._curve_figure([fake_run(tmp_path, 'net', log)], 'loss', ()).axes[0]
    assert axes.get_ylim()[1] < 4
    assert axes.get_ylim()[1] > log[1]['test_loss']
    assert axes.get_ylabel().endswith('highest 80)')


@pytest.mark.parametrize(
    'lr, expected',
    [
        (lambda epoch: 0.1 if epoch <= 6 else 0.01 if epoch <= 9 else 0.001, [(6, 0.01), (9, 0.001)]),
        (lambda epoch: 0.02 * epoch if epoch < 5 else 0.1 if epoch <= 6 else 0.05, [(6, 0.05)]),  # warm-up
        (lambda epoch: 0.1, []),
        (lambda epoch: 0.05 * (1 + np.cos(np.pi * (epoch - 1) / 12)), []),
        (lambda epoch: 0.1 * (12 - epoch) / 12, []),
        (lambda epoch: 0.1**epoch, []),
        (lambda epoch: None, []),
    ],
)
def test_lr_drops_are_those_of_step_schedules(tmp_path, lr, expected):
    log = fake_log(12, lr=lr)
    assert curves.lr_drops(log) == expected
    axes = curves._curve_figure([fake_run(tmp_path, 'net', log)], 'loss', ()).axes[0]
    assert [text.get_text() for text in axes.texts] == [f'lr {lr:g}' for _, lr in expected]


def test_labels_tell_runs_of_one_model_apart(tmp_path):
    runs = [fake_run(tmp_path, 'net', fake_log(2)), fake_run(tmp_path, '_$x$', fake_log(2), source='$\\frac')]
    runs.append(Run(tmp_path / 'again', 'again', {'model': 'net'}, fake_log(2), runs[0].summary))
    assert curves._labels(runs) == ['net (net)', r'_\$x\$ on JPEG \$\frac', 'net (again)']
    curves.draw_curves(runs, tmp_path)  # dollar signs are no formulas


def test_many_runs_have_a_colour_each(tmp_path):
    assert len(set(curves._colours(7))) == 7
    assert len(set(curves._colours(20))) == 20
    curves.draw_curves([fake_run(tmp_path, f'net{i}', fake_log(2)) for i in range(9)], tmp_path)


def test_nothing_measured_and_nothing_to_draw(tmp_path):
    log = [{'epoch': 1}, {'epoch': 2, 'train_loss': 1.0}]
    curves.draw_curves([fake_run(tmp_path, 'net', log)], tmp_path)
    assert (tmp_path / 'loss.png').exists()
    with pytest.raises(InputError, match='no finished epoch'):
        curves.draw_curves([fake_run(tmp_path, 'net', [])], tmp_path)
    with pytest.raises(InputError, match='no confusion matrix'):
        confusion.draw_confusion(Run(tmp_path, 'net', {}, log, None), tmp_path)


@pytest.mark.parametrize(
    'n_class, has_texts, has_names', [(2, True, True), (20, True, True), (21, False, True), (101, False, False)]
)
def test_confusion_figure(tmp_path, n_class, has_texts, has_names):
    run = fake_run(tmp_path, 'net', fake_log(2), n_class)
    matrix = np.array(run.summary['confusion'], float)
    matrix[0] = 0  # no image of this class
    figure = confusion._confusion_figure(run, run.summary['classes'], matrix)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(np.ma.sum(shown[1:], 1), 100)
    assert np.ma.getmaskarray(shown)[0].all()
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert bool(texts) == has_texts
    if has_texts:
        assert texts[1, 1] == f'{100 * matrix[1, 1] / matrix[1].sum():.1f}'
        assert (0, 0) not in texts
    assert ([label.get_text() for label in axes.get_yticklabels()] == run.summary['classes']) == has_names


def test_format_confusion_of_ten_classes_fits_80_columns():
    matrix = np.full((10, 10), 10) + 910 * np.eye(10, dtype=int)
    lines = confusion.format_confusion(CLASSES, matrix).splitlines()
    assert len(lines) == 12
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[:4] == ['0', 'airplane', '91', '1']
    assert '91.1 %' in lines[2]


def test_format_confusion_of_many_classes_lists_the_most_confused():
    names = [f'class{i}' for i in range(30)]
    matrix = 5 * np.eye(30, dtype=int)
    matrix[3, 7] = 15
    matrix[29] = 0
    text = confusion.format_confusion(names, matrix.tolist())
    assert text.splitlines()[-2:] == ['most confused:', '  class3 taken for class7: 15 of 20, 75.0 %']
    assert max(map(len, text.splitlines())) <= 100


def test_confused_classes_of_one_name_are_told_apart():
    matrix = np.diag([5, 5, 5])
    matrix[0, 2], matrix[1, 0] = 3, 4
    found = confusion.confused_pairs(['crane', 'bus', 'crane'], matrix)
    assert found == [
        ('bus', 'crane (0)', 4, 9, pytest.approx(400 / 9)),
        ('crane (0)', 'crane (2)', 3, 8, pytest.approx(300 / 8)),
    ]


def test_format_confusion_refuses_another_shape_and_hides_control_characters():
    with pytest.raises(ValueError, match=r'shape \(2, 2\), expected \(3, 3\)'):
        confusion.format_confusion('abc', np.eye(2))
    assert '\x1b' not in confusion.format_confusion(['\x1b[2J', 'b'], np.eye(2))
