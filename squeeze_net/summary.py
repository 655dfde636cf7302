"""What a network consists of, layer by layer, in the columns of table 1 of SqueezeNet's paper."""

from __future__ import annotations

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
from squeeze_net import NETWORKS, make_network, weights
from squeeze_net.weights.network import build
from trainer.commands import add_overwrite, command_parser
from trainer.data.augmentation.sizes import LARGEST
from trainer.data.metadata import MAX_CLASSES
from trainer.files import atomic_write, refuse_to_replace
from trainer.report.tables import text_table
from trainer.step.layers import count_multiplications

EXAMPLES = """\
python -m squeeze_net.summary squeezenet_v1.0
python -m squeeze_net.summary squeezenet_v1.1_complex --size 224 --format markdown
python -m squeeze_net.summary squeezenet --size 122 --n_class 10 --graph squeezenet.dot
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
    """Run a network of `NETWORKS` on one image of size x size px, and record what it does.

    Raises:
        ValueError: a size that leaves no map; says which does.
    """
    model = make_network(name, n_class, size)
    layers = [Layer('input', (3, size, size))]
    links = _Links(model, layers)
    with (
        chainer.using_config('train', False),
        chainer.using_config('engine', 'plain'),  # a function for each operation
        chainer.no_backprop_mode(),
        links,
        _Functions(links),
    ):
        y = model(np.zeros((1, 3, size, size), np.float32))
    if len(layers[-1].output) == 3:  # logits in a map, which are then averaged
        side = layers[-1].output[1]
        layers.append(Layer('avgpool', y.shape[1:], f'{side}x{side}'))
    return Summary(name, size, n_class, layers)


class _Links(chainer.LinkHook):
    """Adds a layer for each child of the network that is called, and sets its output afterwards."""

    name = 'SummaryOfLinks'

    def __init__(self, model: chainer.Chain, layers: list[Layer]) -> None:
        self.layers, self.children = layers, {id(link) for link in model.children()}
        self.open: Layer | None = None  # of the child that is being called, which may pool inside
        self.counted: set[int] = set()  # links; a second call has no parameters of its own

    def forward_preprocess(self, args: Any) -> None:
        link = args.link
        if id(link) not in self.children:
            return
        if isinstance(link, chainer.links.BatchNormalization):  # belongs to the layer before it
            self.layers[-1].parameters += link.count_params()
            return
        layer = Layer(link.name, depth=1, parameters=0 if id(link) in self.counted else link.count_params())
        self.counted.add(id(link))
        if hasattr(link, 'squeeze1x1'):
            parts = (link.squeeze1x1, link.expand1x1, link.expand3x3)
            layer.s1x1, layer.e1x1, layer.e3x3 = (getattr(part, 'conv', part).W.shape[0] for part in parts)
            layer.bypass = {False: 'none', True: 'simple'}.get(link.bypass, link.bypass)
            layer.depth = 2
        self.layers.append(layer)
        self.open = layer

    def forward_postprocess(self, args: Any) -> None:
        if id(args.link) in self.children and self.open is not None:
            self.open.output = tuple(args.out.shape[1:])
            self.open = None


POOLS = {'MaxPooling': 'maxpool', 'AveragePooling': 'avgpool'}  # by the functions' names


class _Functions(chainer.FunctionHook):
    """Adds the multiplications of a function to its layer, and a row for each pool outside of a layer."""

    name = 'SummaryOfFunctions'

    def __init__(self, links: _Links) -> None:
        self.links = links

    def forward_postprocess(self, function: Any, in_data: Any) -> None:
        layer = self.links.layers[-1]
        layer.macs += count_multiplications(function, in_data)
        if function.label == 'Convolution2DFunction' and layer.s1x1 is None:
            n_out, _, height, width = in_data[1].shape
            layer.window = f'{height}x{width}/{function.sy} (x{n_out})'
        kind = POOLS.get(re.sub('(2D|ND)$', '', function.label))
        if kind is not None and self.links.open is None:
            C, H = in_data[0].shape[1:3]
            if hasattr(function, 'ksize'):
                ksize, stride, pad = function.ksize[0], function.stride[0], function.pad[0]
            else:
                ksize, stride, pad = function.kh, function.sy, function.ph
            side = get_conv_outsize(H, ksize, stride, pad, function.cover_all)
            number = re.sub(r'\D', '', layer.name.split('_')[0])
            self.links.layers.append(Layer(f'{kind}{number}', (C, side, side), f'{ksize}x{ksize}/{stride}'))


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
    """The table, in columns of blanks."""
    titles, *lines, totals = text_table([COLUMNS, *cells(summary)], N_LEFT)
    rule = '-' * max(map(len, lines))
    return '\n'.join([titles, rule, *lines, rule, totals])


def as_markdown(summary: Summary) -> str:
    """The table in Markdown."""
    rows = [f'| {" | ".join(row)} |' for row in cells(summary)]
    rule = ' | '.join(['---'] * N_LEFT + ['---:'] * (len(COLUMNS) - N_LEFT))
    return '\n'.join([f'| {" | ".join(COLUMNS)} |', f'| {rule} |', *rows])


def as_json(summary: Summary) -> str:
    """The table as one JSON object."""
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


def draw(summary: Summary, path: Path) -> None:
    """Write the graph to a .dot, .svg or .png.

    Raises:
        trainer.InputError: another kind of file, or Graphviz is not installed.
    """
    kind = path.suffix.removeprefix('.')
    if kind not in ('dot', 'svg', 'png'):
        raise trainer.InputError(f'--graph {path}: the name must end in .svg, .png or .dot')
    content = as_dot(summary).encode()
    if kind != 'dot':
        if shutil.which('dot') is None:
            fix = 'install it, or give a name that ends in .dot'
            raise trainer.InputError(f'--graph {path} is drawn by Graphviz, which is not installed: {fix}')
        done = subprocess.run(['dot', f'-T{kind}'], input=content, capture_output=True)
        if done.returncode:
            reason = done.stderr.decode(errors='replace').strip().splitlines() or [f'exit code {done.returncode}']
            raise trainer.InputError(f'--graph {path}: Graphviz fails: {reason[-1]}')
        content = done.stdout
    with atomic_write(path) as file:
        file.write(content)


def look_up(source: str) -> tuple[str, int, int]:
    """Network, size of the images in px and number of classes: of a name in `NETWORKS`, or of weights.

    Args:
        source: such a name, a file, or a name of `squeeze_net.weights.PUBLISHED`.

    Raises:
        trainer.InputError: neither, or a file that cannot be read.
    """
    if source in NETWORKS:
        return source, 227, 1000
    if source not in weights.PUBLISHED and not Path(source).is_file():
        raise trainer.InputError(
            f'{source} is neither a weights file, nor the name of published weights, nor one of {", ".join(NETWORKS)}'
        )
    loaded = weights.read(weights.find(source))
    _, size = build(loaded, 'a summary')
    return str(loaded.metadata.network), size, int(loaded.metadata.n_class or 0)


def main(argv: list[str] | None = None) -> int:
    """Print the table of a network, and draw its graph if asked; returns the exit code."""
    parser = command_parser('python -m squeeze_net.summary', __doc__, EXAMPLES)
    parser.add_argument(
        'network', metavar='NAME', help=f'{", ".join(NETWORKS)}; a weights file; or the name of published weights'
    )
    parser.add_argument('--size', type=int, metavar='PX', help='of the images (default: what a file says, or 227)')
    parser.add_argument('--n_class', type=int, metavar='N', help='default: what a file says, or 1000')
    parser.add_argument('--format', choices=list(FORMATS), default='text', help='default: text')
    parser.add_argument('--graph', type=Path, metavar='FILE', help='draw the architecture to a .svg, .png or .dot')
    add_overwrite(parser)
    args = parser.parse_args(argv)
    network, size, n_class = look_up(args.network)
    if args.n_class is not None and not 1 <= args.n_class <= MAX_CLASSES:
        raise trainer.InputError(f'--n_class is {args.n_class}, expected 1 .. {MAX_CLASSES}')
    if args.size is not None and not 1 <= args.size <= LARGEST:
        raise trainer.InputError(f'--size is {args.size}, expected 1 .. {LARGEST} px')
    if args.graph is not None:
        refuse_to_replace(args.graph, '--graph', overwrite=args.overwrite)
    summary = summarise(network, args.size or size, args.n_class or n_class)
    print(FORMATS[args.format](summary))
    if args.graph is not None:
        draw(summary, args.graph)
        print(f'wrote {args.graph}', file=sys.stderr)
    return 0


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.summary'):
        sys.exit(main())
