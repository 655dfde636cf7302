"""Answers, their forms and their pictures; what is not an image is left out and named."""

import csv
import io
import json
from pathlib import Path

import chainer
import numpy as np
import pytest
from PIL import Image

import trainer
from squeeze_net import infer
from squeeze_net.classifier import Classifier
from squeeze_net.infer import Answer, Drawer, as_csv, as_jsonl, as_table, draw, gather, read_list
from trainer import Config
from trainer.data.preprocessing import Preprocessing

COLOURS = {'red': (250, 10, 10), 'green': (10, 240, 10), 'blue': (10, 10, 250)}
ANSWER = Answer('a, "b".jpg', (2, 0), ('great, white shark', 'tench'), (0.75, 0.25))


class Colour(chainer.Chain):
    """The logits are the means of the channels, in BGR."""

    def forward(self, x):
        return chainer.functions.mean(x, axis=(2, 3))


@pytest.fixture
def model():
    view = Preprocessing('caffe', 'squash', 16, 14, order='BGR', mean=(104, 117, 123))
    return Classifier(Colour(), 'squeezenet', view, ('blue', 'green', 'red'), Config(), batch=4)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / 'deep').mkdir()
    for i, (name, colour) in enumerate(COLOURS.items()):
        Image.new('RGB', (30 + i, 20), colour).save(tmp_path / ('deep' if i else '.') / f'{name}.png')
    return tmp_path


def answers(model, paths, top=2):
    from trainer.data import decode

    batches = decode.batches(infer.Photos(paths), model.preprocessing, model.batch, 0, 'skip')
    return list(infer.infer(model, batches, paths, top)), batches.skipped


def test_images_are_named_in_their_order(model, photos):
    paths = gather([photos / 'deep', photos / 'red.png'])
    assert [path.name for path in paths] == ['blue.png', 'green.png', 'red.png']
    found, skipped = answers(model, paths)
    assert [answer.names[0] for answer in found] == ['blue', 'green', 'red']
    assert [answer.image for answer in found] == [str(path) for path in paths]
    assert not skipped
    for answer in found:
        assert len(answer.classes) == 2 and answer.probabilities[0] > answer.probabilities[1] >= 0


def test_what_cannot_be_read_is_left_out_and_named(model, photos):
    broken = photos / 'broken.jpg'
    broken.write_bytes(b'\xff\xd8\xff nothing')
    missing = photos / 'missing.jpg'
    found, skipped = answers(model, [broken, photos / 'red.png', *[missing] * 6, photos / 'deep/blue.png', broken])
    assert [getattr(answer, 'names', ['?'])[0] for answer in found] == ['?', 'red', *'?' * 6, 'blue', '?']
    assert len(skipped) == 8 and found[0].image == str(broken)
    assert as_table(found[2]) == f'{missing}\n  cannot be read: No such file or directory'
    assert json.loads(as_jsonl(found[2])) == {'image': str(missing), 'error': 'No such file or directory'}
    assert next(csv.reader([as_csv(found[2])])) == [str(missing), '', '', '', '']


def test_logits_do_not_depend_on_the_batch(model):
    pictures = np.random.default_rng(0).integers(0, 256, (7, 3, 14, 14), np.uint8)
    logits = model(pictures)
    assert logits.shape == (7, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.concatenate([model(pictures[i : i + 1]) for i in range(7)]), rtol=1e-6)
    np.testing.assert_allclose(logits[:, 2], pictures[:, 0].mean((1, 2)) - 123, rtol=1e-5)
    assert model(pictures[:0]).shape == (0, 3)


def test_lists(photos):
    file = photos / 'list.txt'
    file.write_text('red.png 0\n\ndeep/blue.png\na 1 b.png 12\n')
    assert read_list(file) == [photos / 'red.png', photos / 'deep/blue.png', photos / 'a 1 b.png']
    assert gather([file]) == read_list(file)
    file.write_text('\ufeffred.png n01440764\r\na b.JPG great white shark\r\nx.jpg y.jpg\n')
    assert read_list(file) == [photos / name for name in ('red.png', 'a b.JPG', 'x.jpg y.jpg')]
    file.write_text('\n')
    with pytest.raises(trainer.InputError, match='names no image'):
        gather([file])
    file.write_bytes(b'\xff\xfe')
    with pytest.raises(trainer.InputError, match='is not UTF-8'):
        gather([file])


