"""The documents agree with the project: their links, pictures, flags, modules and examples exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from squeeze_net import NETWORKS
from trainer import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'trainer/README.md', 'benchmarks/GPU.md')
]
PAGES += [ROOT / 'squeeze_net/weights/formats/sqz/FORMAT.md', *sorted((ROOT / 'docs').glob('*.md'))]


def read(path):
    return path.read_text(encoding='utf-8')


def headings(path):
    """The anchors of a page, as the usual renderers make them."""
    titles = re.findall(r'^#+ (.*)$', read(path), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r'\]\((?!https?:)([^)]+)\)', read(page)):
        place, _, anchor = target.partition('#')
        linked = page.parent / place if place else page
        assert linked.exists(), f'{page.name} links to {target}'
        assert not anchor or anchor in headings(linked), f'{page.name} links to {target}'


def test_every_page_is_linked_from_the_readme():
    for page in PAGES[1:]:
        name = page.relative_to(ROOT).as_posix()
        assert f']({name})' in read(ROOT / 'README.md') or name.endswith('FORMAT.md')


def test_readme_is_short():
    assert len(read(ROOT / 'README.md').split()) < 1200


def test_every_flag_in_the_text_exists():
    """Commands are run by journeys; flags in sentences and tables are looked up."""
    known = set()
    for words in (['main.py', '--help_all'], ['-m', 'squeeze_net.compression', 'compress', '--help']):  # from tables
        shown = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
        known |= set(re.findall(r'(?<![\w./])--?[a-zA-Z][\w-]*', shown.stdout))
    sources = [*ROOT.glob('squeeze_net/**/*.py'), *ROOT.glob('trainer/**/*.py'), *ROOT.glob('benchmarks/**/*.py')]
    known |= {flag for path in sources for flag in re.findall(r"'(--?[a-z][\w-]*)'", read(path))}
    known |= {flag.replace('_', '-') for flag in known}
    known |= {'--host', '--mca', '--no-build-isolation', '--json', '-m', '-n', '-o', '-k'}  # of mpiexec, pip, Python
    for page in [page for page in PAGES if page.name != 'CHANGELOG.md']:  # it has old ones, too
        for code in re.findall(r'`([^`\n]+)`', read(page)):
            for flag in re.findall(r'(?<![\w./])--?[a-zA-Z][\w-]*', code):
                assert flag in known, f'{page.name}: {code}'


def test_the_settings_page_is_made_from_the_table():
    page = read(ROOT / 'docs/settings.md')
    between = page.split('<!-- settings -->')[1].split('<!-- /settings -->')[0]
    assert between.strip() == cli.reference(NETWORKS).strip(), 'run `make docs`'


def test_every_module_of_the_layout_exists():
    layout = read(ROOT / 'CONTRIBUTING.md').split('## Layout')[1].split('##')[0]
    tops = [path for path in ROOT.iterdir() if not path.name.startswith('.')]  # not the virtual environment
    known = {path.name for top in tops for path in (top.rglob('*.py') if top.is_dir() else [top])}
    for name in re.findall(r'[a-z_]+\.py', layout):
        assert name in known


def test_example_is_the_one_that_the_trainers_tests_run():
    blocks = [
        re.findall(r'```python\n(.*?)```', read(ROOT / name), re.DOTALL) for name in ('README.md', 'trainer/README.md')
    ]
    assert blocks[0] == blocks[1] and len(blocks[0]) == 1


def test_both_packages_carry_the_licence():
    assert read(ROOT / 'LICENSE') == read(ROOT / 'trainer/LICENSE')
