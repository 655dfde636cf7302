"""model.onnx gives, of pictures as they are, what Python gives; and says what it expects and what it knows."""

import json

import numpy as np
import pytest
from deployed import classifier_and_pictures, lines_of, needs_data, photos, probabilities_of, random_weights
from PIL import Image

from squeeze_net import weights
from squeeze_net.classifier import Classifier, open_weights, softmax
from squeeze_net.deploy import onnx as deploy_onnx
from squeeze_net.deploy import readme
from squeeze_net.deploy.job import Job
from trainer.data.images import to_rgb
from trainer.data.metadata import KEY
from trainer.data.preprocessing import PREPROCESSINGS

onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')


def session_of(model):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def as_weights(classifier):
    """The weights of a classifier, which say all that it knows."""
    found = random_weights().with_metadata(
        network=classifier.network,
        n_class=len(classifier.classes),
        preprocessing=classifier.preprocessing,
        classes=classifier.classes,
    )
    return weights.Weights(weights.tensors_of(classifier.model), found.metadata)


@needs_data
@pytest.mark.parametrize('kind', ['experiment', 'caffe', 'torchvision'])
def test_probabilities_are_those_of_python(kind):
    classifier, pictures = classifier_and_pictures(kind)
    expected = probabilities_of(classifier, pictures)
    model = deploy_onnx.build(as_weights(classifier))
    onnx.checker.check_model(model, full_check=True)
    session = session_of(model)
    for n in (1, 3):
        (found,) = session.run(None, {'pictures': pictures[:n]})
        np.testing.assert_allclose(found, expected[:n], atol=1e-4)
    deploy_onnx.fix_batch(model, 2)
    session = session_of(model)
    np.testing.assert_allclose(session.run(None, {'pictures': pictures[:2]})[0], expected[:2], atol=1e-4)
    with pytest.raises(Exception, match='Expected: 2'):
        session.run(None, {'pictures': pictures[:1]})


@needs_data
@pytest.mark.parametrize('kind', ['experiment', 'caffe'])
def test_openvino_computes_the_same(kind):
    openvino = pytest.importorskip('openvino', reason='OpenVINO is not installed')
    classifier, pictures = classifier_and_pictures(kind)
    model = openvino.Core().read_model(deploy_onnx.build(as_weights(classifier)).SerializeToString())
    exact = {'INFERENCE_PRECISION_HINT': 'f32'}  # else bfloat16, where the processor has it
    found = openvino.Core().compile_model(model, 'CPU', exact)([pictures])[0]
    np.testing.assert_allclose(found, probabilities_of(classifier, pictures), atol=1e-4)


@pytest.mark.parametrize(
    ('network', 'kind'),
    [
        pytest.param('alexnet', 'caffe', marks=pytest.mark.long),
        pytest.param('vgg_bn', 'experiment', marks=pytest.mark.long),
        pytest.param('airbench94', 'experiment', marks=pytest.mark.long),
        ('squeezenet_v1.1_complex_bn', 'caffe'),
        ('squeezenet_v1.1_complex_bn', 'torchvision'),
    ],
)
def test_other_networks(network, kind):
    found = random_weights(network, 64 if network == 'alexnet' else 32)
    view = PREPROCESSINGS[kind].sized(found.metadata.preprocessing.crop)
    found = found.with_metadata(preprocessing=view)
    pictures = np.random.default_rng(0).integers(0, 256, (2, view.crop, view.crop, 3), np.uint8)
    pictures[1] = 77  # a flat one
    model, _ = weights.network.build(found, 'a test')
    expected = probabilities_of(Classifier(model, network, view, found.metadata.classes, None), pictures)
    assert np.isfinite(expected).all()
    (y,) = session_of(deploy_onnx.build(found)).run(None, {'pictures': pictures})
    np.testing.assert_allclose(y, expected, atol=1e-4)
    (y,) = session_of(deploy_onnx.build(found, is_plain=True)).run(
        None, {'images': view.colours(pictures.transpose(0, 3, 1, 2))}
    )
    np.testing.assert_allclose(softmax(y), expected, atol=1e-4)


