"""Every command that README, docs/, CONTRIBUTING, trainer/README and `--help` print is run, as its users type it.

Each runs in a copy of the repository, with the data, weights, numbers and device of `substitutions.py` in place of the
large ones, has to end with exit code 0, and has to show and write what it is for. A bare `make test` runs one command
of each program; `make journeys` runs all.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass

import documents
import pytest
import substitutions as table
from documents import ROOT

COMMANDS = documents.commands_of_pages()
OUTPUT_FLAGS = ('-o', '--output', '--draw', '--graph', '--readme', '--log_file')
OUTPUT_FLAGS += ('--per_class', '--confusion', '--images')
SECONDS = 300


@dataclass(frozen=True)
class Program:
    """What a program has to show and write.

    Attributes:
        shows: a regular expression of what it prints.
        writes: patterns of files below `-p`, of which it has to write one each.
        last_is_written: the last argument names what it writes, if it has several.
        quick: what the command that a bare `make test` runs has in it.
    """

    shows: str
    writes: tuple[str, ...] = ()
    last_is_written: bool = False
    quick: str = ''


RUN = ('results/*/summary.json', 'results/*/log.jsonl', 'results/*/weights_best.npz')
RUN += ('img/accuracy.png', 'img/loss.png')
PROGRAMS = {
    'main.py': Program(r'best epoch \d+: (test|validation) accuracy +[\d.]+%', RUN),
    'squeeze_net.infer': Program(r'\d+\.\d+ ?%|,1,\d+,|"probability"|"top', quick='photos/ '),
    'squeeze_net.validate': Program(r'top.?1', quick='small.sqz'),
    'squeeze_net.weights': Program(r'squeezenet', last_is_written=True, quick='squeezenet_jpeg'),
    'squeeze_net.summary': Program(r'fire9'),
    'squeeze_net.deploy': Program(r'wrote .*: [\d,]+ bytes'),
    'squeeze_net.explore': Program(r'drew .*\.png', quick='--draw_only'),
    'squeeze_net.compression compress': Program(r'[\d,]+ bytes', quick='--lossless'),
    'squeeze_net.compression inspect': Program(r'fire9'),
    'squeeze_net.compression decompress': Program(r'wrote .*: [\d,]+ bytes', last_is_written=True),
    'squeeze_net.compression draw': Program(r'drew .*\.png'),
    'trainer.report': Program(r'\| run \| network \|'),
    'trainer.augmentation': Program(r'sheet\.png: \d+ × \d+ px'),
    'trainer.datasets.pack': Program(r': [\d,]+ images', last_is_written=True),
    'trainer.doctor': Program(r'(?s)Python .*-g -1'),
    'benchmarks/pruning.py': Program('', ('results/bench/pruning.json', 'docs/img/compression/pruning.png')),
    'benchmarks/scaling.py': Program('', ('results/bench/scaling.json', 'docs/img/scaling.png')),
    'benchmarks/models.py': Program(r'\| SqueezeNet v1\.0 \|', quick='--table'),
    'benchmarks/speed_table.py': Program(r'\| squeezenet 122 px, training \|'),
}


# ---- a copy of the repository, and a command in it ----


@pytest.fixture
def home(tmp_path):
    return copy_of_repository(tmp_path / 'squeeze_net')


def copy_of_repository(copy):
    """A clean copy of the repository's files, so that no record is touched."""
    words = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('the files of the repository are not known: this is not a Git checkout')
    for name in filter(None, listed.stdout.split('\0')):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')
    table.fill_cache(folder)
    return folder


def environment(home, cache):
    return os.environ | {
        'PYTHONPATH': str(home),
        'CHAINER_DATASET_ROOT': str(cache),
        'CUDA_VISIBLE_DEVICES': '',
        'COLUMNS': '200',
        'OMPI_ALLOW_RUN_AS_ROOT': '1',
        'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
        'OMPI_MCA_rmaps_base_oversubscribe': '1',
    }


def program_of(words):
    """'main.py', 'squeeze_net.compression draw', ... of the words of a command."""
    words = words[words.index('python') + 1 :]
    if words[0] != '-m':
        return words[0]
    has_subcommand = words[1] == 'squeeze_net.compression' and not words[2].startswith('-')
    return ' '.join(words[1 : 3 if has_subcommand else 2])


def arguments_of(words):
    """What stands after the program: its flags and their values."""
    return words[words.index('python') + 1 + len(program_of(words).split()) + ('-m' in words) :]


