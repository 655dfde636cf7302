import pytest
import yaml

from trainer import Config, InputError, cli


class Plain:
    pass


class Delicate:
    recipe = {'lr': 0.01, 'weight_decay': 5e-4}


NETWORKS = {'plain': Plain, 'delicate': Delicate}


def parse(*argv):
    return cli.parse(NETWORKS, argv)


def test_defaults_are_those_of_the_experiment():
    assert parse() == Config(model='plain', epoch=300, batch=64, lr=0.1, size=122, gpu=-1, start_epoch=1)


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
        model='plain', train_batch_divide=2, test_batch_divide=4, epoch=5, load_log='results/log.jsonl'
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
    assert config == Config(model='plain', freeze='conv1,fire[2-5]/*', lr_multiplier='conv10=10,fire9=2', smoothing=0.1)


def test_config_of_a_run_of_iterations_repeats_it(tmp_path):
    line = '--iterations 20 --freeze conv1 --mixup 0.2 --cutmix 1 --ema 0.99 --schedule factor --factor_every 2'
    config = parse(*line.split(), '--log_file', str(tmp_path / 'x.log'))
    config.write(tmp_path / 'config.yaml')
    assert parse('--config', str(tmp_path / 'config.yaml')) == config


def test_config_of_a_run_repeats_it(tmp_path):
    config = parse('--model', 'delicate', '--milestones', '3,5', '--limit', '7', '-p', 'some where', '--dropout', '0')
    config.write(tmp_path / 'config.yaml')
    assert parse('--config', str(tmp_path / 'config.yaml')) == config


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('batchs: 64', r"unknown key 'batchs'; did you mean 'batch'\?"),
        ('config: other.yaml', r"unknown key 'config'"),
        ('batch: many', r"argument -b/--batch: invalid int value: 'many'"),
        ('batch: [1, 2]', r'batch takes one value, not \[1, 2\]'),
        ('model: resnet', r'argument --model: invalid choice'),
        ('- batch', r'has to hold lines `flag: value`, not a list'),
        ('batch: "', r'cannot be read'),
        ('!!python/object/apply:os.system ["true"]', r'cannot be read'),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, text, message):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse('--config', str(path))
    assert str(path) in str(caught.value)


def test_missing_file_is_named():
    with pytest.raises(InputError, match=r'--config nowhere\.yaml cannot be read'):
        parse('--config', 'nowhere.yaml')


@pytest.mark.parametrize(
    'line', ['--milestones 5,3', '--milestones a', '--epochs 3', '-e x', '--model resnet', 'stray']
)
def test_bad_flags_exit_with_2(line, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*line.split())
    assert caught.value.code == 2
    assert line.split()[-1] in capsys.readouterr().err


def test_several_gpus_are_refused_with_a_word_on_them(capsys):
    with pytest.raises(SystemExit) as exit:
        parse('-g', '0,1')
    assert exit.value.code == 2
    assert "'0,1' names several GPUs, but a process uses one" in capsys.readouterr().err


def test_every_setting_has_a_flag_and_every_flag_a_setting():
    rows = [row for group in cli.flags(NETWORKS).values() for row in group]
    names = {next(name for name in names.split() if name.startswith('--'))[2:] for names, _, _ in rows}
    assert names - {'config'} == set(yaml.safe_load(yaml.safe_dump(Config().as_dict())))


def test_help_fits_a_terminal_and_ends_with_the_examples(capsys):
    with pytest.raises(SystemExit):
        cli.parse(NETWORKS, ['--help'], epilog='for example:\n  so  and  so\n')
    text = capsys.readouterr().out
    assert text.endswith('for example:\n  so  and  so\n')
    assert max(map(len, text.splitlines())) <= 100


def test_resume_command_keeps_the_flags():
    argv = ['main.py', '-e', '3', '--overwrite', '--run', 'a b']
    assert cli.resume_command(argv) == "python main.py -e 3 --run 'a b' --resume"
    for resume in (['--resume', 'x.npz'], ['--resume=x.npz'], ['--resume']):
        assert cli.resume_command(['main.py', *resume, '-g', '0']) == 'python main.py -g 0 --resume'
