import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
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
    answers = True
    breaks_after = len(PAYLOAD)  # bytes of one answer
    stalls_after = None  # bytes of one answer
    chunk, pause_s = len(PAYLOAD), 0.0  # how it is sent
    knows_ranges = True
    tells_length = True
    claims_more = 0  # bytes
    content_type = 'application/gzip'
    redirect = None
    status = 200

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.ranges = []
        self.is_over = threading.Event()

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
        if not server.answers:
            server.is_over.wait(5)
            return
        if server.redirect:
            self.send_response(302)
            self.send_header('Location', server.redirect)
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', server.content_type)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(server.payload) - 1}/{len(server.payload)}')
        if server.tells_length:
            self.send_header('Content-Length', str(len(rest) + server.claims_more))
        self.end_headers()
        rest = rest[: server.breaks_after][: server.stalls_after]
        try:
            for i in range(0, len(rest), server.chunk):
                self.wfile.write(rest[i : i + server.chunk])
                server.is_over.wait(server.pause_s)
        except ConnectionError:
            return  # the other side has gone
        if server.stalls_after is not None:
            server.is_over.wait(5)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def mirror():
    with serving() as server:
        yield server


@pytest.fixture
def hurry(monkeypatch):
    """Seconds become tenths."""
    monkeypatch.setattr(module, 'TIMEOUT_S', 0.2)
    monkeypatch.setattr(module, 'SLOW_S', 0.2)
    monkeypatch.setattr(module, 'SLOW_BYTES', 20_000)


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


# ---- mirrors ----


def test_a_stalled_address_is_left_in_one_line_and_its_part_goes_on(server, mirror, path, hurry, capsys):
    server.stalls_after = 100_000
    download(server.url, path, MD5, mirrors=[mirror.url])
    assert path.read_bytes() == PAYLOAD
    assert mirror.ranges == ['bytes=100000-']
    assert capsys.readouterr().err == f'{server.url}: no byte for 0.2 s; trying {mirror.url}\n'


def test_an_address_that_answers_nothing_is_left(server, mirror, path, hurry, capsys):
    server.answers = False
    download(server.url, path, MD5, mirrors=[mirror.url])
    assert path.read_bytes() == PAYLOAD
    assert capsys.readouterr().err == f'{server.url}: no byte for 0.2 s; trying {mirror.url}\n'


@pytest.mark.parametrize('chunk', [1000, 1])  # single bytes never time out, and never fill a buffer
def test_a_crawling_address_is_left(server, mirror, path, hurry, capsys, chunk):
    server.chunk, server.pause_s = chunk, 0.05
    download(server.url, path, MD5, mirrors=[mirror.url])
    assert path.read_bytes() == PAYLOAD
    assert mirror.ranges[0].startswith('bytes=')
    assert f'kB/s; trying {mirror.url}\n' in capsys.readouterr().err


def test_a_slow_address_is_returned_to_when_the_others_fail(server, mirror, path, hurry, capsys):
    server.chunk, server.pause_s, server.payload = 2000, 0.04, PAYLOAD[:50_000]
    mirror.status = 503
    download(server.url, path, hashlib.md5(server.payload).hexdigest(), mirrors=[mirror.url])
    assert path.read_bytes() == server.payload
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f'kB/s; trying {mirror.url}')
    assert second == f'{mirror.url}: HTTP Error 503: Service Unavailable; trying {server.url}'


def test_the_only_address_may_be_slow(server, path, hurry, capsys):
    server.chunk, server.pause_s, server.payload = 2000, 0.04, PAYLOAD[:50_000]
    download(server.url, path, hashlib.md5(server.payload).hexdigest())
    assert path.read_bytes() == server.payload
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('fault', 'told'),
    {
        'not found': ({'status': 404}, 'HTTP Error 404: Not Found'),
        'forbidden': ({'status': 403}, 'HTTP Error 403: Forbidden'),
        'server error': ({'status': 500}, 'HTTP Error 500: Internal Server Error'),
        'a web page': ({'content_type': 'text/html; charset=utf-8'}, 'gave a web page, not the file'),
        'another file of the right size': ({'payload': PAYLOAD[::-1]}, f'gave a file with md5 .*, expected {MD5}'),
        'cut short': ({'payload': PAYLOAD[:-1], 'tells_length': False}, f'gave a file with md5 .*, expected {MD5}'),
        'less than it claims': ({'breaks_after': 0}, r'broke off after 0 of 300000 bytes'),
        'a length too small': ({'claims_more': -1}, f'gave a file with md5 .*, expected {MD5}'),
        'a redirect in a circle': ({'redirect': '/again'}, 'redirect'),
        'a redirect to a file': ({'redirect': 'file:///etc/passwd'}, 'HTTP Error 302'),
        'a redirect to nonsense': ({'redirect': 'http://[::1'}, ''),
    }.values(),
)
def test_the_next_address_is_tried(server, mirror, path, capsys, fault, told):
    for name, value in fault.items():
        setattr(server, name, value)
    download(server.url, path, MD5, mirrors=[mirror.url])
    assert path.read_bytes() == PAYLOAD
    assert re.fullmatch(f'{server.url}: .*{told}.*; trying {mirror.url}\n', capsys.readouterr().err)


