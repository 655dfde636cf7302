"""The records of a run: written by the training loop, read back with every value checked.

A run is a folder: `config.yaml` (the flags), `log.jsonl` (one JSON object an epoch), `summary.json` (the
state after the last epoch), `mistakes.json` (images it was surest of and wrong about when they were last scored).
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.data.sources.source import read_text
from trainer.errors import InputError
from trainer.files import atomic_write

CONFIG, LOG, SUMMARY, MISTAKES = 'config.yaml', 'log.jsonl', 'summary.json', 'mistakes.json'
EVENTS = 'tensorboard/events.out.tfevents.*'  # of --tensorboard
MAX_BYTES = 64 << 20
MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = 64 << 10, 8  # PyYAML is slow, and takes the time of bytes * depth


def strict_json(obj: Any) -> str:
    """One line of JSON that every reader takes: NaN and infinities as null, NumPy's values as plain ones.

    Raises:
        TypeError: `obj` holds something JSON has no form for.
    """
    return json.dumps(_plain(obj), allow_nan=False, ensure_ascii=False)


def _plain(obj: Any) -> Any:
    if isinstance(obj, (np.ndarray, np.bool_, np.integer)):
        return _plain(obj.tolist())
    if isinstance(obj, (float, np.floating)):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    return obj


def write_log(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write `log.jsonl` anew, one line an epoch; a reader sees the old file or the new one."""
    with atomic_write(Path(folder) / LOG, 'w') as file:
        file.writelines(strict_json(entry) + '\n' for entry in entries)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`, one line a key; a reader sees the old file or the new one."""
    _write_object(Path(folder) / SUMMARY, summary)


def write_mistakes(folder: Path, mistakes: Mapping[str, Any]) -> None:
    """Write `mistakes.json`, as `read_mistakes` gives it back."""
    _write_object(Path(folder) / MISTAKES, mistakes)


def _write_object(path: Path, content: Mapping[str, Any]) -> None:
    lines = ',\n'.join(f'  {strict_json(key)}: {strict_json(value)}' for key, value in content.items())
    with atomic_write(path, 'w') as file:
        file.write(f'{{\n{lines}\n}}\n')


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        path, name: the folder and its name, in a report of several by one name with folders above it.
        config: the flags by their long names.
        log: one dict an epoch, by rising `epoch`; values may be missing or None.
        summary: of the last epoch; None before the first epoch has ended.
    """

    path: Path
    name: str
    config: dict[str, Any]
    log: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def model(self) -> str:
        """The network's name; of a run that does not say, its own."""
        return str(self.config.get('model') or (self.summary or {}).get('model') or self.name)

    @property
    def dataset(self) -> dict[str, Any]:
        """The summary's `dataset`: name, source, is_jpeg, n_train, n_test; {} if not yet known."""
        return (self.summary or {}).get('dataset') or {}

    @property
    def dataset_label(self) -> str:
        """What the images are; says JPEG where they are, as accuracies on those are not comparable."""
        label = str(
            self.dataset.get('source') or self.dataset.get('name') or self.config.get('dataset') or 'unknown data'
        )
        return f'JPEG {label}' if self.dataset.get('is_jpeg') and 'jpeg' not in label.lower() else label

    @property
    def last(self) -> dict[str, Any]:
        """The last epoch's entry, {} if there is none."""
        return self.log[-1] if self.log else (self.summary or {}).get('last') or {}

    @property
    def watched(self) -> str:
        """Which images were scored after each epoch: 'val' or 'test'."""
        return watched_of(self.last)

    @property
    def test(self) -> dict[str, Any]:
        """The summary's `test`: the score at the best validation epoch; {} without validation, or if not yet known."""
        return (self.summary or {}).get('test') or {}

    @property
    def best(self) -> dict[str, Any]:
        """This run's entry of the (first) highest accuracy of the watched images, {} if none was measured.

        Of growing pictures, the largest alone count.
        """
        start = self.config.get('start_epoch')
        first = start if isinstance(start, int) else 1  # the epochs before are of the run that --load_log names
        key = f'{self.watched}_accuracy'
        scored = [entry for entry in self.log if entry.get(key) is not None and entry['epoch'] >= first]
        if scored:
            return max(scored, key=lambda entry: (entry.get('size') or 0, entry[key]))
        return {} if self.log else (self.summary or {}).get('best') or {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e39  # float32's range


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


PICTURE = re.compile('data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}')
IS_KIND: dict[str, Callable[[Any], bool]] = {
    'a text': lambda value: isinstance(value, str),
    'true or false': lambda value: isinstance(value, bool),
    'a number': _is_number,
    'a count': _is_count,
    'a fraction 0..1': _is_fraction,
    'a list of texts': lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    'a list of fractions 0..1': lambda value: (
        isinstance(value, list) and all(v is None or _is_fraction(v) for v in value)
    ),
    'a list of objects': lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    'a list of counts': lambda value: isinstance(value, list) and all(map(_is_count, value)),
    'an object of texts': lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
    'a picture': lambda value: isinstance(value, str) and PICTURE.fullmatch(value) is not None,
    'a square matrix of counts': lambda value: (
        isinstance(value, list)
        and all(isinstance(row, list) and len(row) == len(value) and all(map(_is_count, row)) for row in value)
    ),
}
WATCHED = {'val': 'validation', 'test': 'test'}  # the images scored after each epoch, by how their fields begin


def watched_of(entry: Mapping[str, Any]) -> str:
    """Which images an entry of the log is of: 'val' or 'test'."""
    return 'val' if 'val_accuracy' in entry else 'test'


def entry_fields(watched: str) -> dict[str, str]:
    """The fields that an entry of the log has, and their kinds."""
    return {
        'epoch': 'a count',
        'lr': 'a number',
        'train_loss': 'a number',
        'train_accuracy': 'a fraction 0..1',
        f'{watched}_loss': 'a number',
        f'{watched}_accuracy': 'a fraction 0..1',
        'per_class_accuracy': 'a list of fractions 0..1',
        'seconds': 'a number',
        'images_per_s': 'a number',
    }


OPTIONAL_FIELDS = {f'{watched}_top5': 'a fraction 0..1' for watched in WATCHED} | {
    'iteration': 'a count',
    'size': 'a count',
}
ALL_FIELDS = entry_fields('val') | entry_fields('test') | OPTIONAL_FIELDS  # logs of earlier versions lack the optional
SUMMARY_FIELDS = {
    'run': 'a text',
    'model': 'a text',
    'n_parameters': 'a count',
    'confusion': 'a square matrix of counts',
    'classes': 'a list of texts',
    'device': 'a text',
    'seconds': 'a number',
    'finished': 'true or false',
    'stopped_early': 'a count',
    'hints': 'a list of texts',
    'versions': 'an object of texts',
    'layers': 'a list of objects',
    'parts': 'a list of objects',
}
LAYER_FIELDS = {
    'name': 'a text',
    'output': 'a list of counts',
    'parameters': 'a count',
    'multiplications': 'a count',
}
PART_FIELDS = {'after_iteration': 'a count', 'device': 'a text', 'versions': 'an object of texts'}
DATASET_FIELDS = {
    'name': 'a text',
    'source': 'a text',
    'is_jpeg': 'true or false',
    'n_train': 'a count',
    'n_test': 'a count',
    'n_validation': 'a count',
    'held_out': 'a text',
}
TEST_FIELDS = {
    'epoch': 'a count',
    'chosen_on': 'a text',
    'loss': 'a number',
    'accuracy': 'a fraction 0..1',
    'top5': 'a fraction 0..1',
    'per_class_accuracy': 'a list of fractions 0..1',
    'confusion': 'a square matrix of counts',
}
MISTAKES_FIELDS = {'epoch': 'a count', 'images': 'a text', 'n_wrong': 'a count', 'mistakes': 'a list of objects'}
MISTAKE_FIELDS = {
    'image': 'a count',
    'true': 'a count',
    'predicted': 'a count',
    'probability': 'a fraction 0..1',
    'picture': 'a picture',
}


def _check(record: Any, fields: dict[str, str], where: str) -> None:
    """Raise an InputError unless `record` is a dict whose `fields` are of their kind, null or absent."""
    if not isinstance(record, dict):
        raise InputError(f'{where}: {reprlib.repr(record)} is not an object')
    for key, kind in fields.items():
        value = record.get(key)
        if value is not None and not IS_KIND[kind](value):
            raise InputError(f'{where}: {key} is {reprlib.repr(value)}, expected {kind}')


def _check_all(record: Any, fields: dict[str, str], where: str) -> None:
    """As `_check`, of fields that must be there."""
    _check(record, fields, where)
    if missing := [key for key in fields if record.get(key) is None]:
        raise InputError(f'{where} lacks {", ".join(missing)}')


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        InputError: the folder is not a run (it has no config.yaml), or a file in it is malformed or too large;
            the message names the file, the line where there is one, and the fault.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f'{path} is not a folder, expected the folder of a run, with {CONFIG} and {LOG}')
    config, log, summary = path / CONFIG, path / LOG, path / SUMMARY
    try:
        return Run(
            path=path,
            name=path.resolve().name,
            config=read_yaml(config),
            log=read_log(log) if log.exists() else [],
            summary=_read_summary(summary) if summary.exists() else None,
        )
    except OSError as error:
        raise InputError(f'{error.filename or path} cannot be read: {error.strerror}') from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from YAML, without code, aliases or depth; {} of an empty file.

    Raises:
        InputError: a file that cannot be read, or holds anything else; names the line.
    """
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        _check_yaml(path, text)
        config = yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        line = f', line {error.problem_mark.line + 1}' if error.problem_mark else ''
        raise InputError(f'{path}{line}: {error.problem}') from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a control character; a date such as 2000-99-99
        raise InputError(f'{path} is not YAML: {str(error).splitlines()[0]}') from error
    if not isinstance(config, dict):
        raise InputError(f'{path}: {reprlib.repr(config)} is not a mapping, expected lines such as "model: NAME"')
    return {str(key): value for key, value in config.items()}


def _check_yaml(path: Path, text: str) -> None:
    """Refuse what would take PyYAML any amount of memory (nested aliases) or of time (deep nesting)."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH or isinstance(event, yaml.AliasEvent):
            fault = 'an alias (*name)' if isinstance(event, yaml.AliasEvent) else 'too deep nesting'
            raise InputError(f'{path} holds {fault}, expected lines such as "model: NAME"')


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of JSON.

    Raises:
        InputError: a file that cannot be read, or holds anything else; names the line.
    """
    return _parse_object(read_text(path, MAX_BYTES), path)


def _parse_object(text: str, path: Path, line: int = 1) -> dict[str, Any]:
    """An object of JSON, without NaN; `line` of the file is the first of the text."""
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f'{path}, line {line + error.lineno - 1}'
        raise InputError(f'{where}: not JSON: {error.msg} at column {error.colno}') from error
    except (RecursionError, ValueError) as error:
        fault = 'nested too deeply' if isinstance(error, RecursionError) else error
        raise InputError(f'{path}, line {line}: {fault}') from error
    if not isinstance(record, dict):
        raise InputError(f'{path}, line {line}: {reprlib.repr(record)} is not an object')
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON, expected null')


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a `log.jsonl`, by rising `epoch`; raises InputError with file, line and fault."""
    log: list[dict[str, Any]] = []
    for number, line in enumerate(read_text(path, MAX_BYTES).split('\n'), 1):
        if not line.strip():
            continue
        where = f'{path}, line {number}'
        entry = _parse_object(line, path, number)
        _check(entry, ALL_FIELDS, where)
        before = log[-1]['epoch'] if log else 0
        if entry.get('epoch') is None or entry['epoch'] <= before:
            raise InputError(f'{where}: epoch is {entry.get("epoch")}, expected more than {before}')
        log.append(entry)
    return log


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    _check(summary, SUMMARY_FIELDS, str(path))
    kinds = {'last': ALL_FIELDS, 'best': ALL_FIELDS, 'dataset': DATASET_FIELDS, 'test': TEST_FIELDS}
    for key, fields in kinds.items():
        if summary.get(key) is not None:
            _check(summary[key], fields, f'{path}, {key}')
    for key, fields in {'layers': LAYER_FIELDS, 'parts': PART_FIELDS}.items():
        for record in summary.get(key) or []:
            _check(record, fields, f'{path}, {key}')
    n_class = len(summary.get('classes') or [])
    for matrix in summary.get('confusion'), (summary.get('test') or {}).get('confusion'):
        if matrix and len(matrix) != n_class:
            raise InputError(f'{path}: confusion has {len(matrix)} rows, expected one for each of {n_class} classes')
    return summary


def read_mistakes(run: Run) -> dict[str, Any]:
    """What a run's `mistakes.json` says.

    Returns:
        `epoch`, whose weights made them; `images`, 'test' or 'validation'; `n_wrong`, of all of these; and `mistakes`,
        the surest first, each with `image`, its place in the split, the classes `true` and `predicted`, `probability`
        and `picture`, a data: address. {} if there is no such file.
    Raises:
        InputError: a file that cannot be read, or is malformed.
    """
    path = run.path / MISTAKES
    if not path.exists():
        return {}
    content = read_json(path)
    _check_all(content, MISTAKES_FIELDS, str(path))
    n_class = len((run.summary or {}).get('classes') or [])
    for mistake in content['mistakes']:
        _check_all(mistake, MISTAKE_FIELDS, str(path))
        if (highest := max(mistake['true'], mistake['predicted'])) >= n_class:
            raise InputError(f'{path}: a mistake names class {highest}, expected less than {n_class}')
    return content


def peers(run_folder: Path) -> list[Run]:
    """The runs to compare a run with: of each other model, the newest beside it with the same data.

    Args:
        run_folder: has a summary.json, which says what the data are; without one there is nothing to compare.
    Returns:
        By model; folders that cannot be read are left out.
    """
    run_folder = Path(run_folder).resolve()
    own = read_run(run_folder)
    newest: dict[str, Run] = {}
    logs = [path for path in run_folder.parent.glob(f'*/{LOG}') if path.parent != run_folder]
    for log in sorted(logs, key=_modified_at, reverse=True):
        try:
            run = read_run(log.parent)
        except InputError:
            continue
        if own.dataset and run.log and run.model != own.model and _data(run) == _data(own):
            newest.setdefault(run.model, run)
    return [newest[model] for model in sorted(newest)]


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # replaced or removed meanwhile
        return 0.0


def _data(run: Run) -> tuple[Any, ...]:
    return tuple(run.dataset.get(key) for key in ('name', 'source', 'n_train', 'n_validation', 'n_test'))
