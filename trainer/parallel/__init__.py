"""One process or many: each batch shared among the processes of mpiexec, by ChainerMN."""

from trainer.parallel.ranks import ONE_PROCESS, Ranks
from trainer.parallel.start import join

__all__ = ['ONE_PROCESS', 'Ranks', 'join']
