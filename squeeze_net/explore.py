"""The design space of the Fire modules: accuracy against size, over the squeeze ratio and the share of 3x3 filters.

Each point is a network made from five metaparameters and trained alike; the points of an earlier call are kept.

Source: Iandola et al., "SqueezeNet" (2016), section 5: the metaparameters (5.1), the squeeze ratio (5.2, figure 3a) and
the share of 3x3 filters (5.3, figure 3b).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import trainer
from squeeze_net.squeezenet import PublishedSqueezeNet, SqueezeNetV10, SqueezeNetV11
from trainer import Config, datasets
from trainer.augmentation import Sizes
from trainer.config import PRECISIONS
from trainer.cores import count_cores
from trainer.files import atomic_write
from trainer.plots import COLOURS, LABEL, NOTE, new_figure, save, set_title
from trainer.records import SUMMARY, read_run, strict_json

POINTS, CONDITIONS = 'points.jsonl', 'conditions.json'
RATIOS, SHARES = (0.125, 0.25, 0.5, 0.75, 1.0), (0.01, 0.25, 0.5, 0.75, 0.99)
MACROS = {'v1.0': SqueezeNetV10, 'v1.1': SqueezeNetV11}
N_FIRE = 8
EXAMPLES = """\
python -m squeeze_net.explore -o runs/explore --size 32 --limit 500 --epoch 6 --data DIR
python -m squeeze_net.explore -o runs/explore --size 32 --limit 500 --epoch 6 --data DIR --grid --processes 2
"""


@dataclass(frozen=True)
class Metaparameters:
    """What the dimensions of all eight Fire modules follow from; by default those of SqueezeNet.

    Fire i of 0 .. 7 has e = base_e + incr_e * (i // freq) expand filters, of which a share pct3x3 is 3x3, and
    SR * e squeeze filters.

    Attributes:
        base_e: expand filters of the first Fire.
        incr_e: how many more there are after every `freq` Fires.
        freq: Fires from one increase to the next.
        SR: squeeze ratio, squeeze filters over expand filters, above 0 .. 1.
        pct3x3: share of the expand filters that are 3x3, 0 .. 1, both ends excluded: a Fire has both kinds.
    Raises:
        InputError: at construction, for a value out of range; names it.
    """

    base_e: int = 128
    incr_e: int = 128
    freq: int = 2
    SR: float = 0.125
    pct3x3: float = 0.5

    def __post_init__(self) -> None:
        for name, lowest in ('base_e', 2), ('incr_e', 0), ('freq', 1):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 4096:
                raise trainer.InputError(f'{name} is {value!r}, expected a whole number of {lowest} .. 4096')
        if not 0 < self.SR <= 1:
            raise trainer.InputError(f'the squeeze ratio SR is {self.SR!r}, expected a number above 0, at most 1')
        if not 0 < self.pct3x3 < 1:
            raise trainer.InputError(f'the share pct3x3 is {self.pct3x3!r}, expected a number between 0 and 1')

    @property
    def fires(self) -> dict[str, tuple[int, int, int]]:
        """Squeeze, expand1x1 and expand3x3 of each Fire, at least 1 each."""
        found = {}
        for i in range(N_FIRE):
            e = self.base_e + self.incr_e * (i // self.freq)
            e3x3 = min(max(round(self.pct3x3 * e), 1), e - 1)
            found[f'fire{i + 2}'] = (max(round(self.SR * e), 1), e - e3x3, e3x3)
        return found

    def network(self, macro: str, batch_norm: bool) -> type[PublishedSqueezeNet]:
        """The class of networks with these Fires in the layout of v1.0 or v1.1."""
        kind = MACROS[macro]
        return type(kind.__name__, (kind,), {'fires': self.fires, 'batch_norm': batch_norm, '__doc__': kind.__doc__})

    @property
    def name(self) -> str:
        return f'e{self.base_e}+{self.incr_e}_{self.freq}_SR{self.SR:g}_pct{self.pct3x3:g}'


METAPARAMETERS = tuple(field.name for field in fields(Metaparameters))


def cross(ratios: Iterable[float], shares: Iterable[float], base: Metaparameters, ratio: float) -> list[Metaparameters]:
    """The two lines of the paper: every ratio at the share of `base`, and every share at one ratio."""
    points = [replace(base, SR=r) for r in ratios]
    points += [replace(base, SR=ratio, pct3x3=share) for share in shares]
    return list(dict.fromkeys(points))


def grid(ratios: Iterable[float], shares: Sequence[float], base: Metaparameters) -> list[Metaparameters]:
    """Every ratio with every share."""
    return [replace(base, SR=ratio, pct3x3=share) for ratio in ratios for share in shares]


@dataclass(frozen=True)
class Sweep:
    """What all points have in common.

    Attributes:
        folder: of `points.jsonl` and of the runs.
        macro: the layout, a key of MACROS.
        batch_norm: between convolutions and ReLUs; without it, few epochs from scratch lead nowhere.
        config: of every run, but for its name and seed.
        seeds: how often each point is trained.
    """

    folder: Path
    macro: str
    batch_norm: bool
    config: Config
    seeds: int

    @property
    def conditions(self) -> dict[str, Any]:
        """What rows have to have in common to be compared."""
        names = ('dataset', 'limit', 'size', 'epoch', 'batch', 'lr', 'schedule', 'weight_decay', 'warmup')
        return {
            'macro': self.macro,
            'batch_norm': self.batch_norm,
            **{name: getattr(self.config, name) for name in names},
        }

    def run_config(self, point: Metaparameters, seed: int) -> Config:
        return replace(self.config, model='squeezenet', run=f'{point.name}_seed{seed}', seed=seed, resume='auto')

    def log_of(self, point: Metaparameters, seed: int) -> Path:
        """Where a process of its own prints to."""
        folder = self.run_config(point, seed).run_folder
        return folder.with_name(f'{folder.name}.log')  # the name itself has dots

    def train(self, point: Metaparameters, seed: int) -> int:
        """Train one network, or go on where it was stopped; returns the exit code.

        Raises:
            InputError: flags or data that do not fit.
        """
        config = self.run_config(point, seed)
        data = datasets.load(config.dataset, config.data, limit=config.limit, max_side=Sizes.of(config.size).side_max)
        np.random.seed(seed)
        try:
            with config.using_precision():
                model = point.network(self.macro, self.batch_norm)(data.n_class, config.size)
        except ValueError as error:
            raise trainer.InputError(f'--size {config.size}: {error}') from None
        return trainer.train(model, data, config).exit_code

    def row(self, point: Metaparameters, seed: int) -> dict[str, Any] | None:
        """What a finished run says, None for one that is not."""
        folder = self.run_config(point, seed).run_folder
        if not (folder / SUMMARY).exists():
            return None
        summary = read_run(folder).summary
        if summary is None or not summary.get('finished'):
            return None
        found = {name: summary['last'][name] for name in ('test_accuracy', 'train_accuracy', 'test_loss')}
        n_parameters = summary['n_parameters']
        return {**asdict(point), 'seed': seed, 'n_parameters': n_parameters, 'bytes': 4 * n_parameters, **found} | {
            'seconds': summary['seconds']
        }


def run(sweep: Sweep, points: Sequence[Metaparameters], processes: int) -> tuple[list[dict[str, Any]], int]:
    """Train what is missing, `processes` networks at a time; rows are kept as they come.

    Returns:
        The rows of all points, and the exit code: 0, or what a signal or a failure ended a run with.
    """
    claim(sweep)
    jobs = [(point, seed) for seed in range(sweep.seeds) for point in points]
    waiting = [job for job in jobs if sweep.row(*job) is None]
    print(f'{len(jobs)} networks, of which {len(jobs) - len(waiting)} are there already', flush=True)
    exit_code = 0
    if processes == 1:
        for point, seed in waiting:
            print(f'{point.name}, seed {seed}', flush=True)
            if exit_code := sweep.train(point, seed):
                break
            keep(sweep, jobs)
    elif waiting:
        exit_code = _run_side_by_side(sweep, jobs, waiting, processes)
    return keep(sweep, jobs), exit_code


def _run_side_by_side(sweep: Sweep, jobs: list[Any], waiting: list[Any], processes: int) -> int:
    """A process a network, each with its share of the cores and its output in a file; a signal stops all of them."""
    context = get_context('spawn')
    running: dict[Any, tuple[Any, Any]] = {}
    waiting, exit_code = list(waiting), 0

    def forward(number: int, _: Any) -> None:
        waiting.clear()
        for process, _ in running.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tqdm(total=len(waiting), desc='networks', disable=None) as bar:
            while waiting or running:
                while waiting and len(running) < processes:
                    job = waiting.pop(0)
                    process = context.Process(target=_in_process, args=(sweep, *job))
                    process.start()
                    running[process.sentinel] = process, job
                for sentinel in wait(list(running)):
                    process, (point, seed) = running.pop(sentinel)
                    process.join()
                    if process.exitcode:
                        waiting.clear()
                        exit_code = exit_code or process.exitcode
                        log = sweep.log_of(point, seed)
                        bar.write(f'{point.name}, seed {seed}: ended with exit code {process.exitcode}, see {log}')
                    else:
                        row = next(row for row in keep(sweep, jobs) if _is_of(row, point, seed))
                        bar.write(f'{point.name}, seed {seed}: {row["bytes"] / 1e6:.2f} MB, {row["test_accuracy"]:.2%}')
                        bar.update()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return exit_code


def _in_process(sweep: Sweep, point: Metaparameters, seed: int) -> None:
    log = sweep.log_of(point, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a') as file:
        os.setpgid(0, 0)  # Ctrl-C reaches it by way of the parent, once
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with trainer.exit_with_message('python -m squeeze_net.explore'):
            sys.exit(sweep.train(point, seed))


def claim(sweep: Sweep) -> None:
    """Refuse a folder whose points were trained otherwise."""
    path = sweep.folder / CONDITIONS
    text = strict_json(sweep.conditions)
    if path.exists() and (found := path.read_text(encoding='utf-8')) != text:
        raise trainer.InputError(f'{sweep.folder} holds points of {found}, not of {text}: choose another -o')
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'w') as file:
        file.write(text)


def keep(sweep: Sweep, jobs: Sequence[tuple[Metaparameters, int]]) -> list[dict[str, Any]]:
    """Write the rows that there are, also those of points of earlier calls, and return the ones of these jobs."""
    rows = [row for job in jobs if (row := sweep.row(*job)) is not None]
    path = sweep.folder / POINTS
    earlier = read_points(path) if path.exists() else []
    others = [row for row in earlier if not any(_is_of(row, *job) for job in jobs)]
    with atomic_write(path, 'w') as file:
        file.writelines(strict_json(row) + '\n' for row in others + rows)
    return rows


def _is_of(row: Mapping[str, Any], point: Metaparameters, seed: int) -> bool:
    return row['seed'] == seed and all(row[name] == value for name, value in asdict(point).items())


def read_points(path: Path) -> list[dict[str, Any]]:
    """The rows of `points.jsonl`.

    Raises:
        InputError: it cannot be read, or has lines that are none; says which.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            row = json.loads(line)
            if not isinstance(row, dict) or not {*METAPARAMETERS, 'seed', 'bytes', 'test_accuracy'} <= row.keys():
                raise trainer.InputError(f'{path}, line {number}: {line[:60]!r} is no point of a sweep')
            rows.append(row)
    except (OSError, ValueError) as error:
        if isinstance(error, trainer.InputError):
            raise
        raise trainer.InputError(f'{path} cannot be read: {error}') from None
    return rows


# ---- pictures ----


@dataclass(frozen=True)
class Mark:
    """All trainings of a point: size in MB, and the mean, lowest and highest accuracy, %."""

    point: Metaparameters
    megabytes: float
    mean: float
    lowest: float
    highest: float


def marks(rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """One a point, by rising size."""
    groups: dict[Metaparameters, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(Metaparameters(**{name: row[name] for name in METAPARAMETERS}), []).append(row)
    found = []
    for point, group in groups.items():
        accuracies = [100 * row['test_accuracy'] for row in group]
        mean = sum(accuracies) / len(accuracies)
        found.append(Mark(point, group[0]['bytes'] / 1e6, mean, min(accuracies), max(accuracies)))
    return sorted(found, key=lambda mark: mark.megabytes)


def front(found: Sequence[Mark]) -> list[Mark]:
    """The points that no smaller one equals, by rising size: the Pareto front."""
    best: list[Mark] = []
    for mark in sorted(found, key=lambda mark: (mark.megabytes, -mark.mean)):
        if not best or mark.mean > best[-1].mean:
            best.append(mark)
    return best


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, title: str) -> list[Path]:
    """The paper's two plots, of the longest line of each kind among the points, and all points with their front."""
    found = marks(rows)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, varied, fixed, label in (
        ('squeeze_ratio', 'SR', 'pct3x3', 'squeeze ratio'),
        ('share_3x3', 'pct3x3', 'SR', 'share of 3x3 filters'),
    ):
        lines: dict[Any, list[Mark]] = {}
        for mark in found:
            lines.setdefault(getattr(mark.point, fixed), []).append(mark)
        line = max(lines.values(), key=len)
        if len(line) > 1:
            other = {'SR': 'squeeze ratio', 'pct3x3': 'share of 3x3 filters'}[fixed]
            subtitle = f'{title}; {other} {getattr(line[0].point, fixed):g}'
            figure, axes = new_figure(9, 6)
            line = sorted(line, key=lambda mark: getattr(mark.point, varied))
            _plot(axes, line, COLOURS[0], [f'{getattr(mark.point, varied):g}' for mark in line])
            set_title(figure, f'Accuracy against size, by {label}', subtitle)
            save(figure, folder / f'{name}.png')
            written.append(folder / f'{name}.png')
    figure, axes = new_figure(9, 6)
    best = front(found)
    rest = [mark for mark in found if mark not in best]
    axes.scatter([m.megabytes for m in rest], [m.mean for m in rest], color='0.6', s=40, label='other points')
    labels = [f'SR {mark.point.SR:g}, 3x3 {mark.point.pct3x3:.0%}' for mark in best]
    _plot(axes, best, COLOURS[1], labels, label='Pareto front')
    axes.legend(fontsize=LABEL - 1, loc='lower right')
    set_title(figure, 'The design space: no smaller network is as good as those on the line', title)
    save(figure, folder / 'pareto.png')
    return [*written, folder / 'pareto.png']


def _plot(axes: Any, line: Sequence[Mark], colour: str, texts: Sequence[str], label: str | None = None) -> None:
    x, y = [mark.megabytes for mark in line], [mark.mean for mark in line]
    spread = [[mark.mean - mark.lowest for mark in line], [mark.highest - mark.mean for mark in line]]
    axes.errorbar(x, y, yerr=spread, color=colour, marker='o', markersize=7, linewidth=2, capsize=4, label=label)
    for i, (mark, text) in enumerate(zip(line, texts, strict=True)):  # below and above in turn: neighbours may be close
        side, place = ('left', (7, -16)) if i % 2 == 0 else ('right', (-7, 8))
        options: dict[str, Any] = {
            'xytext': place,
            'textcoords': 'offset points',
            'ha': side,
            'fontsize': NOTE,
            'color': colour,
        }
        axes.annotate(text, (mark.megabytes, mark.mean), **options)
    axes.set_xlabel('size of the weights in float32, MB', fontsize=LABEL)
    axes.set_ylabel('test accuracy, %', fontsize=LABEL)
    axes.grid(alpha=0.25)
    axes.margins(0.24, 0.14)


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    base = Metaparameters(args.base_e, args.incr_e, args.freq, pct3x3=args.share)
    make = grid(args.ratios, args.shares, base) if args.grid else cross(args.ratios, args.shares, base, args.ratio)
    if args.draw_only:
        rows = read_points(args.output / POINTS)
        conditions = json.loads((args.output / CONDITIONS).read_text(encoding='utf-8'))
        exit_code = 0
    else:
        if args.processes < 1 or args.seeds < 1:
            raise trainer.InputError('--processes and --seeds have to be 1 or more')
        config = Config(
            dataset=args.dataset,
            data=args.data,
            limit=args.limit,
            size=args.size,
            epoch=args.epoch,
            batch=args.batch,
            lr=args.lr,
            schedule='cosine',
            warmup=min(1.0, args.epoch / 4),
            weight_decay=2e-4,
            precision=args.precision,
            gpu=args.gpu,
            threads=None if args.processes == 1 else max(1, count_cores() // args.processes),
            save_path=str(args.output / 'runs'),
        )
        sweep = Sweep(args.output, args.macro, args.batch_norm, config, args.seeds)
        rows, exit_code = run(sweep, make, args.processes)
        conditions = sweep.conditions
        if exit_code:
            print('stopped; the same command goes on where this one ended')
            return exit_code
    if not rows:
        raise trainer.InputError(f'{args.output} holds no points yet')
    print(table(rows))
    limit = f'{conditions["limit"]:,} images a class' if conditions['limit'] else 'all images'
    title = f'{conditions["dataset"]}, {limit}, {conditions["size"]} px, {conditions["epoch"]} epochs'
    for path in draw(rows, args.images or args.output, f'SqueezeNet {conditions["macro"]} on {title}'):
        print(f'drew {path}')
    return exit_code


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    found = marks(rows)
    best = front(found)
    lines = [f'{"SR":>6}  {"pct3x3":>6}  {"MB":>6}  {"accuracy":>8}  {"lowest":>6}  {"highest":>7}']
    for mark in found:
        point = mark.point
        lines.append(
            f'{point.SR:>6g}  {point.pct3x3:>6g}  {mark.megabytes:>6.2f}  {mark.mean:>6.2f} %  {mark.lowest:>6.2f}  '
            f'{mark.highest:>7.2f}' + ('  on the Pareto front' if mark in best else '')
        )
    return '\n'.join(lines)


def _fractions(text: str) -> list[float]:
    return [float(word) for word in text.split(',')]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m squeeze_net.explore',
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='DIR', help='of the points and their runs')
    parser.add_argument('--images', type=Path, metavar='DIR', help='of the pictures (default: -o)')
    parser.add_argument('--draw_only', action='store_true', help='draw the points that there are')
    group = parser.add_argument_group('the points')
    group.add_argument(
        '--ratios', type=_fractions, default=RATIOS, metavar='X,X,...', help=f'SR (default: {_shown(RATIOS)})'
    )
    group.add_argument(
        '--shares', type=_fractions, default=SHARES, metavar='X,X,...', help=f'pct3x3 (default: {_shown(SHARES)})'
    )
    group.add_argument('--share', type=float, default=0.5, metavar='X', help='of the line of ratios (default: 0.5)')
    group.add_argument('--ratio', type=float, default=0.5, metavar='X', help='of the line of shares (default: 0.5)')
    group.add_argument('--grid', action='store_true', help='every ratio with every share, not only these two lines')
    group.add_argument('--base_e', type=int, default=128, metavar='N', help='expand filters of fire2 (default: 128)')
    group.add_argument('--incr_e', type=int, default=128, metavar='N', help='more after every --freq (default: 128)')
    group.add_argument('--freq', type=int, default=2, metavar='N', help='Fires (default: 2)')
    group.add_argument('--macro', choices=list(MACROS), default='v1.1', help='stem and pools (default: v1.1)')
    group.add_argument('--batch_norm', action=argparse.BooleanOptionalAction, default=True, help='default: yes')
    group = parser.add_argument_group('the training of each')
    group.add_argument('--dataset', choices=list(datasets.DATASETS), default='cifar10', help='default: cifar10')
    group.add_argument('--data', metavar='DIR', help='where it is, as for main.py')
    group.add_argument('--limit', type=int, metavar='N', help='only the first N images of each class')
    group.add_argument('--size', type=int, default=48, metavar='PX', help='training crop (default: 48)')
    group.add_argument('-e', '--epoch', type=int, default=10, metavar='N', help='default: 10')
    group.add_argument('-b', '--batch', type=int, default=64, metavar='N', help='default: 64')
    group.add_argument(
        '-lr', '--lr', type=float, default=0.05, metavar='X', help='at the start of a cosine (default: 0.05)'
    )
    group.add_argument('--seeds', type=int, default=1, metavar='N', help='train each point N times (default: 1)')
    group.add_argument('--precision', choices=PRECISIONS, default='auto', help='default: auto')
    group.add_argument('-g', '--gpu', type=int, default=-1, metavar='ID', help='-1 is the CPU (default: -1)')
    group.add_argument(
        '--processes', type=int, default=1, metavar='N', help='networks at a time, which share the cores (default: 1)'
    )
    return parser


def _shown(values: Iterable[float]) -> str:
    return ','.join(f'{value:g}' for value in values)


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.explore'):
        sys.exit(main())
