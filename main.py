"""Train a network on CIFAR-10: `python main.py --help`. What it does, step by step, is in squeeze_net/__main__.py."""

import sys

import trainer
from squeeze_net.__main__ import main

if __name__ == '__main__':
    with trainer.exit_with_message('main.py'):
        sys.exit(main())
