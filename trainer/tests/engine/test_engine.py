"""The engine as a whole: drop-in, accumulation, determinism, memory, and what happens where it cannot serve."""

import threading
import warnings

import chainer
import chainer.functions as C
import numpy as np
import pytest

import trainer.functions as F
import trainer.links as L
from trainer import engine
from trainer.engine import arena
from trainer.engine.backend import MAX, Convolution, Pooling, ResponseWindow
from trainer.engine.buffers import ALIGNMENT, Buffers
from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.onednn import batch_normalization, convolution, linear, operation, pooling, response_normalization
from trainer.engine.onednn import library as dnn

needs_engine = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')


class Net(chainer.Chain):
    """Smooth enough that rounding stays rounding over 20 updates: no maxima, a rectifier only behind normalisation."""

    def __init__(self, functions, links):
        super().__init__()
        self.F = functions
        np.random.seed(0)
        with self.init_scope():
            self.conv1 = links.Convolution2D(3, 12, 3, stride=2, pad=1)
            self.bn1 = links.BatchNormalization(12)
            self.conv2 = links.Convolution2D(12, 20, 3, pad=1, groups=2)
            self.conv3 = links.Convolution2D(20, 12, 1)
            self.fc = links.Linear(12 * 4 * 4, 10)

    def forward(self, x):
        F = self.F
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.concat([self.conv3(self.conv2(h)), h])[:, :12]
        return self.fc(F.local_response_normalization(F.average_pooling_2d(h, 2)))


