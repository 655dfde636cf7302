"""Where the library is missing or refuses, every function is Chainer's, and one line says so."""

import warnings

import chainer
import chainer.functions as C
import numpy as np
import pytest
from ml_dtypes import bfloat16

import trainer.functions as F
from trainer import engine
from trainer.engine.backend import Convolution
from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.onednn import (
    batch_normalization,
    convert,
    convolution,
    elementwise,
    linear,
    pooling,
    response_normalization,
)
from trainer.engine.onednn import library as dnn
from trainer.functions.node import to_float32

needs_engine = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((2, 16, 6, 6)).astype(bfloat16).astype(np.float32) for _ in range(2))
W, W1, WIDE = (
    (RNG.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32)
    for s in ((16, 16, 3, 3), (16, 16), (16, 32, 1, 1))
)
B, GAMMA = RNG.standard_normal(16).astype(np.float32), RNG.uniform(0.5, 2, 16).astype(np.float32)
ROWS = np.ascontiguousarray(X[:, :, 0, 0])


def dropout(x):
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        return F.dropout(x, 0.5)


# Function of maps and parameters, the maps, the parameters.
FUNCTIONS = {
    'convolution_2d': (lambda x, W, b: F.convolution_2d(x, W, b, pad=1), [X], [W, B]),
    'convolution_2d with a sum': (lambda x, add, W: F.convolution_2d(x, W, pad=1, add=add), [X, Y], [W]),
    'convolution_2d side by side': (lambda x, y, W: F.convolution_2d(F.side_by_side([x, y]), W), [X, Y], [WIDE]),
    'batch_normalization': (lambda x, g, b: F.batch_normalization(x, g, b, relu=True), [X], [GAMMA, B]),
    'max_pooling_2d': (lambda x: F.max_pooling_2d(x, 3, 2, 1), [X], []),
    'average_pooling_2d': (lambda x: F.average_pooling_2d(x, 3, 2, 1), [X], []),
    'mean': (lambda x: F.mean(x, (2, 3)), [X], []),
    'relu': (F.relu, [X], []),
    'relu of rows': (F.relu, [ROWS], []),
    'add': (F.add, [X, Y], []),
    'concat': (lambda x, y: F.concat([x, y]), [X, Y], []),
    'linear': (F.linear, [ROWS], [W1, B]),
    'local_response_normalization': (F.local_response_normalization, [X], []),
    'dropout': (dropout, [X], []),
}


# What bfloat16 maps raise in Chainer's functions, which do not take them.
def compute(name, dtype=np.float32):
    """Output and gradients."""
    function, maps, parameters = FUNCTIONS[name]
    variables = [chainer.Variable(a.astype(dtype)) for a in maps] + [chainer.Variable(a.copy()) for a in parameters]
    y = function(*variables)
    C.sum(C.sin(to_float32(y))).backward()
    return [np.asarray(a, np.float32) for a in (y.array, *(v.grad for v in variables))]


def compare(got, expected, tolerance):
    for g, e in zip(got, expected, strict=True):
        assert np.abs(g - e).max() <= tolerance * np.abs(e).max()


def forget_operations():
    for module in (convolution, elementwise, linear, batch_normalization, response_normalization, pooling, convert):
        for name, item in vars(module).items():
            if name != 'library' and hasattr(item, 'cache_clear'):
                item.cache_clear()


@pytest.fixture
def refusal(monkeypatch):
    """refusal(part) makes the library refuse the primitives whose name holds `part`."""
    create = dnn.Library.create
    refused = []

    def refuse(self, name, *arguments):
        if any(part in name for part in refused):
            raise EngineError(f'oneDNN 3: dnnl_{name} says unimplemented')
        return create(self, name, *arguments)

    forget_operations()
    engine.warn_once.cache_clear()
    monkeypatch.setattr(dnn.Library, 'create', refuse)
    yield refused.append
    forget_operations()
    engine.warn_once.cache_clear()


FORWARD_PRIMITIVES = {'add': 'binary_primitive', 'dropout': 'binary_primitive', 'concat': 'reorder_primitive'}


@needs_engine
@pytest.mark.parametrize('name', [n for n in FUNCTIONS if n != 'mean'])  # which NumPy computes
def test_a_function_refused_forward_is_chainers(name, refusal):
    with chainer.using_config('engine', 'plain'):
        expected = compute(name)
    refusal(FORWARD_PRIMITIVES.get(name, 'forward_primitive'))
    with pytest.warns(EngineWarning, match='is computed by plain Chainer: .*says unimplemented') as caught:
        results = [compute(name), compute(name)]
    assert len(caught) == len({str(w.message) for w in caught})  # one line each
    for got in results:
        compare(got, expected, 1e-5)


@needs_engine
@pytest.mark.parametrize('name', [n for n in FUNCTIONS if n not in ('add', 'concat', 'dropout', 'mean')])
def test_a_gradient_refused_is_chainers(name, refusal):
    if name == 'local_response_normalization' and not response_normalization._is_gradient_fast():
        pytest.skip('this gradient is not left to the library without AVX-512')
    with chainer.using_config('engine', 'plain'):
        expected = compute(name)
    refusal('backward_')
    with pytest.warns(EngineWarning, match='the gradient of .* is computed by plain Chainer') as caught:
        results = [compute(name), compute(name)]
    assert len(caught) == len({str(w.message) for w in caught})
    for got in results:
        compare(got, expected, 1e-5)


