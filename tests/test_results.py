"""The committed results are what the README says they are."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from squeeze_net import BASELINES, NETWORKS
from trainer import checkpoint
from trainer.records import read_run
from trainer.report import table

ROOT = Path(__file__).parents[1]
RUNS = [read_run(ROOT / 'results' / name) for name in ('alexnet_jpeg', 'squeezenet_jpeg')]


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


def test_speeds_of_the_readme_are_those_of_the_record():
    record = json.loads((ROOT / 'results/bench/train_step.json').read_text(encoding='utf-8'))
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    (found,) = re.findall(r'<!-- speed -->\n(.*?)<!-- /speed -->', readme, re.DOTALL)
    spec = importlib.util.spec_from_file_location('speed_table', ROOT / 'benchmarks/speed_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert found.strip() == module.speed_table(record).strip()
