"""Pictures of a source that does not fit in memory: drawn as functions of (seed, epoch, image), decoded ahead."""

import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import InputError
from trainer.data import preprocessing, rng
from trainer.data.augmentation import Sizes, draw_train
from trainer.data.augmentation.schemes import SCHEMES, TrainCut, draw
from trainer.data.augmentation.specimens import read_dataset
from trainer.data.augmentation.stream import StreamTestView, StreamTrainView
from trainer.data.decode import Loader, Unreadable
from trainer.data.order import EpochIterator
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources import ImageList

DATA = (
    Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[4].parent / 'shared' / 'data')) / 'imagenet-sample'
)
SQUASH = Preprocessing('caffe', 'squash', 40, 32, mean=(104, 117, 123), order='BGR')
SHORT = Preprocessing('five-crop', 'short', 40, 32, mean=(104, 117, 123))
CHANCE = st.lists(st.floats(0, 1, exclude_max=True), min_size=23, max_size=23).map(np.array)


def encode(image):
    file = io.BytesIO()
    image.save(file, 'jpeg', quality=95)
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(13):
        height, width = rng.integers(20, 90, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height))
        (tmp_path / f'{i}.jpg').write_bytes(encode(coarse))
        lines.append(f'{i}.jpg {i % 3}\n')
    (tmp_path / 'list.txt').write_text(''.join(lines))
    return ImageList(tmp_path / 'list.txt')


@settings(max_examples=150, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    how=st.sampled_from([SQUASH, SHORT]),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    chance=CHANCE,
)
def test_boxes_lie_in_the_image_and_crops_in_what_it_becomes(scheme, how, width, height, chance):
    left, top, right, bottom = (picture := draw(scheme, how, Sizes.of(32), width, height, chance)).box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    for offset, length in zip((picture.left, picture.top), picture.size, strict=True):
        assert 0 <= offset <= length - how.crop


def test_draws_have_the_distribution_they_should():
    n = 4000
    chances = [rng.uniform(7, 1, i, 23) for i in range(n)]
    assert abs(np.mean([draw('random-crop', SQUASH, Sizes.of(32), 50, 50, c).flip for c in chances]) - 0.5) < 0.03
    places = [draw('five-crop', SHORT, Sizes.of(32), 80, 40, c)[2:4] for c in chances]
    counts = {place: places.count(place) for place in set(places)}
    assert set(counts) == {(20, 0), (28, 0), (20, 8), (28, 8), (24, 4)}
    assert min(counts.values()) > n / 5 * 0.85
    offsets = np.array([draw('random-crop', SQUASH, Sizes.of(32), 50, 50, c)[2:4] for c in chances])
    assert np.bincount(offsets.ravel(), minlength=9).min() > 2 * n / 9 * 0.85
    boxes = np.array([draw('random-resized-crop', SQUASH, Sizes.of(32), 350, 350, c).box for c in chances])
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    share = w * h / 350**2
    assert 0.08 * 0.97 < share.min() < 0.1
    assert 0.75 * 0.95 < (w / h).min() < (w / h).max() < 4 / 3 * 1.05
    assert abs(np.log(w / h).mean()) < 0.03
    sides = [draw('experiment', SQUASH, Sizes.of(32), 400, 300, c).size[0] for c in chances]
    assert np.bincount(sides)[32:].min() > n / 5 * 0.85
    kernels = np.bincount([draw('experiment', SQUASH, Sizes.of(32), 400, 300, c).kernel for c in chances])
    np.testing.assert_allclose(kernels / n, [0.25, 0.25, 0.5], atol=0.03)


def test_the_experiment_draws_from_files_as_in_memory():
    """Both spend the same uniform numbers in the same way, each in an order of its own."""
    sizes = Sizes.of(32)
    for i in range(200):
        chance = rng.uniform(7, 1, i, 23)
        uniform = iter(chance[[3, 2, 1, 4]])
        one = SimpleNamespace(
            integers=lambda low, high, size, dtype, endpoint=False, uniform=uniform: np.array(
                [low + int(next(uniform, 0) * (np.max(high) - low + endpoint))], dtype
            )
        )
        side, top, left, kernel, _ = (column[0] for column in draw_train(one, 1, sizes))
        picture = draw('experiment', SQUASH, sizes, 400, 300, chance)
        assert picture.size == (side, side)
        assert (picture.top, picture.left, picture.kernel) == (top, left, kernel)


