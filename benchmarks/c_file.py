"""One picture on one thread: `squeezenet.c` beside ONNX Runtime; writes JSON.

python benchmarks/c_file.py results/compression/small.sqz squeezenet_v1.1

Both get a picture that needs no resizing as bytes and give probabilities: normalisation and softmax count; the C file
cuts it besides, where the network sees less than the whole. They take turns in one process. The C file is compiled as
its README says.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from record import aim, header, make_parser, print_aims, run_command, save, summarise

import trainer
from squeeze_net.classifier import open_weights
from squeeze_net.deploy.__main__ import main as deploy

AIM = 2.0  # times the time of ONNX Runtime
FLAGS = ['-O3', '-march=native']
WARM_UP = 5  # rounds
LARGEST_DIFFERENCE = 1e-3  # of a probability


def main() -> None:
    parser = make_parser(__doc__, 'c_file.json', rounds=100)
    parser.add_argument('weights', nargs='+', help='files or names, as for squeeze_net.deploy')
    parser.add_argument('--cc', default='cc', help='the compiler; default: %(default)s')
    args = parser.parse_args()
    if shutil.which(args.cc) is None:
        raise trainer.InputError(f'--cc {args.cc} is not there: install a C compiler')
    with tempfile.TemporaryDirectory() as name:
        results = [measure(weights, Path(name) / f'{i}', args) for i, weights in enumerate(args.weights)]
    aims = [
        aim(f'{one["network"]} at {one["side_px"]} px, times the time of ONNX Runtime', one['ratio'], AIM)
        for one in results
    ]
    print_aims(aims)
    record = header('one picture in C') | {
        'compiler': run_command([args.cc, '-dumpfullversion'], args.cc),
        'flags': ' '.join([args.cc, *FLAGS]),
        'onnxruntime': onnxruntime.__version__,
    }
    save(record | {'rounds': args.rounds, 'results': results, 'aims': aims}, args.out)


def measure(weights: str, folder: Path, args: Any) -> dict[str, Any]:
    """Times of both, and the memory that the C file needs."""
    deploy([weights, '-o', str(folder), '--only', 'onnx,c', '--batch', '1'])
    _, opened = open_weights(folder / 'model.sqz')
    view = opened.metadata.preprocessing
    assert view is not None
    picture = np.random.default_rng(0).integers(0, 256, (view.side, view.side, 3), dtype=np.uint8)
    c, memory = open_c(folder, picture, opened.metadata.n_class or 0, args.cc)
    contestants = {'C': c, 'ONNX Runtime': open_onnx(folder, view.cut(Image.fromarray(picture)))}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    answers = {}
    for i in range(WARM_UP + args.rounds):
        for name, classify in contestants.items():
            begin = time.perf_counter()
            answers[name] = classify()
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    difference = float(np.abs(answers['C'] - answers['ONNX Runtime']).max())
    if difference > LARGEST_DIFFERENCE:
        raise trainer.InputError(f'the answers for {weights} differ by {difference:g}: one of them is wrong')
    ours, theirs = (np.array(times) for times in seconds.values())
    n_weight = sum(tensor.size for tensor in opened.tensors.values())
    return {
        'network': opened.metadata.network,
        'side_px': view.crop,
        **{name: summarise(times) for name, times in seconds.items()},
        'ratio': round(float(np.median(ours / theirs)), 3),
        'largest_difference': difference,
        'archive_bytes': (folder / 'model.sqz').stat().st_size,
        'weights_bytes': 4 * n_weight,
        'memory_bytes': memory,
    }


def open_c(folder: Path, picture: np.ndarray, n_class: int, cc: str) -> tuple[Callable[[], np.ndarray], int]:
    """A function that gives the probabilities of the picture, and the bytes of `sqz_memory`."""
    built = folder / 'squeezenet.so'
    subprocess.run([cc, *FLAGS, '-fPIC', '-shared', folder / 'squeezenet.c', '-o', built, '-lm'], check=True)
    library, raw = ctypes.CDLL(str(built)), (folder / 'model.sqz').read_bytes()
    need, net = ctypes.c_size_t(), ctypes.c_void_p()
    check(library.sqz_memory(raw, ctypes.c_size_t(len(raw)), ctypes.byref(need)))
    block = ctypes.create_string_buffer(need.value)
    check(library.sqz_open(raw, ctypes.c_size_t(len(raw)), block, need, ctypes.byref(net)))
    probabilities = np.empty(n_class, np.float32)
    height, width, n_channel = picture.shape

    def classify(block: Any = block) -> np.ndarray:  # the default keeps the network's memory
        places = (array.ctypes.data_as(ctypes.c_void_p) for array in (picture, probabilities))
        check(library.sqz_classify(net, next(places), width, height, n_channel, next(places)))
        return probabilities

    return classify, need.value


def check(code: int) -> None:
    if code:
        raise trainer.InputError(f'squeezenet.c gives code {code}')


def open_onnx(folder: Path, picture: np.ndarray) -> Callable[[], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / 'model.onnx', options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'pictures': picture[None]})[0][0]


if __name__ == '__main__':
    with trainer.exit_with_message('c_file.py'):
        main()
