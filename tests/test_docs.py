"The documentation site, built once, and every command that the documentation prints"
import ast
import configparser
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from browser import check_page
from bs4 import BeautifulSoup
from torch.distributed.run import get_args_parser

from cotkd.cli import LAUNCHES, parser, read_choice, trainer_settings

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT/'nbs').glob('*.ipynb'))
STUDIES = sorted((ROOT/'nbs/studies').glob('*.ipynb'))
NOTEBOOKS = {re.sub(r'^\d\d_', '', path.stem): path for path in [*CHAPTERS, *STUDIES]}
MODULES = [name for name in NOTEBOOKS if (ROOT/f'cotkd/{name}.py').exists()]
PAGES = [*NOTEBOOKS, 'cluster', 'tonight']
MARKDOWN = [ROOT/name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'nbs/cluster.md',
                                   'nbs/tonight.md', 'cotkd/results/README.md')]
DOCUMENTS = [*MARKDOWN, *(path for name, path in NOTEBOOKS.items() if name != 'index')]
NOT_SHOWN = re.compile(r'^#\|\s*(hide\b|hide_output|output: false|include: false)', re.M)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The directory of the site; made here, where the libraries are imported already"
    folder = tmp_path_factory.mktemp('docs')
    script = str(ROOT/'tools/build/make_docs.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [script, '--out', 'site'])
        runpy.run_path(script, run_name='__main__')  # it exits only if a link leads nowhere
    return folder/'site'


def parse(path):
    return BeautifulSoup(path.read_text('utf-8'), 'lxml')


@pytest.fixture(scope='module')
def pages(site):
    return {path.stem: parse(path) for path in site.glob('*.html')}


def cells(path, kind):
    return [c for c in json.loads(path.read_text('utf-8'))['cells'] if c['cell_type'] == kind]


def source(cell):
    return ''.join(cell['source'])


def prose(path):
    if path.suffix == '.md':
        return path.read_text('utf-8')
    return '\n'.join(map(source, cells(path, 'markdown')))


def without_blocks(text):
    return re.sub('```.*?```', '', text, flags=re.S)


def without_code(text):
    return re.sub('`[^`]*`', '', without_blocks(text))


# --- what is on the pages

def test_every_notebook_has_a_page(pages):
    assert set(pages) == set(PAGES)


@pytest.mark.parametrize('name', PAGES)
def test_a_page_has_its_title_and_no_markup(name, pages):
    text = prose(NOTEBOOKS.get(name, ROOT/f'nbs/{name}.md'))
    main = pages[name].main
    assert main.h1.text.replace('’', "'") == re.search('^# (.*)', text, re.M)[1]
    formulas = re.findall(r'\$\$.+?\$\$|\$[^$]+\$', without_code(text), re.S)
    assert len(main.find_all('math')) == len(formulas)
    for code in main.find_all(['pre', 'code', 'style', 'script', 'math']):
        code.decompose()
    left = re.findall(r':::|```|\$\$|\\\(|\{=html\}|\{\.|#\||\]\(|Call self as', main.text)
    assert not left


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 400])
@pytest.mark.parametrize('name', ['index', 'losses', 'cluster', 'lens'])
def test_a_page_is_whole_in_a_browser(name, site, page, width, scheme):
    check_page(page, (site/f'{name}.html').as_uri(), width, scheme, home=site.as_uri())


def parameters(function):
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        return ['args', 'kwargs']  # an exception, made by Python itself


def public_definitions(module):
    "Functions and classes that the module exports"
    body = ast.parse(Path(module.__file__).read_text('utf-8')).body
    defined = [d.name for d in body if isinstance(d, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in defined if name in module.__all__]


@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name, site):
    module, page = importlib.import_module(f'cotkd.{name}'), parse(site/f'{name}.html')
    public = public_definitions(module)
    assert public
    headings = {h.get_text(strip=True): h for h in page.find_all('h3')}
    for defined in public:
        heading = headings.get(defined)
        # `Plan` and `plan` differ by a number
        assert heading and re.fullmatch(rf'{defined.lower()}(-\d)?', heading['id']), defined
        shown = heading.parent.pre.text
        meant = getattr(module, defined)
        missing = [p for p in parameters(meant) if not re.search(rf'\b{p}\b', shown)]
        assert not missing, f'{defined} is shown without {missing}'
        assert '](' not in shown, f'{defined}: a link in code'
        if dataclasses.is_dataclass(meant):
            assert '#' in shown, f'{defined} is shown without what its fields mean'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_committed_figures_are_shown(name, pages):
    shown = [c for c in cells(NOTEBOOKS[name], 'code') if not NOT_SHOWN.search(source(c))]
    outputs = [output.get('data', {}) for cell in shown for output in cell['outputs']]
    figures = [''.join(data['image/png']) for data in outputs if 'image/png' in data]
    sources = [img['src'] for img in pages[name].main.find_all('img')]
    on_page = [src.partition('base64,')[2] for src in sources if src.startswith('data:')]
    assert [f.replace('\n', '') for f in figures] == [f.replace('\n', '') for f in on_page]


