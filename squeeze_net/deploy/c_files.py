"""`squeezenet.c` and `squeezenet.h`, and beside them the weights as the archive that they read."""

from __future__ import annotations

from importlib import resources

from squeeze_net.deploy.job import Job, LeftOut
from squeeze_net.deploy.readme import code
from squeeze_net.weights.formats.sqz import archive

FILES = 'squeezenet.c', 'squeezenet.h'
ARCHIVE = f'model{archive.SUFFIX}'
MAX_SIDE = 1024  # px, of its resized image, MAX_CROP in squeezenet.c
NOT_COMPUTED = {'alexnet': 'the local response normalisation', 'airbench94': 'the average pool'}


def write(job: Job) -> str:
    """Write the C files and `model.sqz`; returns their section of the README.

    Raises:
        LeftOut: of a network that the C file does not compute.
    """
    check_network(job)
    for name in FILES:
        job.put(name, (resources.files('squeeze_net.deploy') / 'c' / name).read_bytes())
    job.put(ARCHIVE, job.archive)
    about = (
        f'Opens `{ARCHIVE}` and classifies pictures of any size, which it resizes and cuts itself '
        '(functions in `squeezenet.h`). As a command, for a PPM:'
    )
    commands = code(
        'cc -O3 -march=native -DSQZ_MAIN squeezenet.c -o squeezenet -lm',
        f'./squeezenet {ARCHIVE} cat.ppm',
        language='sh',
    )
    return f'## C: `squeezenet.c`, `squeezenet.h`, `{ARCHIVE}`\n\n{about}\n\n{commands}'


def check_network(job: Job) -> None:
    """Leave out a form that is made of the C file, where that does not know the network."""
    network = job.weights.metadata.network
    if network in NOT_COMPUTED:
        raise LeftOut(f'the C file does not compute {NOT_COMPUTED[network]} of {network}')
    if job.view.side > MAX_SIDE:
        raise LeftOut(f'the C file makes images of at most {MAX_SIDE} px, the network expects {job.view.side} px')
