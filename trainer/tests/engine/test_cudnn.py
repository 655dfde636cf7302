"""What cuDNN accepts, asked without a GPU, and how its plans are made, kept and run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cudnn_without_device import DEVICES

from trainer.engine.cuda import cudnn, plan_cache, plans
from trainer.engine.cuda.plan_cache import Cache, Known
from trainer.engine.cuda.plans import Candidate, Handle, Plan
from trainer.engine.cuda.problem import BACKWARD_DATA, BACKWARD_WEIGHTS, FORWARD, Problem, Tensor
from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.warn import warn_once

pytestmark = pytest.mark.cudnn

KINDS = (FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS)
HALVES = ('float16', 'bfloat16')

# name -> channels in, height and width, channels out, kernel, stride, pad, groups
LAYERS = {f'SqueezeNet conv1 at {size} px': (3, size, 96, 7, 2, 2, 1) for size in (122, 128, 256)}
LAYERS |= {f'conv1 of {c} channels': (c, 122, 96, 7, 2, 2, 1) for c in (4, 8)}
for number, c_in, squeeze, expand, side in (
    (2, 96, 16, 64, 31),
    (3, 128, 16, 64, 31),
    (4, 128, 32, 128, 31),
    (5, 256, 32, 128, 16),
    (6, 256, 48, 192, 16),
    (7, 384, 48, 192, 16),
    (8, 384, 64, 256, 16),
    (9, 512, 64, 256, 9),
):
    LAYERS[f'fire{number}.squeeze1x1'] = (c_in, side, squeeze, 1, 1, 0, 1)
    LAYERS[f'fire{number}.expand1x1'] = (squeeze, side, expand, 1, 1, 0, 1)
    LAYERS[f'fire{number}.expand3x3'] = (squeeze, side, expand, 3, 1, 1, 1)
LAYERS |= {
    'SqueezeNet conv10': (512, 9, 10, 1, 1, 0, 1),
    'AlexNet conv1': (3, 122, 96, 11, 4, 5, 1),
    'AlexNet conv2': (96, 15, 256, 5, 1, 2, 2),
    'AlexNet conv3': (256, 7, 384, 3, 1, 1, 1),
    'AlexNet conv4': (384, 7, 384, 3, 1, 1, 2),
    'AlexNet conv5': (384, 7, 256, 3, 1, 1, 2),
    'AlexNet fc6': (2304, 1, 4096, 1, 1, 0, 1),
    'AlexNet fc7': (4096, 1, 4096, 1, 1, 0, 1),
    'AlexNet fc8': (4096, 1, 10, 1, 1, 0, 1),
    'VGG fc1': (512, 1, 512, 1, 1, 0, 1),
    'VGG fc2': (512, 1, 10, 1, 1, 0, 1),
}
for side, c_in, c_out in (
    *((32, 3, 64), (32, 64, 64), (16, 64, 128), (16, 128, 128), (8, 128, 256), (8, 256, 256)),
    *((4, 256, 512), (4, 512, 512), (2, 512, 512)),
):
    LAYERS[f'VGG {c_in}-{c_out} at {side} px'] = (c_in, side, c_out, 3, 1, 1, 1)


def channels_last(shape, dtype, pixel=None):
    _, c, h, w = shape
    pixel = pixel or c
    return Tensor(shape, (h * w * pixel, 1, w * pixel, pixel), dtype)


def problem(name, kind=FORWARD, dtype='float16', batch=64, w_dtype=None, gap_x=0, gap_y=0, add=False, **more):
    """A layer; `gap_x` and `gap_y` channels of something else lie between the pixels of x and y."""
    c_in, side, c_out, k, stride, pad, groups = LAYERS[name]
    size = (side + 2 * pad - k) // stride + 1
    x = channels_last((batch, c_in, side, side), dtype, c_in + gap_x)
    y = channels_last((batch, c_out, size, size), dtype, c_out + gap_y)
    w = channels_last((c_out, c_in // groups, k, k), w_dtype or dtype)
    other = channels_last(y.shape, dtype) if add else None
    return Problem(kind, x, w, y, (stride, stride), (pad, pad), (1, 1), add=other, **more)


# ---- without a device ----

DRIVER = 'libcuda.so.1'
ANSWER = """
import json, pickle, sys
from cudnn_without_device import is_supported
from trainer.engine.cuda import cudnn
try:
    questions = pickle.load(sys.stdin.buffer)
    answers = [is_supported(*question) for question in questions]
    print(json.dumps({'answers': answers, 'version': cudnn.load().backend_version()}))
