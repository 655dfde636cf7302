"""Files of other frameworks, made by the definitions of their formats: the same values and the same output."""

import math

import chainer
import numpy as np
import pytest
import samples

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.weights import io as weights_io
from squeeze_net.weights import tensors_of


def parse(raw, suffix):
    return weights_io.parse(memoryview(raw), suffix, 'file')


@pytest.fixture(scope='module')
def published():
    """v1.1 of seven classes, with biases, and what it computes of an image."""
    np.random.seed(0)
    model = NETWORKS['squeezenet_v1.1'](7)
    for name, parameter in model.namedparams():
        if name.endswith('/b'):
            parameter.array[...] = np.random.normal(scale=0.1, size=parameter.shape)
    x = np.random.normal(size=(1, 3, 64, 64)).astype(np.float32)
    return tensors_of(model), x, output(model, x)


def output(model, x):
    with chainer.using_config('train', False), chainer.using_config('engine', 'plain'):
        return model(x).array


def check(path, raw, published):
    tensors, x, expected = published
    path.write_bytes(raw)
    model, found = weights.load_model(path)
    assert (found.metadata.network, found.metadata.n_class) == ('squeezenet_v1.1', 7)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)
    np.testing.assert_array_equal(output(model, x), expected)


@pytest.mark.parametrize('protocol', [2, 4])
def test_paddle(published, protocol, tmp_path):
    state = samples.paddle_names(published[0])
    check(tmp_path / 'a.pdparams', samples.pdparams(state, protocol), published)


def test_mindspore(published, tmp_path):
    raw = samples.mindspore(samples.mindspore_names(published[0]))
    check(tmp_path / 'a.ckpt', raw, published)
    check(tmp_path / 'a.ckpt', raw + b'crc_num' + (12345).to_bytes(10, 'big'), published)


@pytest.mark.parametrize('version', [0, 1, 2, 3])
def test_mxnet(published, version, tmp_path):
    state = samples.gluon_names(published[0])
    check(tmp_path / 'a.params', samples.mxnet(state, version), published)
    backwards = {f'arg:{name}': state[name] for name in reversed(state)}  # the dictionaries of old Pythons had no order
    check(tmp_path / 'b.params', samples.mxnet(backwards, version), published)


def test_keras(published, tmp_path):
    pytest.importorskip('h5py')
    for version in (2, 3):
        check(tmp_path / 'a.weights.h5', samples.hdf5(samples.keras_names(published[0], version)), published)


def test_chainers_hdf5(published, tmp_path):
    pytest.importorskip('h5py')
    np.random.seed(1)
    for network, size in ('squeezenet', 64), ('squeezenet_v1.1', 64):
        model = NETWORKS[network](7, size)
        chainer.serializers.save_hdf5(tmp_path / 'model.hdf5', model)
        again, found = weights.load_model(tmp_path / 'model.hdf5')
        assert found.metadata.network == network
        np.testing.assert_array_equal(output(again, published[1]), output(model, published[1]))


# ---- ONNX ----


def zoo(published, kind=samples.OnnxGraph):
    names = samples.gluon_names(published[0])
    return kind(published[0], names).model()


def test_onnx_of_the_model_zoo(published, tmp_path):
    check(tmp_path / 'squeezenet1.1-7.onnx', zoo(published).SerializeToString(), published)


def test_onnx_beside_its_tensors(published, tmp_path):
    """As PyTorch writes it since 2.9."""
    import onnx

    model = zoo(published)
    onnx.save(model, tmp_path / 'model.onnx', save_as_external_data=True, location='model.onnx.data', size_threshold=0)
    assert (tmp_path / 'model.onnx.data').stat().st_size > 2_000_000
    check(tmp_path / 'model.onnx', (tmp_path / 'model.onnx').read_bytes(), published)
    (tmp_path / 'model.onnx.data').rename(tmp_path / 'other')
    with pytest.raises(trainer.InputError, match=r"in the file 'model.onnx.data', which is missing: put it beside"):
        weights.read(tmp_path / 'model.onnx')
    (tmp_path / 'model.onnx.data').symlink_to(tmp_path / 'other')  # a link inside the folder
    check(tmp_path / 'model.onnx', (tmp_path / 'model.onnx').read_bytes(), published)


