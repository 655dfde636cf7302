"""The old names of modules, so that code that imports them keeps working.

`import trainer.predictor` gives `trainer.step.predictor`, the same module object; `python -m trainer.augmentation` and
`python -m trainer.datasets.pack` are the commands' names and stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    'trainer.augmentation': 'trainer.data.augmentation',
    'trainer.captured': 'trainer.step.captured',
    'trainer.checkpoint': 'trainer.run.checkpoint',
    'trainer.confusion': 'trainer.report.confusion',
    'trainer.datasets': 'trainer.data.datasets',
    'trainer.datasets.decode': 'trainer.data.decode',
    'trainer.datasets.sources': 'trainer.data.sources',
    'trainer.loop': 'trainer.training',
    'trainer.optimizer': 'trainer.step.optimizer',
    'trainer.predictor': 'trainer.step.predictor',
    'trainer.preprocessing': 'trainer.data.preprocessing',
    'trainer.records': 'trainer.run.records',
    'trainer.schedule': 'trainer.step.schedule',
}


def present_name(name: str) -> str | None:
    """`trainer.datasets.pack` -> `trainer.data.datasets.pack`; None if the module has not moved."""
    start = name
    while start:
        if start in MOVED:
            return MOVED[start] + name.removeprefix(start)
        start = start.rpartition('.')[0]
    return None


class _Loader(Loader):
    """Returns the module of the present name, which keeps its own specification."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.module = import_module(self.name)
        self.own_spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec

    def get_code(self, fullname: str) -> CodeType | None:  # asked for by `python -m`
        spec = find_spec(self.name)
        assert spec is not None and isinstance(spec.loader, InspectLoader)
        return spec.loader.get_code(self.name)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        name = present_name(fullname)
        spec = find_spec(name) if name is not None else None
        if name is None or spec is None:
            return None
        is_package = spec.submodule_search_locations is not None
        return ModuleSpec(fullname, _Loader(name), origin=spec.origin, is_package=is_package)


def install() -> None:
    """Let the old names be imported, from now on."""
    sys.meta_path.insert(0, _Finder())  # first: a moved package finds its submodules by their old names, too
