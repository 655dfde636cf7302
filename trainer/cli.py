"""The command line: flags made from the table of settings; command line over YAML file over recipe over defaults."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, Protocol

from trainer.commands import Parser, command_parser
from trainer.config import Config
from trainer.config.setting import Setting, settings_of
from trainer.config.table import GROUPS
from trainer.errors import InputError, program_name, typed_command
from trainer.run import records

TYPES: dict[str, tuple[Any, str]] = {'int': (int, 'N'), 'float': (float, 'X'), 'str': (str, 'TEXT')}
LENGTHS = {'epoch', 'iterations'}  # one replaces the other
USED_WITH = {  # settings that act with some values of another
    'milestones': ('schedule', ('step',)),
    'power': ('schedule', ('poly',)),
    'factor': ('schedule', ('factor',)),
    'factor_every': ('schedule', ('factor',)),
    'momentum': ('optimizer', ('momentum', 'nesterov', 'muon')),
    'muon_lr': ('optimizer', ('muon',)),
}
RATES = {'schedule', 'milestones', 'warmup', 'lr'}  # with any of them given, the schedule is not chosen by the length


def parse(
    networks: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    examples: str = '',
    describe: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> Config:
    """The configuration that the command line asks for.

    Args:
        networks: name -> class; a class may carry `recipe`, the settings that suit it where the defaults do not, and
            `finetuning`, those for `--finetune`.
        argv: arguments without the program's name; those of the process by default.
        description, examples: the first lines of `--help`.
        describe: (the settings that are given) -> those that the weights of `--finetune` ask for: `model`, and those of
            their images.
    Raises:
        InputError: an unknown flag, one without effect, a value out of range, or a YAML file with an unknown key.
    """
    parser = make_parser(networks, description, examples)
    given = vars(parser.parse_args(argv))
    typed = set(given)
    config_file = given.pop('config', None)
    if config_file is not None:
        given = put_over(given, read_yaml(Path(config_file), parser, Config))
    is_finetuning, chosen = 'finetune' in given, {}
    if is_finetuning and describe is not None:
        chosen = describe(given)
    model = given.setdefault('model', chosen.get('model', next(iter(networks))))
    recipe = getattr(networks[model], 'recipe', {})
    if is_finetuning:
        recipe = recipe | getattr(networks[model], 'finetuning', {}) | chosen
    if not RATES & given.keys() and 'schedule' not in recipe:
        recipe = recipe | {'schedule': 'auto'}
    config = Config(**put_over(given, recipe))
    for name, (other, values) in USED_WITH.items():
        if name in typed and (found := getattr(config, other)) not in values:
            raise InputError(f'--{name} goes with --{other} {values[0]}, not with --{other} {found}')
    return config


def put_over(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both, those of `upper` winning: also --epoch over --iterations, or the other way round."""
    is_replaced = bool(LENGTHS & upper.keys())
    return {name: value for name, value in lower.items() if not (is_replaced and name in LENGTHS)} | dict(upper)


def make_parser(
    networks: Mapping[str, Any], description: str | None = None, examples: str = '', show_all: bool = False
) -> Parser:
    """A parser that returns only the flags given, so that the defaults stay in `Config`."""
    parser = command_parser(program_name(), description, examples, argument_default=argparse.SUPPRESS, add_help=False)
    choices = {'model': {'choices': list(networks), 'help': _listed(networks)}}
    for group in GROUPS:
        title, _, about = str(group.__doc__).partition(': ')
        flags = parser.add_argument_group(f'{title} ({about})')
        for name, (field, one) in settings_of(group).items():
            changed = choices.get(name, {}) if show_all or one.is_common else {'help': argparse.SUPPRESS}
            add_setting(flags, field, one, argparse.SUPPRESS, **(choices.get(name, {}) | changed))
    flags = parser.add_argument_group('help, and flags from a file')
    flags.add_argument(
        '--config', metavar='FILE.yaml', help='read flags from lines `flag: value`; flags given here win'
    )
    flags.add_argument('-h', '--help', action='help', help='show this text')
    flags.add_argument(
        '--help_all',
        action=_HelpAll,
        nargs=0,
        parser=lambda: make_parser(networks, description, examples, show_all=True),
        help='show every flag',
    )
    return parser


class _HelpAll(argparse.Action):
    def __init__(self, parser: Any, **options: Any) -> None:
        super().__init__(**options)
        self.make_parser = parser

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        self.make_parser().print_help()
        parser.exit()


def _listed(networks: Mapping[str, Any]) -> str:
    return f'{", ".join(networks)} (default: {next(iter(networks))})'


class _Group(Protocol):  # a parser, or a group of its arguments
    def add_argument(self, *flags: str, **options: Any) -> argparse.Action: ...


def add_settings(target: _Group, *names: str, helps: Mapping[str, str] | None = None, **defaults: Any) -> None:
    """Give a command flags of `Config`, some with defaults of its own: `add_settings(parser, 'gpu', batch=32)`.

    Args:
        helps: name -> what a flag means to this command, where that is not what it means in training.
    """
    table = settings_of(Config)
    for name in (*names, *defaults):
        field, one = table[name]
        if helps is not None and name in helps:
            one = replace(one, help=helps[name])
        add_setting(target, field, one, defaults.get(name, field.default))


def refuse_settings(args: argparse.Namespace, why: str, *names: str) -> None:
    """Refuse settings of `Config` that a command would pass over.

    Args:
        why: goes on after the flag and its value.
    Raises:
        InputError: one has another value than by default; names it.
    """
    for name in names:
        if (value := getattr(args, name)) != settings_of(Config)[name][0].default:
            raise InputError(f'--{name} {value} {why}')


