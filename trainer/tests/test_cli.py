import sys
from dataclasses import fields
from importlib.machinery import ModuleSpec

import pytest

from trainer import Config, InputError, cli
from trainer.config.setting import settings_of
from trainer.config.table import GROUPS
from trainer.errors import program_name


class Plain:
    pass


class Delicate:
    recipe = {'lr': 0.01, 'weight_decay': 5e-4}
    finetuning = {'epoch': 7, 'lr': 0.002, 'schedule': 'cosine', 'freeze': 'conv1'}


NETWORKS = {'plain': Plain, 'delicate': Delicate}


def parse(*argv):
    return cli.parse(NETWORKS, argv)


def test_defaults_are_those_of_the_experiment():
    config = Config(model='plain', epoch=300, batch=64, lr=0.1, size=122, gpu=-1, start_epoch=1)
    assert parse().fit(n_train=50_000) == config


def test_flags_of_the_original():
    line = '-p ./ -e 300 -b 64 -g 0 -s 1 -trb 2 -teb 4 -lr 0.1 -m model.npz -o state.npz -l log.jsonl'
    config = parse(*line.split())
    assert (config.save_path, config.epoch, config.batch, config.gpu, config.start_epoch) == ('./', 300, 64, 0, 1)
    assert (config.train_batch_divide, config.test_batch_divide, config.lr) == (2, 4, 0.1)
    assert (config.load_model, config.load_optimizer, config.load_log) == ('model.npz', 'state.npz', 'log.jsonl')


@pytest.mark.parametrize('argv', [['-lr0.5'], ['-lr=0.5'], ['-lr.5'], ['-lr', '0.5'], ['--lr=0.5']])
def test_glued_learning_rate_is_not_a_log_file(argv):
    assert parse(*argv) == Config(model='plain', lr=0.5)


def test_other_glued_flags():
    assert parse('-trb2', '-teb4', '-e5', '-lresults/log.jsonl') == Config(
        model='plain', train_batch_divide=2, test_batch_divide=4, epoch=5, load_log='results/log.jsonl', schedule='auto'
    )


