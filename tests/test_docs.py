"The documentation site, built once: every page, public name, figure and link of it; and every command that is printed in the documentation"
import ast, configparser, dataclasses, importlib, inspect, json, os, re, shlex, subprocess, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest, yaml
from browser import check_page
from bs4 import BeautifulSoup
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {re.sub(r'^\d\d_', '', p.stem): p for p in sorted([*(ROOT/'nbs').glob('*.ipynb'), *(ROOT/'nbs/studies').glob('*.ipynb')])}
MODULES = [name for name in NOTEBOOKS if (ROOT/f'cotkd/{name}.py').exists()]
PAGES = [*NOTEBOOKS, 'cluster']
DOCUMENTS = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'nbs/cluster.md', *(str(p.relative_to(ROOT)) for n, p in NOTEBOOKS.items() if n != 'index')]


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The directory of the site; processes of pytest-xdist share it"
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: folder = folder.parent
    with FileLock(folder/'site.lock'):
        if not (folder/'site').exists():
            done = subprocess.run([sys.executable, ROOT/'tools/build/make_docs.py', '--out', folder/'site'], capture_output=True, text=True, cwd=folder)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder/'site'


@pytest.fixture(scope='session')
def pages(site): return {p.stem: BeautifulSoup(p.read_text('utf-8'), 'lxml') for p in site.glob('*.html')}


def cells(path, kind): return [c for c in json.loads(path.read_text('utf-8'))['cells'] if c['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def prose(path): return path.read_text('utf-8') if path.suffix == '.md' else '\n'.join(map(source, cells(path, 'markdown')))

def without_code(text): return re.sub('```.*?```|`[^`]*`', '', text, flags=re.S)


# --- what is on the pages

def test_every_notebook_has_a_page(pages): assert set(pages) == set(PAGES)


@pytest.mark.parametrize('name', PAGES)
def test_a_page_has_its_title_and_no_markup(name, pages):
    text = prose(NOTEBOOKS.get(name, ROOT/f'nbs/{name}.md'))
    main = pages[name].main
    assert main.h1.text.replace('’', "'") == re.search('^# (.*)', text, re.M)[1]
    assert len(main.find_all('math')) == len(re.findall(r'\$\$.+?\$\$|\$[^$]+\$', without_code(text), re.S))
    for code in main.find_all(['pre', 'code', 'style', 'script', 'math']): code.decompose()
    assert not re.findall(r':::|```|\$\$|\\\(|\{=html\}|\{\.|#\||\]\(|Call self as a function', main.text)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 400])
@pytest.mark.parametrize('name', ['index', 'losses', 'cluster', 'lens'])
def test_a_page_is_whole_in_a_browser(name, site, page, width, scheme): check_page(page, (site/f'{name}.html').as_uri(), width, scheme, home=site.as_uri())


def parameters(function):
    try: return list(inspect.signature(function).parameters)
    except ValueError: return ['args', 'kwargs']  # an exception, made by Python itself


@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name, site):
    module, page = importlib.import_module(f'cotkd.{name}'), BeautifulSoup((site/f'{name}.html').read_text('utf-8'), 'lxml')
    tree = ast.parse((ROOT/f'cotkd/{name}.py').read_text('utf-8'))
    public = [d.name for d in tree.body if isinstance(d, (ast.FunctionDef, ast.ClassDef)) and d.name in module.__all__]
    assert public
    for d in public:
        heading = next((h for h in page.find_all('h3') if h.get_text(strip=True) == d), None)
        assert heading and re.fullmatch(rf'{d.lower()}(-\d)?', heading['id']), f'{d} has no anchor'  # `Plan` and `plan` differ by a number
        shown = heading.parent.pre.text
        missing = [p for p in parameters(getattr(module, d)) if not re.search(rf'\b{p}\b', shown)]
        assert not missing, f'{d} is shown without {missing}'
        assert '](' not in shown, f'{d}: a link in code'
        if dataclasses.is_dataclass(getattr(module, d)): assert '#' in shown, f'{d} is shown without what its fields mean'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_committed_figures_are_shown(name, pages):
    shown = [c for c in cells(NOTEBOOKS[name], 'code') if not re.search(r'^#\|\s*(hide\b|hide_output|output: false|include: false)', source(c), re.M)]
    figures = [''.join(o['data']['image/png']).strip() for c in shown for o in c['outputs'] if 'image/png' in o.get('data', {})]
    on_page = [img['src'].partition('base64,')[2] for img in pages[name].main.find_all('img')]
    assert [f.replace('\n', '') for f in figures] == [f.replace('\n', '') for f in on_page]


