"""The page: `index.html`, and beside it or in it `squeezenet.wasm` and the weights as `model.sqz`."""

from __future__ import annotations

import base64
from importlib import resources

from squeeze_net.deploy.c_files import ARCHIVE, check_network
from squeeze_net.deploy.job import Job
from squeeze_net.deploy.readme import code

FILE = 'index.html'
PROGRAM = 'squeezenet.wasm'
PLACE = '<!-- embedded files -->'  # in FILE


def write(job: Job) -> str:
    """Write the page, as a file or as three; returns its section of the README.

    Raises:
        LeftOut: of a network that the C file does not compute.
    """
    check_network(job)
    folder = resources.files('squeeze_net.deploy') / 'page'
    page, program = (folder / FILE).read_text(encoding='utf-8'), (folder / PROGRAM).read_bytes()
    about = 'Classifies pictures and what the camera sees, in the browser; nothing is sent anywhere.'
    if job.is_single_file:
        embedded = _embedded(PROGRAM, program) + _embedded(ARCHIVE, job.archive)
        job.put(FILE, page.replace(PLACE, embedded).encode())
        return f'## A page: `{FILE}`\n\n{about} One file, which opens from the disk, too: click it.'
    job.put(FILE, page.encode())
    job.put(PROGRAM, program)
    job.put(ARCHIVE, job.archive)
    served = code('python -m http.server', language='sh')
    return (
        f'## A page: `{FILE}`, `{PROGRAM}`, `{ARCHIVE}`\n\n{about} Put the three files on any server of static files, '
        f'or serve this folder, and open http://localhost:8000; `#picture=cat.jpg` after the address shows a picture '
        f'that lies beside them:\n\n{served}'
    )


def _embedded(name: str, content: bytes) -> str:
    """A file as an element of the page, which a browser does not run."""
    return f'<script type="application/octet-stream" id="{name}">{base64.b64encode(content).decode()}</script>\n'