def train(model, n, seed=0):
    optimizer = chainer.optimizers.MomentumSGD(0.01).setup(model)
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(n):
        x, t = rng.standard_normal((8, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, 8).astype(np.int32)
        loss = F.softmax_cross_entropy(model(x), t)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        losses.append(float(loss.array))
    return losses


@needs_engine
def test_a_chain_trains_alike_on_trainers_and_on_chainers_functions():
    ours = train(Net(F, L), 20)
    chainers = train(Net(C, chainer.links), 20)
    np.testing.assert_allclose(ours, chainers, rtol=1e-3)
    assert ours[-1] < ours[0]


@needs_engine
def test_the_same_training_gives_the_same_bits():
    models = Net(F, L), Net(F, L)
    assert train(models[0], 5) == train(models[1], 5)
    for one, other in zip(models[0].params(), models[1].params(), strict=True):
        np.testing.assert_array_equal(one.array, other.array)


@needs_engine
def test_memory_does_not_grow_with_the_iterations():
    model = Net(F, L)
    train(model, 3)
    peak = operation.BUFFERS.peak
    train(model, 10)
    assert operation.BUFFERS.peak <= peak * 1.05


def make(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@needs_engine
def test_gradients_accumulate_where_something_is_used_twice():
    results = []
    for library in (F, C):
        x, W, b = (chainer.Variable(a) for a in (make(2, 6, 5, 5), make(6, 6, 3, 3), make(6)))
        for _ in range(2):  # and backward twice without clearing
            y = library.convolution_2d(x, W, b, pad=1)
            z = library.add(library.relu(library.convolution_2d(y, W, pad=1)), y)
            C.sum(z * z).backward()
        results.append([x.grad, W.grad, b.grad])
    for ours, chainers in zip(*results, strict=True):
        np.testing.assert_allclose(ours, chainers, rtol=1e-3, atol=1e-3 * np.abs(chainers).max())


@needs_engine
def test_a_sum_of_what_deeper_layers_read_as_well_spoils_no_gradient():
    """The sum's gradient is passed on to both terms; one of them has got another gradient before."""
    results = []
    for library in (F, C):
        a, b, W = (chainer.Variable(v) for v in (make(2, 6, 5, 5), make(2, 6, 5, 5), make(6, 6, 1, 1)))
        h = library.relu(a)
        deep = library.relu(library.convolution_2d(library.convolution_2d(library.relu(h), W), W))
        shallow = library.add(h, b)
        joined = library.concat([h, b])
        C.sum(library.add(library.relu(deep), shallow) * 3 + joined[:, 3:9]).backward()
        results.append([a.grad, b.grad, W.grad])
    for ours, chainers in zip(*results, strict=True):
        np.testing.assert_allclose(ours, chainers, rtol=1e-4, atol=1e-4 * np.abs(chainers).max())


@needs_engine
def test_every_function_takes_maps_side_by_side():
    x, y = make(2, 16, 5, 5), make(2, 8, 5, 5)
    halves, whole = F.side_by_side([x, y]), np.concatenate([x, y], axis=1)
    W, V, b = make(4, 24, 3, 3), make(7, 24 * 25), np.ones(24, np.float32)
    functions = [
        lambda v: F.relu(v),
        lambda v: F.add(v, v),
        lambda v: F.add(v, whole),
        lambda v: F.concat([v, x]),
        lambda v: F.max_pooling_2d(v, 2),
        lambda v: F.average_pooling_2d(v, 2),
        lambda v: F.mean(v, (2, 3)),
        lambda v: F.local_response_normalization(v),
        lambda v: F.linear(v, V),
        lambda v: F.convolution_2d(v, W, add=make(2, 4, 3, 3)),
        lambda v: F.batch_normalization(v, b, b, relu=True),
        lambda v: F.side_by_side(F.split(v, [5, 19])),
        lambda v: F.dropout(v, 0),
    ]
    for function in functions:
        got, expected = function(halves), function(chainer.Variable(whole))
        np.testing.assert_allclose(got.array, expected.array, rtol=1e-4, atol=1e-4)


@needs_engine
def test_an_arena_forgets_its_parameters_when_it_goes():
    flat = arena.Arena([make(3, 4)])
    view = flat.parameters[0]
    assert arena.place_of(view) is flat.gradients[0]
    del flat
    assert arena.place_of(view) is None


# ---- where the engine cannot serve ----


@pytest.fixture
def fresh_warnings():
    engine.warn_once.cache_clear()
    yield
    engine.warn_once.cache_clear()


def test_without_the_library_chainer_computes_and_one_line_says_so(monkeypatch, fresh_warnings):
    monkeypatch.setattr(engine.onednn, 'why_unavailable', lambda: EngineError('oneDNN is not installed'))
    x, W = make(2, 3, 6, 6), make(4, 3, 3, 3)
    with pytest.warns(EngineWarning, match='oneDNN is not installed') as caught:
        y = F.convolution_2d(x, W)
        F.relu(F.side_by_side([y, y]))
    assert len(caught) == 1
    np.testing.assert_array_equal(y.array, C.convolution_2d(x, W).array)


@needs_engine
@pytest.mark.parametrize('refused', ['forward', 'backward_data', 'backward_weights'])
def test_what_the_library_refuses_chainer_computes_and_one_line_says_so(monkeypatch, fresh_warnings, refused):
    def refuse(*args, **kwds):
        raise EngineError('oneDNN 3.2.0: dnnl_x says unimplemented')

    monkeypatch.setattr(convolution, refused, refuse)
    results = []
    for library in (F, C):
        x, W = chainer.Variable(make(2, 3, 6, 6)), chainer.Variable(make(4, 3, 3, 3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            C.sum(library.convolution_2d(x, W)).backward()
            C.sum(library.convolution_2d(x, W)).backward()
        results.append((x.grad, W.grad))
        assert [w for w in caught if 'unimplemented' in str(w.message)][1:] == []
        assert any('says unimplemented' in str(w.message) for w in caught) == (library is F)
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-4)


@needs_engine
def test_a_refusal_is_told_in_the_librarys_words():
    with pytest.raises(EngineError, match=r'oneDNN 3.*dnnl_memory_desc_create_with_strides says invalid_arguments'):
        dnn.library().describe((-1, 2), (2, 1), dnn.F32)


def test_another_library_of_that_name_is_refused(tmp_path, monkeypatch):
    for name in ('libdnnl.so.3', 'libintlc.so.5'):
        (tmp_path / name).write_bytes(b'not a library')
    monkeypatch.setattr(dnn, 'find', lambda: tmp_path / 'libdnnl.so.3')
    with pytest.raises(EngineError, match='cannot be loaded'):
        dnn._load.__wrapped__()


@pytest.mark.parametrize('bad', ['channels', 'bias', 'size'])
def test_bad_arguments_get_chainers_own_errors(bad):
    x, W, b = make(2, 3, 6, 6), make(4, 3, 3, 3), make(4)
    x = {'channels': make(2, 5, 6, 6), 'size': make(2, 3, 2, 2)}.get(bad, x)
    b = make(5) if bad == 'bias' else b
    with pytest.raises((chainer.utils.type_check.InvalidType, AssertionError, ValueError)):
        F.convolution_2d(x, W, b)


# ---- memory ----


def test_blocks_of_memory_never_overlap_and_are_used_again():
    buffers = Buffers(1 << 30)
    rng = np.random.default_rng(0)
    live = {}
    for i in range(2000):
        if live and rng.random() < 0.5:
            key = rng.choice(list(live))
            assert (live.pop(key) == key % 251).all()
        else:
            n = int(rng.integers(1, 50_000))
            live[i] = buffers.empty((n,), (1,), n, np.dtype(np.uint8))
            live[i][...] = i % 251
    in_use = sum(-(-a.size // ALIGNMENT) * ALIGNMENT for a in live.values())
    assert all((a == key % 251).all() for key, a in live.items())
    assert buffers.peak < 6 * in_use + (1 << 20)
    live.clear()
    assert buffers.free() == [(0, 1 << 30)]  # all ranges have joined


def test_a_view_keeps_its_block():
    buffers = Buffers(1 << 20)
    view = buffers.empty((8, 8), (32, 4), 256, np.dtype(np.float32))[2:, 1]
    assert buffers.free()[0][0] > 0
    del view
    assert buffers.free()[0][0] == 0


def test_memory_is_handed_out_to_several_threads():
    buffers = Buffers(1 << 26)
    faults = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            a = buffers.empty((n := int(rng.integers(1, 9000)),), (1,), n, np.dtype(np.uint8))
            a[...] = seed
            b = buffers.empty((n,), (1,), n, np.dtype(np.uint8))
            b[...] = seed + 100
            if not ((a == seed).all() and (b == seed + 100).all()):
                faults.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_beyond_the_reservation_numpy_serves(monkeypatch):
    buffers = Buffers(ALIGNMENT)
    kept = [buffers.empty((10,), (4,), 40, np.dtype(np.float32)) for _ in range(3)]
    for i, array in enumerate(kept):
        array[...] = i
    assert [a[0] for a in kept] == [0, 1, 2]
    monkeypatch.setattr('trainer.engine.buffers._reserve', lambda n_byte: None)
    Buffers(1 << 40).empty((3,), (4,), 12, np.dtype(np.float32))[...] = 1


# ---- speed that can be lost without notice ----

needs_fast_code = pytest.mark.skipif(
    engine.is_available() and not dnn.library().has(dnn.INSTRUCTION_SETS['AVX2']),
    reason='with less than AVX2 oneDNN may have only reference code',
)
MAP_TYPES = pytest.mark.parametrize(
    'data_type',
    [dnn.F32, pytest.param(dnn.BF16, marks=pytest.mark.bfloat16)],
    ids=['float32', 'bfloat16'],
)
CONVOLUTIONS = {  # x, W, stride, pad, groups
    'SqueezeNet conv1': ((2, 3, 122, 122), (96, 3, 7, 7), 2, 2, 1),
    'squeeze': ((2, 96, 31, 31), (16, 96, 1, 1), 1, 0, 1),
    'expand': ((2, 16, 31, 31), (64, 16, 3, 3), 1, 1, 1),
    'AlexNet conv1': ((2, 3, 122, 122), (96, 3, 11, 11), 4, 5, 1),
    'AlexNet conv2': ((2, 96, 15, 15), (256, 48, 5, 5), 1, 2, 2),
    'VGG': ((2, 64, 32, 32), (64, 64, 3, 3), 1, 1, 1),
}


@needs_engine
@needs_fast_code
@MAP_TYPES
@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_no_convolution_of_the_networks_falls_to_reference_code(name, data_type):
    x_shape, w_shape, stride, pad, groups = CONVOLUTIONS[name]
    dtype = {number: dtype for dtype, number in operation.DATA_TYPES.items()}[data_type]
    x, W = operation.empty_map(x_shape, dtype), np.zeros(w_shape, np.float32)
    geometry = Convolution(x_shape, w_shape, (stride, stride), (pad, pad), (1, 1), groups)
    conv = convolution.problem_of(geometry, x, W)
    pixels = x_shape[1], w_shape[0]
    pixel_add = pixels[1] if x_shape[1] > 3 else 0  # nothing is added to what images become
    names = [convolution.forward_operation(conv, *pixels, True, pixel_add, False, False)[0].name]
    if x_shape[1] > 3:  # no gradient of images is asked for
        names.append(convolution._backward_data(conv, *pixels)[0].name)
    names.append(convolution._backward_weights(conv, *pixels, True)[0].name)
    assert not [n for n in names if n.startswith(('ref', 'simple'))]


@needs_engine
@needs_fast_code
@MAP_TYPES
def test_nothing_else_of_the_networks_falls_to_reference_code(data_type):
    shape = (2, 96, 31, 31)
    window = ResponseWindow(5, 2, 1e-4, 0.75)
    windows = Pooling(MAX, (3, 3), (2, 2), (1, 1), (16, 16))
    layer = linear.Problem(64, 2304, 4096, data_type)
    names = [
        batch_normalization.forward_operation(shape, 96, data_type, 2e-5, True, True)[0].name,
        batch_normalization._backward(shape, 96, 96, data_type, 2e-5, True).name,
        response_normalization.forward_operation(shape, 96, data_type, window, True)[0].name,
        pooling.forward_operation(windows, shape, 96, data_type, True)[0].name,
        pooling._backward(windows, shape, 96, data_type).name,
        linear.forward_operation(layer, True, False, False)[0].name,
        linear._backward_data(layer)[0].name,
    ]
    if response_normalization._is_gradient_fast():  # else it is not the library's
        names.append(response_normalization._backward(shape, 96, 96, data_type, window, True).name)
    assert not [n for n in names if n.startswith(('ref', 'simple'))]
