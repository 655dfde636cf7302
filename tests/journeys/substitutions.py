"""THE table: what of a documented command is replaced, or provided, so that it ends in seconds. Nothing else is.

Data and weights have the names that the documents give them and are put in their place (GIVEN); numbers of epochs and
images, and the device, are flags (FLAGS, ADDED). A name or a program that no table knows makes the test fail.
"""

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from PIL import Image

from trainer import engine
from trainer.data.datasets.cifar import CIFAR10, CIFAR100

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', ROOT.parent / 'shared' / 'data'))
RESULTS = ROOT / 'results'
CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']  # of CIFAR-10

# Numbers of epochs and images, and the device: flag -> what to give it. A number is an upper bound.
FLAGS = {
    '-e': 1,
    '--epoch': 1,
    '--iterations': 1,
    '--prune_epoch': 1,
    '--quantise_epoch': 1,
    '--warmup': 0.5,
    '--limit': 7,
    '--rounds': 1,
    '-g': -1,
    '--gpu': -1,
}
if not engine.has_bfloat16():
    FLAGS['--precision'] = 'float32'
# program -> what it gets if the command has none of the flags: the first of them, with this value.
ADDED = {
    'main.py': {('-e', '--epoch', '--iterations'): '1'},
    'squeeze_net.explore': {('-e', '--epoch', '--draw_only'): '1', ('--limit', '--draw_only'): '7'},
    'benchmarks/scaling.py': {('--rounds',): '1'},
    'squeeze_net.compression compress': {
        ('--prune_epoch', '--lossless'): '1',
        ('--quantise_epoch', '--lossless'): '1',
    },
}
# A recipe of many epochs that a lower `-e` alone does not fit -> flags that do the same in a few.
SHORTENED = {key: ['-e', '2', '--progressive_size', '64=1'] for key in ['configs/fast.yaml', 'configs/distilled.yaml']}
WORDS = {
    '/tmp': 'drawn',
    'MODEL': 'alexnet',
    'PYTHON': sys.executable,
    'squeezenet_v1.1_torchvision': 'squeezenet1_1.pth',
}


# ---- data and weights ----


