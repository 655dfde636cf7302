"""What the layers of a network cost: their parameters, and their multiplications for one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chainer
from chainer.utils.conv import get_conv_outsize

OTHER = 'other'  # the row of what belongs to no child
Row = dict[str, Any]  # of the table: name, output, parameters, multiplications


@contextmanager
def counting_layers(model: chainer.Link) -> Iterator[list[Row]]:
    """Count what each child of a network does with the one image that it computes within, by functions of Chainer.

    Yields:
        A list that is filled at the end, a row a child in the order in which they are first called: its name; `output`,
        the shape (C, H, W) or (C,) of what it returned last, None if it was not called as a link; `parameters`; and
        `multiplications` of its convolutions and fully connected layers. What belongs to no child is in a row named
        'other'.
    """
    children = {id(child): child for child in model.children()}
    rows: dict[int, Row] = {
        identity: {'name': child.name, 'output': None, 'parameters': 0, 'multiplications': 0}
        for identity, child in children.items()
    }
    other: Row = {'name': OTHER, 'output': None, 'parameters': 0, 'multiplications': 0}
    open_rows, called = [other], list[int]()
    layers: list[Row] = []
    with _Links(rows, open_rows, called), _Functions(open_rows):
        yield layers
    for identity, child in children.items():  # only now, as the image may have decided the shapes
        rows[identity]['parameters'] = _count(child)
    other['parameters'] = _count(model) - sum(row['parameters'] for row in rows.values())
    layers += [rows[identity] for identity in dict.fromkeys([*called, *rows])]
    layers += [other] if other['parameters'] or other['multiplications'] else []


def _count(link: chainer.Link) -> int:
    """Its parameters, without those that have no shape."""
    return sum(parameter.size for parameter in link.params() if parameter.array is not None)


def count_multiplications(function: Any, in_data: Any) -> int:
    """Multiplications of a convolution or a fully connected layer, each with its addition; 0 of another function.

    Args:
        function: Chainer's, which has computed.
        in_data: its input arrays, of one image.
    """
    if function.label == 'LinearFunction':
        return len(in_data[0]) * in_data[1].size
    if function.label == 'Convolution2DFunction':
        x, W = in_data[:2]
        height = get_conv_outsize(x.shape[2], W.shape[2], function.sy, function.ph, d=function.dy)
        width = get_conv_outsize(x.shape[3], W.shape[3], function.sx, function.pw, d=function.dx)
        return W.size * height * width
    return 0


class _Links(chainer.LinkHook):
    """Keeps the row of the child that is being called as the last of `open`, and what was called and returned."""

    name = 'LayersOfLinks'

    def __init__(self, rows: dict[int, Row], open_rows: list[Row], called: list[int]) -> None:
        self.rows, self.open, self.called = rows, open_rows, called

    def forward_preprocess(self, args: Any) -> None:
        if id(args.link) in self.rows:
            self.open.append(self.rows[id(args.link)])
            self.called.append(id(args.link))

    def forward_postprocess(self, args: Any) -> None:
        if id(args.link) in self.rows:
            self.open.pop()['output'] = list(getattr(args.out, 'shape', ())[1:]) or None


class _Functions(chainer.FunctionHook):
    """Adds the multiplications of a function to the last row of `open`."""

    name = 'LayersOfFunctions'

    def __init__(self, open_rows: list[Row]) -> None:
        self.open = open_rows

    def forward_postprocess(self, function: Any, in_data: Any) -> None:
        self.open[-1]['multiplications'] += count_multiplications(function, in_data)
