"""Chromium without a window, asked by the DevTools protocol over a pipe."""

import base64
import fcntl
import functools
import http.server
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--no-first-run',
    '--use-fake-device-for-media-stream',
    '--use-fake-ui-for-media-stream',
    '--remote-debugging-pipe',
)
# The protocol's pipes are the files 3 and 4 of the browser, which may be taken here.
START = (
    'import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])'
)
TIMEOUT_S = 120


def find_chromium():
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@contextmanager
def served(folder):
    """The address of a server of a folder's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/'
        finally:
            server.shutdown()


@contextmanager
def chromium():
    """A browser that runs; ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        ours, theirs = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
        for end in (ours[0], theirs[1]):
            os.close(end)
        command = [sys.executable, '-c', START, *map(str, ends), find_chromium(), *FLAGS, f'--user-data-dir={profile}']
        process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        browser = Browser(write_to=ours[1], read_from=theirs[0])
        try:
            yield browser
        finally:
            try:
                browser.call('Browser.close')
                process.wait(20)
            except (OSError, TimeoutError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
            os.close(ours[1])
            os.close(theirs[0])


class Browser:
    def __init__(self, write_to, read_from):
        self.write_to, self.read_from = write_to, read_from
        self.numbers, self.rest, self.events = itertools.count(1), b'', []

    def call(self, method, session=None, **params):
        """A method of the protocol; returns its result. Events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {'id': number, 'method': method, 'params': params} | ({'sessionId': session} if session else {})
        os.write(self.write_to, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('id') == number:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return answer['result']
            self.events.append(answer)

    def _read(self):
        while b'\0' not in self.rest:
            ready, _, _ = select.select([self.read_from], [], [], TIMEOUT_S)
            if not ready:
                raise TimeoutError('the browser does not answer')
            part = os.read(self.read_from, 1 << 20)
            if not part:
                raise OSError('the browser has ended')
            self.rest += part
        message, _, self.rest = self.rest.partition(b'\0')
        return json.loads(message)

    def open(self, url, width=1280, dark=False, script=''):
        """A page; `script` runs before those of its own."""
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        page = Page(self, self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId'])
        page.call('Page.enable')
        page.call('Network.enable')
        page.call('Page.addScriptToEvaluateOnNewDocument', source=script)
        size = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 600}
        page.call('Emulation.setDeviceMetricsOverride', **size)
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        page.call('Emulation.setEmulatedMedia', features=[scheme])
        page.call('Page.navigate', url=url)
        page.wait("document.readyState === 'complete'")
        return page


class Page:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression):
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def wait(self, expression):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + TIMEOUT_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (
                f'{expression} stays {value}; the page: {self.evaluate("document.body.innerText")}'
            )
            time.sleep(0.05)
        return value

    def choose(self, path):
        """Give a file to the page's input."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector='input[type=file]')['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(path)])

    def press(self, key, code=0):
        for kind in ('keyDown', 'keyUp'):
            text = {'text': '\r'} if key == 'Enter' and kind == 'keyDown' else {}
            self.call('Input.dispatchKeyEvent', type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path):
        picture = self.call('Page.captureScreenshot', captureBeyondViewport=True)['data']
        path.write_bytes(base64.b64decode(picture))

    def requests(self):
        """The addresses that the page asked for, up to now."""
        events = (event for event in self.browser.events if event.get('sessionId') == self.session)
        return [e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent']
