"""The line of an epoch."""

import pytest

from trainer.run.progress import format_entry

ENTRY = {'epoch': 9, 'lr': 0.000148, 'train_loss': 1.5107, 'train_accuracy': 0.4483, 'seconds': 57.23}
ENTRY |= {'test_loss': 1.4659, 'test_accuracy': 0.4778}


def test_an_epoch_is_a_line():
    expected = 'epoch  9/15  lr 0.000148  train 1.5107  44.83%  test 1.4659  47.78%  57.2 s'
    assert format_entry(ENTRY, 15) == expected
    many = ENTRY | {'test_top5': 0.8123, 'per_class_accuracy': [0.5] * 100}
    assert '47.78%, top-5 81.23%  57.2 s' in format_entry(many, 15)


@pytest.mark.parametrize('watched', ['test', 'val'])
def test_it_fits_into_80_columns(watched):
    longest = {'epoch': 300, 'lr': 3.28e-06, 'train_accuracy': 1.0, 'seconds': 3456.7}
    entry = ENTRY | longest | {f'{watched}_loss': 0.1234, f'{watched}_accuracy': 1.0}
    line = format_entry(entry, 300)
    assert len(line) <= 80 and line.endswith(f'{watched} 0.1234 100.00%  3,457 s')