def substituted(words):
    """The command with the numbers and the device of the table."""
    words = [table.WORDS.get(word, word) for word in words]
    for i, flag in enumerate(words[:-1]):
        if flag in table.FLAGS and 'python' in words[:i]:
            limit, value = table.FLAGS[flag], words[i + 1]
            words[i + 1] = str(limit if isinstance(limit, str) else min(limit, float(value)))
            words[i + 1] = words[i + 1].removesuffix('.0')
    for config, flags in table.SHORTENED.items():
        words += flags if config in words else []
    for names, value in table.ADDED.get(program_of(words), {}).items():
        if not any(name in words for name in names):
            words += [names[0], value]
    return words


def outputs_of(words, program):
    """The files and folders that a command is told to write."""
    arguments = arguments_of(words)
    named = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word in OUTPUT_FLAGS]
    if '--draw_only' in words:
        named.remove(words[words.index('-o') + 1])
    free = [word for i, word in enumerate(arguments) if word[0] != '-' and (i == 0 or arguments[i - 1][0] != '-')]
    return named + (free[1:2] if program.last_is_written else [])


def provide(names, home):
    """Put what is named, and is not in the repository, in its place."""
    for name in dict.fromkeys(names):
        for given, put in table.GIVEN.items():
            path = home / given
            if (name == given or name.startswith(f'{given}/')) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                put(path)


def is_new(path, started):
    """Whether a file, or one in a folder, was written since then."""
    files = path.rglob('*') if path.is_dir() else [path]
    return any(file.is_file() and file.stat().st_mtime >= started for file in files)


def execute(words, home, cache):
    words = [sys.executable if word == 'python' else word for word in words]
    return subprocess.run(
        words,
        cwd=home,
        capture_output=True,
        text=True,
        env=environment(home, cache),
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )


def run(line, home, cache):
    """Run a command of a Python program and check what it shows and writes."""
    words = shlex.split(line)
    name = program_of(words)
    assert name in PROGRAMS, f'{line}: tests/journeys knows no program {name}; add what it has to show to PROGRAMS'
    program = PROGRAMS[name]
    if any(word.startswith('--help') for word in words):
        done = execute(words, home, cache)
        assert done.returncode == 0 and done.stdout.startswith('usage:'), done.stderr
        return
    if words[0] == 'mpiexec' and shutil.which('mpiexec') is None:
        pytest.skip('no mpiexec')
    words = substituted(words)
    outputs = outputs_of(words, program)
    provide([word for word in words if word not in outputs], home)
    started = time.time() - 0.01  # the clock of a file system is coarse
    done = execute(words, home, cache)
    shown = f'{line}\nrun as: {shlex.join(words)}\n{done.stdout}\n{done.stderr}'
    assert done.returncode == 0 and 'Traceback' not in done.stderr, shown
    assert re.search(program.shows, done.stdout + done.stderr), f'{program.shows} is not shown: {shown}'
    folders = [words[i + 1] for i, word in enumerate(words) if word in ('-p', '--save_path')]
    below = home / (folders[-1] if folders else '.')
    for pattern in program.writes:
        assert any(is_new(path, started) for path in below.glob(pattern)), f'{pattern} was not written: {shown}'
    assert not any(map(os.path.isabs, outputs)), f'{line} writes outside of its folder'
    for output in outputs:
        places = [home / output, (home / output).with_suffix('.dot')]  # a drawing, where Graphviz is not installed
        assert any(is_new(place, started) for place in places), f'{output} was not written: {shown}'


# ---- the commands, by how they are treated ----


def starts_with(line, beginnings):
    return next((start for start in beginnings if line == start or line.startswith((f'{start} ', f'{start}='))), None)


def kind_of(line):
    """'listed', 'make', 'refused', 'measurement' or 'run'."""
    if starts_with(line, table.LISTED):
        return 'listed'
    if line.split()[0] == 'make':
        return 'make'
    if any(mark in line for mark in table.REFUSED):
        return 'refused'
    if any(name in line for name in table.MEASUREMENTS):
        return 'measurement'
    return 'run'


def lines_of(kind):
    return [command.line for command in COMMANDS if kind_of(command.line) == kind]


def journeys():
    """The commands to run; of each program one without the mark."""
    names = {line: program_of(shlex.split(line)) for line in lines_of('run')}
    quick = {}
    for line, name in names.items():
        if '--help' not in line and PROGRAMS.get(name, Program('')).quick in line:
            quick.setdefault(name, line)
    return [
        pytest.param(line, id=line, marks=() if line == quick.get(name) and '/' not in name else pytest.mark.journeys)
        for line, name in names.items()
    ]


@pytest.mark.parametrize('line', journeys())
def test_command(line, home, cache):
    run(line, home, cache)


