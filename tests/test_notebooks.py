"Every notebook shows something, uses each name it exports, and links to what is there."
import ast, importlib, re
from pathlib import Path

import nbformat, pytest

NBS = Path(__file__).parent.parent/'nbs'
NOTEBOOKS = sorted([*NBS.glob('*.ipynb'), *NBS.glob('studies/*.ipynb')])


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request): return nbformat.read(request.param, as_version=4)


def code(nb, exported): # the cells that go into the module, or the others
    return [c for c in nb.cells if c.cell_type == 'code' and bool(re.match(r'#\s*\|\s*export', c.source)) == exported]


def outputs(nb): return [out for c in nb.cells if c.cell_type == 'code' for out in c.outputs]


def test_something_is_shown(notebook):
    kinds = {kind for out in outputs(notebook) for kind in out.get('data', {})}
    assert kinds & {'image/png', 'text/html'}, 'no figure and no table among the committed outputs'


def test_outputs_are_presentable(notebook):
    assert notebook.metadata.kernelspec.name == 'python3' # without it JupyterLab asks which kernel to use
    for out in outputs(notebook):
        assert out.output_type != 'error' and out.get('name') != 'stderr', out
        text = str(out.get('text', '')) + str({k: v for k, v in out.get('data', {}).items() if k.startswith('text')})
        assert not re.search(r'(/home|/root|/work|/Users|/tmp)/\w', text), f'a path of one machine: {text[:300]}'


def test_links_lead_somewhere(notebook):
    for c in notebook.cells:
        if c.cell_type != 'markdown': continue
        for link in re.findall(r'\]\((?!https?:|#|attachment:)([^)\s#]+)', c.source):
            places = NBS, NBS.parent, NBS/'studies'
            assert any((p/link).exists() for p in places), f'{link} in: {c.source[:200]}'
