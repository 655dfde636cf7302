"""The commands that the documents and `--help` tell people to type."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ('README.md', 'CONTRIBUTING.md', 'trainer/README.md')
PAGES += tuple(f'docs/{page.name}' for page in sorted(ROOT.glob('docs/*.md')))
FIRST_WORDS = ('python', 'mpiexec', 'make', 'pip', 'cd', '.', 'uv')


@dataclass(frozen=True)
class Command:
    """One line to type, without its comment, and the first page that has it."""

    line: str
    page: str


def is_command(line):
    return line.split(maxsplit=1)[0] in FIRST_WORDS if line.strip() else False


def commands_of_pages():
    """Every command of every page, each once, in the order of the pages."""
    found = {}
    for page in PAGES:
        for line in commands_of((ROOT / page).read_text(encoding='utf-8'), page):
            found.setdefault(line, Command(line, page))
    return list(found.values())


def commands_of(markdown, page=''):
    """The commands of the code blocks and of the inline code of a page.

    A block is one of commands or of something else, such as a tree of files; a line of a block of commands that is not
    a command is an error, so that none is overlooked.
    """
    text = re.sub(r'```python\n.*?```', '', markdown, flags=re.DOTALL)
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    blocks += re.findall(r'(?:^ {4}.*\n?)+', text, re.MULTILINE)
    for block in blocks:
        lines = [line.strip() for line in block.replace('\\\n', ' ').splitlines() if line.strip()]
        if any(map(is_command, lines)):
            for line in lines:
                assert is_command(line), (
                    f'{page}: {line!r} stands among commands, but begins with none of {FIRST_WORDS}'
                )
                yield without_comment(line)
    for code in re.findall(r'`([^`]+)`', re.sub(r'^ {4}.*$', '', text, flags=re.MULTILINE)):
        line = ' '.join(code.split())
        if is_command(line) and line not in ('.', 'python'):
            yield line


def without_comment(line):
    return re.split(r'\s+#\s', line)[0].strip()


def examples_of_help(text):
    """The examples in what `--help` prints; explanations stand two blanks after a command, or before it."""
    text = re.sub(r'\s*\\\n\s*', ' ', text)
    for line in text.splitlines():
        found = re.search(r'(?:^|\s)((?:mpiexec .*?)?python (?:main\.py|-m [\w.]+) .*)', line)
        if found and not line.lstrip().startswith('usage:'):
            yield re.split(r'\s{2,}', without_comment(found[1]))[0]


def python_blocks():
    """(page, code) of every block of Python, each once."""
    found = {}
    for page in PAGES:
        for code in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), re.DOTALL):
            found.setdefault(code, page)
    return [(page, code) for code, page in found.items()]
