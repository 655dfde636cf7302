"""The design space of the Fire modules: accuracy against size, over the squeeze ratio and the share of 3x3 filters.

Each point is a network made from five metaparameters and trained alike; the points of an earlier call are kept.

Source: Iandola et al., "SqueezeNet" (2016), section 5: the metaparameters (5.1), the squeeze ratio (5.2, figure 3a) and
the share of 3x3 filters (5.3, figure 3b).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trainer
from squeeze_net.explore.metaparameters import MACROS, Metaparameters, cross, grid
from squeeze_net.explore.plots import draw, table
from squeeze_net.explore.point import load_data
from squeeze_net.explore.sweep import CONDITIONS, POINTS, Sweep, read_conditions, read_points, run
from trainer import cli, commands
from trainer.engine.cores import count_cores
from trainer.files import make_place

TRAINING = ('dataset', 'data', 'limit', 'batch', 'precision', 'gpu')  # settings shared with main.py
RATIOS, SHARES = (0.125, 0.25, 0.5, 0.75, 1.0), (0.01, 0.25, 0.5, 0.75, 0.99)
MIDDLE = 0.5  # where the two lines cross
EXAMPLES = """\
python -m squeeze_net.explore -o runs/explore --size 32 --limit 500 --epoch 6 --data DIR
python -m squeeze_net.explore -o runs/explore --size 32 --limit 500 --epoch 6 --data DIR --grid --processes 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train the points that are missing, and draw all; returns the exit code."""
    args = make_parser().parse_args(argv)
    given = {name: value for name in ('share', 'ratio') if (value := getattr(args, name)) is not None}
    base = Metaparameters(args.base_e, args.incr_e, args.freq, pct3x3=given.get('share', MIDDLE))
    if args.grid:
        for name, value in given.items():
            raise trainer.InputError(f'--{name} {value:g} has no meaning with --grid, which takes all of --{name}s')
        networks = grid(args.ratios, args.shares, base)
    else:
        networks = cross(args.ratios, args.shares, base, given.get('ratio', MIDDLE))
    images = args.images or args.output
    if args.draw_only:
        rows = read_points(args.output / POINTS)
        conditions = read_conditions(args.output / CONDITIONS)
    else:
        for name in ('processes', 'seeds'):
            if (n := getattr(args, name)) < 1:
                raise trainer.InputError(f'--{name} is {n}; expected 1 or more')
        config = cli.config_of(
            args,
            *TRAINING,
            *('size', 'epoch', 'lr'),
            schedule='cosine',
            warmup=min(1.0, args.epoch / 4),
            weight_decay=2e-4,
            threads=None if args.processes == 1 else max(1, count_cores() // args.processes),
            save_path=str(args.output / 'runs'),
        )
        make_place(args.output / POINTS)
        make_place(images / 'pareto.png')
        data = load_data(config)
        sweep = Sweep(args.output, args.macro, args.batch_norm, config, args.seeds, data.source)
        first = sweep.point(networks[0])
        make_place(first.log)
        first.build(data.n_class)  # refuses a size before any process is started
        rows, exit_code = run(sweep, networks, args.processes)
        conditions = sweep.conditions
        if exit_code > 128:
            print('stopped; the same command resumes it')
        if exit_code:
            return exit_code
    if not rows:
        raise trainer.InputError(f'{args.output} holds no points yet')
    print(table(rows))
    limit = f'{conditions["limit"]:,} images a class' if conditions['limit'] else 'all images'
    title = f'{conditions["dataset"]}, {limit}, {conditions["size"]} px, {conditions["epoch"]} epochs'
    for path in draw(rows, images, f'SqueezeNet {conditions["macro"]} on {title}'):
        print(f'drew {path}')
    return 0


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 0.25,0.5') from None


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = commands.command_parser('python -m squeeze_net.explore', __doc__, EXAMPLES)
    parser.add_argument(
        '-o', '--output', type=Path, required=True, metavar='DIR', help='folder of the points and their runs'
    )
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the pictures (default: -o)')
    parser.add_argument('--draw_only', action='store_true', help='draw the points already trained, and train none')
    group = parser.add_argument_group('the points')
    for flag, default, help in (
        ('--ratios', RATIOS, 'squeeze ratios (SR)'),
        ('--shares', SHARES, 'shares of 3x3 filters (pct3x3)'),
    ):
        shown = ','.join(f'{value:g}' for value in default)
        help = f'{help} (default: {shown})'
        group.add_argument(flag, type=_fractions, default=default, metavar='X,X,...', help=help)
    group.add_argument('--grid', action='store_true', help='every ratio with every share, not only two lines')
    group.add_argument('--macro', choices=list(MACROS), default='v1.1', help='stem and pools (default: v1.1)')
    group.add_argument('--batch_norm', action=argparse.BooleanOptionalAction, default=True, help='default: yes')
    for flag, help in (
        ('--share', 'share of 3x3 filters while the ratios vary'),
        ('--ratio', 'squeeze ratio while the shares vary'),
    ):
        group.add_argument(flag, type=float, metavar='X', help=f'{help} (default: {MIDDLE})')
    for flag, number, help in (
        ('--base_e', 128, 'expand filters of fire2'),
        ('--incr_e', 128, 'more expand filters after every --freq Fires'),
        ('--freq', 2, 'Fires of one width'),
    ):
        group.add_argument(flag, type=int, default=number, metavar='N', help=f'{help} (default: {number})')
    group = parser.add_argument_group('the training of each')
    cli.add_settings(group, *TRAINING, size=48, epoch=10, lr=0.05)
    group.add_argument('--seeds', type=int, default=1, metavar='N', help='train each point N times (default: 1)')
    processes = 'networks trained at a time, sharing the cores (default: 1)'
    group.add_argument('--processes', type=int, default=1, metavar='N', help=processes)
    return parser


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.explore'):
        sys.exit(main())
