"Every notebook shows something, links to what is there, and fits the width of a cell."
import re
from pathlib import Path

import nbformat
import pytest
from nbdev.config import get_config

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted([*NBS.glob('*.ipynb'), *NBS.glob('studies/*.ipynb')])
SOURCES = sorted(path for folder in ('cotkd', 'tests', 'tools')
                 for path in (ROOT/folder).rglob('*.py') if path.name != '_modidx.py')
WIDTH = 100  # columns
CELL = 25  # lines of code in an exported cell
STRETCH = 60  # lines of code before something is shown
MACHINE = r'(/home|/root|/work|/Users|/tmp)/\w'  # begins a path that only one machine has


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def wide(text):
    return [line for line in text.splitlines() if len(line) > WIDTH]


def test_something_is_shown(notebook):
    kinds = {kind for output in outputs(notebook) for kind in output.get('data', {})}
    assert kinds & {'image/png', 'text/html'}, 'no figure and no table among the committed outputs'


def test_outputs_are_presentable(notebook):
    # without a kernel's name JupyterLab asks which one to use
    assert notebook.metadata.kernelspec.name == 'python3'
    for output in outputs(notebook):
        assert output.output_type != 'error' and output.get('name') != 'stderr', output
        shown = output.get('data', {})
        # a progress bar, which stands at 0% once its kernel is gone
        assert 'application/vnd.jupyter.widget-view+json' not in shown, output
        texts = [x for kind, x in shown.items() if kind.startswith('text')]
        text = str(output.get('text', '')) + str(texts)
        assert not re.search(MACHINE, text), f'a path of one machine: {text[:300]}'


def test_the_first_cell_of_code_installs_the_package_in_colab(notebook):
    first = code_cells(notebook)[0].source
    assert first.startswith('#| hide\n#| eval: false\n! [ -e /content ] && pip install')
    assert f'git+{get_config().git_url}' in first


def test_links_lead_somewhere(notebook):
    places = (NBS, ROOT, NBS/'studies')
    for cell in notebook.cells:
        if cell.cell_type != 'markdown':
            continue
        for link in re.findall(r'\]\((?!https?:|#|attachment:)([^)\s#]+)', cell.source):
            assert any((place/link).exists() for place in places), f'{link}: {cell.source[:200]}'


def code_lines(cell):
    return [line for line in cell.source.splitlines()
            if line.strip() and not line.strip().startswith('#')]


def shows(cell):
    "An output, or a table or picture among the prose"
    if cell.cell_type == 'code':
        return bool(cell.outputs)
    return bool(re.search(r'!\[|<svg|<img|^\|', cell.source, flags=re.M))


def test_code_fits_a_cell(notebook):
    for cell in code_cells(notebook):
        assert not wide(cell.source)
        if '#| export' in cell.source:
            assert len(code_lines(cell)) <= CELL, cell.source


def test_something_is_shown_again_and_again(notebook):
    stretch = 0
    for cell in notebook.cells:
        if cell.cell_type == 'code' and '#| hide' not in cell.source:
            stretch += len(code_lines(cell))
            assert stretch <= STRETCH, cell.source
        if shows(cell):
            stretch = 0


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sources_fit_the_same_width(path):
    "All but the list of public names, which nbdev wraps at 120"
    text = path.read_text(encoding='utf-8')
    assert not wide(re.sub(r'^__all__ = \[.*?\]$', '', text, flags=re.M | re.S))