except cudnn.EngineError as error:
    print(json.dumps({'skip': str(error)}))
"""
LIST = """
import json, pickle, sys
from cudnn_without_device import device_property
from trainer.engine.cuda import plans
problem, capability = pickle.load(sys.stdin.buffer)
where = {'device_property': device_property(capability)}
print(json.dumps([
    (c.engine, c.workspace_bytes, c.is_compiled, c.handicap, len(c.graph.serialize()))
    for c in plans._candidates(problem, [], **where)
]))
"""


@pytest.fixture(scope='module')
def ask(tmp_path_factory):
    """Runs a script in a process that has cuDNN, and a driver or something that cuDNN takes for one."""
    pytest.importorskip('cudnn', reason="cuDNN's Python interface is not installed")
    paths = [Path(__file__).parent, *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, paths))}
    if subprocess.run(
        [sys.executable, '-c', f'import ctypes; ctypes.CDLL({DRIVER!r})'], capture_output=True
    ).returncode:
        if shutil.which('gcc') is None:
            pytest.skip('no driver, and no gcc to make something that stands for it')
        folder = tmp_path_factory.mktemp('driver')
        _make_driver(folder / DRIVER)
        environment['LD_LIBRARY_PATH'] = f'{folder}:{environment.get("LD_LIBRARY_PATH", "")}'

    def ask(script, question):
        run = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script],
            input=pickle.dumps(question),
            capture_output=True,
            env=environment,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        return json.loads(run.stdout.decode().splitlines()[-1])

    return ask


def _make_driver(path):
    """A driver without a device: what cuDNN links with and looks up before it answers."""
    names = (
        'CtxGetCurrent CtxGetDevice CtxGetLimit CtxPopCurrent CtxPopCurrent_v2 CtxPushCurrent CtxPushCurrent_v2 '
        'CtxSetCurrent DeviceGet DeviceGetAttribute DeviceGetCount DeviceGetName FuncGetAttribute FuncSetAttribute '
        'GetProcAddress GetProcAddress_v2 KernelGetAttribute KernelGetFunction KernelSetAttribute '
        'LaunchCooperativeKernel LaunchKernel LaunchKernelEx LibraryGetKernel LibraryLoadData LibraryLoadFromFile '
        'LibraryUnload LinkAddData LinkAddData_v2 LinkComplete LinkCreate LinkCreate_v2 LinkDestroy ModuleGetFunction '
        'ModuleLoadData ModuleLoadDataEx ModuleUnload OccupancyMaxActiveBlocksPerMultiprocessor '
        'OccupancyMaxActiveClusters OccupancyMaxPotentialClusterSize StreamGetCtx TensorMapEncodeIm2col '
        'TensorMapEncodeTiled'
    )
    lines = [f'int cu{name}(void) {{ return 100; }}' for name in names.split()]  # no device
    lines.append('int cuInit(unsigned flags) { return 0; }')
    lines.append('int cuDriverGetVersion(int* version) { *version = 13000; return 0; }')
    lines += [
        f'int cuGetError{name}(int error, const char** text) {{ *text = "no device"; return 0; }}'
        for name in ('String', 'Name')
    ]
    command = ['gcc', '-w', '-shared', '-fPIC', f'-Wl,-soname,{DRIVER}', '-x', 'c', '-', '-o', str(path)]
    subprocess.run(command, input='\n'.join(lines), text=True, check=True)


def refused(ask, variants, names=LAYERS, precompiled=False, capabilities=tuple(DEVICES)):
    """Which (name, capability, variant) cuDNN refuses."""
    labels = [(name, capability, n) for name in names for capability in capabilities for n in range(len(variants))]
    questions = [(problem(name, **variants[n]), capability, precompiled) for name, capability, n in labels]
    reply = ask(ANSWER, questions)
    if 'skip' in reply:
        pytest.skip(reply['skip'])
    return [label for label, answer in zip(labels, reply['answers'], strict=True) if not answer]


@pytest.mark.parametrize('dtype', [*HALVES, 'float32'])
def test_every_convolution_has_a_precompiled_engine(dtype, ask):
    variants = [{'kind': kind, 'batch': batch, 'dtype': dtype} for kind in KINDS for batch in (64, 77, 256)]
    assert not refused(ask, variants, precompiled=True)


@pytest.mark.parametrize('dtype', [*HALVES, 'float32'])
def test_maps_may_have_gaps_between_pixels(dtype, ask):
    gaps = [{'gap_x': 64}, {'gap_y': 64}, {'gap_x': 64, 'gap_y': 8}]
    variants = [{'kind': kind, 'dtype': dtype, **gap} for kind in KINDS for gap in gaps]
    assert not refused(ask, variants, precompiled=True)


SUMS = [{'bias': True}, {'add': True}, {'bias': True, 'add': True}, {'bias': True, 'gap_y': 64}]


@pytest.mark.parametrize('dtype', [*HALVES, 'float32'])
def test_sums_fuse(dtype, ask):
    assert not refused(ask, [{'dtype': dtype, **more} for more in SUMS], capabilities=[(9, 0)])  # the fastest to answer


def test_engines_that_fuse_are_compiled_but_for_a_bias_in_float32(ask):
    variants = [{'dtype': dtype, **more} for dtype in HALVES for more in SUMS]
    found = refused(ask, variants, precompiled=True, capabilities=[(9, 0)])
    assert len(found) == len(LAYERS) * len(variants)
    assert not refused(ask, [{'dtype': 'float32', 'bias': True}], precompiled=True)


def test_gradients_of_weights_in_float32(ask):
    """Not where there are three channels, nor, but for some devices and versions, in groups."""
    variants = [{'kind': BACKWARD_WEIGHTS, 'dtype': dtype, 'w_dtype': 'float32'} for dtype in HALVES]
    found = {name for name, _, _ in refused(ask, variants)}
    of_colours = {name for name, layer in LAYERS.items() if layer[0] == 3}
    in_groups = {name for name, layer in LAYERS.items() if layer[-1] > 1}
    assert of_colours <= found <= of_colours | in_groups
    assert len(refused(ask, variants, precompiled=True)) == len(LAYERS) * len(DEVICES) * len(variants)


def test_nonsense_is_refused(ask):
    right = problem('fire2.expand3x3')
    wrong = right._replace(x=channels_last((64, 17, 31, 31), 'float16')), right._replace(kind='sideways')
    reply = ask(ANSWER, [(p, (9, 0)) for p in (right, *wrong)])
    if 'skip' in reply:
        pytest.skip(reply['skip'])
    assert reply['answers'] == [True, False, False]


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
@pytest.mark.parametrize('kind', [FORWARD, BACKWARD_DATA])  # some for the third look for a device when they are built
@pytest.mark.parametrize('name', ['fire2.expand3x3', 'AlexNet conv2'])
def test_candidates_are_few_and_various(name, kind, dtype, ask):
    found = ask(LIST, (problem(name, kind, dtype), (9, 0)))
    engines = [engine for engine, *_ in found]
    families = [engine.partition('_')[0] for engine in engines]
    assert 1 < len(set(engines)) == len(engines) <= plans.N_CANDIDATE
    assert len(set(families)) > 1
    assert max(families.count(family) for family in families) <= plans.N_SETTING
    for _, workspace_bytes, is_compiled, handicap, n_bytes in found:
        assert workspace_bytes <= cudnn.MAX_WORKSPACE and not is_compiled and handicap >= 1 and n_bytes > 1000


# ---- the library ----


def frontend(number='1.18.0', backend=92800):
    def backend_version():
        if backend is None:
            raise RuntimeError('Unable to find symbol\ncudnnGetVersion')
        return backend

    return SimpleNamespace(__version__=number, backend_version=backend_version, backend_version_string=lambda: '9.28.0')


@pytest.fixture
def installed(monkeypatch):
    """Puts a Python interface in the place of cuDNN's."""
    monkeypatch.setattr(cudnn, '_preload', lambda major: None)
    cudnn.load.cache_clear()
    yield lambda module: monkeypatch.setitem(sys.modules, 'cudnn', module)
    cudnn.load.cache_clear()


