"""A small training for tests of several processes: mpiexec -n 2 python crew.py --communicator naive ...

CREW_FAULT=rank:iteration:kind has something happen to a rank; CREW_DATA=rank gives that rank other images.
"""

import os
import signal
import sys
import time
import zlib

import trainer  # isort: skip
import chainer
import numpy as np

import trainer.functions as F
import trainer.links as L
from trainer import cli, parallel
from trainer.step.optimizer import GradientHook


class Crew(chainer.Chain):
    """Two convolutions, normalised, with dropout between them."""

    recipe = {'size': 32, 'batch': 12, 'lr': 0.05}

    def __init__(self, n_class):
        super().__init__()
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 8, 3, stride=2, nobias=True)
            self.bn1 = L.BatchNormalization(8)
            self.conv2 = L.Convolution2D(8, 16, 3, stride=2, nobias=True)
            self.bn2 = L.BatchNormalization(16)
            self.fc = L.Linear(16, n_class)

    def forward(self, x):
        h = F.dropout(self.bn1(self.conv1(x), relu=True), 0.2)
        h = self.bn2(self.conv2(h), relu=True)
        return self.fc(F.mean(h, (2, 3)))


class Fault(GradientHook):
    """Does something to this process before an update."""

    name = 'Fault'

    def __init__(self, iteration, kind):
        self.iteration, self.kind = iteration, kind

    def __call__(self, optimizer):
        if optimizer.t != self.iteration:
            return
        if self.kind == 'raise':
            raise ZeroDivisionError('something that nobody has thought of')
        if self.kind == 'nan':
            for parameter in optimizer.target.params():
                parameter.grad[...] = np.nan
            return
        if self.kind == 'memory':
            raise MemoryError
        os.kill(os.getpid(), {'stop': signal.SIGSTOP, 'kill': signal.SIGKILL, 'term': signal.SIGTERM}[self.kind])


def main():
    config = cli.parse({'crew': Crew})
    with parallel.join(config, cli.resume_command()) as ranks:
        seed = int(os.environ.get('CREW_DATA') == str(ranks.rank))
        data = trainer.datasets.make_shapes(seed, n_train=config.limit or 12, n_test=7)
        np.random.seed(config.seed)
        with config.using_precision():
            model = Crew(data.n_class)
        rank, iteration, kind = os.environ.get('CREW_FAULT', '-1:0:').split(':')
        hooks = [Fault(int(iteration), kind)] if rank in ('all', str(ranks.rank)) else []
        if delay := float(os.environ.get('CREW_DELAY', '0')):  # so that there is time to kill it
            hooks.append(Delay(delay))
        outcome = trainer.train(
            model, data, config, hooks=hooks, ranks=ranks, teacher=make_teacher(config, data.n_class)
        )
        weights = [zlib.crc32(p.array.tobytes()) for _, p in sorted(model.namedparams())]
        ranks.check_alike({'weights at the end': weights})
        return outcome.exit_code


def make_teacher(config, n_class):
    """A network drawn by the seed that --teacher is here."""
    if config.teacher is None:
        return None
    np.random.seed(int(config.teacher))
    with config.using_precision():
        return trainer.Teacher(Crew(n_class), config.distill)


class Delay(GradientHook):
    """Takes its time."""

    name = 'Delay'

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, optimizer):
        time.sleep(self.seconds)


if __name__ == '__main__':
    with trainer.exit_with_message('crew.py'):
        sys.exit(main())
