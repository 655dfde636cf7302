"""model_int8.onnx: quantised on a few pictures, and what is said of it."""

import sys
from collections import Counter

import numpy as np
import pytest
from deployed import classifier_and_pictures, needs_data, probabilities_of, random_weights

import trainer
from squeeze_net.deploy import images, int8
from squeeze_net.deploy import onnx as deploy_onnx
from squeeze_net.deploy.images import Images
from squeeze_net.deploy.job import Job, LeftOut
from squeeze_net.weights import Weights, tensors_of
from trainer.data import datasets
from trainer.data.metadata import Metadata

onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')


def job_of(found, folder, **more):
    return Job(found, folder / 'weights.npz', folder, **more)


@pytest.mark.long
@needs_data
def test_a_quarter_of_the_bytes_and_nearly_the_same_probabilities(tmp_path):
    classifier, pictures = classifier_and_pictures('experiment')
    metadata = Metadata('squeezenet', 10, classifier.preprocessing, classifier.classes)
    model = deploy_onnx.build(Weights(tensors_of(classifier.model), metadata))
    quantised = int8.quantise(model, [picture[None] for picture in pictures])
    assert len(quantised.SerializeToString()) < 0.35 * len(model.SerializeToString())
    kinds = Counter(node.op_type for node in quantised.graph.node)
    assert kinds['QuantizeLinear'] > 20
    around = {
        node.op_type
        for node in quantised.graph.node
        if node.name.startswith((deploy_onnx.network.PREPROCESSING, 'softmax'))
    }
    assert {'Cast', 'Div', 'Softmax'} <= around and 'QuantizeLinear' not in around
    assert [(entry.key, entry.value) for entry in quantised.metadata_props] == [
        (entry.key, entry.value) for entry in model.metadata_props
    ]
    (found,) = int8._session(quantised.SerializeToString(), 1).run(None, {'pictures': pictures})
    expected = probabilities_of(classifier, pictures)
    assert (found.argmax(1) == expected.argmax(1)).all() and np.abs(found - expected).max() < 0.3


@pytest.mark.parametrize('is_plain', [False, True])
def test_it_is_measured_beside_float32(is_plain, tmp_path, capsys):
    found = random_weights('squeezenet_v1.1')
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)

    def load(view, classes):
        assert view == found.metadata.preprocessing and classes == found.metadata.classes
        return Images(pictures[:2], [(pictures, np.arange(4))], 4, 'noise')

    section = int8.write(job_of(found, tmp_path, batch=1, is_plain=is_plain, load_images=load))
    raw = (tmp_path / int8.FILE).read_bytes()
    assert runtime.InferenceSession(raw).get_inputs()[0].shape[0] == 1
    (float32, *_), (row, *_) = (
        [line.split('|') for line in section.splitlines() if name in line] for name in ('| float32', '| int8')
    )
    assert 0.2 < int(row[2].replace(',', '')) / int(float32[2].replace(',', '')) < 0.4
    assert row[3].strip() in ('0.00%', '25.00%', '50.00%', '75.00%', '100.00%') and row[5].strip().endswith(' ms')
    assert 'Calibrated on 2 training images and measured on 4 test images (noise)' in section
    assert section.endswith(capsys.readouterr().out.strip())


def test_without_images_it_is_left_out(tmp_path):
    with pytest.raises(LeftOut, match='it is calibrated on training images: give --data DIR, or --dataset NAME'):
        int8.write(job_of(random_weights(), tmp_path))


def test_without_the_runtime_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(LeftOut, match=r"needs the package onnxruntime \(extra 'deploy'\): pip install onnxruntime$"):
        int8.write(job_of(random_weights(), tmp_path, load_images=lambda view, classes: None))


class Arguments:
    dataset, data, limit, seed, workers, unreadable = 'shapes', None, 3, 0, 0, 'fail'


def test_calibration_images_are_training_images():
    """They are cut as the test images are, and none of those is among them."""
    data = datasets.load('shapes', limit=3)
    view = random_weights().metadata.preprocessing
    found = images.load_images(Arguments, view, data.classes)
    np.testing.assert_array_equal(found.calibration, data.train.images)  # all of them, at their own size
    test, labels = (np.concatenate(parts) for parts in zip(*found.test, strict=True))
    np.testing.assert_array_equal(test, data.test.images)
    np.testing.assert_array_equal(labels, data.test.labels)
    with pytest.raises(trainer.InputError, match='has 10 classes, the network 2'):
        images.load_images(Arguments, view, ('0', '1'))


def test_without_a_training_image_that_can_be_read(monkeypatch):
    monkeypatch.setattr(images, '_pictures', lambda *_: iter(()))
    data = datasets.load('shapes', limit=1)
    with pytest.raises(trainer.InputError, match='holds no training image that can be read'):
        images.load_images(Arguments, random_weights().metadata.preprocessing, data.classes)