@pytest.mark.parametrize(
    ('module', 'words'),
    [
        (None, "cuDNN's Python interface is missing"),
        (frontend('1.28.0'), 'nvidia-cudnn-frontend is 1.28.0, not 1.18.0'),
        (frontend(backend=None), "cuDNN's library is missing (Unable to find symbol cudnnGetVersion)"),
        (frontend(backend=90100), 'cuDNN is 9.1.0, older than 9.19.0'),
    ],
)
def test_what_is_missing_or_too_old_is_named_in_one_line(module, words, installed):
    installed(module)
    with pytest.raises(EngineError) as caught:
        cudnn.load()
    text = str(caught.value)
    assert words in text and '\n' not in text
    assert 'pip install nvidia-cudnn-frontend==1.18.0 nvidia-cudnn-cu1' in text


def test_a_version_that_serves_is_named(installed):
    installed(frontend())
    assert cudnn.version() == 'cuDNN 9.28.0'


# ---- plans ----

KNOWN = Known('eng1_k2=3', 1.5e-5, b'\x00data\n of cuDNN')


def test_a_plan_is_kept(tmp_path):
    cache = Cache(tmp_path / 'a' / 'b')
    assert cache.load('key') is None
    cache.store('key', KNOWN)
    assert cache.load('key') == KNOWN
    assert cache.load('another') is None
    assert [path.name for path in (tmp_path / 'a' / 'b').iterdir()] == [cache.path('key').name]