def test_metadata_say_what_is_expected_and_known(tmp_path):
    found = random_weights()
    session = session_of(deploy_onnx.build(found))
    (entry,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ('pictures', 'tensor(uint8)', ['N', 32, 32, 3])
    assert (answer.name, answer.type, answer.shape) == ('probabilities', 'tensor(float)', ['N', 7])
    texts = session.get_modelmeta().custom_metadata_map
    facts = json.loads(texts[KEY])
    assert facts['classes'] == list('abcdefg') and facts['preprocessing']['name'] == 'experiment'
    assert texts['input'].startswith(
        'uint8 (N, 32, 32, 3), RGB: images turned upright, laid on white, squashed to 32 x 32 px'
    )
    assert texts['output'] == 'probabilities'
    plain = session_of(deploy_onnx.build(found, is_plain=True)).get_modelmeta().custom_metadata_map
    assert plain['input'].startswith('float32 (N, 3, 32, 32), minus the mean of all values')
    assert plain['output'] == 'logits'


@pytest.mark.parametrize('is_plain', [False, True])
@pytest.mark.parametrize('kind', ['experiment', 'caffe'])
def test_the_file_is_a_weights_file(kind, is_plain, tmp_path):
    found = random_weights().with_metadata(preprocessing=PREPROCESSINGS[kind].sized(32))
    path = tmp_path / 'model.onnx'
    path.write_bytes(deploy_onnx.build(found, is_plain).SerializeToString())
    _, again = open_weights(path)
    assert again.metadata == found.metadata
    for name, tensor in again.tensors.items():
        np.testing.assert_array_equal(tensor, found.tensors[name], err_msg=name)


@needs_data
@pytest.mark.parametrize(
    ('kind', 'is_plain', 'batch'),
    [('caffe', False, None), ('torchvision', False, 2), ('five-crop', True, None), ('torchvision', True, 1)],
)
def test_lines_of_the_readme_name_the_photo(kind, is_plain, batch, tmp_path, monkeypatch, capsys):
    classifier, _ = classifier_and_pictures(kind)
    (photo,) = photos(1)
    job = Job(as_weights(classifier), photo, tmp_path, batch, is_plain)
    text = readme.page(job, [deploy_onnx.write(job)], [])
    (tmp_path / 'cat.jpg').write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(lines_of(text), {})
    assert capsys.readouterr().out.strip() == classifier.classify(photo)[0][0]


@needs_data
@pytest.mark.parametrize('name', PREPROCESSINGS)
def test_lines_make_the_pictures_of_python(name, tmp_path, monkeypatch):
    view = PREPROCESSINGS[name]
    if view.filter == 'linear':
        pytest.importorskip('cv2', reason='OpenCV is not installed')
    (photo,) = photos(1)
    image = Image.open(photo).convert('RGBA')
    image.putalpha(Image.radial_gradient('L').resize(image.size))
    image.save(tmp_path / 'cat.jpg', 'PNG')
    monkeypatch.chdir(tmp_path)
    found = {}
    exec('\n'.join([*readme.picture_lines(view), *readme.colour_lines(view)]), found)
    expected = view.cut(to_rgb(image))
    assert np.abs(found['picture'].astype(int) - expected).max() <= (view.filter == 'linear')  # rounded otherwise
    x = view.colours(found['picture'].transpose(2, 0, 1)[None])
    np.testing.assert_allclose(found['x'], x, atol=1e-4)


def test_words_have_all_numbers():
    assert readme.picture_words(PREPROCESSINGS['caffe']) == (
        'turned upright, laid on white, squashed to 256 x 256 px '
        '(bilinear, averaging where it shrinks, as Pillow does), then cut to its central 227 x 227 px'
    )
    assert readme.colour_words(PREPROCESSINGS['caffe']) == 'channels in the order BGR, minus (104, 117, 123)'
    assert readme.picture_words(PREPROCESSINGS['torchvision']).startswith(
        'turned upright, laid on white, resized until its shorter side has 256 px'
    )
    assert readme.colour_words(PREPROCESSINGS['torchvision']) == (
        'channels in the order RGB, minus (123.675, 116.28, 103.53), divided by (58.395, 57.12, 57.375)'
    )
