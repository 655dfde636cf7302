import pickle
import zipfile

import chainer
import chainer.links as L
import numpy as np
import pytest

from trainer import InputError
from trainer.run.checkpoint import load_model, load_optimizer, prepare_folder, save_weights


def make_model(n_out=4):
    return chainer.Sequential(L.Linear(3, n_out), L.BatchNormalization(n_out))


def make_linear():
    return chainer.Sequential(L.Linear(3, 4))


def test_round_trip_to_the_bit_and_for_chainers_own_reader(tmp_path):
    model, copy, chainers = make_model(), make_model(), make_model()
    save_weights(tmp_path / 'w.npz', model)
    load_model(tmp_path / 'w.npz', copy)
    chainer.serializers.load_npz(tmp_path / 'w.npz', chainers)
    for other in (copy, chainers):
        assert (other[0].W.array == model[0].W.array).all()


def test_another_network_is_refused_by_name_and_shape(tmp_path):
    save_weights(tmp_path / 'w.npz', make_model(5))
    with pytest.raises(InputError, match=r'does not fit the network: 0/W has shape \(5, 3\), not \(4, 3\)'):
        load_model(tmp_path / 'w.npz', make_model(4))
    save_weights(tmp_path / 'one.npz', make_linear())
    with pytest.raises(InputError, match=r'1/N is missing; 1/avg_mean is missing; 1/avg_var is missing; and 2 more'):
        load_model(tmp_path / 'one.npz', make_model())
    with pytest.raises(InputError, match=r'1/N has no place'):
        save_weights(tmp_path / 'two.npz', make_model())
        load_model(tmp_path / 'two.npz', make_linear())


def test_a_shape_that_would_broadcast_is_refused(tmp_path):
    """Chainer's own reader copies (1,) into (4,) without a word."""
    model = make_model()
    save_weights(tmp_path / 'w.npz', model)
    with np.load(tmp_path / 'w.npz') as arrays:
        changed = dict(arrays) | {'0/b': np.ones(1, np.float32)}
    np.savez(tmp_path / 'w.npz', **changed)
    with pytest.raises(InputError, match=r'0/b has shape \(1,\), not \(4,\)'):
        load_model(tmp_path / 'w.npz', model)


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ('the file ran code',))


def test_files_of_another_kind_and_broken_ones(tmp_path):
    path = tmp_path / 'w.npz'
    model = make_model()
    save_weights(path, model)
    whole = path.read_bytes()
    cases = {
        'empty': b'',
        'text': b'weights',
        'cut short': whole[: len(whole) // 2],
        'a pickle': pickle.dumps(Hostile()),
        'one flipped byte': whole[:300] + bytes([whole[300] ^ 255]) + whole[301:],
    }
    for content in cases.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r'w\.npz'):
            load_model(path, model)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(
            '0/W.npy', b'\x93NUMPY\x01\x00v\x00' + b"{'descr': '|O', 'fortran_order': False, 'shape': ()}".ljust(118)
        )
    with pytest.raises(InputError):
        load_model(path, model)
    np.save(tmp_path / 'single.npy', np.zeros(3))
    with pytest.raises(InputError, match=r'is not an \.npz'):
        load_model(tmp_path / 'single.npy', model)
    np.savez_compressed(path, **{'0/W': np.zeros((10_000, 3)), '0/b': 0})  # a small file that unpacks to much
    with pytest.raises(InputError, match=r'0/W is larger than \(4, 3\)'):
        load_model(path, make_linear())
    with pytest.raises(InputError, match=r'does not exist'):
        load_model(tmp_path / 'absent.npz', model)


def test_weights_hold_no_optimizer_state(tmp_path):
    model = make_model()
    save_weights(tmp_path / 'w.npz', model)
    with pytest.raises(InputError, match=r'holds no optimizer state'):
        load_optimizer(tmp_path / 'w.npz', chainer.optimizers.MomentumSGD().setup(model))


def test_prepared_folder_exists_and_is_left_as_it_was(tmp_path):
    prepare_folder(tmp_path / 'a/b', 1000)
    assert list((tmp_path / 'a/b').iterdir()) == []
    (tmp_path / 'a/b/probe').write_text("the user's")
    prepare_folder(tmp_path / 'a/b', 1000)
    assert [path.read_text() for path in (tmp_path / 'a/b').iterdir()] == ["the user's"]


def test_what_unpacks_without_bounds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'w.npz', 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('fc/W.npy', bytes(1000))
    with pytest.raises(InputError, match=r'fc/W\.npy is packed by method 14 of zip, expected deflate'):
        load_model(tmp_path / 'w.npz', L.Linear(2, 2))
