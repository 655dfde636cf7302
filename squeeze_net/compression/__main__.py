"""Compress a trained network into an archive, look into one, or unpack it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.compression import plots, report
from squeeze_net.compression.pipeline import Compression, Interrupted, stages_of
from squeeze_net.compression.plan import SCAN, Plan, make_plan, read_plan
from squeeze_net.labels import are_numbers
from squeeze_net.weights.formats.sqz import archive
from squeeze_net.weights.network import check_fits, identify
from squeeze_net.weights.record import MAX_FILE_BYTES, Weights
from trainer import Config, cli, commands
from trainer.config import CUT_FROM_FILES
from trainer.config.setting import settings_of
from trainer.data import datasets, preprocessing
from trainer.data.augmentation import Sizes
from trainer.data.augmentation.sizes import size_tested_at
from trainer.data.datasets import Data, Stream
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.data.sources.source import read_file
from trainer.files import atomic_write, make_place, refuse_to_replace
from trainer.run.records import read_json, strict_json

RETRAINING = (  # settings shared with main.py
    *('dataset', 'data', 'limit', 'batch', 'pad', 'mixup', 'smoothing', 'weight_decay'),
    *('gpu', 'precision', 'seed'),
)
N_STAGE = 4  # in a report
EXAMPLES = """\
python -m squeeze_net.compression compress weights.npz -o small.sqz --data DIR --sparsity 0.8 --bits 5
python -m squeeze_net.compression compress weights.npz -o small.sqz --data DIR --config configs/compression/small.yaml
python -m squeeze_net.compression compress weights.npz -o small.sqz --data DIR --config configs/compression/rate.yaml
python -m squeeze_net.compression compress compressed_SqueezeNet.net -o squeezenet.sqz --lossless
python -m squeeze_net.compression inspect small.sqz
python -m squeeze_net.compression decompress small.sqz weights.npz
python -m squeeze_net.validate small.sqz --dataset cifar10 --data DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Compress, inspect, decompress or draw, as the command line asks; returns the exit code."""
    args = make_parser().parse_args(argv)
    return {'compress': compress, 'inspect': inspect, 'decompress': decompress, 'draw': draw}[args.command](args)


def compress(args: argparse.Namespace) -> int:
    """`compress`: encode as it is, or by a plan; returns the exit code."""
    given = {name: getattr(args, name) for name in settings_of(Plan) if name in args}
    path = weights.find(args.source)
    source = read_source(path, args)
    if args.output.suffix != archive.SUFFIX:
        raise trainer.InputError(f'-o {args.output}: the name must end in {archive.SUFFIX}')
    make_place(args.output)
    if args.output.exists() and args.output.samefile(path):
        raise trainer.InputError(f'-o {args.output} is the file to compress: choose another name')
    is_resumed = (stages_of(args.output) / 'pruned.json').exists() and not args.lossless
    refuse_to_replace(args.output, '-o', overwrite=args.overwrite or args.scan or is_resumed)
    if args.lossless:
        useless = [*given, *(name for name in ('config', 'scan') if getattr(args, name))]
        if useless:
            raise trainer.InputError(f'--lossless only encodes: --{useless[0]} does not go with it')
        cli.refuse_settings(args, 'has no meaning for --lossless, which only encodes', *RETRAINING)
        coded = archive.save(source, args.output)
        print(report.layer_table([report.layer_row(name, one) for name, one in coded.items()]))
        print(f'{args.output}: {args.output.stat().st_size:,} bytes, of which {archive.payload(coded):,} are tensors')
        return 0
    plan = make_plan(given, {} if args.config is None else read_plan(args.config))
    if 'drop' in given and plan.sparsity != SCAN and not args.scan:
        raise trainer.InputError(f'--drop {plan.drop:g} has no meaning without --sparsity scan, or --scan')
    return compress_by_plan(source, plan, args)


def compress_by_plan(source: Weights, plan: Plan, args: argparse.Namespace) -> int:
    """All stages, or only the scan of `--scan`; returns the exit code."""
    report_path = args.output.with_suffix('.json')
    if report_path.exists() and not args.overwrite:
        read_report(report_path)  # a file of another kind is not replaced
    config = make_config(args, source)
    data = trainer.load_data(config)
    print(datasets.describe(data))
    teacher = None
    if plan.teacher is not None:
        teacher = weights.read_teacher(plan.teacher, config, data.classes)
    compression = Compression(with_facts(source, config, data), args.output, plan, config, data, teacher)
    if args.scan:
        compression.scan_only()
        print('to prune by it: the same command with --sparsity scan instead of --scan')
        return 0
    try:
        compression.run()
    except Interrupted as interrupted:
        print('interrupted; the same command resumes it')
        return interrupted.exit_code
    record = compression.report()
    with atomic_write(report_path, 'w') as file:
        file.write(strict_json(record) + '\n')
    print(report.layer_table(record['layers']))
    print(report.stage_table(record['stages']))
    print(f'{args.output}: {args.output.stat().st_size:,} bytes   report: {report_path}')
    print('drew ' + ', '.join(str(picture) for picture in compression.draw()))
    return 0


def draw(args: argparse.Namespace) -> int:
    """`draw`: accuracy against size, of the reports named."""
    if args.output.suffix != '.png':
        raise trainer.InputError(f'-o {args.output}: the name must end in .png')
    records = [read_report(path) for path in args.reports]
    make_place(args.output)
    refuse_to_replace(args.output, '-o', overwrite=args.overwrite)
    plots.draw_tradeoff(records, args.output)
    for path, record in zip(args.reports, records, strict=True):
        print(f'{path}\n{report.stage_table(record["stages"])}')
    print(f'drew {args.output}')
    return 0


def read_report(path: Path) -> dict[str, Any]:
    """What `compress` wrote; raises InputError for a file of another kind."""
    record = read_json(path)
    try:
        stages, layers, texts = record['stages'], record['layers'], (record['network'], record['data'])
        is_valid = (
            len(stages) == N_STAGE
            and all(stage['n_byte'] > 0 and 0 <= stage['accuracy'] <= 1 and stage['name'] for stage in stages)
            and all(row['n_nonzero'] >= 0 and row['n_value'] > 0 and row['name'] for row in layers)
            and record['plan']['bits']
            and all(isinstance(text, str) for text in texts)
        )
    except (KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise trainer.InputError(f'{path} is not a report of `compress`')
    return record


def read_source(path: Path, args: argparse.Namespace) -> Weights:
    """The weights to compress, with what --network and --preprocess say of them."""
    source = weights.read(path)
    if args.network is not None:
        check_fits(source, args.network)
        source = identify(source.with_metadata(network=args.network))
    if args.preprocess is not None:
        view = preprocessing.find(args.preprocess, source.metadata.preprocessing)
        source = source.with_metadata(preprocessing=view)
    return source


def make_config(args: argparse.Namespace, source: Weights) -> Config:
    """Of retraining and tests: the images that the network expects."""
    view = source.metadata.preprocessing
    if view is None:
        raise trainer.InputError(f'{args.source} does not say what images it expects: give --preprocess and --size')
    is_cut = args.dataset in CUT_FROM_FILES and view.name != 'experiment'
    size = args.size or (view.crop if is_cut else size_of(source, view.crop))
    model = str(source.metadata.network)
    return cli.config_of(args, *RETRAINING, model=model, size=size, preprocess=view.name, epoch=1)


def size_of(source: Weights, crop: int) -> int:
    """The `--size` whose test images have `crop` px."""
    return crop if has_fixed_size(source) else size_tested_at(crop)


def has_fixed_size(source: Weights) -> bool:
    """Whether the network takes images of one size only."""
    return getattr(NETWORKS.get(str(source.metadata.network)), 'fixed_size', False)


def with_facts(source: Weights, config: Config, data: Data | Stream) -> Weights:
    """The weights with what the archive says of them: the images that they are tested on, and the classes."""
    view = data.pictures(Sizes.of(config.size, has_fixed_size(source)), config.preprocess).preprocessing
    own = source.metadata.classes
    return source.with_metadata(preprocessing=view, classes=data.classes if own is None or are_numbers(own) else own)


def inspect(args: argparse.Namespace) -> int:
    """`inspect`: the layers of an archive, as text or JSON."""
    raw = read_file(args.archive, MAX_FILE_BYTES)
    try:
        opened = archive.Archive(raw)
    except trainer.InputError as error:
        raise trainer.InputError(f'{args.archive} cannot be read as an archive: {error}') from None
    rows = [report.entry_row(entry) for entry in opened.entries.values()]
    if args.json:
        commands.write_utf8()
        print(strict_json({'metadata': opened.metadata.dumps(), 'n_byte': opened.n_byte, 'layers': rows}))
        return 0
    metadata = opened.metadata
    view = metadata.preprocessing.name if metadata.preprocessing is not None else 'unknown'
    print(f'{args.archive}: {metadata.network}, {metadata.n_class} classes, preprocessing {view}')
    print(report.layer_table(rows))
    print(f'{opened.n_byte:,} bytes, of which {opened.n_header:,} are names, shapes, metadata and checksum')
    return 0


def decompress(args: argparse.Namespace) -> int:
    """`decompress`: an archive into a weights file of another format."""
    for written in weights.write(weights.read(args.archive), args.target, args.overwrite):
        print(f'wrote {written}: {written.stat().st_size:,} bytes')
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The flags of the four commands."""
    parser = commands.command_parser('python -m squeeze_net.compression', __doc__, EXAMPLES)
    kinds = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    about = 'prune, retrain, quantise, retrain, encode'
    add_flags_of_compress(kinds.add_parser('compress', help=about, description=f'{about.capitalize()}.'))
    about = 'what is in an archive'
    one = kinds.add_parser('inspect', help=about, description=f'{about.capitalize()}: its tensors, and their bytes.')
    one.add_argument('archive', type=Path, metavar='FILE.sqz')
    one.add_argument('--json', action='store_true', help='one line of JSON instead of the table')
    about = 'an archive into a weights file of another format'
    one = kinds.add_parser('decompress', help=about, description=f'{about.capitalize()}.')
    one.add_argument('archive', type=Path, metavar='FILE.sqz')
    one.add_argument('target', type=Path, metavar='DST', help=f'ends in one of {", ".join(weights.WRITTEN)}')
    commands.add_overwrite(one)
    about = 'accuracy against size, of several compressions'
    one = kinds.add_parser('draw', help=about, description=f'Draw {about}.')
    one.add_argument('reports', type=Path, nargs='+', metavar='REPORT.json', help='as `compress` has written them')
    one.add_argument('-o', '--output', type=Path, required=True, metavar='FILE.png')
    commands.add_overwrite(one)
    return parser


def add_flags_of_compress(parser: argparse.ArgumentParser) -> None:
    """The flags of `compress`."""
    parser.add_argument('source', metavar='MODEL', help='weights of any format, or a published one by its name')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE.sqz')
    commands.add_overwrite(parser)
    parser.add_argument('--lossless', action='store_true', help='only encode: the same values to the bit')
    parser.add_argument('--config', type=Path, metavar='FILE.yaml', help='the plan, from lines `flag: value`')
    plan = parser.add_argument_group('the plan')
    scan = 'only try and draw how much each layer can be pruned, for --sparsity scan'
    plan.add_argument('--scan', action='store_true', help=scan)
    cli.add_group(plan, Plan)
    group = parser.add_argument_group('the network and its data')
    group.add_argument('--network', choices=list(NETWORKS), metavar='NAME', help='if the file does not name it')
    group.add_argument('--preprocess', choices=list(PREPROCESSINGS), metavar='NAME', help='if the file does not say it')
    size = 'training crop, as for main.py (default: what fits the file)'
    group.add_argument('--size', type=int, metavar='PX', help=size)
    cli.add_settings(group, *RETRAINING)


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.compression'):
        sys.exit(main())
