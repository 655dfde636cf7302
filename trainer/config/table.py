"""The table of settings: each once, with its default, bounds or choices, flags and help.

To add a setting, add a line to its group, and read it where it acts. The command line and its help (`trainer.cli`),
YAML files, `config.yaml` of a run, the checks and docs/settings.md are made from this table.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass

from trainer.config.setting import setting
from trainer.data.augmentation.sizes import LARGEST, SMALLEST
from trainer.data.datasets import DATASETS
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.engine import ENGINES

OPTIMIZERS = ('momentum', 'nesterov', 'adam', 'muon')
SCHEDULES = ('step', 'cosine', 'constant', 'poly', 'factor', 'auto')
COMMUNICATORS = ('naive', 'flat', 'pure_nccl')
GRAD_DTYPES = ('float32', 'float16')
UNREADABLE = ('fail', 'skip')
CLASS_WEIGHTS = ('none', 'balanced')
PRECISIONS = ('auto', 'float32', 'fp16', 'bf16', 'float64')


def _milestones(text: str) -> tuple[int, ...]:
    """`150,225` -> (150, 225); rising, from 1 on."""
    try:
        epochs = tuple(int(word) for word in text.split(',') if word.strip())
    except ValueError:
        raise ArgumentTypeError(f'{text!r}; expected epochs such as 150,225') from None
    if list(epochs) != sorted(set(epochs)) or (epochs and epochs[0] < 1):
        raise ArgumentTypeError(f'{text!r}; expected rising epochs from 1 on, such as 150,225')
    return epochs


def _size(text: str) -> int:
    """The side of an image, px; the bounds are those of `Sizes`."""
    if not text.isdecimal() or not SMALLEST <= int(text) <= LARGEST:
        raise ArgumentTypeError(f'{text!r}; expected {SMALLEST} .. {LARGEST} px')
    return int(text)


def _gpu(text: str) -> int:
    """`0` -> 0; several are refused with a word on how to use them."""
    if ',' in text:
        raise ArgumentTypeError(
            f'{text!r} names several GPUs, but a process uses one: several need a process each, '
            'as in: mpiexec -n 4 python main.py -g 0 --communicator pure_nccl'
        )
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f'{text!r}; expected the number of a GPU, or -1 for the CPU') from None


@dataclass(frozen=True)
class DataSettings:
    """data: which images, and how they are presented"""

    dataset: str = setting(
        'cifar10',
        'shapes are drawn, without a download; folder is train/<class>/* and test/<class>/*, or <class>/*, in memory '
        'up to 8 GiB of pixels; never in memory: imagelist (train.txt and val.txt with lines `path label`), shards '
        '(folders train and val of tar files), recordio (train.rec and val.rec)',
        choices=tuple(DATASETS),
        is_open=True,
        is_common=True,
    )
    data: str | None = setting(
        None,
        'folder or archive of the dataset; of cifar10 and cifar100 also the Parquet files (default: a cache, filled by '
        'downloading)',
        metavar='DIR',
        is_common=True,
        may_change=True,
    )
    limit: int | None = setting(
        None, 'only the first N images of each class, for training and test', at_least=1, is_common=True
    )
    validation: str | None = setting(
        None,
        'training images to hold out, of each class the same share; they choose the best epoch, with whose weights '
        'the test images are then scored once (default: none, the test images choose it)',
        metavar='N|P%',
        is_common=True,
    )
    size: int = setting(
        0,  # stands for what suits the data, and is never 0 in a Config
        'side of the training crop, 8 to 1024 px (default: 122); it is cut from images resized to 2 to 10 px more, and '
        'tests use 6 px more (with 32: up to 4 px more, tested at 32). With another --preprocess, images from files '
        'are tested at this size (default: that of --preprocess)',
        metavar='PX',
        parse=_size,
        is_common=True,
    )
    progressive_size: str | None = setting(
        None,
        'train at PX up to the end of EPOCH, then at the next PX, then at --size: 64=12,96=20; each epoch is tested '
        'at its own size',
        metavar='PX=EPOCH,...',
        is_list=True,
    )
    pad: int = setting(
        0,
        'mirror N px at each edge of training images, before they are resized: crops move further, by up to N px',
        at_least=0,
    )
    preprocess: str = setting(
        'experiment',
        f'colours of {", ".join(PREPROCESSINGS)}; for images from files also how they are cut and augmented. '
        'Published weights need their own',
        metavar='NAME',
        choices=tuple(PREPROCESSINGS),
    )
    workers: int | None = setting(
        None, 'processes that decode images from files; 0 for none (default: one per core)', at_least=0, may_change=True
    )
    unreadable: str = setting(
        'fail',
        'images that cannot be read: fail, or skip: take the next one in training and leave it out of the test',
        choices=UNREADABLE,
        may_change=True,
    )


@dataclass(frozen=True)
class RecipeSettings:
    """recipe: the network, and how it is trained"""

    model: str = setting('model', '', metavar='NAME', is_common=True)  # its choices are the program's networks
    epoch: int | None = setting(None, 'last epoch (default: 300)', '-e', at_least=1, is_common=True, may_change=True)
    iterations: int | None = setting(
        None, 'last iteration, instead of --epoch; the schedule ends there too', at_least=1
    )
    patience: int | None = setting(
        None,
        'stop after N epochs without a higher accuracy, of the validation images if there are any, else of the test',
        at_least=1,
        is_common=True,
        may_change=True,
    )
    batch: int = setting(64, 'images per update', '-b', at_least=1, is_common=True)
    lr: float = setting(0.1, "learning rate at the start (or the network's own)", '-lr', at_least=0, is_common=True)
    lr_batch: int | None = setting(
        None, '--lr is for a batch of N: multiply it by --batch / N, best with --warmup', at_least=1
    )
    schedule: str = setting(
        'step',
        'step: a tenth after each milestone; cosine, poly: down to 0; factor: multiplied by --factor; auto: step, or '
        'for fewer than 30 epochs cosine and a warm-up (default: auto, or step with --lr, --warmup or --milestones)',
        choices=SCHEDULES,
        is_common=True,
    )
    milestones: tuple[int, ...] | None = setting(
        None,
        'epochs after which the rate drops (default: half and three quarters of --epoch)',
        metavar='A,B',
        parse=_milestones,
        is_list=True,
        may_change=True,
    )
    power: float = setting(1.0, 'exponent of --schedule poly: lr * (1 - progress)^X', at_least=0)
    factor: float = setting(0.94, 'what --schedule factor multiplies the rate by', at_least=0, at_most=1)
    factor_every: int = setting(1, 'epochs between two multiplications by --factor', at_least=1)
    warmup: float = setting(0.0, 'raise the rate from 0 over the first X epochs', at_least=0)
    optimizer: str = setting(
        'momentum',
        'MomentumSGD, Nesterov momentum, Adam, or Muon for the weights inside the network (the rest: Nesterov)',
        choices=OPTIMIZERS,
    )
    momentum: float = setting(0.9, 'momentum of the optimizer', at_least=0, below=1)
    muon_lr: float = setting(0.02, 'initial rate of the orthogonalised weights, for --optimizer muon', at_least=0)
    weight_decay: float = setting(1e-4, "on all parameters (or the network's own)", at_least=0)
    dropout: float | None = setting(
        None, "ratio of the network's dropout; 0 turns it off (default: the network's own, 0.5)", at_least=0, below=1
    )
    smoothing: float = setting(
        0.0, 'label smoothing: X of each label is spread over all classes', at_least=0, at_most=1
    )
    class_weights: str = setting(
        'none',
        'balanced: the loss of an image by its label is multiplied by all images / (classes * images of its class)',
        choices=CLASS_WEIGHTS,
    )
    teacher: str | None = setting(
        None,
        'distillation: also learn the outputs of the network with these weights: a file of any format, or published '
        'weights by name; a resumed run needs the same weights, from any path',
        metavar='FILE|NAME',
        may_change=True,  # the checkpoint knows the weights
    )
    distill: float = setting(0.9, 'share of the loss that is the distance to the --teacher', at_least=0, at_most=1)
    mixup: float = setting(
        0.0, 'mix images in pairs, with shares from Beta(ALPHA, ALPHA); 0 is off', metavar='ALPHA', at_least=0
    )
    cutmix: float = setting(
        0.0,
        'paste a box of one image into another; with --mixup, one of the two at random',
        metavar='ALPHA',
        at_least=0,
    )
    ema: float = setting(
        0.0,
        'test and save a moving average of the weights, for example with 0.999; 0 is off',
        metavar='DECAY',
        at_least=0,
        below=1,
    )
    load_model: str | None = setting(
        None,
        'start from the weights in a file of any format, or from published weights by name',
        '-m --pretrained',
        metavar='FILE|NAME',
        is_common=True,
        may_change=True,
    )
    reset_classifier: bool = setting(
        False,
        'load all weights except the classifier layer, which may have other classes',
        is_common=True,
        may_change=True,
    )
    finetune: str | None = setting(
        None,
        'fine-tune these weights with a new classifier for the classes of the data: takes the network and --preprocess '
        'from the file, and rates, epochs and frozen layers that suit few photos; flags given here win',
        metavar='FILE|NAME',
        is_common=True,
        may_change=True,
    )
    freeze: str | None = setting(
        None,
        "links or parameters that are not trained, batch normalisation in test mode: 'conv1,fire[2-5]/*'",
        metavar='PATTERN,...',
        is_list=True,
    )
    lr_multiplier: str | None = setting(
        None,
        "multiply the rate of matching parameters: 'conv10=10,fire9/*=2' (the last match counts)",
        metavar='PATTERN=X,...',
        is_list=True,
    )
    seed: int = setting(
        0, 'random seed of weights, order, augmentation, dropout and held-out images', at_least=0, below=2**32
    )


@dataclass(frozen=True)
class ComputeSettings:
    """compute: where, and in what precision"""

    gpu: int = setting(
        -1, 'GPU by number; -1 is the CPU', '-g', metavar='ID', parse=_gpu, at_least=-1, is_common=True, may_change=True
    )
    precision: str = setting(
        'auto',
        'fp16, bf16: activations in half precision, weights in float32 (auto: fp16 with the engine of a GPU, '
        'else float32)',
        choices=PRECISIONS,
        is_common=True,
    )
    engine: str = setting(
        'fused', 'fused: the fast engine of the device; plain: Chainer alone', choices=ENGINES, may_change=True
    )
    threads: int | None = setting(
        None, 'CPU threads (default: OMP_NUM_THREADS, or every core)', at_least=1, is_common=True, may_change=True
    )
    train_batch_divide: int = setting(
        1,
        'compute each training batch in N parts, which needs less memory; still one update per batch',
        '-trb',
        at_least=1,
        may_change=True,
    )
    test_batch_divide: int = setting(1, 'likewise, parts of a test batch', '-teb', at_least=1, may_change=True)
    communicator: str | None = setting(
        None,
        'share each batch among the processes of mpiexec: naive on CPUs; pure_nccl on GPUs, from -g on',
        choices=COMMUNICATORS,
        may_change=True,
    )
    sync_bn: bool = setting(
        False,
        'batch normalisation over the whole batch, not the part of each process; slower',
        may_change=True,
    )
    grad_dtype: str = setting(
        'float32', 'type in which pure_nccl sends gradients', choices=GRAD_DTYPES, may_change=True
    )


@dataclass(frozen=True)
class RunSettings:
    """run: what is written, and where it starts"""

    save_path: str = setting(
        '.', 'folder in which results/<run>/ and img/ are written', '-p', metavar='DIR', is_common=True, may_change=True
    )
    run: str | None = setting(
        None, 'name of the run (default: <model>_<dataset>_<size>px)', metavar='NAME', is_common=True, may_change=True
    )
    overwrite: bool = setting(False, 'replace an earlier run of the same name', is_common=True, may_change=True)
    resume: str | None = setting(
        None,
        'continue from a checkpoint: PATH, or the last one of this run (auto; starts anew if there is none)',
        metavar='auto|PATH',
        is_common=True,
        may_change=True,
    )
    checkpoint_minutes: float = setting(
        10.0, 'also save within an epoch, every X minutes; 0 for never', at_least=0, may_change=True
    )
    start_epoch: int = setting(
        1, 'first epoch: -s 100 -e 300 runs epochs 100 to 300 at the rates of those epochs', '-s', at_least=1
    )
    load_optimizer: str | None = setting(
        None, 'start from the momentum in a checkpoint', '-o', metavar='FILE', may_change=True
    )
    load_log: str | None = setting(
        None,
        'begin the log with the epochs before --start_epoch of an earlier log.jsonl',
        '-l',
        metavar='FILE',
        may_change=True,
    )
    tensorboard: bool = setting(
        False,
        'also write event files for TensorBoard to results/<run>/tensorboard/; needs tensorboardX',
        may_change=True,
    )
    log_file: str | None = setting(
        None, 'also write what is printed to FILE (appended, with timestamps)', metavar='FILE', may_change=True
    )


GROUPS = (DataSettings, RecipeSettings, ComputeSettings, RunSettings)
