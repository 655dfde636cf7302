"""Who may import whom: every arrow of the layout, in `trainer/` and in `squeeze_net/`; no arrow up, no circle."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down. A room imports from its own row's modules (where marked), and from every row below.
TRAINER = [
    {'__init__'},
    {'classifier', 'training', 'cli', 'doctor'},
    {'report'},
    {'run'},
    {'config'},
    {'step'},
    {'parallel'},
    {'data'},
    {'links'},
    {'functions'},
    {'device'},
    {'engine'},
    {'commands'},
    {'files', 'fonts', 'compat', 'moved'},
    {'errors'},
]
SQUEEZE_NET = [
    {'__main__'},
    {'infer', 'validate', 'summary', 'compression', 'explore', 'deploy'},
    {'classifier'},
    {'weights'},
    {'labels'},
    {'__init__'},
    {'networks'},
]
LAZY = (
    'matplotlib',
    'PIL',
    'cupy',
    'chainermn',
    'mpi4py',
    'pyarrow',
    'tensorboardX',
)  # imported where used: `import trainer` works without them


def module_name(path):
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


PATHS = [path for folder in ('squeeze_net', 'trainer') for path in (ROOT / folder).rglob('*.py')]
PATHS = [ROOT / 'main.py', *(path for path in PATHS if 'tests' not in path.parts)]
MODULES = {module_name(path): path for path in PATHS}


@cache
def imports(path, top_level_only=False):
    """The modules that a file imports: `from a import b` is a.b where that is a module, else a."""
    tree, found = ast.parse(path.read_text(encoding='utf-8')), []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} imports relatively'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            found += [name if name in MODULES else node.module for name in names]
    return found


def row_of(name):
    """The row of a module in its package's table; fails for one that has no place."""
    package, _, rest = name.partition('.')
    room = rest.partition('.')[0] or '__init__'
    rows = {'trainer': TRAINER, 'squeeze_net': SQUEEZE_NET}[package]
    found = [i for i, row in enumerate(rows) if room in row]
    assert found, f'{name} has no place: add {room!r} to a row of {package.upper()} in tests/test_imports.py'
    return found[0], room


@pytest.mark.parametrize('name', MODULES)
def test_every_arrow_points_down(name):
    package = name.partition('.')[0]
    for imported in imports(MODULES[name]):
        target = imported.partition('.')[0]
        if package == 'main':
            continue
        assert target != 'main' and not (package == 'trainer' and target == 'squeeze_net'), f'{name} imports {imported}'
        if target != package or imported == 'trainer':  # `trainer` itself only makes Chainer ready
            assert not (package == 'trainer' == imported), f'{name} imports the package that holds it'
            continue
        (own_row, own_room), (row, room) = row_of(name), row_of(imported)
        assert row > own_row or room == own_room, f'{name} imports {imported}, which stands above or beside it'


def test_networks_use_functions_links_and_errors_alone():
    allowed = ('trainer.functions', 'trainer.links', 'trainer.errors', 'squeeze_net.networks')
    for name, path in MODULES.items():
        if name.startswith('squeeze_net.networks'):
            for imported in imports(path):
                assert imported.split('.')[0] not in ('trainer', 'squeeze_net') or imported.startswith(allowed), (
                    f'{name} imports {imported}'
                )


def test_there_is_no_circle():
    graph = {name: {one for one in imports(path) if one in MODULES and one != name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize('name', MODULES)
def test_heavy_packages_are_imported_where_used(name):
    assert [one for one in imports(MODULES[name], top_level_only=True) if one.split('.')[0] in LAZY] == []
    if any(one.split('.')[0] == 'chainermn' for one in imports(MODULES[name])):
        assert name.startswith('trainer.parallel')


def test_one_process_does_not_load_mpi():
    code = 'import main, sys; print(*{name.split(".")[0] for name in sys.modules} & {"mpi4py", "chainermn"})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ''