def test_links_are_followed_but_not_back_and_what_it_has_drawn_is_left_out(model, photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    Image.new('RGB', (9, 9)).save(elsewhere / 'far.png')
    (photos / 'deep/link').symlink_to(elsewhere)
    (photos / 'deep/back').symlink_to(photos)
    (photos / 'deep/gone').symlink_to(photos / 'nowhere')
    names = ['blue.png', 'green.png', 'far.png', 'red.png']
    assert [path.name for path in gather([photos])] == names
    drawer = infer.Drawer(photos / 'drawn')
    for answer in answers(model, gather([photos]))[0]:
        drawer(answer)
    assert len(list((photos / 'drawn').iterdir())) == 4
    assert [path.name for path in gather([photos])] == names


def test_what_is_hidden_or_another_kind_of_file_does_not_count(photos, capsys):
    (photos / '__MACOSX').mkdir()
    for name in ('.red.png', '__MACOSX/red.png', 'notes.txt', 'film.mov', 'more.txt'):
        (photos / name).write_bytes(b'')
    assert [path.name for path in gather([photos])] == ['blue.png', 'green.png', 'red.png']
    assert capsys.readouterr().err == f'{photos}: 3 other files left out (.mov, .txt)\n'


@pytest.mark.parametrize('place', ['https://x.org/a.jpg', 's3://a/b.png', 'FILE://a.jpg'])
def test_addresses_are_refused(place):
    with pytest.raises(trainer.InputError, match=rf'^{place} is an address: download it'):
        gather([Path(place)])


def test_sources_that_hold_nothing(tmp_path):
    with pytest.raises(trainer.InputError, match='holds no images'):
        gather([tmp_path])
    with pytest.raises(trainer.InputError, match='does not exist'):
        gather([tmp_path / 'cat.jpg'])


def test_forms():
    assert as_table(ANSWER).splitlines()[1] == '   75.00%  great, white shark'
    record = json.loads(as_jsonl(ANSWER))
    assert record['image'] == ANSWER.image and record['top'][0]['class'] == 2
    rows = list(csv.reader(io.StringIO(infer.CSV_HEADER + '\n' + as_csv(ANSWER))))
    assert rows[1] == [ANSWER.image, '1', '2', 'great, white shark', '0.750000'] and len(rows) == 3


@pytest.mark.parametrize('size', [(640, 200), (10, 600), (1, 1)])
def test_pictures(size):
    sheet = draw(Image.new('L', size, 128), ANSWER)
    assert sheet.width == 480 and sheet.mode == 'RGB'
    pixels = np.asarray(sheet)
    assert (pixels == (158, 202, 225)).all(2).any()  # the bar of the likeliest


def test_pictures_of_one_name_do_not_replace_each_other(photos):
    drawer = Drawer(photos / 'drawn')
    for _ in range(2):
        drawer(Answer(str(photos / 'red.png'), (0,), ('x' * 90,), (1.0,)))
    assert sorted(path.name for path in (photos / 'drawn').iterdir()) == ['red.png', 'red_2.png']
    with pytest.raises(trainer.InputError, match='cannot be made'):
        Drawer(photos / 'red.png' / 'x')


def test_drawing_replaces_its_own_pictures_and_no_others(photos):
    before = (photos / 'red.png').read_bytes()
    (photos / 'red_2.png').write_text('a note of mine')
    for _ in range(2):  # calls
        drawer = Drawer(photos)
        drawer(Answer(str(photos / 'red.png'), (0,), ('x',), (1.0,)))
    assert (photos / 'red.png').read_bytes() == before
    assert (photos / 'red_2.png').read_text() == 'a note of mine'
    assert [path.name for path in sorted(photos.glob('red*'))] == ['red.png', 'red_2.png', 'red_3.png']
