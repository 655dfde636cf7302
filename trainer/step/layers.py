"""What the layers of a network cost: their parameters, and their multiplications for one image."""

from __future__ import annotations

from typing import Any

import chainer
from chainer.utils.conv import get_conv_outsize

Row = dict[str, Any]  # of the table: name, output, parameters, multiplications


def list_layers(model: chainer.Chain, size: int) -> list[Row]:
    """Compute a black image in test mode, and count what each child of the network does; statistics stay as they are.

    Args:
        model: on its device; it takes images of this size.
        size: of the image, px.
    Returns:
        A row a child, in the order in which they are first called: its name; `output`, the shape (C, H, W) or (C,) of
        what it returned last, None if it was not called as a link; `parameters`; and `multiplications` of its
        convolutions and fully connected layers. What belongs to no child is in a row named 'other'.
    """
    rows: dict[int, Row] = {
        id(child): {'name': child.name, 'output': None, 'parameters': child.count_params(), 'multiplications': 0}
        for child in model.children()
    }
    n_own = model.count_params() - sum(row['parameters'] for row in rows.values())
    other: Row = {'name': 'other', 'output': None, 'parameters': n_own, 'multiplications': 0}
    open_rows, called = [other], list[int]()
    image = model.xp.zeros((1, 3, size, size), chainer.config.dtype)
    with (
        chainer.using_config('train', False),
        chainer.using_config('engine', 'plain'),  # a function for each operation
        chainer.no_backprop_mode(),
        _Links(rows, open_rows, called),
        _Functions(open_rows),
    ):
        model(image)
    in_order = sorted(rows, key=lambda child: called.index(child) if child in called else len(called))
    return [*(rows[child] for child in in_order), *([other] if other['parameters'] or other['multiplications'] else [])]


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
