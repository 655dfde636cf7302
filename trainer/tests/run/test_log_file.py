"""A run's lines in a file, with their times."""

import io
import re
import sys
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm

from trainer import InputError
from trainer.run.log_file import copied_to


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_of_both_streams_go_to_the_file_and_bars_do_not(tmp_path, capsys):
    path = tmp_path / 'run.log'
    path.write_text('earlier\n')
    with redirect_stderr(Terminal()) as terminal, copied_to(str(path)):
        print('one', 'line')
        outer, inner = tqdm(total=3, position=1, leave=False), tqdm(total=3, position=0, leave=False)
        for _ in range(3):
            inner.update()
            outer.update()
            tqdm.write('epoch done')
        inner.close()
        outer.close()
        print('\nSIGTERM: stopping', file=sys.stderr)
        with copied_to(str(path)):  # as `train` within `main`
            print('two', end='')
            print(' halves')
    earlier, *lines = path.read_text().splitlines()
    assert earlier == 'earlier'
    assert [line[21:] for line in lines] == ['one line', *['epoch done'] * 3, 'SIGTERM: stopping', 'two halves']
    assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S', line) for line in lines)
    assert '%|' in terminal.getvalue() and '%|' not in path.read_text()
    print('not any more')
    assert 'not any more' not in path.read_text()
    assert capsys.readouterr().out.startswith('one line\n')


def test_an_error_is_noted(tmp_path):
    with pytest.raises(InputError), copied_to(str(tmp_path / 'run.log')):
        raise InputError('--batch is 0')
    assert (tmp_path / 'run.log').read_text().endswith('  error: --batch is 0\n')


def test_names_that_are_not_text_are_noted(tmp_path):
    with redirect_stderr(Terminal()), copied_to(str(tmp_path / 'run.log')):
        print('caf\udce9', file=sys.stderr)
    assert (tmp_path / 'run.log').read_text().endswith('caf\\udce9\n')


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    message = r'--log_file .*nowhere/run\.log cannot be written: No such file'
    with pytest.raises(InputError, match=message), copied_to(str(tmp_path / 'nowhere/run.log')):
        pytest.fail('went on')


def test_without_a_file_nothing_changes():
    before = sys.stdout
    with copied_to(None):
        assert sys.stdout is before