def test_the_sidebar_is_in_reading_order(pages):
    links = [a['href'] for a in pages['index'].select('#quarto-sidebar a.sidebar-link[href$=".html"]')]
    assert links[0] == 'index.html' and sorted(links) == sorted(f'{p}.html' for p in PAGES)
    assert [p for p in links if p in {f'{m}.html' for m in NOTEBOOKS}][1:] == [f'{m}.html' for m in NOTEBOOKS if m != 'index']


# --- what the pages point to

@pytest.mark.parametrize('name', PAGES)
def test_links_lead_somewhere(name, pages, site):
    own = configparser.ConfigParser()
    own.read(ROOT/'settings.ini')
    for a in pages[name].select('a[href]'):
        assert not a['href'].startswith(own['DEFAULT']['doc_host']), f'{a["href"]} leaves this copy of the site'
        url = urlsplit(a['href'])
        if url.scheme: continue
        target = site/unquote(url.path) if url.path else site/f'{name}.html'
        assert target.is_file() or (target/'index.html').is_file(), a['href']
        if url.fragment and target.suffix == '.html': assert pages[target.stem].find(id=unquote(url.fragment)), a['href']


def test_nothing_comes_from_elsewhere(pages, site):
    wanted = {tag.get('src') or tag['href'] for page in pages.values() for tag in page.select('script[src], img[src], iframe[src], link[href]')}
    for sheet in site.rglob('*.css'):
        wanted |= {str(Path(sheet.parent.relative_to(site), url)) if not urlsplit(url).scheme else url
                   for url in re.findall(r'''url\(["']?([^"')]+)''', sheet.read_text('utf-8'))}
    files = {w for w in wanted if not w.startswith('data:')}
    assert files and not [w for w in files if urlsplit(w).scheme or w.startswith('//')]
    assert not [w for w in files if not (site/unquote(urlsplit(w).path)).is_file()]


@pytest.mark.parametrize('path', [d for d in DOCUMENTS if d.endswith('.md')])  # `test_notebooks.py` sees to the others
def test_links_in_documents_lead_to_files(path):
    links = [urlsplit(link) for link in re.findall(r'\]\(([^)\s]+)\)', without_code(prose(ROOT/path)))]
    assert not [u.path for u in links if not u.scheme and u.path and not ((ROOT/path).parent/unquote(u.path)).exists()]


# --- what the documentation tells one to type

def commands(path):
    "The commands in a document that start `cotkd`, each as a list of words: lines of shell blocks, and code between words"
    text = prose(ROOT/path)
    blocks = re.findall(r'```sh\n(.*?)```', text, re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines() + re.findall(r'`(cotkd [a-z]+ [^`]+|accelerate launch [^`]*cotkd[^`]*)`', re.sub('```.*?```', '', text, flags=re.S))
    words = [shlex.split(part, comments=True) for line in lines for part in line.split('&&')]
    return [w for w in words if 'cotkd' in w]


PRINTED = sorted({(path, shlex.join(c)) for path in DOCUMENTS for c in commands(path)})

def test_commands_are_found(): assert len(PRINTED) > 20


@pytest.mark.parametrize('path, command', PRINTED)
def test_printed_commands_are_understood(path, command):
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser
    from cotkd.cli import _words, parser, trainer_settings
    from cotkd.experiment import configure
    words = shlex.split(re.sub(r'\$\w+', '1', command))
    start = words.index('cotkd')
    launcher, (args, rest) = words[:start], parser(words[start+1]).parse_known_args(words[start+1:])
    assert not rest or words[start+1] in ('run', 'distill')
    trainer_settings(rest)
    if hasattr(args, 'words') and args.words != ['PRESET']: configure(*_words(args))
    if launcher[:2] == ['accelerate', 'launch']:
        given = launch_command_parser().parse_args([*launcher[2:], 'cotkd'])
        assert given.no_python and (not given.config_file or (ROOT/'cotkd/assets/accelerate'/Path(given.config_file).name).is_file())
    elif 'torchrun' in launcher: assert get_args_parser().parse_args([*launcher[launcher.index('torchrun')+1:], 'cotkd']).no_python
    else: assert not launcher


def test_the_citation_is_of_this_version():
    citation, settings = yaml.safe_load((ROOT/'CITATION.cff').read_text()), configparser.ConfigParser()
    settings.read(ROOT/'settings.ini')
    assert citation['cff-version'] == '1.2.0' and {'message', 'title', 'authors'} <= set(citation)
    assert citation['version'] == settings['DEFAULT']['version'] and citation['authors'] == [dict(name=settings['DEFAULT']['author'])]
    assert all({'type', 'title', 'authors'} <= set(r) for r in citation['references'])
