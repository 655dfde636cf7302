"""Compile squeezenet.c to squeezenet.wasm, for the page; needs the compiler of the extra `page`.

    python -m squeeze_net.deploy.page.build

The same compiler and C file give the same bytes, wherever they are.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from trainer import InputError, exit_with_message

SOURCE = Path(__file__).parents[1] / 'c' / 'squeezenet.c'
PROGRAM = Path(__file__).with_name('squeezenet.wasm')
FUNCTIONS = (
    'memory',
    'open',
    'classify',
    'logits',
    'n_class',
    'class_name',
    'network_name',
    'crop',
    'cut',
    'message',
)
FLAGS = (
    '-std=c99',
    '-O3',
    '-msimd128',
    '-target',
    'wasm32-wasi',  # for its C library, of which only memory, strings and exp() stay
    '-mexec-model=reactor',  # functions without a main
    '-Wl,--strip-all',  # no names or paths
    '-Wl,-z,stack-size=262144',  # bytes; about 50,000 are used
    *(f'-Wl,--export=sqz_{name}' for name in FUNCTIONS),
)


def build(target: Path) -> None:
    """Compile to a file.

    Raises:
        InputError: the compiler is not installed.
    """
    if importlib.util.find_spec('ziglang') is None:
        raise InputError("the compiler is not installed: pip install ziglang==0.15.2, as the extra 'page' has it")
    subprocess.run([sys.executable, '-m', 'ziglang', 'cc', *FLAGS, SOURCE, '-o', target], check=True)
    target.chmod(0o644)


if __name__ == '__main__':
    with exit_with_message('python -m squeeze_net.deploy.page.build'):
        build(PROGRAM)
        print(f'wrote {PROGRAM}: {PROGRAM.stat().st_size:,} bytes')