def external(folder, **changes):
    """Reads a model of one tensor, of four numbers, in a file beside it."""
    where = {'location': 'data', 'offset': 4, 'length': 16} | changes
    entries = b''.join(
        samples.put(13, samples.put(1, key) + samples.put(2, str(value))) for key, value in where.items()
    )
    tensor = samples.onnx_tensor('conv1/W', np.zeros(4), entries + samples.put(14, 1))
    (folder / 'a.onnx').write_bytes(samples.put(7, samples.put(5, tensor)))
    return weights.read(folder / 'a.onnx').tensors['conv1/W']


def test_tensors_outside_the_folder(tmp_path):
    folder = tmp_path / 'model'
    (folder / 'deep').mkdir(parents=True)
    values = np.arange(8, dtype=np.float32)
    for place in ('secret', 'model/data', 'model/deep/data', 'model-2'):
        (tmp_path / place).write_bytes(values.tobytes())
    np.testing.assert_array_equal(external(folder), values[1:5])
    np.testing.assert_array_equal(external(folder, location='deep/data'), values[1:5])
    (folder / 'link').symlink_to(tmp_path / 'secret')
    (folder / 'up').symlink_to(tmp_path)
    for location in ('../secret', '../model-2', str(tmp_path / 'secret'), 'link', 'up/secret', 'deep/../../secret'):
        with pytest.raises(trainer.InputError, match='outside the folder'):
            external(folder, location=location)
    for changes, message in (
        ({'location': ''}, 'is missing'),
        ({'location': 'deep'}, 'is missing'),
        ({'location': 'a\0b'}, 'cannot be read'),
        ({'location': 'a' * 5000}, 'cannot be read'),
        ({'offset': 20}, 'does not lie at 20 .. 36 of .data., which has 32 bytes'),
        ({'offset': -4}, 'does not lie at'),
        ({'offset': 1 << 80}, 'does not lie at'),
        ({'length': 12}, 'does not lie at'),
        ({'offset': 'x'}, 'cannot be read'),
    ):
        with pytest.raises(trainer.InputError, match=message) as caught:
            external(folder, **changes)
        assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


class Constants(samples.OnnxGraph):
    """Weights in Constant nodes, or transposed and cast, and biases added, in several types of numbers."""

    def constant(self, name, array):
        if array.ndim == 1:
            return super().constant(name, array.astype(np.float64))
        constant = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array.transpose(2, 3, 1, 0)))
        W = self.node('Transpose', [self.node('Constant', [], value=constant)], perm=[3, 2, 0, 1])
        return self.node('Cast', [self.node('Identity', [W])], to=1)

    def conv(self, layer, x, stride=1, pad=0):
        W = self.constant('', self.tensors[f'{layer}/W'])
        b = samples.OnnxGraph.constant(self, f'{layer}/bias', self.tensors[f'{layer}/b'].reshape(1, -1, 1, 1))
        y = self.node('Conv', [x, W], strides=[stride] * 2, pads=[pad] * 4)
        return self.node('Relu', [self.node('Add', [b, self.node('Identity', [y])])])


def test_onnx_of_other_exporters(published, tmp_path):
    check(tmp_path / 'a.onnx', zoo(published, Constants).SerializeToString(), published)


class Scaled(Constants):
    """What is multiplied behind its bias."""

    def node(self, kind, inputs, **attributes):
        if kind == 'Relu':
            kind, inputs = 'Mul', [*inputs, samples.OnnxGraph.constant(self, f'two{len(self.nodes)}', np.float32([2]))]
        return super().node(kind, inputs, **attributes)


def test_onnx_that_scales_its_layers_is_not_what_it_looks_like(published):
    assert parse(zoo(published, Constants).SerializeToString(), '.onnx').metadata.network == 'squeezenet_v1.1'
    try:
        found = parse(zoo(published, Scaled).SerializeToString(), '.onnx')
    except trainer.InputError:
        return
    assert found.metadata.network is None


def test_onnx_in_half_precision(published):
    half = {name: tensor.astype(np.float16) for name, tensor in published[0].items()}
    found = parse(zoo((half,)).SerializeToString(), '.onnx')
    assert found.metadata.network == 'squeezenet_v1.1'
    np.testing.assert_array_equal(found.tensors['fire9/expand3x3/W'], half['fire9/expand3x3/W'].astype(np.float32))


class Reversed(samples.OnnxGraph):
    """The halves of a Fire the other way round: another network, though all shapes are the same."""

    def expand(self, fire, s):
        return super().expand(fire, s)[::-1]


class Bypass(samples.OnnxGraph):
    def model(self):
        h = self.pool(self.conv('conv1', 'data', stride=2))
        for i in range(2, 10):
            x = h
            h = self.node('Concat', self.expand(f'fire{i}', self.conv(f'fire{i}/squeeze1x1', h)), axis=1)
            h = self.node('Add', [x, h]) if i % 2 else h
        return self.finish(self.node('GlobalAveragePool', [self.conv('conv10', h)]))