def test_chance_is_one_images_own():
    one = rng.uniform(3, 4, 5, 8)
    np.testing.assert_array_equal(one, rng.uniform(3, 4, 5, 8))
    for other in (4, 4, 5), (3, 5, 5), (3, 4, 6):
        assert not np.isin(one, rng.uniform(*other, 8)).any()


def test_random_crops_are_crops_of_what_the_test_sees():
    """Of an image too small for a reduced decoding, both resize the same pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 75, 3), np.uint8))
    raw = encode(image)
    with Image.open(io.BytesIO(raw)) as decoded:
        whole = np.asarray(SQUASH.resized(decoded.convert('RGB')))
    cut = TrainCut(SQUASH, 'random-crop', seed=1)
    for epoch in range(6):
        picture = draw('random-crop', SQUASH, Sizes.of(32), 75, 60, rng.uniform(1, epoch, 9, 23))
        expected = whole[picture.top : picture.top + 32, picture.left : picture.left + 32]
        np.testing.assert_array_equal(cut(raw, epoch, 9), expected[:, ::-1] if picture.flip else expected)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_reduced_decoding_shows_the_same_picture(scheme):
    """A large smooth JPEG, decoded to a part of its size, gives nearly the pixels of one that cannot be (a PNG)."""
    ramp = np.linspace(0, 255, 640)
    rgb = np.stack(np.broadcast_arrays(ramp[:480, None], ramp[None], 128), axis=2).astype(np.uint8)
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(rgb).save(jpeg, 'jpeg', quality=100, subsampling=0)
    Image.fromarray(rgb).save(png, 'png')
    for index in range(8):
        a, b = (TrainCut(SHORT, scheme, 0)(file.getvalue(), 0, index).astype(int) for file in (jpeg, png))
        assert a.shape == (32, 32, 3)
        assert abs(a - b).max() <= 9  # a source pixel of the nearest neighbour is half a grey level


def test_unknown_schemes_are_refused():
    with pytest.raises(InputError, match="'cutmix' is not a scheme of augmentation; expected one of random-crop"):
        TrainCut(SQUASH, 'cutmix', 0)


@pytest.mark.parametrize('expects', [False, True])
@pytest.mark.parametrize('workers', [0, 1, 2])
def test_batches_do_not_depend_on_workers_or_foresight(source, workers, expects):
    def look(workers, expects):
        iterator = EpochIterator(13, 4, seed=2)
        view = StreamTrainView(source, SQUASH, 5, workers=workers)
        if expects:
            view.decode_ahead(iterator, lambda n: range(n))
        batches = [view(iterator.next()) for _ in range(8)]
        view.close()
        return [np.concatenate(column) for column in zip(*batches, strict=True)]

    x, t = look(workers, expects)
    assert x.dtype == np.float32
    assert x.shape == (32, 3, 32, 32)
    expected_x, expected_t = look(0, False)
    np.testing.assert_array_equal(x, expected_x)
    np.testing.assert_array_equal(t, expected_t)


@pytest.mark.parametrize('rank', range(3))
def test_a_rank_decodes_its_own_rows_and_no_others(source, rank, monkeypatch):
    iterator = EpochIterator(13, 4, seed=2)
    batches = [iterator.next().at(range(rank, 4, 3)) for _ in range(9)]
    plain = StreamTrainView(source, SQUASH, 5, workers=0)
    expected = [plain(batch)[0] for batch in batches]
    asked = []
    ask = Loader.ask
    monkeypatch.setattr(Loader, 'ask', lambda self, *row: asked.append(row) or ask(self, *row))
    view = StreamTrainView(source, SQUASH, 5, workers=1)
    view.decode_ahead(EpochIterator(13, 4, seed=2), lambda n: range(rank, n, 3))
    for batch, x in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(view(batch)[0], x)
    view.close()
    own = [row for batch in batches for row in zip(batch.epoch.tolist(), batch.index.tolist(), strict=True)]
    assert asked[: len(own)] == own  # each once, in its order; behind them those of the batches to come
    assert len(asked) > len(own)


def test_where_the_order_is_not_known_nothing_is_decoded_in_vain(source, monkeypatch):
    asked = []
    ask = Loader.ask
    monkeypatch.setattr(Loader, 'ask', lambda self, *row: asked.append(row) or ask(self, *row))
    iterator = EpochIterator(13, 4, seed=2)
    view = StreamTrainView(source, SQUASH, 5, workers=1)
    view.decode_ahead(iterator, lambda n: range(n), is_in_order=False)
    for _ in range(5):
        batch = iterator.next()
        view(SimpleNamespace(epoch=batch.epoch[::-1], index=batch.index[::-1]))
    view.close()
    assert len(asked) == 20


def test_a_view_that_is_asked_for_something_else_shows_that(source):
    iterator = EpochIterator(13, 4, seed=2)
    view, plain = StreamTrainView(source, SHORT, 5, workers=2), StreamTrainView(source, SHORT, 5, workers=0)
    view.decode_ahead(iterator, lambda n: range(n))
    iterator.next()
    asked = [iterator.next(), iterator.next().at(range(1, 3)), iterator.next(), iterator.peek(), iterator.next()]
    iterator.epoch, iterator.position = 7, 11  # a resumed run
    asked += [iterator.next(), iterator.next()]
    asked += [SimpleNamespace(epoch=np.repeat(3, 30), index=np.arange(30) % 13)]  # more than it has room for
    for batch in asked:
        for got, expected in zip(view(batch), plain(batch), strict=True):
            np.testing.assert_array_equal(got, expected)
    view.close()


def test_epochs_differ_and_the_seed_counts(source):
    rows = SimpleNamespace(epoch=np.array([0, 1]), index=np.array([3, 3]))
    x, t = StreamTrainView(source, SQUASH, 5, workers=0)(rows)
    assert t.tolist() == [0, 0]
    assert not np.array_equal(x[0], x[1])
    other, _ = StreamTrainView(source, SQUASH, 6, workers=0)(rows)
    assert not np.array_equal(x, other)


def test_the_test_view_is_the_preprocessing(source):
    view = StreamTestView(source, SQUASH, workers=2)
    x, t = (np.concatenate(c) for c in zip(view(np.arange(6)), view(np.arange(6, 13)), strict=True))
    view.close()
    assert t.tolist() == source.labels.tolist()
    for i in range(13):
        with Image.open(io.BytesIO(source.read(i))) as image:
            cut = SQUASH.cut(image.convert('RGB')).transpose(2, 0, 1)
        np.testing.assert_array_equal(x[i], SQUASH.colours(cut[None])[0])


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images(source, workers, tmp_path):
    def alone(faults):
        return [faults]

    (tmp_path / '4.jpg').write_bytes(b'no image')
    (tmp_path / '5.jpg').unlink()
    test = StreamTestView(source, SQUASH, workers, 'skip')
    assert test(np.arange(4, 6))[0].shape == (0, 3, 32, 32)
    assert len(test(np.arange(6, 10))[0]) == 4
    assert test.new_faults('test', alone).startswith('2 of 13 test images could not be read and were left out: ')
    assert test.new_faults('test', alone) is None

    def gather(faults):
        return [faults, [Unreadable(12, 'far.jpg', 'broken')], faults]

    assert re.fullmatch(r'3 of 13 .*; far.jpg \(broken\)', test.new_faults('test', gather))
    train = StreamTrainView(source, SQUASH, 0, workers, 'skip')
    rows = SimpleNamespace(epoch=np.zeros(3, int), index=np.array([3, 4, 6]))
    x, t = train(rows)
    assert t.tolist() == [0, 6 % 3, 0]
    assert not np.array_equal(x[1], x[2])  # image 6 as drawn for image 4
    assert [fault.index for fault in train.unreadable] == [4, 5]
    for view in (test, train):
        view.close()
    view = StreamTrainView(source, SQUASH, 0, workers=workers)
    with pytest.raises(InputError, match=r'4\.jpg \(.*\) is unreadable'):
        view(rows)
    view.close()


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no sample images in {DATA}')
@pytest.mark.parametrize('name', preprocessing.PREPROCESSINGS)
def test_real_images_are_the_same_from_processes(name):
    source = ImageList(DATA / 'val.txt')
    rows = SimpleNamespace(epoch=np.arange(6) % 2, index=np.arange(30, 36))
    found = []
    for workers in (0, 2):
        view = StreamTrainView(source, preprocessing.find(name), 0, workers=workers)
        found.append(view(rows)[0])
        view.close()
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()
    assert found[0].std() > 0.5


def test_a_sheet_shows_images_of_a_source(source, tmp_path):
    lines = (tmp_path / 'list.txt').read_text()
    for name in ('train.txt', 'val.txt'):
        (tmp_path / name).write_text(lines)
    specimens = read_dataset('imagelist', tmp_path, n=4, max_side=42)
    assert specimens.names == ['0', '0', '1', '1']
    assert specimens.images.shape == (4, 3, 42, 42)
    assert specimens.images.dtype == np.uint8
    with Image.open(tmp_path / '3.jpg') as image:
        np.testing.assert_array_equal(specimens.originals[1], np.asarray(image))
