"""The worker: reads commands from stdin and answers each on stdout, one line of JSON a command and an answer.

    {"do": "describe"}                        -> {"versions": {...}, ...}
    {"do": "check"}                           -> part of the largest logit that the test-mode logits are off by at most
    {"do": "train", "steps": 2}               -> seconds of each step
    {"do": "infer", "batch": 16, "passes": 5} -> seconds of each pass
    {"do": "rss"}                             -> peak resident memory so far, MiB
    {"do": "primitives"}                      -> {"sum_of_primitives_s": ..., "table": [...]}, or null

Each contestant answers those it can. An answer is {"result": ...} or {"error": "one line"}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from peers import task


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m peers', description=__doc__)
    parser.add_argument('kind', choices=('project', 'pytorch', 'onnx_runtime', 'project_gpu', 'pytorch_gpu'))
    parser.add_argument('--network', required=True)
    parser.add_argument('--batch', type=int, required=True, help='of training')
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--reference', type=Path, required=True, help='folder of the weights and what they give')
    parser.add_argument('--precision', choices=('float32', 'bf16', 'fp16'), default='float32')
    parser.add_argument('--engine', choices=('fused', 'plain'), default='fused', help='of the project')
    parser.add_argument('--images', type=int, help='of an epoch, on a GPU')
    parser.add_argument('--size', type=int, help='of the pictures, px, if not the usual')
    parser.add_argument('--rehearse', action='store_true', help='what is for a GPU, on the CPU')
    parser.add_argument('--compile', action='store_true', help='PyTorch by torch.compile')
    args = parser.parse_args()
    if args.size:
        task.SIZES_PX[args.network] = args.size
    # Replies alone reach the pipe: what libraries print, also from C, goes to stderr.
    replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)
    serve(args, replies)


def serve(args: argparse.Namespace, replies: IO[str]) -> None:
    """Answer until stdin ends. The contestant is built on the first command, which its failure answers."""
    commands: dict[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            commands = commands or import_module(f'peers.{args.kind}').make_commands(args)
            answer = {'result': commands[command.pop('do')](**command)}
        except Exception as error:
            traceback.print_exc()
            sentence = next(iter(str(error).strip().splitlines()), '')
            answer = {'error': f'{type(error).__name__}: {sentence}'}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == '__main__':
    main()
