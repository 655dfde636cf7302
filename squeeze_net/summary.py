"""What a network consists of, layer by layer, in the columns of table 1 of SqueezeNet's paper."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from chainer.utils.conv import get_conv_outsize

import trainer
from squeeze_net import NETWORKS
from trainer.files import atomic_write

EXAMPLES = """\
python -m squeeze_net.summary squeezenet_v1.0
python -m squeeze_net.summary squeezenet_v1.1_complex --size 224 --format markdown
python -m squeeze_net.summary squeezenet --size 122 --n_class 10 --graph squeezenet.svg
"""


@dataclass
class Layer:
    """A row of the table: a layer with parameters, or a pool.

    Multiplications are those of convolutions and fully connected layers, each with its addition (MAC).
    """

    name: str
    output: tuple[int, ...] = ()  # (C, H, W), or (C,)
    window: str = ''  # filter and stride, '7x7/2 (x96)'
    depth: int = 0  # convolutions and fully connected layers, one after the other
    s1x1: int | None = None  # channels of a Fire's squeeze and expand convolutions
    e1x1: int | None = None
    e3x3: int | None = None
    bypass: str = 'none'
    parameters: int = 0
    macs: int = 0

    @property
    def bytes(self) -> int:
        """Of its parameters, in float32."""
        return 4 * self.parameters


@dataclass
class Summary:
    """A network's layers and their totals."""

    network: str
    size: int  # px
    n_class: int
    layers: list[Layer]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


def summarise(name: str, size: int = 227, n_class: int = 1000) -> Summary:
    """Run a network of `NETWORKS` on one image of size x size px, and note down what it does.

    Raises:
        ValueError: a size that leaves no map; says which does.
    """
    model = NETWORKS[name](n_class, size)
    watch = _Watch(model, size)
    with (
        chainer.using_config('train', False),
        chainer.using_config('engine', 'plain'),  # whose functions are one an operation
        chainer.no_backprop_mode(),
        watch.links,
        watch.functions,
    ):
        y = model(np.zeros((1, 3, size, size), np.float32))
    watch.end(y.shape)
    return Summary(name, size, n_class, watch.layers)


class _Watch:
    """Hooks that turn calls of links and functions into layers, in their order."""

    def __init__(self, model: chainer.Chain, size: int) -> None:
        self.model, self.layers = model, [Layer('input', (3, size, size))]
        self.names = {id(link): link.name for link in model.children()}
        self.current: Layer | None = None
        watch = self

        class Links(chainer.LinkHook):
            name = 'Summary'

            def forward_preprocess(self, args: Any) -> None:
                if id(args.link) in watch.names:
                    watch.begin(args.link)

            def forward_postprocess(self, args: Any) -> None:
                if id(args.link) in watch.names and watch.current is not None:
                    watch.current.output = tuple(args.out.shape[1:])
                    watch.current = None

        class Functions(chainer.FunctionHook):
            name = 'Summary'

            def forward_postprocess(self, function: Any, in_data: Any) -> None:
                watch.note(function, in_data)

        self.links, self.functions = Links(), Functions()

    def begin(self, link: Any) -> None:
        name = self.names[id(link)]
        if isinstance(link, chainer.links.BatchNormalization):  # belongs to the layer before it
            self.layers[-1].parameters += link.count_params()
            return
        layer = self.current = Layer(str(name), parameters=link.count_params())
        if hasattr(link, 'squeeze1x1'):
            sizes = (self._convolution(link[part]).W.shape[0] for part in ('squeeze1x1', 'expand1x1', 'expand3x3'))
            layer.s1x1, layer.e1x1, layer.e3x3 = sizes
            layer.bypass = link.bypass if isinstance(link.bypass, str) else 'simple' if link.bypass else 'none'
            layer.depth = 2
        else:
            layer.depth = 1
            W = self._convolution(link).W
            layer.window = f'{W.shape[2]}x{W.shape[3]}' if W.ndim == 4 else ''
        self.layers.append(layer)

    @staticmethod
    def _convolution(link: Any) -> Any:
        return link if hasattr(link, 'W') else link.conv

    def note(self, function: Any, in_data: Any) -> None:
        label = function.label
        layer = self.layers[-1]
        if label in ('Convolution2DFunction', 'LinearFunction'):
            x, W = in_data[:2]
            if W.ndim == 4:
                height = (x.shape[2] + 2 * function.ph - function.dy * (W.shape[2] - 1) - 1) // function.sy + 1
                width = (x.shape[3] + 2 * function.pw - function.dx * (W.shape[3] - 1) - 1) // function.sx + 1
                layer.macs += W.size * height * width
                if layer.s1x1 is None:
                    layer.window = f'{W.shape[2]}x{W.shape[3]}/{function.sy} (x{W.shape[0]})'
            else:
                layer.macs += W.size
        elif label.startswith('MaxPooling'):
            x = in_data[0]
            ksize, stride, pad = function.ksize[0], function.stride[0], function.pad[0]
            side = get_conv_outsize(x.shape[2], ksize, stride, pad, function.cover_all)
            number = re.sub(r'\D', '', layer.name.split('_')[0])
            self.layers.append(Layer(f'maxpool{number}', (x.shape[1], side, side), f'{ksize}x{ksize}/{stride}'))

    def end(self, shape: tuple[int, ...]) -> None:
        if len(self.layers[-1].output) == 3:  # of logits in a map, which are then averaged
            side = self.layers[-1].output[1]
            self.layers.append(Layer('avgpool', shape[1:], f'{side}x{side}'))