@needs_engine
@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
@pytest.mark.parametrize('name', [n for n in FUNCTIONS if n != 'mean'])
def test_a_function_of_bfloat16_refused_forward_is_chainers(name, refusal):
    with chainer.using_config('engine', 'plain'):
        expected = compute(name)
    refusal(FORWARD_PRIMITIVES.get(name, 'forward_primitive'))
    compare(compute(name, bfloat16), expected, 2e-2)


@needs_engine
@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
@pytest.mark.parametrize('name', [n for n in FUNCTIONS if n not in ('add', 'concat', 'dropout', 'mean')])
def test_a_gradient_of_bfloat16_refused_is_chainers(name, refusal):
    with chainer.using_config('engine', 'plain'):
        expected = compute(name)
    refusal('backward_')
    compare(compute(name, bfloat16), expected, 2e-2)


@needs_engine
@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
def test_running_statistics_move_once_where_a_later_part_is_refused(monkeypatch):
    calls = []
    forward = batch_normalization.forward

    def refuse_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise EngineError('oneDNN 3: says unimplemented')
        return forward(*args)

    engine.warn_once.cache_clear()
    monkeypatch.setattr(batch_normalization, 'forward', refuse_the_second)
    gamma = np.ones(32, np.float32)
    moved = [(np.zeros(32, np.float32), np.ones(32, np.float32)) for _ in range(2)]
    F.batch_normalization(
        F.side_by_side([X, Y]), gamma, gamma, running_mean=moved[0][0], running_var=moved[0][1], decay=0.5
    )
    x = np.concatenate([X, Y], 1)
    C.batch_normalization(x, gamma, gamma, running_mean=moved[1][0], running_var=moved[1][1], decay=0.5)
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_without_the_library_every_function_is_chainers_to_the_bit(name, monkeypatch):
    engine.warn_once.cache_clear()
    with chainer.using_config('engine', 'plain'):
        expected = compute(name)
    monkeypatch.setattr(engine.onednn, 'why_unavailable', lambda: EngineError('oneDNN is not installed'))
    with pytest.warns(EngineWarning, match='plain Chainer, several times slower: oneDNN is not installed') as caught:
        results = [compute(name), compute(name)]
    assert len(caught) == 1
    for got in results:
        compare(got, expected, 0)
    engine.warn_once.cache_clear()


def test_without_the_library_a_compute_dtype_changes_nothing(monkeypatch):
    with chainer.using_config('engine', 'plain'):
        expected = compute('convolution_2d'), compute('linear')
    monkeypatch.setattr(engine.onednn, 'why_unavailable', lambda: EngineError('oneDNN is not installed'))
    with warnings.catch_warnings(), chainer.using_config('compute_dtype', bfloat16):
        warnings.simplefilter('ignore', EngineWarning)
        results = compute('convolution_2d'), compute('linear')
    for got, e in zip(results, expected, strict=True):
        compare(got, e, 0)


def test_an_absent_library_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(dnn, 'find', lambda: None)
    with pytest.raises(EngineError, match='pip install onednn-cpu-tbb'):
        dnn._load.__wrapped__()


def test_a_library_without_the_functions_is_refused():
    with pytest.raises(EngineError, match='is not oneDNN 3: it lacks dnnl_engine_create'):
        dnn.Library('libc.so.6', threads=None)


def test_the_records_say_what_computes(monkeypatch):
    with chainer.using_config('engine', 'plain'):
        assert engine.version() is None
        assert engine.describe() == 'plain Chainer on NumPy'
    monkeypatch.setattr(engine.onednn, 'why_unavailable', lambda: EngineError('gone'))
    assert engine.describe() == 'plain Chainer on NumPy'


@needs_engine
def test_the_records_name_the_version_and_the_precision():
    assert engine.describe() == f'oneDNN {engine.version()} ({engine.instruction_set()})'
    with chainer.using_config('compute_dtype', bfloat16):
        assert engine.describe().endswith('), bfloat16')


@needs_engine
def test_an_impossible_primitive_is_refused_in_the_librarys_words():
    geometry = Convolution(  # of 16 channels with weights for 15
        (1, 16, 5, 5), (8, 15, 1, 1), stride=(1, 1), pad=(0, 0), dilate=(1, 1), groups=1
    )
    impossible = convolution.Problem(geometry, data_type=dnn.F32, weight_row=15)
    words = r'^oneDNN \d+\.\d+\.\d+: dnnl_convolution_forward_primitive_desc_create says invalid_arguments$'
    with pytest.raises(EngineError, match=words):
        convolution.forward_operation(impossible, 16, 8, False, 0, relu=False, inference=False)


@pytest.mark.parametrize('engine_config', ['fused', 'plain'])
def test_float64_and_empty_batches_are_chainers(engine_config):
    with chainer.using_config('engine', engine_config):
        for x in (X.astype(np.float64), X[:0]):
            W_like = W.astype(x.dtype)
            assert not engine.serves(x)
            np.testing.assert_array_equal(
                F.convolution_2d(x, W_like, pad=1).array, C.convolution_2d(x, W_like, pad=1).array
            )