def test_command_line_over_file_over_recipe_over_default(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('model: delicate\nweight_decay: 0.001\nepoch: 7\nmilestones: [3, 5]\nresume:\noverwrite: true\n')
    config = parse('--config', str(path), '-e', '9')
    assert config == Config(model='delicate', epoch=9, weight_decay=0.001, lr=0.01, milestones=(3, 5), overwrite=True)


def test_the_length_that_is_given_last_counts(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('iterations: 170\nschedule: poly\n')
    config = parse('--config', str(path))
    assert (config.epoch, config.iterations) == (None, 170)
    config = parse('--config', str(path), '-e', '9')
    assert (config.epoch, config.iterations, config.schedule) == (9, None, 'poly')
    with pytest.raises(InputError, match=r'--epoch 9 and --iterations 3 both say how long'):
        parse('-e', '9', '--iterations', '3')


def test_lists_of_a_file_are_joined_by_commas(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text("freeze: [conv1, 'fire[2-5]/*']\nlr_multiplier: [conv10=10, fire9=2]\nsmoothing: 0.1\n")
    config = parse('--config', str(path))
    assert (config.freeze, config.lr_multiplier) == ('conv1,fire[2-5]/*', 'conv10=10,fire9=2')
    assert config.smoothing == 0.1


def test_config_of_a_run_of_iterations_repeats_it(tmp_path):
    line = '--iterations 20 --freeze conv1 --mixup 0.2 --cutmix 1 --ema 0.99 --schedule factor --factor_every 2'
    config = parse(*line.split(), '--log_file', str(tmp_path / 'x.log'))
    config.write(tmp_path / 'config.yaml')
    assert parse('--config', str(tmp_path / 'config.yaml')) == config


def test_config_of_a_run_repeats_it(tmp_path):
    config = parse('--model', 'delicate', '--milestones', '3,5', '--limit', '7', '-p', 'some where', '--dropout', '0')
    config.write(tmp_path / 'config.yaml')
    assert parse('--config', str(tmp_path / 'config.yaml')) == config


# ---- short runs ----


@pytest.mark.parametrize(
    ('line', 'schedule', 'warmup'),
    [
        ('-e 20', 'cosine', 1),
        ('-e 29 --model delicate', 'cosine', 1),  # whose recipe has a rate of its own
        ('-e 2', 'cosine', 0.4),
        ('-e 30', 'step', 0),
        ('--iterations 40', 'cosine', 1),  # of 20 images: 8 epochs
        ('--iterations 160', 'step', 0),
        ('-e 20 --lr 0.1', 'step', 0),
        ('-e 20 --warmup 0', 'step', 0),
        ('-e 20 --milestones 10', 'step', 0),
        ('-e 20 --schedule step', 'step', 0),
        ('-e 20 --schedule poly', 'poly', 0),
    ],
)
def test_a_short_run_without_rates_of_its_own_warms_up_and_anneals(line, schedule, warmup, capsys, tmp_path):
    config = parse(*line.split(), '-b', '20').fit(n_train=100)
    assert (config.schedule, config.warmup) == (schedule, warmup)
    said = capsys.readouterr().out
    assert (
        (f'fewer than 30 epochs: --schedule cosine --warmup {warmup:g} (' in said)
        == (schedule == 'cosine')
        == bool(said)
    )
    config.write(tmp_path / 'config.yaml')
    assert parse('--config', str(tmp_path / 'config.yaml')) == config


def test_a_resumed_run_keeps_the_schedule_of_its_checkpoint_whatever_its_length_now():
    for begun, now in (20, 40), (40, 20):
        saved = parse('-e', str(begun)).fit(n_train=100)
        resumed = parse('-e', str(now)).fit(n_train=100, saved=saved.as_dict())
        assert (resumed.schedule, resumed.warmup) == (saved.schedule, saved.warmup)


def test_a_batch_is_not_larger_than_the_training_images(capsys):
    assert parse().fit(n_train=18).batch == 18
    assert capsys.readouterr().out == 'a batch of 64 is more than the 18 training images: --batch 18\n'


# ---- fine-tuning ----


def test_fine_tuning_takes_network_and_images_from_the_weights_and_its_rates_from_the_network(tmp_path):
    asked = []

    def describe(given):
        asked.append((given['finetune'], given.get('model')))
        return {'model': 'delicate', 'preprocess': 'caffe', 'size': 90}

    def tune(*argv):
        return cli.parse(NETWORKS, ['--finetune', 'x.caffemodel', *argv], describe=describe)

    config = tune()
    assert config == Config(
        finetune='x.caffemodel',
        load_model='x.caffemodel',
        reset_classifier=True,
        model='delicate',
        preprocess='caffe',
        size=90,
        weight_decay=5e-4,
        **Delicate.finetuning,
    )
    given = tune('--lr', '0.5', '--size', '80', '--iterations', '9', '--preprocess', 'five-crop', '--model', 'plain')
    assert (given.lr, given.size, given.iterations, given.epoch) == (0.5, 80, 9, None)
    assert (given.preprocess, given.model, given.freeze) == ('five-crop', 'plain', None)
    assert asked == [('x.caffemodel', None), ('x.caffemodel', 'plain')]
    config.write(tmp_path / 'config.yaml')
    assert cli.parse(NETWORKS, ['--config', str(tmp_path / 'config.yaml')], describe=describe) == config
    with pytest.raises(InputError, match=r'--finetune x.caffemodel and --pretrained y.npz both say which weights'):
        tune('--pretrained', 'y.npz')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('batchs: 64', r"unknown key 'batchs'; did you mean 'batch'\?"),
        ('config: other.yaml', r"unknown key 'config'"),
        ('batch: many', r"argument -b/--batch: invalid int value: 'many'"),
        ('batch: [1, 2]', r'batch takes one value, not \[1, 2\]'),
        ('model: resnet', r'argument --model: invalid choice'),
        ('- batch', r'is not a mapping, expected lines such as'),
        ('batch: "', r'line 1: found unexpected end of stream'),
        ('!!python/object/apply:os.system ["true"]', r'line 1: could not determine a constructor'),
        ('batch: 2020-99-99', r'is not YAML: month must be'),
        ('batch: &a [1]\nlr: *a', r'holds an alias'),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, text, message):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse('--config', str(path))
    assert str(path) in str(caught.value)


def test_missing_file_is_named():
    with pytest.raises(InputError, match=r'--config nowhere\.yaml cannot be read: it is missing'):
        parse('--config', 'nowhere.yaml')


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('--epochs 3', r'^--epochs: did you mean --epoch\?$'),
        ('--bach=3', r'^--bach: did you mean --batch\?$'),
        ('--learning-rate 3', r'^--learning-rate: did you mean --lr\?$'),
        ('--overwritten', r'^--overwritten is not a flag'),  # never a way to lose a run
        ('--version', r'^--version is not a flag'),
        ('--xyzzy', r'^--xyzzy is not a flag; --help lists them$'),
        ('stray', r"^'stray' is not expected here"),
        ('--milestones 5,3', r"'5,3'; expected rising epochs"),
        ('--milestones a', r"'a'; expected epochs such as 150,225"),
        ('-e x', r"argument -e/--epoch: invalid int value: 'x'"),
        ('--model resnet', r"invalid choice: 'resnet'"),
        ('-g 0,1', r"'0,1' names several GPUs, but a process uses one"),
        ('-g one', r"'one'; expected the number of a GPU"),
    ],
)
def test_a_wrong_flag_gets_one_sentence(line, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(*line.split())
    assert '\n' not in str(caught.value)


def test_dashes_may_stand_for_underscores():
    line = '--save-path here --reset-classifier --load-model=some-file.npz --train-batch-divide 2 --schedule step'
    assert parse(*line.split()) == Config(
        model='plain', save_path='here', reset_classifier=True, load_model='some-file.npz', train_batch_divide=2
    )


def test_a_setting_is_declared_once_and_every_flag_is_one():
    grouped = [name for group in GROUPS for name in settings_of(group)]
    assert sorted(grouped) == sorted(field.name for field in fields(Config)) == sorted(set(grouped))
    parser = cli.make_parser(NETWORKS)
    assert {action.dest for action in parser._actions} - {'config', 'help', 'help_all'} == set(grouped)


@pytest.mark.parametrize('flag', ['--help', '--help_all'])
def test_help_fits_80_columns_and_begins_with_the_examples(flag, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as exit:
        cli.parse(NETWORKS, [flag], 'What it does. ' * 9, 'python so\npython and so\n')
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert text.index('python and so') < text.index('--epoch')
    assert max(map(len, text.splitlines())) <= 80
    assert ('--cutmix' in text) == (flag == '--help_all')
    assert '--resume' in text


def test_the_reference_names_every_flag_and_what_a_resumed_run_may_not_change():
    text = cli.reference(NETWORKS)
    for name in settings_of(Config):
        assert f'`--{name}`' in text
    assert '| `-b`, `--batch` | 64 | whole number ≥ 1 | images per update | the same |' in text
    assert '| `-g`, `--gpu` | -1 |' in text


def test_resume_command_keeps_the_flags():
    argv = ['main.py', '-e', '3', '--overwrite', '--run', 'a b']
    assert cli.resume_command(argv) == "python main.py -e 3 --run 'a b' --resume"
    for resume in (['--resume', 'x.npz'], ['--resume=x.npz'], ['--resume']):
        assert cli.resume_command(['main.py', *resume, '-g', '0']) == 'python main.py -g 0 --resume'


@pytest.mark.parametrize(
    ('module', 'first', 'name'),
    [
        (None, 'main.py', 'main.py'),
        ('squeeze_net.__main__', '-m squeeze_net', 'python -m squeeze_net'),
        ('trainer.doctor', '-m trainer.doctor', 'python -m trainer.doctor'),
    ],
)
def test_resume_command_begins_as_typed(module, first, name, monkeypatch):
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
    monkeypatch.setattr(sys, 'argv', ['main.py' if module is None else f'/{module}.py', '-e', '3'])
    assert cli.resume_command() == f'python {first} -e 3 --resume'
    assert program_name() == name


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--schedule', 'cosine', '--milestones', '8,12'],
            '--milestones goes with --schedule step, not with --schedule cosine',
        ),
        (
            ['--schedule', 'auto', '--milestones', '3'],
            '--milestones goes with --schedule step, not with --schedule auto',
        ),
        (
            ['--optimizer', 'adam', '--momentum', '0.5'],
            '--momentum goes with --optimizer momentum, not with --optimizer adam',
        ),
        (['--power', '2'], '--power goes with --schedule poly, not with --schedule auto'),
        (['--schedule', 'poly', '--factor', '0.9'], '--factor goes with --schedule factor'),
        (
            ['--factor_every', '2', '--lr', '0.1'],
            '--factor_every goes with --schedule factor, not with --schedule step',
        ),
        (['--muon_lr', '0.01'], '--muon_lr goes with --optimizer muon, not with --optimizer momentum'),
    ],
)
def test_a_flag_without_effect_is_refused(words, message):
    with pytest.raises(InputError, match=f'^{message}'):
        parse(*words)


def test_a_file_may_hold_settings_that_the_command_line_leaves_without_effect(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('schedule: step\nmilestones: [8, 12]\noptimizer: muon\nmuon_lr: 0.01\npretrained: w.npz\n')
    config = parse('--config', str(path), '--schedule', 'cosine', '--optimizer', 'nesterov')
    assert (config.schedule, config.optimizer, config.load_model) == ('cosine', 'nesterov', 'w.npz')
    path.write_text('lr-batch: 128\n')
    assert parse('--config', str(path)).lr_batch == 128
