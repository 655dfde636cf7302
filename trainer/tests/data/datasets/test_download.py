import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trainer import InputError
from trainer.data.datasets import download as module
from trainer.data.datasets.download import download

PAYLOAD = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(PAYLOAD).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves PAYLOAD under any path, and notes the ranges it was asked for."""

    payload = PAYLOAD
    breaks_after = len(PAYLOAD)  # bytes of one answer
    knows_ranges = True
    tells_length = True
    status = 200

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.ranges = []

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/set.tar.gz'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get('Range')
        server.ranges.append(asked)
        start = int(asked.removeprefix('bytes=').removesuffix('-')) if asked and server.knows_ranges else 0
        rest = server.payload[start:]
        if server.status != 200 or (start and not rest):
            self.send_error(server.status if server.status != 200 else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(server.payload) - 1}/{len(server.payload)}')
        if server.tells_length:
            self.send_header('Content-Length', str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'cache' / 'set.tar.gz'


def part_of(path):
    return path.with_name('set.tar.gz.part')


def test_fetches_once(server, path):
    for _ in range(2):
        download(server.url, path, MD5)
        assert path.read_bytes() == PAYLOAD
    assert server.ranges == [None]
    assert not part_of(path).exists()


def test_a_broken_transfer_goes_on_where_it_broke_off(server, path):
    server.breaks_after = 100_001
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.ranges == [None, 'bytes=100001-', 'bytes=200002-']


def test_a_later_call_goes_on_with_the_part(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(PAYLOAD[:1234])
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.ranges == ['bytes=1234-']


def test_a_part_that_is_whole_needs_no_more(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(PAYLOAD)
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_a_transfer_that_gets_nowhere_is_given_up_and_kept(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(PAYLOAD[:1234])
    server.breaks_after = 0
    with pytest.raises(InputError, match=r'could not be downloaded to .*broke off after 1234 of 300000 bytes'):
        download(server.url, path, MD5)
    assert part_of(path).read_bytes() == PAYLOAD[:1234]
    assert not path.exists()


def test_a_server_that_knows_no_ranges_sends_all_of_it(server, path):
    server.knows_ranges = False
    path.parent.mkdir()
    part_of(path).write_bytes(b'stale' * 1000)
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_a_server_that_tells_no_length(server, path):
    server.tells_length = False
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_another_checksum_removes_the_file(server, path):
    server.payload = PAYLOAD[:-1] + b'?'
    with pytest.raises(InputError, match=rf'gave a file with md5 .*, expected {MD5}; it was removed'):
        download(server.url, path, MD5)
    assert not path.exists()
    assert not part_of(path).exists()


def test_an_endless_file_is_refused(server, path, monkeypatch):
    monkeypatch.setattr(module, 'MAX_BYTES', 1000)
    with pytest.raises(InputError, match=r'sends more than 1000 bytes'):
        download(server.url, path, MD5)


def test_an_error_of_the_server_is_told(server, path):
    server.status = 404
    with pytest.raises(InputError, match=r'could not be downloaded to .*404'):
        download(server.url, path, MD5)


def test_no_server(path):
    with Server() as server:
        url = server.url  # nobody listens there any more
    with pytest.raises(InputError, match=r'could not be downloaded to .*refused'):
        download(url, path, MD5)


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'could not be downloaded'):
        download(server.url, tmp_path / 'file' / 'set.tar.gz', MD5)


def test_two_at_once_transfer_once(server, path):
    threads = [threading.Thread(target=download, args=(server.url, path, MD5)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == PAYLOAD
    assert server.ranges == [None]
