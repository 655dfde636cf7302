"""No command of a page is overlooked by the parser of the journeys."""

import documents
import pytest

PAGE = """
Run `make test`, then `python -m trainer.doctor`; `--epoch` and `results/` are not commands.

    python main.py -e 3 \\
      --resume     # go on
    mpiexec -n 2 python main.py

| a table | `python main.py --help` |

```
make run
```

    tree/        of files
"""


def test_commands_of_blocks_and_of_inline_code():
    assert sorted(documents.commands_of(PAGE)) == [
        'make run',
        'make test',
        'mpiexec -n 2 python main.py',
        'python -m trainer.doctor',
        'python main.py --help',
        'python main.py -e 3        --resume',
    ]


def test_a_line_among_commands_that_is_none_is_an_error():
    with pytest.raises(AssertionError, match="'curl example'"):
        list(documents.commands_of('\n    make run\n    curl example\n'))


def test_examples_of_help():
    text = """usage: python -m squeeze_net.infer [-h] IMAGE
A first look:            python main.py -e 10
python -m squeeze_net.weights a.npz b.onnx      another format
mpiexec -n 2 python main.py -b 64   # two processes
"""
    assert list(documents.examples_of_help(text)) == [
        'python main.py -e 10',
        'python -m squeeze_net.weights a.npz b.onnx',
        'mpiexec -n 2 python main.py -b 64',
    ]
