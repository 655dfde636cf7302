"""The flags: command line over YAML file over the network's own recipe over the defaults of `Config`."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from trainer.config import COMMUNICATORS, GRAD_DTYPES, NAMES, OPTIMIZERS, PRECISIONS, SCHEDULES, UNREADABLE, Config
from trainer.data import datasets
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.engine import ENGINES
from trainer.errors import SECONDS_FOR_FIRST, InputError, rank_from_environment


def parse(
    networks: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    epilog: str | None = None,
) -> Config:
    """The configuration that the command line asks for.

    Args:
        networks: name -> class; a class may carry `recipe`, the flags that suit it where the defaults do not.
        argv: arguments without the program's name; those of the process by default.
        description, epilog: what the program does, and examples: the first and the last lines of `--help`.
    Raises:
        InputError: a value out of range, or a YAML file with an unknown key.
    """
    parser = make_parser(networks, description, epilog)
    given = vars(parser.parse_args(split_glued(sys.argv[1:] if argv is None else argv)))
    config_file = given.pop('config', None)
    if config_file is not None:
        given = put_over(given, read_yaml(Path(config_file), parser))
    model = given.setdefault('model', next(iter(networks)))
    return Config(**put_over(given, getattr(networks[model], 'recipe', {})))


def put_over(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of both, those of `upper` winning: also --epoch over --iterations, or the other way round."""
    lengths = {'epoch', 'iterations'}
    is_replaced = bool(lengths & upper.keys())
    return {name: value for name, value in lower.items() if not (is_replaced and name in lengths)} | dict(upper)


def split_glued(argv: Sequence[str]) -> list[str]:
    """`-lr0.5`, `-trb2`, `-teb2` -> flag and value; argparse itself would read the first as `-l r0.5`."""
    glued = re.compile(r'(-lr|-trb|-teb)=?([\d.].*)')
    matches = [(glued.fullmatch(word), word) for word in argv]
    return [part for match, word in matches for part in (match.groups() if match else (word,))]


