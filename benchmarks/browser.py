"""One picture in a browser: `squeezenet.wasm` of the page beside onnxruntime-web, on one thread; writes JSON.

python benchmarks/browser.py results/compression/small.sqz squeezenet_v1.1 --ort node_modules/onnxruntime-web/dist

Both get a picture that needs no resizing as bytes and give probabilities: normalisation and softmax count; the page's
program cuts it besides, where the network sees less than the whole. They take turns in one page of Chromium without a
window. `npm install onnxruntime-web` gives the folder of --ort.
"""

from __future__ import annotations

import functools
import http.server
import json
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from record import aim, header, make_parser, print_aims, save, summarise

import trainer
from squeeze_net.classifier import open_weights
from squeeze_net.deploy.__main__ import main as deploy

PAGE = Path(__file__).parent / 'peers' / 'browser.html'
AIM = 1.5  # times the time of onnxruntime-web
LARGEST_DIFFERENCE = 1e-3  # of a probability
TIMEOUT_S = 900


def main() -> None:
    parser = make_parser(__doc__, 'browser.json', rounds=50)
    parser.add_argument('weights', nargs='+', help='files or names, as for squeeze_net.deploy')
    parser.add_argument('--ort', type=Path, required=True, metavar='DIR', help='onnxruntime-web/dist')
    parser.add_argument('--chromium', default=shutil.which('chromium') or 'chromium', help='default: %(default)s')
    args = parser.parse_args()
    if not (args.ort / 'ort.wasm.min.mjs').is_file():
        raise trainer.InputError(f'--ort {args.ort} holds no ort.wasm.min.mjs: npm install onnxruntime-web')
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        shutil.copy(PAGE, site / 'index.html')
        (site / 'ort').symlink_to(args.ort.resolve())
        jobs = [prepare(weights, site, f'{i}', args.rounds) for i, weights in enumerate(args.weights)]
        (site / 'jobs.json').write_text(json.dumps(jobs))
        found = ask(args.chromium, site)
    if 'error' in found:
        raise trainer.InputError(f'the page stopped: {found["error"]}')
    results, aims = [], []
    for job, result in zip(jobs, found['results'], strict=True):
        ours, theirs = (np.array(seconds) for seconds in result['seconds'].values())
        ratio = round(float(np.median(ours / theirs)), 3)
        times = {name: summarise(seconds) for name, seconds in result['seconds'].items()}
        if result['difference'] > LARGEST_DIFFERENCE:
            raise trainer.InputError(
                f'the answers for {job["network"]} differ by {result["difference"]:g}: one of them is wrong'
            )
        named = {'network': job['network'], 'side_px': job['crop']}
        results.append(named | times | {'ratio': ratio, 'largest_difference': result['difference']})
        aims.append(aim(f'{job["network"]} at {job["crop"]} px, times the time of onnxruntime-web', ratio, AIM))
    print_aims(aims)
    version = json.loads((args.ort.parent / 'package.json').read_text())['version']
    record = header('one picture in a browser') | {'browser': found['browser'], 'onnxruntime-web': version}
    save(record | {'rounds': args.rounds, 'results': results, 'aims': aims}, args.out)


def prepare(weights: str, site: Path, folder: str, rounds: int) -> dict[str, Any]:
    """Deploy weights into a folder of the site; returns what the page is to do with them."""
    deploy([weights, '-o', str(site / folder), '--only', 'onnx,page', '--batch', '1'])
    _, opened = open_weights(site / folder / 'model.sqz')
    view = opened.metadata.preprocessing
    assert view is not None
    return {
        'network': opened.metadata.network,
        'folder': folder,
        'side': view.side,
        'crop': view.crop,
        'rounds': rounds,
    }


def ask(chromium: str, site: Path) -> Any:
    """What the page of a folder posts."""
    answers: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=site)
    with (
        http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', f'--user-data-dir={profile}']
        command = [chromium, *flags, f'http://127.0.0.1:{server.server_port}/index.html']
        try:
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise trainer.InputError(f'--chromium {chromium} cannot be run ({error}): install it') from None
        try:
            return answers.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise trainer.InputError(f'the page did not answer within {TIMEOUT_S} s') from None
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()


if __name__ == '__main__':
    with trainer.exit_with_message('browser.py'):
        main()
