import numpy as np
import pytest
import yaml

from trainer import Config, InputError


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'batch': 0}, r'--batch is 0; expected a number of at least 1'),
        ({'epoch': -3}, r'--epoch is -3'),
        ({'lr': float('nan')}, r'--lr is nan'),
        ({'dropout': 1.0}, r'--dropout is 1.0; expected a number below 1'),
        ({'seed': 2**32}, r'--seed'),
        ({'start_epoch': 11, 'epoch': 10}, r'--start_epoch 11 comes after the last epoch, --epoch 10'),
        ({'train_batch_divide': 65}, r'--train_batch_divide 65 cuts a batch of 64 into empty parts'),
        ({'schedule': 'linear'}, r"--schedule is 'linear'; expected one of step, cosine, constant"),
        ({'epoch': 3, 'iterations': 7}, r'--epoch 3 and --iterations 7 both say how long: give one'),
        ({'iterations': 0}, r'--iterations is 0; expected a number of at least 1'),
        ({'power': -1}, r'--power is -1'),
        ({'factor': 1.5}, r'--factor is 1.5; expected at most 1'),
        ({'factor_every': 0}, r'--factor_every is 0'),
        ({'smoothing': 1.1}, r'--smoothing is 1.1; expected at most 1'),
        ({'ema': 1.0}, r'--ema is 1.0; expected a number below 1'),
        ({'mixup': float('nan')}, r'--mixup is nan'),
        ({'cutmix': -0.1}, r'--cutmix is -0.1'),
        ({'freeze': 'conv1,,fire2'}, r"--freeze is 'conv1,,fire2', but must be patterns of paths"),
        ({'lr_multiplier': 'conv1'}, r"--lr_multiplier has 'conv1', but takes PATTERN=X"),
        (
            {'lr_multiplier': 'a=1,conv1=-2'},
            r"--lr_multiplier has 'conv1=-2', but takes PATTERN=X with X of at least 0",
        ),
        ({'run': '../elsewhere'}, r'--run'),
        ({'run': '..'}, r'--run'),
        ({'model': 'timm/net'}, r"--run is 'timm/net_cifar10_122px'; expected the name of a folder"),
        ({'lr': 'fast'}, r"--lr is 'fast'; expected a number"),
        ({'epoch': 1.5}, r'--epoch is 1.5; expected a whole number'),
        ({'model': None}, r'--model is None; expected a text'),
        ({'milestones': (1, 'x')}, r"--milestones is 'x'; expected a whole number"),
    ],
)
def test_bad_values_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        Config(**flags)


def test_values_of_other_libraries_are_written_as_plain_ones(tmp_path):
    rates = np.logspace(-3, -1, 3)
    config = Config(save_path=tmp_path, lr=rates[1], batch=np.int64(8), milestones=np.array([3, 5]), validation=5)
    assert (config.save_path, config.batch, config.milestones) == (str(tmp_path), 8, (3, 5))
    config.write(tmp_path / 'config.yaml')
    read = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    assert (read['lr'], read['milestones'], read['validation']) == (rates[1], [3, 5], '5')


def test_default_recipe_is_the_experiments():
    rate = Config().make_schedule(300)
    assert [round(rate(epoch), 6) for epoch in (0, 149, 150, 224, 225, 299)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    rate = Config(epoch=10, milestones=(3,), warmup=1).make_schedule(10)
    assert [round(rate(epoch), 6) for epoch in (0, 0.5, 1, 2.9, 3)] == [0, 0.05, 0.1, 0.1, 0.01]


def test_resuming_another_experiment_is_refused(tmp_path):
    saved = Config(batch=64, epoch=10).as_dict()
    Config(batch=64, epoch=20, gpu=0, train_batch_divide=4).check_resumes(saved, tmp_path)
    with pytest.raises(InputError, match=r'was trained with --batch 64, not 32'):
        Config(batch=32).check_resumes(saved, tmp_path)
    del saved['smoothing']  # a setting that is younger than the checkpoint: it had the default
    Config(batch=64).check_resumes(saved, tmp_path)
    with pytest.raises(InputError, match=r'was trained with --smoothing 0.0, not 0.1'):
        Config(batch=64, smoothing=0.1).check_resumes(saved, tmp_path)
