"""Who may import whom: main -> squeeze_net -> trainer; functions and links -> nothing else of ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for folder in ('squeeze_net', 'trainer') for path in (ROOT / folder).rglob('*.py') if 'tests' not in path.parts
]
LAZY = (
    'matplotlib',
    'PIL',
    'cupy',
    'chainermn',
    'mpi4py',
)  # imported where used, so that `import trainer` works without them


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} imports relatively'
            if node.module == 'trainer':
                yield from (f'trainer.{alias.name}' for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for name in imports(path):
        if module.startswith('trainer'):
            assert name.split('.')[0] not in ('squeeze_net', 'main'), f'{module} imports {name}'
        if module.startswith('trainer.functions'):
            assert not name.startswith('trainer') or name.startswith(('trainer.functions', 'trainer.engine')), (
                f'{module} imports {name}'
            )
        if module.startswith('trainer.links'):
            assert not name.startswith('trainer') or name.startswith(('trainer.functions', 'trainer.links')), (
                f'{module} imports {name}'
            )
        if module.startswith('squeeze_net'):
            assert name.split('.')[0] != 'main'
        assert name.split('.')[0] != 'chainermn' or module.startswith('trainer.parallel.'), f'{module} imports {name}'
    for name in imports(path, top_level_only=True):
        assert name.split('.')[0] not in LAZY, f'{module} imports {name} at its top'


def test_one_process_does_not_load_mpi():
    code = 'import main, sys; print(*{name.split(".")[0] for name in sys.modules} & {"mpi4py", "chainermn"})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ''
