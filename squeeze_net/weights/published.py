"""Published files of weights by name: where they come from, how they are known, and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chainer.dataset import get_dataset_directory

from trainer.commands import refuse_address
from trainer.errors import InputError


@dataclass(frozen=True)
class Published:
    """A weights file of ImageNet (ILSVRC 2012).

    Attributes:
        url: where it is fetched from.
        sha256: its checksum, or the first digits, where the publisher gives no more (in the file's name).
        source: whose it is.
    """

    url: str
    sha256: str
    source: str

    @property
    def file(self) -> str:
        return self.url.rpartition('/')[2]


PUBLISHED = {
    'squeezenet_v1.0_deep_compression': Published(
        'https://raw.githubusercontent.com/songhan/SqueezeNet-Deep-Compression/master/compressed_SqueezeNet.net',
        'e4ab6960ae8cd81505e1c2136921201507e930966c53deaf15862a395b3a3261',
        'Han et al., the authors of Deep Compression',
    ),
    'squeezenet_v1.0_torchvision': Published(
        'https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth', 'b66bff10', 'torchvision'
    ),
    'squeezenet_v1.1_torchvision': Published(
        'https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth',
        'b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b',
        'torchvision',
    ),
}


def find(source: str | Path) -> Path:
    """The file that is meant: a path as it is, or a name of `PUBLISHED`, which is downloaded once and kept.

    Raises:
        InputError: an address, neither a file nor a name; or the download failed, and where to put the file instead.
    """
    refuse_address(source)
    path = Path(source)
    if path.exists():
        return path
    if str(source) not in PUBLISHED:
        raise InputError(
            f'{source} does not exist; expected a weights file, or a published one of {", ".join(PUBLISHED)}'
        )
    published = PUBLISHED[str(source)]
    place = Path(get_dataset_directory('squeeze_net/weights', create_directory=False)) / published.file
    try:
        from trainer.data.datasets.download import download  # which loads the modules of HTTP and TLS

        download(published.url, place, sha256=published.sha256)
    except InputError as error:
        raise InputError(f'{error}; fetch it otherwise and put it at {place}') from None
    return place