def read_yaml(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Flags from a YAML mapping of their long names, checked by the parser as if they stood on the command line."""
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f'--config {path} cannot be read: {" ".join(str(error).split())}') from None
    if not isinstance(values, dict):
        raise InputError(f'--config {path} has to hold lines `flag: value`, not a {type(values).__name__}')
    argv = []
    for key, value in values.items():
        if key not in NAMES:
            close = difflib.get_close_matches(str(key), NAMES, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise InputError(f'--config {path} has the unknown key {key!r}{hint}')
        if isinstance(value, dict) or (isinstance(value, list) and key not in LISTS):
            raise InputError(f'--config {path}: {key} takes one value, not {value!r}')
        if isinstance(value, list):
            value = ','.join(map(str, value))
        if isinstance(value, bool) and key in ('overwrite', 'reset_classifier', 'sync_bn'):
            argv += [f'--{key}'] if value else []
        elif value is not None:
            argv.append(f'--{key}={value}')

    def fail(message: str) -> NoReturn:
        raise InputError(f'--config {path}: {message}')

    parser.error = fail  # type: ignore[method-assign]
    return vars(parser.parse_args(argv))


def resume_command(argv: Sequence[str] | None = None) -> str:
    """The command line that goes on where this one was interrupted."""
    words = [word for word in (sys.argv if argv is None else argv) if word != '--overwrite']
    if '--resume' in words:
        at = words.index('--resume')
        has_path = at + 1 < len(words) and not words[at + 1].startswith('-')
        del words[at : at + 1 + has_path]
    return shlex.join(['python', *(word for word in words if not word.startswith('--resume=')), '--resume'])


def milestones(text: str) -> tuple[int, ...]:
    """`150,225` -> (150, 225); rising, from 1 on."""
    epochs = tuple(int(word) for word in text.split(',') if word.strip())
    if list(epochs) != sorted(set(epochs)) or (epochs and epochs[0] < 1):
        raise ValueError
    return epochs


def gpu(text: str) -> int:
    """`0` -> 0; several are refused with a word on how to use them."""
    if ',' in text:
        raise argparse.ArgumentTypeError(
            f'{text!r} names several GPUs, but a process uses one: several need a process each, '
            'as in: mpiexec -n 4 python main.py -g 0 --communicator pure_nccl'
        )
    return int(text)


LISTS = ('milestones', 'freeze', 'lr_multiplier')  # may be lists in YAML, with commas on the command line
INT = {'type': int, 'metavar': 'N'}
NUMBER = {'type': float, 'metavar': 'X'}
FILE = {'metavar': 'FILE'}


def flags(networks: Mapping[str, Any]) -> dict[str, list[tuple[str, dict[str, Any], str]]]:
    """The table of flags: group -> rows of (names, type, help)."""
    return {
        'what to train': [
            (
                '--model',
                {'choices': list(networks), 'metavar': 'NAME'},
                f'{", ".join(networks)} (default: {next(iter(networks))})',
            ),
            (
                '--dataset',
                {'choices': list(datasets.DATASETS)},
                (
                    'default: cifar10; shapes are drawn, not downloaded; folder is train/<class>/*, test/<class>/*, '
                    'in memory up to 8 GiB of pixels; never in memory: imagelist (train.txt and val.txt of lines '
                    '`path label`), shards (folders train and val of tars), recordio (train.rec, val.rec)'
                ),
            ),
            (
                '--data',
                {'metavar': 'DIR'},
                'where the dataset is: its folder or its archive (default: a cache, filled by downloading)',
            ),
            ('--limit', INT, 'only the first N images of each class, in training and in the test'),
            (
                '--size',
                {'type': int, 'metavar': 'PX'},
                (
                    'training crop, cut from 2 to 10 px more; tested at 6 px more (default: 122; 32: up to 4 more, '
                    'at 32); with another --preprocess, images from files are also tested at it (default: its own)'
                ),
            ),
            (
                '--preprocess',
                {'choices': list(PREPROCESSINGS), 'metavar': 'NAME'},
                (
                    f'colours of {", ".join(PREPROCESSINGS)}; of images from files, also how they are cut and '
                    'augmented; published weights need their own (default: experiment)'
                ),
            ),
            ('--dropout', NUMBER, "ratio of the network's dropout; 0 turns it off (default: the network's own, 0.5)"),
        ],
        'how to train': [
            ('-e --epoch', INT, 'last epoch (default: 300)'),
            ('--iterations', INT, 'last iteration, instead of --epoch; the schedule then ends with it, too'),
            ('-b --batch', INT, 'images an update (default: 64)'),
            ('-lr --lr', NUMBER, "learning rate at the start (default: 0.1, or the network's own)"),
            (
                '--lr_batch',
                INT,
                '--lr is for a batch of N: multiply it by --batch / N, best with --warmup (default: for any batch)',
            ),
            (
                '--schedule',
                {'choices': SCHEDULES},
                'step: a tenth from each milestone on; cosine, poly: down to 0; factor: times --factor (default: step)',
            ),
            (
                '--milestones',
                {'type': milestones, 'metavar': 'A,B'},
                'epochs after which the rate drops (default: half and three quarters of --epoch)',
            ),
            ('--power', NUMBER, 'of --schedule poly: lr * (1 - progress)^X (default: 1, a straight line)'),
            ('--factor', NUMBER, 'of --schedule factor (default: 0.94)'),
            ('--factor_every', INT, 'whole epochs from one multiplication by --factor to the next (default: 1)'),
            ('--warmup', NUMBER, 'raise the rate from 0 over so many epochs (default: 0)'),
            ('--optimizer', {'choices': OPTIMIZERS}, 'default: momentum'),
            ('--momentum', NUMBER, 'default: 0.9'),
            ('--weight_decay', NUMBER, "on all parameters (default: 1e-4, or the network's own)"),
            (
                '--lr_multiplier',
                {'metavar': 'PATTERN=X,...'},
                "times X the rate of the parameters that match: 'conv10=10,fire9/*=2' (the last match counts)",
            ),
            (
                '--freeze',
                {'metavar': 'PATTERN,...'},
                "links or parameters that stay as they are, batch normalisation in test mode: 'conv1,fire[2-5]/*'",
            ),
            (
                '--smoothing',
                NUMBER,
                'of the labels in the training loss: X of each is spread over all classes (default: 0)',
            ),
            (
                '--mixup',
                {'type': float, 'metavar': 'ALPHA'},
                'mix images in pairs, shares from Beta(ALPHA, ALPHA) (default: 0, off)',
            ),
            (
                '--cutmix',
                {'type': float, 'metavar': 'ALPHA'},
                'paste a box of one image into another; with --mixup, either by chance',
            ),
            (
                '--ema',
                {'type': float, 'metavar': 'DECAY'},
                'test and save a moving average of the weights, such as of 0.999 (default: 0, off)',
            ),
            ('--seed', INT, 'of weights, order, augmentation and dropout (default: 0)'),
            (
                '-s --start_epoch',
                INT,
                'first epoch: -s 100 -e 300 runs epochs 100 to 300 at the rates of those epochs (default: 1)',
            ),
        ],
        'where and how to compute': [
            ('-g --gpu', {'type': gpu, 'metavar': 'ID'}, 'GPU by number; -1 is the CPU (default: -1)'),
            (
                '--communicator',
                {'choices': COMMUNICATORS},
                'share each batch among the processes of mpiexec: naive on CPUs; pure_nccl on GPUs, from -g on',
            ),
            (
                '--sync_bn --sync-bn',
                {'action': 'store_true'},
                'normalise with the statistics of the whole batch, not of the part of each process: slower',
            ),
            (
                '--grad_dtype',
                {'choices': GRAD_DTYPES},
                'of the gradients that pure_nccl sends (default: float32)',
            ),
            (
                '--precision',
                {'choices': PRECISIONS},
                'fp16, bf16: half-precision maps, float32 weights (default: fp16 by the engine of a GPU, else float32)',
            ),
            (
                '--engine',
                {'choices': ENGINES},
                'fused is the fast engine of the device, plain is Chainer alone (default: fused)',
            ),
            ('--workers', INT, 'processes that decode images from files; 0 for none (default: as many as cores)'),
            (
                '--unreadable',
                {'choices': UNREADABLE},
                (
                    'on an image that cannot be read: stop, or take the next one in training and leave it out '
                    'in the test (default: fail)'
                ),
            ),
            ('--threads', INT, 'CPU threads (default: OMP_NUM_THREADS, or every core)'),
            (
                '-trb --train_batch_divide',
                INT,
                'compute a training batch in N parts, to need less memory; still one update a batch (default: 1)',
            ),
            ('-teb --test_batch_divide', INT, 'the same for test batches (default: 1)'),
        ],
        'what to keep and what to start from': [
            (
                '-p --save_path',
                {'metavar': 'DIR'},
                'everything is written below it, into results/<run>/ and img/ (default: .)',
            ),
            ('--run', {'metavar': 'NAME'}, 'name of the run (default: <model>_<dataset>_<size>px)'),
            ('--overwrite', {'action': 'store_true'}, 'replace a run of the same name'),
            (
                '--resume',
                {'nargs': '?', 'const': 'auto', 'metavar': 'auto|PATH'},
                'go on from a checkpoint: PATH, or the last one of this run (auto; starts afresh without one)',
            ),
            ('--checkpoint_minutes', NUMBER, 'also save within an epoch, this often; 0 for never (default: 10)'),
            (
                '-m --load_model --pretrained',
                {'metavar': 'FILE|NAME'},
                'start from the weights in a file of any format, or in a published one by its name',
            ),
            (
                '--reset_classifier --reset-classifier',
                {'action': 'store_true'},
                'but not from those of its classifier, which may be of other classes',
            ),
            ('-o --load_optimizer', FILE, 'start from the momentum in a checkpoint'),
            ('-l --load_log', FILE, 'begin the log with the epochs before --start_epoch of an earlier log.jsonl'),
            (
                '--log_file',
                FILE,
                'also write what is printed to FILE, behind what it holds, with the time of each line',
            ),
            (
                '--config',
                {'metavar': 'FILE.yaml'},
                'read flags from lines `flag: value`, by their long names; flags given here win',
            ),
        ],
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if rank_from_environment():
            time.sleep(SECONDS_FOR_FIRST)  # the first one says what all have to
        super().error(message)


def make_parser(
    networks: Mapping[str, Any], description: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser that returns only the flags given, so that the defaults stay in `Config`."""
    parser = _Parser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, rows in flags(networks).items():
        group = parser.add_argument_group(title)
        for names, options, help_text in rows:
            group.add_argument(*names.split(), **options, help=help_text)
    return parser