def test_a_file_cut_short_changed_or_foreign_is_ignored(tmp_path):
    cache = Cache(tmp_path)
    cache.store('key', KNOWN)
    path = cache.path('key')
    whole = path.read_bytes()
    foreign = [b'', b'\n', b'{}\n', b'[1]\ndata', b'null\n', b'\xff\xfe\n', pickle.dumps(KNOWN), whole + b'x']
    for content in (*(whole[:n] for n in range(len(whole))), *foreign, whole.replace(b'data', b'dada')):
        path.write_bytes(content)
        assert cache.load('key') is None
    path.unlink()
    path.mkdir()
    assert cache.load('key') is None


def test_a_plan_for_another_version_or_gpu_is_another(tmp_path):
    cache = Cache(tmp_path)
    cache.store('9.19', KNOWN)
    shutil.copy(cache.path('9.19'), cache.path('9.28'))
    assert cache.load('9.28') is None


def test_the_folder_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert plan_cache.folder() == tmp_path / 'chainer-image-trainer' / 'cudnn'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(Path, 'home', lambda: tmp_path)
    assert plan_cache.folder() == tmp_path / '.cache' / 'chainer-image-trainer' / 'cudnn'


class Graph:
    """Notes down what is asked of it."""

    def __init__(self, takes=True):
        self.takes, self.calls = takes, []

    def deserialize(self, handle, data):
        if not self.takes:
            raise RuntimeError('made by another version')
        self.calls.append(bytes(data))

    def get_workspace_size(self):
        return 7

    def build_plan_at_index(self, i):
        self.calls.append(i)

    def serialize(self):
        return list(b'found')

    def execute(self, pointers, workspace, handle):
        self.calls.append((pointers, workspace, handle))


@pytest.fixture
def library(installed):
    """cuDNN's Python interface, with a list of the streams it was given."""
    module = frontend()
    module.streams = []
    module.create_handle = lambda: 99
    module.set_stream = lambda handle, stream: module.streams.append(stream)
    module.graph = Graph()
    module.pygraph = lambda **where: module.graph
    installed(module)
    return module