def add_group(target: _Group, group: type) -> None:
    """Give a command a flag for each setting of `group`; those that are not given are left out of its arguments."""
    for field, one in settings_of(group).values():
        add_setting(target, field, one, argparse.SUPPRESS)


def add_setting(target: _Group, field: Field[Any], one: Setting, default: Any, **changed: Any) -> None:
    """The flag of one setting; `changed` are options of `add_argument` that differ here."""
    short = [flag for flag in one.flags if not flag.startswith('--')]
    long = [flag for flag in one.flags if flag.startswith('--')]
    options: dict[str, Any] = {'dest': field.name, 'help': one.help, 'default': default}
    if field.type == 'bool':
        options['action'] = 'store_true'
    else:
        options['type'], options['metavar'] = TYPES.get(str(field.type).removesuffix(' | None'), (str, 'TEXT'))
        if one.parse is not None:
            options['type'] = one.parse
        if one.choices:
            options |= {'choices': one.choices, 'metavar': None}
        if one.metavar is not None:
            options['metavar'] = one.metavar
        shown = field.default if default is argparse.SUPPRESS else default
        text = f'(default: {shown:g})' if isinstance(shown, float) else f'(default: {shown})'
        if '(default' in one.help and shown != field.default:
            options['help'] = re.sub(r'\(default: [^)]*\)', text, one.help, count=1)
        elif shown not in (None, '') and '(default' not in one.help:
            options['help'] += f' {text}'
        if field.name == 'resume':
            options |= {'nargs': '?', 'const': 'auto'}
    target.add_argument(*short, f'--{field.name}', *long, **(options | changed))


def config_of(args: argparse.Namespace, *names: str, **more: Any) -> Config:
    """The configuration in the flags `names` of `add_settings`, and `more`."""
    return Config(**({name: getattr(args, name) for name in names} | more))


def read_yaml(path: Path, parser: Parser, group: type) -> dict[str, Any]:
    """Settings of `group` from a YAML mapping of names of flags, checked by the parser as on the command line.

    Raises:
        InputError: a file that cannot be read, an unknown key, a value that does not fit; names file and key.
    """
    try:
        values = records.read_yaml(path)
    except InputError as error:
        raise InputError(f'--config {error}') from None
    table = settings_of(group)
    names = {flag[2:]: name for name, (_, one) in table.items() for flag in one.flags if flag.startswith('--')}
    argv: list[str] = []
    for key, value in values.items():
        name = key.replace('-', '_')
        name = names.get(name, name)
        if name not in table:
            close = difflib.get_close_matches(name, table, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise InputError(f'--config {path} has the unknown key {key!r}{hint}')
        argv += _as_flags(name, value, *table[name], path)
    try:
        return vars(parser.parse_args(argv))
    except InputError as error:
        raise InputError(f'--config {path}: {error}') from None


def _as_flags(name: str, value: Any, field: Field[Any], one: Setting, path: Path) -> list[str]:
    """A line of a YAML file as words of a command line."""
    if value is None:
        return []
    if field.type == 'bool' and isinstance(value, bool):
        return [f'--{name}'] if value else []
    if one.is_list and isinstance(value, dict):
        value = [f'{pattern}={number}' for pattern, number in value.items()]
    if one.is_list and isinstance(value, list):
        value = ','.join(map(str, value))
    if isinstance(value, (dict, list)):
        raise InputError(f'--config {path}: {name} takes one value, not {value!r}')
    return [f'--{name}={value}']


def resume_command(argv: Sequence[str] | None = None) -> str:
    """The command line that goes on where this one was interrupted."""
    words = [word for word in (typed_command() if argv is None else argv) if word != '--overwrite']
    if '--resume' in words:
        at = words.index('--resume')
        has_path = at + 1 < len(words) and not words[at + 1].startswith('-')
        del words[at : at + 1 + has_path]
    return shlex.join(['python', *(word for word in words if not word.startswith('--resume=')), '--resume'])


def reference(networks: Mapping[str, Any]) -> str:
    """The settings as Markdown: a table a group, for docs/settings.md."""
    lines: list[str] = []
    for group in GROUPS:
        title, _, about = str(group.__doc__).partition(': ')
        lines += [f'## {title.capitalize()}: {about}', '']
        lines += ['| flag | default | values | meaning | in a resumed run |', '| --- | --- | --- | --- | --- |']
        for name, (field, one) in settings_of(group).items():
            flags = ', '.join(f'`{flag}`' for flag in (*one.flags, f'--{name}'))
            text = f'the network (default: {next(iter(networks))})' if name == 'model' else one.help
            resumed = 'may change' if one.may_change else 'the same'
            row = (flags, _default(field, text), _values(field, one), text.replace('*', '\\*'), resumed)
            lines.append(f'| {" | ".join(row)} |')
        lines.append('')
    return '\n'.join(lines).replace('<', '&lt;').rstrip() + '\n'


def _default(field: Field[Any], text: str) -> str:
    return '' if '(default' in text or field.default is None else str(field.default)


def _values(field: Field[Any], one: Setting) -> str:
    if one.choices:
        return ', '.join(one.choices)
    bounds = ((one.at_least, '≥'), (one.at_most, '≤'), (one.below, '<'))
    kinds = {'int': 'whole number', 'float': 'number', 'bool': 'given or not'}
    kind = kinds.get(str(field.type).removesuffix(' | None'), one.metavar or 'text')
    shown = [kind.replace('|', '\\|'), *(f'{sign} {bound:,}' for bound, sign in bounds if bound is not None)]
    return ' '.join(shown)
