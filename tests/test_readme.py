"""What the README says of files and flags is so."""

import re
from pathlib import Path

from squeeze_net import NETWORKS
from trainer.cli import flags

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_example_is_the_one_that_the_trainers_tests_run():
    blocks = [
        re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL)
        for path in (ROOT / 'README.md', ROOT / 'trainer/README.md')
    ]
    assert blocks[0] == blocks[1] != []


def test_links_and_pictures_exist():
    targets = re.findall(r'\]\((?!https?:)([^)]+)\)', README)
    assert targets
    headings = {'#' + heading.lower().replace(' ', '-') for heading in re.findall(r'^#+ (.*)$', README, re.MULTILINE)}
    assert [target for target in targets if target not in headings and not (ROOT / target).exists()] == []


def test_every_flag_of_the_commands_exists():
    known = {name for group in flags(NETWORKS).values() for names, _, _ in group for name in names.split()}
    commands = re.findall(r'python main\.py (.*?)(?:  #|$)', README, re.MULTILINE)
    used = {word for command in commands for word in command.split() if re.fullmatch(r'--?[a-z_]+', word)}
    assert {'-e', '--resume'} <= used
    assert used <= known


def test_every_module_of_the_layout_exists():
    layout = README.split('## Layout')[1].split('##')[0]
    for name in re.findall(r'[a-z_]+\.py', layout):
        assert list(ROOT.glob(f'**/{name}')), name