def test_drawings_are_shown_and_none_is_left_over(pages, site):
    shown = {img['src'] for page in pages.values() for img in page.main.find_all('img')
             if img['src'].endswith('.svg')}
    drawn = {f'drawings/{path.name}' for path in ROOT.glob('nbs/drawings/*')}
    assert shown == drawn and len(drawn) > 8
    assert all((site/src).is_file() for src in shown)


def test_the_sidebar_is_in_reading_order(pages):
    sidebar = pages['index'].select('#quarto-sidebar a.sidebar-link[href$=".html"]')
    links = [a['href'].removesuffix('.html') for a in sidebar]
    assert links[0] == 'index' and sorted(links) == sorted(PAGES)
    numbered = [re.sub(r'^\d\d_', '', path.stem) for path in CHAPTERS if path.stem != 'index']
    assert [name for name in links if name in numbered] == numbered


# --- what the pages point to

@pytest.mark.parametrize('name', PAGES)
def test_links_lead_somewhere(name, pages, site):
    own = configparser.ConfigParser()
    own.read(ROOT/'settings.ini')
    for link in [a['href'] for a in pages[name].select('a[href]')]:
        assert not link.startswith(own['DEFAULT']['doc_host']), f'{link} leaves this copy'
        url = urlsplit(link)
        if url.scheme:
            continue
        target = site/unquote(url.path) if url.path else site/f'{name}.html'
        assert target.is_file() or (target/'index.html').is_file(), link
        if url.fragment and target.suffix == '.html':
            assert pages[target.stem].find(id=unquote(url.fragment)), link


def fetched(pages, site):
    "Addresses that a browser opens by itself"
    wanted = 'script[src], img[src], iframe[src], link[href]'
    for page in pages.values():
        yield from (tag.get('src') or tag['href'] for tag in page.select(wanted))
    for sheet in site.rglob('*.css'):
        for url in re.findall(r'''url\(["']?([^"')]+)''', sheet.read_text('utf-8')):
            elsewhere = urlsplit(url).scheme
            yield url if elsewhere else str(Path(sheet.parent.relative_to(site), url))


def test_nothing_comes_from_elsewhere(pages, site):
    files = {url for url in fetched(pages, site) if not url.startswith('data:')}
    assert files and not [f for f in files if urlsplit(f).scheme or f.startswith('//')]
    assert not [f for f in files if not (site/unquote(urlsplit(f).path)).is_file()]


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: path.name)
def test_links_in_documents_lead_to_files(path):  # `test_notebooks.py` sees to notebooks
    links = map(urlsplit, re.findall(r'\]\(([^)\s]+)\)', without_code(prose(path))))
    files = [url.path for url in links if not url.scheme and url.path]
    assert not [file for file in files if not (path.parent/unquote(file)).exists()]


FILE = re.compile(r'`((?:nbs|tests|tools|cotkd|\.ci)/[\w./*-]+)`')
STANDS_FOR_ANY = ('nbs/NN_name.ipynb', 'cotkd/name.py', 'tests/test_name.py')


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: path.name)
def test_files_that_documents_name_are_there(path):
    named = set(FILE.findall(without_blocks(prose(path)))) - {*STANDS_FOR_ANY}
    assert not [name for name in named if not list(ROOT.glob(name))]


# --- what the documentation tells one to type

def commands(path):
    "Those that start `cotkd`, as lists of words: lines of shell blocks, and code in sentences"
    text = prose(path)
    lines = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.S)).replace('\\\n', ' ').splitlines()
    inline = r'`(cotkd [a-z]+ [^`]+|accelerate launch [^`]*cotkd[^`]*)`'
    lines += re.findall(inline, without_blocks(text))
    parts = [part for line in lines for part in line.split('&&')]
    words = [shlex.split(part, comments=True) for part in parts]
    return [found for found in words if 'cotkd' in found and found[0] != 'cd']


PRINTED = sorted({(path.name, shlex.join(c)) for path in DOCUMENTS for c in commands(path)})


def test_commands_are_found():
    assert len(PRINTED) >= 15


def check_launcher(words):
    if words[:2] == ['accelerate', 'launch']:
        given = launch_command_parser().parse_args([*words[2:], 'cotkd'])
        assert given.no_python and Path(given.config_file or 'ddp.yaml').stem in LAUNCHES
    elif 'torchrun' in words:
        options = words[words.index('torchrun') + 1:]
        assert get_args_parser().parse_args([*options, 'cotkd']).no_python
    else:
        assert not words


@pytest.mark.parametrize('path, command', PRINTED)
def test_printed_commands_are_understood(path, command):
    words = shlex.split(re.sub(r'\$\w+', '1', command))
    start = words.index('cotkd')
    check_launcher(words[:start])
    name = words[start + 1]
    args, rest = parser().parse_known_args(words[start + 1:])
    assert not rest or name in ('run', 'distill')
    trainer_settings(rest)
    if name in ('run', 'plan') and args.preset != 'PRESET':
        read_choice(args).experiment()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    settings = configparser.ConfigParser()
    settings.read(ROOT/'settings.ini')
    own = settings['DEFAULT']
    assert citation['cff-version'] == '1.2.0' and {'message', 'title', 'authors'} <= set(citation)
    assert citation['version'] == own['version']
    assert citation['authors'] == [dict(name=own['author'])]
    assert all({'type', 'title', 'authors'} <= set(r) for r in citation['references'])