COLUMNS = ('layer', 'output', 'filter/stride', 'depth', 's1x1', 'e1x1', 'e3x3', 'bypass', 'parameters', 'MACs', 'bytes')
N_LEFT = 3  # columns of words, the others are numbers


def cells(summary: Summary) -> list[list[str]]:
    """The table as words: a row a layer, and the totals."""
    rows = []
    for layer in summary.layers:
        sizes = ['' if n is None else str(n) for n in (layer.s1x1, layer.e1x1, layer.e3x3)]
        bypass = '' if layer.bypass == 'none' else layer.bypass
        numbers = [f'{n:,}' if n else '' for n in (layer.parameters, layer.macs, layer.bytes)]
        depth = str(layer.depth) if layer.name != 'input' else ''
        rows.append([layer.name, ' x '.join(map(str, layer.output)), layer.window, depth, *sizes, bypass, *numbers])
    totals = [f'{n:,}' for n in (summary.parameters, summary.macs, summary.bytes)]
    depth = str(sum(layer.depth for layer in summary.layers))
    return [*rows, ['total', '', '', depth, '', '', '', '', *totals]]


def as_text(summary: Summary) -> str:
    rows = [list(COLUMNS), *cells(summary)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        words = [
            word.ljust(width) if i < N_LEFT else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(words).rstrip())
    rule = '-' * max(map(len, lines))
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def as_markdown(summary: Summary) -> str:
    rows = [f'| {" | ".join(row)} |' for row in cells(summary)]
    rule = ' | '.join(['---'] * N_LEFT + ['---:'] * (len(COLUMNS) - N_LEFT))
    return '\n'.join([f'| {" | ".join(COLUMNS)} |', f'| {rule} |', *rows])


def as_json(summary: Summary) -> str:
    totals = {'parameters': summary.parameters, 'macs': summary.macs, 'bytes': summary.bytes}
    layers = [asdict(layer) | {'bytes': layer.bytes} for layer in summary.layers]
    facts = {'network': summary.network, 'size_px': summary.size, 'n_class': summary.n_class}
    return json.dumps(facts | {'layers': layers, 'total': totals}, indent=1)


FORMATS = {'text': as_text, 'markdown': as_markdown, 'json': as_json}


def as_dot(summary: Summary) -> str:
    """The architecture in Graphviz's language, from top to bottom; bypasses dashed."""
    lines = [
        f'digraph "{summary.network}" {{',
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", fontsize=11];',
        '  edge [fontname="Helvetica", fontsize=9];',
    ]
    for layer in summary.layers:
        words = [layer.name]
        if layer.s1x1 is not None:
            words.append(f'squeeze {layer.s1x1}, expand {layer.e1x1} + {layer.e3x3}')
        elif layer.window:
            words.append(layer.window)
        words.append(' x '.join(map(str, layer.output)))
        colour = '#cfe2f3' if layer.s1x1 is not None else '#eeeeee' if 'pool' in layer.name else 'white'
        label = '\\n'.join(words)
        lines.append(f'  "{layer.name}" [label="{label}", fillcolor="{colour}"];')
    for before, layer in zip(summary.layers, summary.layers[1:], strict=False):
        lines.append(f'  "{before.name}" -> "{layer.name}";')
        if layer.bypass != 'none':
            label = '+' if layer.bypass == 'simple' else '+ 1x1'
            lines.append(f'  "{before.name}" -> "{layer.name}" [style=dashed, label="{label}", constraint=false];')
    return '\n'.join([*lines, '}']) + '\n'


def draw(summary: Summary, path: Path) -> str:
    """Write the graph to a .dot, .svg or .png; returns a line that says what was written.

    Raises:
        trainer.InputError: another kind of file.
    """
    kind = path.suffix.removeprefix('.')
    if kind not in ('dot', 'svg', 'png'):
        raise trainer.InputError(f'--graph {path}: the name has to end in .svg, .png or .dot')
    if kind != 'dot' and shutil.which('dot') is None:
        path = path.with_suffix('.dot')
        note = f'; Graphviz is not installed: with it, dot -T{kind} {path} -o {path.with_suffix("." + kind)}'
        kind = 'dot'
    else:
        note = ''
    content = as_dot(summary).encode()
    if kind != 'dot':
        content = subprocess.run(['dot', f'-T{kind}'], input=content, capture_output=True, check=True).stdout
    with atomic_write(path) as file:
        file.write(content)
    return f'wrote {path}{note}'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m squeeze_net.summary',
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('network', choices=NETWORKS, metavar='NAME', help=', '.join(NETWORKS))
    parser.add_argument('--size', type=int, default=227, metavar='PX', help='of the images (default: 227)')
    parser.add_argument('--n_class', type=int, default=1000, metavar='N', help='default: 1000')
    parser.add_argument('--format', choices=FORMATS, default='text', help='default: text')
    parser.add_argument('--graph', type=Path, metavar='FILE', help='draw the architecture to a .svg, .png or .dot')
    args = parser.parse_args(argv)
    if args.n_class < 1:
        raise trainer.InputError(f'--n_class is {args.n_class}, but must be 1 or more')
    try:
        summary = summarise(args.network, args.size, args.n_class)
    except ValueError as error:
        raise trainer.InputError(f'{args.network} --size {args.size}: {error}') from None
    print(FORMATS[args.format](summary))
    if args.graph is not None:
        print(draw(summary, args.graph), file=sys.stderr)
    return 0


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.summary'):
        sys.exit(main())
