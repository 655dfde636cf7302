"""Who takes part in train_step.py and busy.py, and who can on this machine."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.process import Worker, WorkerError
from peers.race import Race
from record import header, make_parser

import trainer
from trainer import engine
from trainer.commands import Parser
from trainer.engine.cores import count_cores


@dataclass(frozen=True)
class Contestant:
    """A worker's kind and flags (`python -m peers --help` in benchmarks/), and what it needs."""

    kind: str
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # in the environment of --torch-python; none: it runs in the project's
    trains: bool = True

    @property
    def precision(self) -> str:
        return 'bf16' if 'bf16' in self.flags else 'float32'


CONTESTANTS = {
    'project': Contestant('project'),
    'project_bf16': Contestant('project', ('--precision', 'bf16')),
    'chainer': Contestant('project', ('--engine', 'plain')),
    'torch_eager': Contestant('pytorch', packages=('torch',)),
    'torch_compile': Contestant('pytorch', ('--compile',), packages=('torch',)),
    'torch_bf16': Contestant('pytorch', ('--precision', 'bf16'), packages=('torch',)),
    'onnxruntime': Contestant('onnx_runtime', packages=('torch', 'onnx', 'onnxscript', 'onnxruntime'), trains=False),
}


def launch(contestant: Contestant, network: str, reference: Path, args: argparse.Namespace, **more: Any) -> Worker:
    """The contestant in its process; `more` are flags of `python -m peers`."""
    python = args.torch_python if contestant.packages else sys.executable
    flags = {'network': network, 'batch': args.batch, 'threads': args.threads, 'reference': reference} | more
    return Worker(python, contestant.kind, flags, contestant.flags)


def start(names: list[str], network: str, reference: Path, args: argparse.Namespace, **more: Any) -> Race:
    """The race of these contestants, each built and waiting."""
    race = Race()
    for name in names:
        race.enter(name, launch(CONTESTANTS[name], network, reference, args, **more))
    return race


def save_reference(network: str, folder: Path, args: argparse.Namespace) -> None:
    """Have stock Chainer write the weights all contestants start with, and the logits of a few images."""
    worker = launch(CONTESTANTS['chainer'], network, folder, args)
    try:
        worker.ask('save_reference')
    except WorkerError as error:
        raise trainer.TrainingError(f'stock Chainer cannot compute {network}: {error}') from None
    finally:
        worker.close()


def contestants_parser(doc: str | None, out: str, rounds: int) -> Parser:
    parser = make_parser(doc, out, rounds)
    parser.add_argument('--threads', type=int, default=count_cores(), help='of every contestant; default: %(default)s')
    parser.add_argument('--torch-python', default=sys.executable, help='interpreter of an environment with the peers')
    return parser


def open_record(name: str, wanted: list[str], args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The header of a record, and which of the contestants can run here; completes `torch_python` and `out`."""
    args.torch_python = find_interpreter(args.torch_python)
    args.out = args.out.with_name(
        args.out.name.replace('SET', f'{instruction_set()}{"_capped" if is_capped() else ""}')
    )
    skipped = find_skipped(wanted, args.torch_python)
    for contestant, reason in skipped.items():
        print(f'{contestant} is skipped: {reason}')
    record = header(name) | {
        'machine': describe_machine(args.threads),
        'instruction_set': instruction_set(),
        'capped': is_capped(),
        'rounds': args.rounds,
        'skipped': skipped,
    }
    return record, [contestant for contestant in wanted if contestant not in skipped]


def find_missing(python: str, packages: set[str]) -> set[str]:
    """Those packages that an interpreter cannot find."""
    code = 'import sys; from importlib.util import find_spec; print(*(p for p in sys.argv[1:] if not find_spec(p)))'
    try:
        run = subprocess.run([python, '-c', code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise trainer.InputError(f'--torch-python {python} does not run as a Python interpreter') from None
    return set(run.stdout.split())


def instruction_set() -> str:
    """The family of what oneDNN computes with: 'amx', 'avx512', 'avx2' or 'sse41'."""
    name = engine.instruction_set()
    if name is None:
        raise trainer.InputError('oneDNN is not installed, so there is nothing to compare: install onednn-cpu-tbb')
    family = name.lower().replace('-', '').replace('.', '')
    return 'avx512' if family.startswith('avx512') else family.removesuffix('vnni')


def is_capped() -> bool:
    """Whether ONEDNN_MAX_CPU_ISA leaves less than the processor has."""
    cpu_info = Path('/proc/cpuinfo')
    flags = cpu_info.read_text().split() if cpu_info.exists() else []
    family = instruction_set()
    families = {'amx_tile': 'amx', 'avx512f': 'avx512', 'avx2': 'avx2'}  # the best first
    return next((name != family for flag, name in families.items() if flag in flags), False)


def find_skipped(names: list[str], python: str) -> dict[str, str]:
    """Why each contestant that cannot run here cannot."""
    reasons = {}
    if is_capped() and 'onnxruntime' in names:
        reasons['onnxruntime'] = 'it computes with all that the processor has, and the others are capped'
    reasons |= {name: 'it needs AVX512-BF16' for name in names if 'bf16' in name and not engine.has_bfloat16()}
    return reasons | find_lacking(names, python)


def find_lacking(names: list[str], python: str) -> dict[str, str]:
    """Which packages each contestant lacks."""
    missing = find_missing(python, {package for name in names for package in CONTESTANTS[name].packages})
    skipped = {}
    for name in names:
        if lacks := missing.intersection(CONTESTANTS[name].packages):
            skipped[name] = f'the interpreter of --torch-python has no {", ".join(sorted(lacks))}'
    return skipped


def describe_machine(threads: int) -> dict[str, Any]:
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return {'cpu': names[0] if names else platform.machine(), 'usable_cores': count_cores(), 'threads': threads}


def find_interpreter(python: str) -> str:
    """Its absolute path, since the workers run in another folder; not resolved: a link may be what makes a venv."""
    path = shutil.which(python)
    if path is None:
        raise trainer.InputError(f'--torch-python {python} is not an executable file')
    return str(Path(path).absolute())