def cifar(folder, edition=CIFAR10, n_train=100, n_test=50):
    """CIFAR in the official layout, with drawn pixels: 10 training and 5 test images of each class."""
    folder = folder / edition.folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name, n):
        labels = np.arange(n) % edition.n_class
        pixels = rng.integers(0, 256, (n, 3072)) // 2 + labels[:, None] * 127 // edition.n_class
        names = [f'{label}_{i}.jpg'.encode() for i, label in enumerate(labels)]
        batch = {b'data': pixels.astype(np.uint8), edition.label_key.encode(): labels.tolist(), b'filenames': names}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))

    for name in edition.train:
        write(name, n_train // len(edition.train))
    for name in edition.test:
        write(name, n_test)
    named = [name.encode() for name in CLASSES] if edition is CIFAR10 else []
    classes = named or [f'class {i}'.encode() for i in range(edition.n_class)]
    (folder / edition.meta).write_bytes(pickle.dumps({edition.class_key.encode(): classes}, protocol=4))


def photos(folder, n_train=32):
    """Two classes of small photos, as class folders and as lists."""
    rng = np.random.default_rng(0)
    for split, n in (('train', n_train), ('val', 4)):
        lines = []
        for label, name in enumerate(('cats', 'dogs')):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                path = folder / split / name / f'{i}.jpg'
                drawn_photo(path, rng)
                lines.append(f'{path.relative_to(folder)} {label}\n')
        (folder / f'{split}.txt').write_text(''.join(lines))


def class_folders(folder):
    photos(folder.parent / 'photos')
    folder.symlink_to(folder.parent / 'photos/train')


def packed_folders(path):
    """An archive of class folders, `train` and `test`, of small JPEGs."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, 'w:xz') as archive:
        for split, n in (('train', 10), ('test', 5)):
            for name in CLASSES:
                for i in range(n):
                    file = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, 'JPEG')
                    entry = tarfile.TarInfo(f'{split}/{name}/{i}.jpg')
                    entry.size = file.tell()
                    file.seek(0)
                    archive.addfile(entry, file)


def drawn_photo(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48)).save(path)


def folder_of_anything(folder):
    """What DIR may stand for: CIFAR-10, class folders and lists."""
    cifar(folder)
    photos(folder)


def photo(path):
    drawn_photo(path, np.random.default_rng(1))


def validation_list(path):
    """Lines `path label` of ten images, for networks of 1,000 classes."""
    rng = np.random.default_rng(0)
    for i in range(10):
        drawn_photo(path.parent / f'val/{i}.jpg', rng)
    path.write_text(''.join(f'val/{i}.jpg {100 * i}\n' for i in range(10)))


def link(target):
    """The file or folder stands elsewhere; where that is outside the repository, the journey is skipped without it."""

    def put(path):
        if not target.exists():
            pytest.skip(f'no {target.name}: {target.parent} is not there')
        path.symlink_to(target)

    return put


def torch_file(path):
    """Published weights, in the file that PyTorch would write."""
    from samples import pth, state_dict

    from squeeze_net import weights

    if not DATA.is_dir():
        pytest.skip(f'no published weights: {DATA} is not there')
    path.write_bytes(pth(state_dict(weights.read(DATA / 'weights/squeezenet_v1.1.caffemodel').tensors)))


def chainer_file(path):
    """A snapshot, as far as it is read."""
    from squeeze_net import NETWORKS
    from squeeze_net.weights import tensors_of

    tensors = tensors_of(NETWORKS['squeezenet_v1.1'](10))
    with path.open('wb') as file:
        np.savez(file, **{f'updater/model:main/predictor/{name}': tensor for name, tensor in tensors.items()})


def weights_of_a_run(path):
    """As a run of today writes them: they say what images they expect."""
    from squeeze_net.weights import Weights, read, write
    from trainer.data.metadata import Metadata
    from trainer.data.preprocessing import PREPROCESSINGS

    tensors = read(RESULTS / 'squeezenet_jpeg/weights_best.npz').tensors
    write(Weights(tensors, Metadata('squeezenet', 10, PREPROCESSINGS['experiment'])), path)


def onnx_file(path):
    from squeeze_net import weights
    from squeeze_net.weights.network import identify

    weights.write(identify(weights.read(RESULTS / 'squeezenet_jpeg/weights_best.npz')), path)


def deployed_file(path):
    from squeeze_net.classifier import open_weights
    from squeeze_net.deploy import onnx

    _, found = open_weights(RESULTS / 'squeezenet_fast/weights_last.npz')
    path.write_bytes(onnx.build(found).SerializeToString())


# What a command names -> how it comes about. A name that ends in / is a folder.
GIVEN = {
    'cifar10-jpeg': cifar,
    'cifar10-jpeg.tar.xz': packed_folders,
    'DIR': folder_of_anything,
    'imagenet': lambda folder: photos(folder, n_train=256),  # a batch of 512
    'photos': photos,
    'SRC': class_folders,
    'cat.jpg': photo,
    'cat.png': photo,
    'more/dog.png': photo,
    'photo.jpg': photo,
    'val.txt': validation_list,
    'squeezenet_v1.0.caffemodel': link(DATA / 'weights/squeezenet_v1.0.caffemodel'),
    'squeezenet_v1.1.caffemodel': link(DATA / 'weights/squeezenet_v1.1.caffemodel'),
    'compressed_SqueezeNet.net': link(DATA / 'weights/compressed_SqueezeNet.net'),
    'squeezenet_v1.1.pth': torch_file,
    'squeezenet1_1.pth': torch_file,
    'checkpoint.pth.tar': torch_file,
    'snapshot_iter_1000': chainer_file,
    'weights.npz': weights_of_a_run,
    'weights_best.npz': weights_of_a_run,
    'results/photos/weights_best.npz': weights_of_a_run,
    **{
        f'runs/{archive}.sqz.stages/results/pruned/weights_last.npz': link(RESULTS / trained)
        for archive, trained in {
            'fast_smaller': 'squeezenet_fast/weights_last.npz',
            'fast_distilled': 'squeezenet_fast/weights_last.npz',
            'finetuned': 'squeezenet_v1.1_finetuned/weights_best.npz',
            'muon_40': 'squeezenet_40/weights_last.npz',
            'muon_40_further': 'squeezenet_40/weights_last.npz',
        }.items()
    },
    **{
        f'runs/again/results/{run}/weights_last.npz': link(RESULTS / 'teacher_24/weights_last.npz')
        for run in ('teacher', 'teacher_jpeg')
    },
    'small.sqz': link(RESULTS / 'compression/small.sqz'),
    'RUN': link(RESULTS / 'squeezenet_jpeg'),
    'results/mine': link(RESULTS / 'squeezenet_jpeg'),
    'results/old': link(RESULTS / 'alexnet_jpeg'),
    'squeezenet.onnx': onnx_file,
    'model.onnx': deployed_file,
}


def fill_cache(folder):
    """What a download would have put there: the data sets, and published weights.

    Where those are not at hand, fresh networks stand for two of them.
    """
    from squeeze_net import NETWORKS
    from squeeze_net.weights import Weights, tensors_of, write
    from trainer.data.metadata import Metadata

    for edition in (CIFAR10, CIFAR100):
        cifar(folder / 'trainer/cifar', edition)
    place = folder / 'squeeze_net/weights'
    place.mkdir(parents=True)
    if DATA.is_dir():
        (place / 'compressed_SqueezeNet.net').symlink_to(DATA / 'weights/compressed_SqueezeNet.net')
    for network in ('squeezenet_v1.0', 'squeezenet_v1.1'):
        path = place / f'{network}.caffemodel'
        if DATA.is_dir():
            path.symlink_to(DATA / 'weights' / path.name)
        else:
            write(Weights(tensors_of(NETWORKS[network](1000)), Metadata(network, 1000)), path)


# ---- commands that are not run as they stand ----

# A second host or a GPU for NCCL: the program gets to the end of its check of arguments, and refuses in one sentence.
REFUSED = {'pure_nccl': 'needs a GPU to each process, and a second host in one of the commands'}

# Never run here: what begins so, and why.
LISTED = {
    '. .venv/bin/activate': "a shell's own command; the tests run in the environment that it names",
    'make install': 'needs a package index; .ci/run calls it through its other targets',
    'make test': 'is this test',
    'make journeys': 'is this test',
    'make docs': 'writes docs/settings.md; tests/test_readme.py compares the page with the table',
    'make lint': '.ci/run calls it',
    'make format': 'rewrites the code; .ci/run checks its result by make lint',
    'make captest': '.ci/run calls it',
    'make fuzz': 'takes minutes; tests/squeeze_net/weights/test_hostile.py mutates files alike',
    'make gputest': 'needs a GPU',
    'pip install': 'needs a package index; test_install.py types those of trainer/README.md with pip and with uv',
    'cd trainer && python -m pytest': '.ci/run calls these tests',
    'python -m http.server': 'serves until it is stopped; tests/squeeze_net/deploy/test_page.py serves the same files',
    'python -m squeeze_net.deploy.page.build': 'needs the compiler of the extra `page`; test_page.py builds with it',
    'python -m pytest -k NAME': '.ci/run calls these tests',
}

# Minutes long, or with peers that are not installed: their flags are checked against `--help`.
MEASUREMENTS = {
    'benchmarks/train_step.py': 'times the networks beside PyTorch and ONNX Runtime, for minutes',
    'benchmarks/validation.py': 'needs PyTorch',
    'benchmarks/busy.py': 'needs PyTorch',
    'benchmarks/rate_distortion.py': 'compresses each network in 21 ways, for minutes',
    'benchmarks/bits.py': 'clusters every layer in 21 ways, for a minute, however few the images are',
    'benchmarks/c_file.py': 'needs a C compiler',
    'benchmarks/browser.py': 'needs Chromium and the npm package onnxruntime-web',
    'benchmarks/models.py --data': 'times eleven networks in both engines, for minutes',
}