@pytest.fixture
def gpu(library, monkeypatch):
    """CuPy, as far as plans need it when nothing is tried out."""
    stream = SimpleNamespace(is_capturing=lambda: False)
    properties = {'name': b'GPU', 'multiProcessorCount': 3}
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0),
        get_current_stream=lambda: stream,
        runtime=SimpleNamespace(getDeviceProperties=lambda device: properties),
    )
    monkeypatch.setitem(sys.modules, 'cupy', SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(plans, '_handles', {})
    monkeypatch.setattr(plans, '_plans', {})
    return stream


PROBLEM = problem('fire2.expand3x3', bias=True)


def test_pointers_go_where_they_belong_and_streams_only_when_they_change(library):
    graph = Graph()
    asked = problem('fire2.expand3x3', bias=True, add=True)
    plan = Plan(graph, Handle(), list(asked.operands()), 7, 'eng1', 1e-5)
    for stream in (0, 5, 5, 6):
        plan.run([16, 32, 48, 64, 80], 96, stream)
    assert graph.calls == [({1: 16, 2: 32, 3: 48, 4: 64, 5: 80}, 96, 99)] * 4
    assert library.streams == [5, 6]
    with pytest.raises(ValueError, match='multiples of 16, not 0x22'):
        plan.run([16, 34, 48, 64, 80], 96, 0)
    with pytest.raises(ValueError, match='shorter'):
        plan.run([16, 32, 48, 64], 96, 0)


def test_no_plan_is_made_while_a_graph_is_captured(gpu):
    gpu.is_capturing = lambda: True
    with pytest.raises(RuntimeError, match='warm up first') as caught:
        plans.find_plan(PROBLEM)
    assert not isinstance(caught.value, EngineError)


def test_a_plan_is_sought_once_in_memory_and_once_on_disk(gpu, library, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    trials = []

    def fastest(asked, handle):
        trials.append(asked)
        return Candidate(library.graph, 4, 'eng1', 8, False, True), 2e-5

    monkeypatch.setattr(plans, '_fastest', fastest)
    plan = plans.find_plan(PROBLEM)
    assert (plan.engine, plan.workspace_bytes, plan.seconds) == ('eng1', 8, 2e-5)
    assert library.graph.calls == [4]
    gpu.is_capturing = lambda: True
    assert plans.find_plan(PROBLEM) is plan
    gpu.is_capturing = lambda: False

    plans._plans.clear()
    library.graph = Graph()
    plan = plans.find_plan(PROBLEM)
    assert (plan.engine, plan.workspace_bytes, plan.seconds) == ('eng1', 7, 2e-5)
    assert library.graph.calls == [b'found'] and trials == [PROBLEM]

    plans._plans.clear()
    library.graph = Graph(takes=False)
    warn_once.cache_clear()
    with pytest.warns(EngineWarning, match='cuDNN refuses a plan from the cache, .*: made by another version'):
        assert plans.find_plan(PROBLEM).workspace_bytes == 8
    assert trials == [PROBLEM] * 2

    plans._plans.clear()
    library.backend_version_string = lambda: '9.29.0'
    plans.find_plan(PROBLEM)
    assert trials == [PROBLEM] * 3


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(gpu, library, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.setattr(plans, '_fastest', lambda *_: (Candidate(library.graph, 4, 'eng1', 8, False, True), 2e-5))
    assert plans.find_plan(PROBLEM).engine == 'eng1'


def test_a_refusal_is_remembered(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    trials = []

    def refuse(asked, handle):
        trials.append(asked)
        raise EngineError('cuDNN refuses it')

    monkeypatch.setattr(plans, '_fastest', refuse)
    for _ in range(2):
        with pytest.raises(EngineError, match='cuDNN refuses it'):
            plans.find_plan(PROBLEM)
    assert len(trials) == 1 and not list(tmp_path.rglob('*.plan'))
