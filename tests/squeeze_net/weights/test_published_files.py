"""Published files by name: fetched once, checked, kept; and where to put one by hand."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import chainer
import pytest
import samples

import trainer
from squeeze_net.weights import published
from squeeze_net.weights.published import PUBLISHED, Published, find


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A published file 'mine', served from this machine; and the folder of what was fetched."""
    raw = samples.all_files()['safetensors'][1]
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served' / 'mine.safetensors').write_bytes(raw)
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path / 'cache'))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path / 'served'))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        url = f'http://127.0.0.1:{server.server_port}/mine.safetensors'
        entry = Published(url, hashlib.sha256(raw).hexdigest(), 'ours')
        monkeypatch.setattr(published, 'PUBLISHED', {'mine': entry})
        yield tmp_path
        server.shutdown()
        thread.join()


def test_is_fetched_once_and_kept(served):
    place = find('mine')
    assert place.is_relative_to(served / 'cache') and place.name == 'mine.safetensors'
    assert place.read_bytes() == (served / 'served/mine.safetensors').read_bytes()
    (served / 'served/mine.safetensors').unlink()
    assert find('mine') == place


OTHERS = {
    'a page': lambda raw: b'<!DOCTYPE html><html></html>',
    'a shorter file': lambda raw: raw[: len(raw) // 2],
    'of another network': lambda raw: samples.safetensors.write(samples.Weights(samples.tensors(seed=1))),
    'a longer file': lambda raw: raw + b'0',
}


@pytest.mark.parametrize('kind', OTHERS)
def test_another_file_is_refused_and_removed(served, kind):
    path = served / 'served/mine.safetensors'
    path.write_bytes(OTHERS[kind](path.read_bytes()))
    with pytest.raises(trainer.InputError, match=r'sha256 .*, expected .*it was removed'):
        find('mine')
    assert not [path for path in (served / 'cache').rglob('*.safetensors*') if path.suffix != '.lock']


def test_offline_it_says_where_to_put_the_file(served):
    (served / 'served/mine.safetensors').unlink()
    with pytest.raises(trainer.InputError, match=r'could not be downloaded.*put the file at /') as caught:
        find('mine')
    place = served / str(caught.value).rpartition('put the file at ')[2]
    place.write_bytes(b'by hand')
    assert find('mine') == place


def test_a_path_is_itself_and_another_name_is_refused(served):
    (served / 'mine').write_bytes(b'x')
    assert find(served / 'mine') == served / 'mine'
    with pytest.raises(trainer.InputError, match=r'nothing does not exist; expected a weights file, or .* mine'):
        find('nothing')
    with pytest.raises(trainer.InputError, match=r'mine\.safetensors does not exist; the name mine downloads it'):
        find('mine.safetensors')


def test_the_table_is_complete():
    for entry in PUBLISHED.values():
        assert entry.url.startswith('https://') and entry.source
        assert 8 <= len(entry.sha256) <= 64 and int(entry.sha256, 16)
