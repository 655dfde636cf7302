"""What every command has: a parser that explains a mistake in one sentence, and an end with an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import re
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from trainer.errors import SECONDS_FOR_FIRST, EngineWarning, InputError, TrainingError, rank_from_environment

WIDTH = 80  # columns of a help text
OTHER_NAMES = {  # what other programs call our flags
    'learning_rate': 'lr',
    'batch_size': 'batch',
    'cuda': 'gpu',
    'device': 'gpu',
    'weights': 'pretrained',
    'checkpoint': 'resume',
    'output': 'save_path',
    'label_smoothing': 'smoothing',
    'num_workers': 'workers',
}


class Parser(argparse.ArgumentParser):
    """Every command's: one sentence for a mistake, `--some-flag` read as `--some_flag`, help of 80 columns."""

    def __init__(self, **options: Any) -> None:
        usual: dict[str, Any] = {'formatter_class': _Formatter, 'allow_abbrev': False}
        super().__init__(**(usual | options))

    def parse_args(self, argv: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known = self._flags()
        words = _split_glued(sys.argv[1:] if argv is None else argv)
        args, unknown = self.parse_known_args([_underscored(word, known) for word in words], namespace)
        if unknown:
            self.error(_explain(unknown[0], known))
        return args

    def _flags(self) -> list[str]:
        """All flags, those of subcommands too."""
        found = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for parser in set(action.choices.values()) for flag in parser._flags()]
        return found

    def format_help(self) -> str:
        if self.usage is None:
            self.usage = ' '.join(['%(prog)s', *self._usage()])
        return super().format_help()

    def _usage(self) -> Iterator[str]:
        """`-o FILE [flags] IMAGE ...`: what a command cannot do without; the flags are listed below."""
        for action in self._actions:
            if action.required and action.option_strings:
                yield f'{action.option_strings[0]} {action.metavar or action.dest.upper()}'
        yield '[flags]'
        for action in self._get_positional_actions():
            choices = '{' + ','.join(map(str, action.choices or ())) + '}'
            name = action.metavar or (choices if action.choices else action.dest)
            yield f'[{name}]' if action.nargs == '?' else f'{name} ...' if action.nargs in ('+', 'A...') else f'{name}'

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=min(WIDTH, shutil.get_terminal_size().columns) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-e, --epoch N`, where argparse repeats the N."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f'{", ".join(action.option_strings)} {value}'


def command_parser(prog: str | None, description: str | None, examples: str = '', **options: Any) -> Parser:
    """A parser whose help begins with what the command does, and with examples, a line each."""
    paragraphs = (description or '').strip().split('\n\n')
    text = '\n\n'.join(textwrap.fill(paragraph, WIDTH - 1) for paragraph in paragraphs)
    if examples:
        text += '\n\nExamples:\n' + '\n'.join(_wrapped(line) for line in examples.strip().splitlines())
    return Parser(prog=prog, description=text, **options)


def refuse_address(place: str | Path) -> None:
    """Refuse what is an address, where a file or a folder is expected.

    Raises:
        InputError: `http://...`, `s3://...` or the like, as such or as a path has it, with one slash.
    """
    if found := re.match(r'([a-z][a-z0-9+]+):/+', str(place), re.IGNORECASE):  # of one letter: a disk
        raise InputError(f'{found[1]}://{str(place)[found.end() :]} is an address: download it, and give the file')


def add_overwrite(target: Any) -> None:
    """Give a command, or one of its groups of flags, the flag that `trainer.files.refuse_to_replace` asks for."""
    target.add_argument('--overwrite', action='store_true', help='replace files that exist')


def write_utf8() -> None:
    """Write standard output in UTF-8, as JSON is, whatever the terminal has."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding='utf-8', errors='backslashreplace')


def _wrapped(command: str) -> str:
    """A command of an example, indented, on more lines where one is too narrow; or a comment."""
    if command.startswith('#'):
        return textwrap.fill(command, WIDTH - 1, initial_indent='  ', subsequent_indent='  # ')
    lines = textwrap.wrap(command, WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return '  ' + ' \\\n      '.join(lines)


def _split_glued(argv: Iterable[str]) -> list[str]:
    """`-lr0.5`, `-trb2`, `-teb2` -> flag and value; argparse itself would read the first as `-l r0.5`."""
    glued = re.compile(r'(-lr|-trb|-teb)=?([\d.].*)')
    matches = [(glued.fullmatch(word), word) for word in argv]
    return [part for match, word in matches for part in (match.groups() if match else (word,))]


def _underscored(word: str, known: Sequence[str]) -> str:
    name, equals, value = word.partition('=')
    if not name.startswith('--') or name in known:
        return word
    plain = name[2:].replace('-', '_')
    return next((flag + equals + value for flag in known if flag[2:].replace('-', '_') == plain), word)


def _explain(word: str, known: Sequence[str]) -> str:
    if not word.startswith('-'):
        return f'{word!r} is not expected here; flags begin with --, and --help lists them'
    name = word.partition('=')[0]
    plain = name.replace('-', '_').lstrip('_')
    meant = f'--{OTHER_NAMES.get(plain, plain)}'
    safe = [flag for flag in known if flag != '--overwrite']
    close = difflib.get_close_matches(meant, safe, n=1, cutoff=0.75)
    return f'{name}: did you mean {close[0]}?' if close else f'{name} is not a flag; --help lists them'


@contextmanager
def exit_with_message(command: str) -> Iterator[None]:
    """Turn an error of the block into `COMMAND: error: SENTENCE` on stderr and exit code 2; 1 for TrainingError.

    A file that cannot be read or written is named, too. Ctrl-C exits with 130 and one word. What the engine
    cannot do is printed in one line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal has no characters for
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def show_in_a_line(message: Any, category: type[Warning], *rest: Any) -> None:
                if issubclass(category, EngineWarning):
                    if not rank_from_environment():
                        print(f'{command}: {message}', file=sys.stderr)
                else:
                    show(message, category, *rest)

            warnings.showwarning = show_in_a_line  # type: ignore[assignment]
            yield
    except (InputError, TrainingError) as error:
        if rank_from_environment():
            time.sleep(SECONDS_FOR_FIRST)  # the first one prints what all would
        print(f'{command}: error: {error}', file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None  # nothing to flush at exit
        sys.exit(141)  # as for SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        place = error.filename or 'standard output'
        print(f'{command}: error: {place}: {error.strerror}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'{command}: interrupted', file=sys.stderr)
        sys.exit(130)
