"""One process or many: each batch shared among the processes of mpiexec, by ChainerMN."""

from trainer.parallel.ranks import ALONE, Agreement, Alone, join

__all__ = ['ALONE', 'Agreement', 'Alone', 'join']