def test_the_graph_tells_networks_of_equal_shapes_apart(published):
    assert parse(zoo(published, Reversed).SerializeToString(), '.onnx').metadata.network is None
    assert parse(zoo(published, Bypass).SerializeToString(), '.onnx').metadata.network == 'squeezenet_v1.1_simple'


class Norm(samples.OnnxGraph):
    """A batch normalisation after each convolution but the last, with PyTorch's epsilon."""

    def conv(self, layer, x, stride=1, pad=0):
        W, b = (self.constant(f'{layer}/{kind}', self.tensors[f'{layer}/{kind}']) for kind in 'Wb')
        y = self.node('Conv', [x, W, b], strides=[stride] * 2, pads=[pad] * 4)
        if layer != 'conv10':
            kinds = ('gamma', 'beta', 'avg_mean', 'avg_var')
            statistics = [self.constant(f'{layer}_bn.{kind}', self.tensors[f'{layer}_bn/{kind}']) for kind in kinds]
            y = self.node('BatchNormalization', [y, *statistics], epsilon=1e-5)
        return self.node('Relu', [y])


def test_batch_normalisation(tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    np.random.seed(0)
    tensors = tensors_of(NETWORKS['squeezenet_v1.1_bn'](7))
    for name, tensor in tensors.items():
        if name.endswith(('gamma', 'beta', 'avg_mean', 'avg_var')):
            tensor[...] = np.random.uniform(0.5, 2, tensor.shape)
    raw = Norm(tensors, []).model().SerializeToString()
    (tmp_path / 'a.onnx').write_bytes(raw)
    model, found = weights.load_model(tmp_path / 'a.onnx')
    assert found.metadata.network == 'squeezenet_v1.1_bn'
    x = np.random.normal(size=(1, 3, 64, 64)).astype(np.float32)
    (expected,) = runtime.InferenceSession(raw, providers=['CPUExecutionProvider']).run(None, {'data': x})
    np.testing.assert_allclose(output(model, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(('first', 'trans'), [('Gemm', 0), ('Conv', 1), ('MatMul', 1)])
def test_linear_layers_in_onnx(first, trans):
    np.random.seed(0)
    model = NETWORKS['alexnet'](7, 64)
    tensors = tensors_of(model)
    graph = samples.OnnxGraph(tensors, [])
    h = 'data'
    for i in range(1, 6):
        W, b = (graph.constant(f'p{i}{kind}', tensors[f'conv{i}/{kind}']) for kind in 'Wb')
        h = graph.node('Conv', [h, W, b], group=2 if i in (2, 4, 5) else 1)
    for i in range(6, 9):
        W, b = (tensors[f'fc{i}/{kind}'] for kind in 'Wb')
        b = graph.constant(f'p{i}b', b)
        if i == 6 and first == 'Conv':
            side = math.isqrt(W.shape[1] // 256)
            h = graph.node('Conv', [h, graph.constant('p6W', W.reshape(4096, 256, side, side)), b])
            h = graph.node('Flatten', [h])
        elif i == 6 and first == 'MatMul':
            h = graph.node('Add', [graph.node('MatMul', [h, graph.constant('p6W', W.T)]), b])
        else:
            h = graph.node('Gemm', [h, graph.constant(f'p{i}W', W if trans else W.T), b], transB=trans)
    found = parse(graph.finish(h).SerializeToString(), '.onnx')
    assert (found.metadata.network, found.metadata.n_class) == ('alexnet', 7)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)


def test_quantised_onnx(published):
    model = zoo(published)
    model.graph.node[0].op_type = 'QLinearConv'
    with pytest.raises(trainer.InputError, match=r'is quantised \(QLinearConv\), which is not read: give the file it'):
        parse(model.SerializeToString(), '.onnx')


def test_classes_that_cannot_be_told_from_a_fire(published):
    """With 64 classes the classifier has the shape of the last squeeze: names do not tell, a graph does."""
    tensors = tensors_of(NETWORKS['squeezenet_v1.1'](64))
    found = parse(samples.mxnet(samples.gluon_names(tensors)), '.params')
    assert found.metadata.network is None
    found = parse(zoo((tensors,)).SerializeToString(), '.onnx')
    assert found.metadata.n_class == 64
    np.testing.assert_array_equal(found.tensors['conv10/W'], tensors['conv10/W'])
