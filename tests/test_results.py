"""The committed results are what the documents say they are."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from squeeze_net import BASELINES, NETWORKS, weights
from trainer.report.tables import table
from trainer.run import checkpoint
from trainer.run.records import read_run

ROOT = Path(__file__).parents[1]
RUNS = [read_run(config.parent) for config in sorted((ROOT / 'results').glob('*/config.yaml'))]


@pytest.mark.parametrize('run', RUNS, ids=lambda run: run.name)
def test_records_agree_with_each_other_and_with_the_code(run):
    assert run.summary['run'] == run.name == run.config['run']
    assert run.summary['last'] == run.log[-1]
    assert run.summary['n_parameters'] == NETWORKS[run.model](10, run.config['size']).count_params()
    weights = run.path / 'weights_best.npz'
    if weights.exists():
        checkpoint.load_model(weights, NETWORKS[run.model](10, run.config['size']))


def between_markers(page, marker):
    (found,) = re.findall(
        f'<!-- {marker} -->\n(.*?)<!-- /{marker} -->', (ROOT / page).read_text(encoding='utf-8'), re.DOTALL
    )
    return found


def test_table_of_results_is_the_generated_one():
    found = between_markers('docs/results.md', 'results')
    assert found.strip() == table(sorted(RUNS, key=lambda run: run.model in BASELINES)).strip()


@pytest.mark.parametrize(
    ('page', 'marker', 'script', 'function', 'records'),
    [
        ('docs/speed.md', 'speed', 'speed_table', 'speed_table', []),
        ('docs/weights.md', 'models', 'models', 'model_table', ['models']),
    ],
)
def test_tables_of_the_documents_are_those_of_the_records(monkeypatch, page, marker, script, function, records):
    records = [json.loads((ROOT / f'results/bench/{name}.json').read_text(encoding='utf-8')) for name in records]
    found = between_markers(page, marker)
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')  # where the scripts find each other
    spec = importlib.util.spec_from_file_location(f'benchmark_{script}', ROOT / f'benchmarks/{script}.py')
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    assert found.strip() == getattr(module, function)(*records).strip()


def test_figures_of_the_readme_are_those_of_the_records():
    """Its short table of runs, and how many times as fast as PyTorch it trains."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    runs = {run.name: run for run in RUNS}
    for name, title in {
        'squeezenet_60': 'SqueezeNet, by `configs/distilled.yaml`',
        'squeezenet_distilled': 'SqueezeNet, the same in fewer epochs',
        'alexnet_distilled': 'AlexNet, with the same teacher',
        'squeezenet_30': "SqueezeNet, by the experiment's recipe",
        'alexnet_30': 'AlexNet, by its recipe',
        'squeezenet_v1.1_finetuned': 'SqueezeNet v1.1, from ImageNet weights',
    }.items():
        summary = runs[name].summary
        (row,) = re.findall(rf'^\| {re.escape(title)} \| (.*) \|$', readme, re.MULTILINE)
        n_parameters, epochs, accuracy = row.split(' | ')
        assert n_parameters == f'{summary["n_parameters"]:,}'
        assert re.match(r'\d+', epochs)[0] == str(summary['last']['epoch'])
        assert accuracy.strip('*') == f'{summary["last"]["test_accuracy"]:.2%}'.replace('%', ' %')
    record = json.loads((ROOT / 'results/bench/train_step_avx512.json').read_text(encoding='utf-8'))
    ratio = record['networks']['squeezenet']['times_as_fast']['project']['torch_eager']['train_64']['median_of_rounds']
    assert f'trains {ratio:.2f} times as fast as PyTorch' in readme


@pytest.mark.parametrize(
    'path', sorted(ROOT.glob('results/**/weights_*.npz')) + sorted(ROOT.glob('results/**/*.sqz')), ids=str
)
def test_weights_record_all_that_a_command_needs(path):
    """`infer` and `validate` open them without another flag."""
    metadata = weights.read(path).metadata
    assert metadata.network in NETWORKS
    assert metadata.preprocessing is not None and metadata.classes is not None
