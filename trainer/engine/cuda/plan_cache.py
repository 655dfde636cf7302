"""Plans of cuDNN on disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from trainer.files import atomic_write


class Known(NamedTuple):
    """A plan as it is kept."""

    engine: str
    seconds: float
    data: bytes  # cuDNN's own serialisation


def folder() -> Path:
    """Where plans are kept."""
    cache = os.environ.get('XDG_CACHE_HOME')
    return (Path(cache) if cache else Path.home() / '.cache') / 'chainer-image-trainer' / 'cudnn'


class Cache:
    """Plans in a folder, a file each: a line of JSON that says what it is for and the digest of the rest, cuDNN's data.

    A file that is cut short, changed, or for something else is as good as none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        return self._folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.plan'

    def load(self, key: str) -> Known | None:
        try:
            line, _, data = self.path(key).read_bytes().partition(b'\n')
            head = json.loads(line)
            if head['key'] == key and head['sha256'] == hashlib.sha256(data).hexdigest():
                return Known(str(head['engine']), float(head['seconds']), data)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def store(self, key: str, known: Known) -> None:
        """Raises OSError where it cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(known.data).hexdigest()
        head = {'key': key, 'engine': known.engine, 'seconds': known.seconds, 'sha256': digest}
        with atomic_write(self.path(key)) as file:
            file.write(json.dumps(head).encode() + b'\n' + known.data)
