"""What a weights file says of its network and images, so that they are used correctly: one JSON text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trainer.data.preprocessing import Preprocessing
from trainer.errors import InputError

KEY = 'metadata'  # of the text in .npz, .safetensors and .onnx
MAX_CLASSES, MAX_NAME, MAX_TEXT = 1 << 16, 4096, 16 << 20


@dataclass(frozen=True)
class Metadata:
    """Attributes:
    network: its name in the table of networks, if known.
    n_class: number of classes, if known.
    preprocessing: what images the network expects, if known.
    classes: the n_class names, if known.
    """

    network: str | None = None
    n_class: int | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None

    def dumps(self) -> str:
        """One line of JSON."""
        preprocessing = None if self.preprocessing is None else self.preprocessing.as_dict()
        classes = None if self.classes is None else list(self.classes)
        values = {'network': self.network, 'n_class': self.n_class, 'preprocessing': preprocessing, 'classes': classes}
        return json.dumps({name: value for name, value in values.items() if value is not None})

    @classmethod
    def loads(cls, text: Any) -> Metadata:
        """What `dumps` gave, checked; keys that are not known do not count.

        Raises:
            InputError: anything else.
        """
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise InputError(f'its metadata are not a text of at most {MAX_TEXT >> 20} MB')
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f'its metadata are not JSON ({str(error)[:80]})') from None
        if not isinstance(values, dict):
            raise InputError(f'its metadata are {text[:60]!r}, expected an object')
        network, n_class, classes = values.get('network'), values.get('n_class'), values.get('classes')
        if network is not None and not (isinstance(network, str) and len(network) <= MAX_NAME):
            raise InputError(f'its metadata name the network {str(network)[:60]!r}, expected a text')
        is_count = isinstance(n_class, int) and not isinstance(n_class, bool) and 1 <= n_class <= MAX_CLASSES
        if n_class is not None and not is_count:
            raise InputError(f'its metadata say {str(n_class)[:60]} classes, expected 1 .. {MAX_CLASSES}')
        if classes is not None:
            if not isinstance(classes, list) or not all(isinstance(c, str) and len(c) <= MAX_NAME for c in classes):
                raise InputError('the classes in its metadata are not a list of texts')
            if n_class is not None and len(classes) != n_class:
                raise InputError(f'its metadata name {len(classes)} classes, but say {n_class}')
        preprocessing = values.get('preprocessing')
        return cls(
            network,
            n_class,
            None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            None if classes is None else tuple(classes),
        )