@pytest.mark.journeys
@pytest.mark.parametrize('name', sorted({name.split()[0] for name in PROGRAMS if '/' not in name}))
def test_examples_of_help(name, tmp_path, cache):
    home = copy_of_repository(tmp_path / 'help')
    words = ['python', name] if name == 'main.py' else ['python', '-m', name]
    done = execute([*words, '--help'], home, cache)
    assert done.returncode == 0, done.stderr
    skipped = []
    examples = dict.fromkeys(documents.examples_of_help(done.stdout))
    for i, line in enumerate(examples.keys() - {command.line for command in COMMANDS}):
        home = copy_of_repository(tmp_path / f'{i}/squeeze_net')
        try:
            if kind_of(line) == 'refused':
                is_refused(line, home, cache)
            else:
                run(line, home, cache)
        except pytest.skip.Exception as reason:
            skipped.append(str(reason))
    if skipped:
        pytest.skip('; '.join(skipped))


@pytest.mark.journeys
@pytest.mark.parametrize('line', lines_of('refused'), ids=str)
def test_what_needs_several_gpus_is_refused_in_one_sentence(line, home, cache):
    is_refused(line, home, cache)


def is_refused(line, home, cache):
    """All flags but those of mpiexec are read and checked; then there is no GPU."""
    words = shlex.split(line)
    done = execute(words[words.index('python') :], home, cache)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and re.search(r'GPU|NCCL|CuPy|mpiexec', done.stderr)


@pytest.mark.journeys
@pytest.mark.parametrize('line', lines_of('measurement'), ids=str)
def test_measurement_has_the_flags(line, home, cache):
    words = shlex.split(line)
    done = execute(['python', program_of(words), '--help'], home, cache)
    if missing := re.search(r"No module named '(\w+)'", done.stderr):
        pytest.skip(f'no {missing[1]}, which this measurement imports')
    assert done.returncode == 0, done.stderr
    for flag in [word for word in words if word.startswith('--')]:
        assert re.search(rf'{flag}\b', done.stdout), f'{line}: {flag}'


@pytest.mark.parametrize('line', lines_of('listed'), ids=str)
def test_command_that_is_only_listed(line, home):
    """What there is to be said of it without running it: targets of make and extras of pip exist."""
    if line.startswith('make '):
        subprocess.run(['make', '-n', *line.split()[1:]], cwd=home, check=True, capture_output=True)
    extras = {extra for found in re.findall(r'(?:\[|EXTRAS=)([\w,]+)', line) for extra in found.split(',')}
    place = ROOT if line.startswith('make ') else ROOT / 'trainer'
    project = tomllib.loads((place / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert extras <= project['optional-dependencies'].keys()


@pytest.mark.journeys
@pytest.mark.parametrize('line', lines_of('make'), ids=str)
def test_make(line, home, cache):
    """The lines of the target that train are run as any other; the environment of the tests stands for its own."""
    target = line.split()[1:]
    recipe = subprocess.run(['make', '-n', *target], cwd=home, capture_output=True, text=True, check=True).stdout
    lines = [line for line in recipe.replace('\\\n', ' ').splitlines() if 'main.py' in line]
    for line in lines:
        run(re.sub(r'^\S*/python', 'python', line), home, cache)
    if not target:
        done = subprocess.run(['make'], cwd=home, capture_output=True, text=True, check=True)
        assert re.search(r'make run +train', done.stdout)
    else:
        assert lines, f'{line} trains nothing: say in LISTED why it is not run'


# trainer/tests/test_readme.py runs the block that the README shares with trainer/README.md.
BLOCKS = [(page, code) for page, code in documents.python_blocks() if page != 'README.md']


@pytest.mark.parametrize('code', [code for _, code in BLOCKS], ids=[page for page, _ in BLOCKS])
def test_block_of_python(code, home, cache):
    provide(re.findall(r"'([\w./]+)'", code), home)
    done = execute(['python', '-c', code], home, cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r'\b[01]\.\d+', done.stdout.splitlines()[-1]), done.stdout  # an accuracy, or a probability


def test_every_command_has_a_kind():
    """One that belongs to no program, target or list fails here, with the page that has it."""
    for command in COMMANDS:
        kind = kind_of(command.line)
        words = shlex.split(command.line)
        is_known = kind != 'run' or ('python' in words and program_of(words) in PROGRAMS)
        assert is_known, f'{command.page}: {command.line}: say in tests/journeys how to run it'


def test_what_is_listed_is_documented():
    lines = [command.line for command in COMMANDS]
    for beginning in table.LISTED:
        assert any(starts_with(line, [beginning]) for line in lines), f'{beginning} is in no document'
    for name in table.MEASUREMENTS:
        assert any(name in line for line in lines), f'{name} is in no document'
