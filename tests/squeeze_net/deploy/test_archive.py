"""The archive beside the C file: an archive as it is, other weights without loss."""

import numpy as np
import pytest
from deployed import ROOT, random_weights

from squeeze_net import weights
from squeeze_net.classifier import open_weights
from squeeze_net.deploy import c_files, page_files
from squeeze_net.deploy.job import Job, LeftOut
from squeeze_net.weights.formats.sqz.archive import Archive

SMALL = ROOT / 'results/compression/small.sqz'


def test_an_archive_is_copied(tmp_path):
    _, loaded = open_weights(SMALL)
    assert Job(loaded, SMALL, tmp_path).archive == SMALL.read_bytes()


def test_names_that_are_given_are_packed_with_the_same_tensors(tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'class {i}' for i in range(10)))
    _, loaded = open_weights(SMALL, classes=names)
    raw = Job(loaded, SMALL, tmp_path).archive
    own, given = Archive(SMALL.read_bytes()), Archive(raw)
    assert given.metadata.classes == tuple(f'class {i}' for i in range(10))
    assert given.entries.keys() == own.entries.keys() and len(given._raw) <= len(own._raw)
    for name, tensor in own:
        assert given[name].tobytes() == tensor.tobytes()


def test_other_weights_are_packed_without_loss(tmp_path):
    found = random_weights()
    path = tmp_path / 'weights.npz'
    weights.write(found, path)
    _, loaded = open_weights(path)
    archive = Archive(Job(loaded, path, tmp_path).archive)
    assert archive.metadata == found.metadata
    for name, tensor in archive:
        np.testing.assert_array_equal(tensor, found.tensors[name], err_msg=name)


@pytest.mark.parametrize('form', [c_files, page_files])
@pytest.mark.parametrize(
    ('network', 'lacking'), [('alexnet', 'the local response normalisation'), ('airbench94', 'the average pool')]
)
def test_what_the_c_file_does_not_compute_is_left_out(tmp_path, form, network, lacking):
    with pytest.raises(LeftOut, match=f'does not compute {lacking} of {network}'):
        form.write(Job(random_weights(network, 64), tmp_path / 'weights.npz', tmp_path))
