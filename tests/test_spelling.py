"Spelling of all prose, and the project's own words: British, but tokenizer and optimizer."
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [ROOT/'index.ipynb', *ROOT.glob('nbs/[0-9]*.ipynb'), *ROOT.glob('nbs/studies/*.ipynb')]
PAGES = [*ROOT.glob('*.md'), *ROOT.glob('nbs/*.md')]
CODE = [*ROOT.glob('cotkd/*.py'), *ROOT.glob('tests/*.py'), *ROOT.glob('tools/*/*.py')]
NAMES = 'docments,fro,notin'  # of libraries, and a half-written word that a model is given


def misspelt(files, *options):
    done = subprocess.run(['codespell', *options, *map(str, files)], capture_output=True, text=True)
    return done.stdout + done.stderr


def prose(notebook):
    cells = json.loads(notebook.read_text('utf-8'))['cells']
    return '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    "The prose of each notebook in a file of its name"
    folder = tmp_path_factory.mktemp('prose')
    for notebook in NOTEBOOKS:
        (folder/f'{notebook.stem}.md').write_text(prose(notebook), 'utf-8')
    return sorted(folder.iterdir())


def test_nothing_is_misspelt(texts):
    assert len(texts) == len(NOTEBOOKS) > 25
    assert not misspelt([*texts, *PAGES, *CODE], '--ignore-words-list', NAMES)


def test_the_projects_words(texts):
    own = ['-D', str(ROOT/'tests/terms.txt')]
    assert not misspelt([*texts, *PAGES], *own)


def test_a_mistake_is_found(tmp_path):
    (tmp_path/'page.md').write_text('Teh color of a tokeniser')
    assert 'Teh ==> The' in misspelt([tmp_path])
    said = misspelt([tmp_path], '-D', str(ROOT/'tests/terms.txt'))
    assert 'color ==> colour' in said and 'tokeniser ==> tokenizer' in said
