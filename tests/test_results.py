"""The committed results are what the README says they are."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from squeeze_net import BASELINES, NETWORKS
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


def test_table_of_the_readme_is_the_generated_one():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    (found,) = re.findall(r'<!-- results -->\n(.*?)<!-- /results -->', readme, re.DOTALL)
    assert found.strip() == table(sorted(RUNS, key=lambda run: run.model in BASELINES)).strip()


@pytest.mark.parametrize(
    ('marker', 'script', 'function', 'records'),
    [('speed', 'speed_table', 'speed_table', []), ('models', 'models', 'model_table', ['models'])],
)
def test_tables_of_the_readme_are_those_of_the_records(marker, script, function, records):
    records = [json.loads((ROOT / f'results/bench/{name}.json').read_text(encoding='utf-8')) for name in records]
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    (found,) = re.findall(f'<!-- {marker} -->\n(.*?)<!-- /{marker} -->', readme, re.DOTALL)
    spec = importlib.util.spec_from_file_location(f'benchmark_{script}', ROOT / f'benchmarks/{script}.py')
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    assert found.strip() == getattr(module, function)(*records).strip()