def test_a_length_too_large_does_not_matter(server, path, capsys):
    server.claims_more = 5
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    server.knows_ranges = False
    path.unlink()
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_redirects_are_followed(server, mirror, path):
    server.redirect = mirror.url
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD


def test_a_mix_of_two_files_is_fetched_anew_from_one_address(server, mirror, path):
    server.payload, server.breaks_after = PAYLOAD[::-1], 100_000
    server.knows_ranges = False  # so that it begins again each time, and is left
    download(server.url, path, MD5, mirrors=[mirror.url])
    assert path.read_bytes() == PAYLOAD
    assert mirror.ranges == ['bytes=100000-', None]


def test_an_address_is_not_fetched_anew_for_ever(server, path):
    server.payload = PAYLOAD[::-1]
    path.parent.mkdir()
    part_of(path).write_bytes(b'stale')
    with pytest.raises(InputError, match=r'gave a file with md5'):
        download(server.url, path, MD5)
    assert server.ranges == ['bytes=5-', None]


def test_after_the_last_address_each_is_told_with_its_reason(server, mirror, path, capsys):
    server.status, mirror.status = 404, 503
    with pytest.raises(InputError) as caught:
        download(server.url, path, MD5, mirrors=[mirror.url])
    assert str(caught.value) == (
        f'set.tar.gz (md5 {MD5}) could not be downloaded to {path.parent} from any of 2 addresses: '
        f'{server.url} (HTTP Error 404: Not Found), {mirror.url} (HTTP Error 503: Service Unavailable)'
    )
    assert len(capsys.readouterr().err.splitlines()) == 1
    mirror.status = 404
    with pytest.raises(InputError, match=f'{server.url}, {mirror.url}: HTTP Error 404: Not Found$'):
        download(server.url, path, MD5, mirrors=[mirror.url])


def test_a_fault_of_the_disk_is_not_taken_to_the_next_address(server, mirror, path):
    part_of(path).mkdir(parents=True)
    with pytest.raises(InputError, match=r'could not be downloaded to .*Is a directory'):
        download(server.url, path, MD5, mirrors=[mirror.url])
    assert mirror.ranges == []


def test_ctrl_c_keeps_the_part(server, mirror, path):
    server.stalls_after = 100_000
    program = 'import sys, pathlib, signal; from trainer.data.datasets.download import download as d; '
    program += 'signal.signal(signal.SIGINT, signal.default_int_handler); '  # a shell's background jobs ignore it
    program += 'd(*sys.argv[1:2], pathlib.Path(sys.argv[2]), sys.argv[3], mirrors=sys.argv[4:])'
    process = subprocess.Popen(
        [sys.executable, '-c', program, server.url, path, MD5, mirror.url], stderr=subprocess.PIPE, text=True
    )
    while not server.ranges:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    assert 'KeyboardInterrupt' in process.communicate()[1]
    assert part_of(path).read_bytes() == PAYLOAD[:100_000]
    server.stalls_after = None
    download(server.url, path, MD5)
    assert path.read_bytes() == PAYLOAD
    assert server.ranges == [None, 'bytes=100000-']


def test_the_proxy_of_the_environment_is_used(server, path, monkeypatch):
    monkeypatch.setattr(urllib.request, '_opener', None)  # it would keep the proxies it began with
    for name in ('no_proxy', 'NO_PROXY', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('http_proxy', server.url.removesuffix('/set.tar.gz'))
    download('http://set.invalid/set.tar.gz', path, MD5)
    assert path.read_bytes() == PAYLOAD
