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


_CAFFE = 'https://raw.githubusercontent.com/forresti/SqueezeNet/a47b6f13d30985279789d08053d37013d67d131b'
# The checksums of Caffe's two files are those that OpenVINO's Open Model Zoo publishes (models/public/squeezenet1.0 and
# squeezenet1.1, model.yml, with sizes of 5,001,403 and 4,950,080 bytes); openembedded recipes give the same for v1.1.
PUBLISHED = {
    'squeezenet_v1.0': Published(
        f'{_CAFFE}/SqueezeNet_v1.0/squeezenet_v1.0.caffemodel',
        '9ff8035aada1f9ffa880b35252680d971434b141ec9fbacbe88309f0f9a675ce',
        'the authors of SqueezeNet',
    ),
    'squeezenet_v1.1': Published(
        f'{_CAFFE}/SqueezeNet_v1.1/squeezenet_v1.1.caffemodel',
        '72b912ace512e8621f8ff168a7d72af55910d3c7c9445af8dfbff4c2ee960142',
        'the authors of SqueezeNet',
    ),
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
    if path.is_file() or (path.exists() and str(source) not in PUBLISHED):
        return path
    if str(source) not in PUBLISHED:
        known = f'expected a weights file, or a published one of {", ".join(PUBLISHED)}'
        same = next((name for name, one in PUBLISHED.items() if one.file == path.name), None)
        raise InputError(f'{source} does not exist; {known if same is None else f"the name {same} downloads it"}')
    published = PUBLISHED[str(source)]
    place = Path(get_dataset_directory('squeeze_net/weights', create_directory=False)) / published.file
    try:
        from trainer.data.datasets.download import download  # which loads the modules of HTTP and TLS

        download(published.url, place, sha256=published.sha256)
    except InputError as error:
        raise InputError(f'{error}; open the address in a browser and put the file at {place}') from None
    return place
