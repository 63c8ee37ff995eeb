"""Make the documentation site: nbdev documents the notebooks, smalldocs renders them.

    python tools/build/make_docs.py                 # into _docs/; open _docs/index.html
    python -m http.server --directory _docs         # with search

(nbdev_docs would need Quarto.) Runs no cell: the documentation of a name is of what `nbdev_export`
wrote, and the outputs are those that are committed. The pages need nothing from elsewhere.
"""
import argparse
import ast
import html
import inspect
import json
import re
import shutil
import sys
import tempfile
from contextlib import chdir
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path

from execnb.nbio import _dict2obj
from fastcore import docments
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, _default_exp, exec_show_docs
from nbdev.serve_drv import exec_nb
from nbdev.showdoc import show_doc
from smalldocs.config import load
from smalldocs.site import Site

ROOT = Path(__file__).resolve().parents[2]
# a link to a notebook or page, from any folder, with or without its number
COLAB = 'https://colab.research.google.com/github'
JUPYTERLAB = 'http://localhost:8888/lab/tree'  # as `jupyter lab` at the root of the repository
DRAWING = r'(?<=\()(?:\.\./|nbs/)(?=drawings/)'
LINK = r'(?<=[( ])(?:\.\./)?(?:nbs/)?(?:studies/)?(?:\d\d_)?(\w+\.(?:ipynb|md))(?=[)}#])'


def page_links(text):
    "Links as the site has them: all pages in one folder, without their numbers"
    text = re.sub(DRAWING, '', re.sub(LINK, r'\1', text))
    return text.replace(f'{get_config().doc_host}{get_config().doc_baseurl}/', '')


def plain_code(match):
    return re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', match[0])


def signatures(cell):
    "In the documentation of a name: nbdev's links that stand in code are text again"
    for out in cell.get('outputs', []):
        data = out.get('data', {})
        if 'text/markdown' not in data:
            continue
        text = ''.join(data['text/markdown']).replace('*Call self as a function.*', '')
        data['text/markdown'] = re.sub(r'```.*?```', plain_code, text, flags=re.S)


@cache
def class_sources(path):
    "{name: source} of the classes of a module; `inspect` would parse all of it for each of them"
    text = Path(path).read_text('utf-8')
    lines = text.splitlines(keepends=True)
    classes = [part for part in ast.parse(text).body if isinstance(part, ast.ClassDef)]
    return {c.name: ''.join(lines[c.lineno - 1:c.end_lineno]) for c in classes}


docments.get_dataclass_source = lambda cls: class_sources(inspect.getfile(cls))[cls.__name__]


class show_exported(Processor):
    "For nbdev's `show_doc` cells: the documentation of what the module has, so that no cell is run"
    def begin(self):
        name = _default_exp(self.nb)
        self.module = import_module(f'cotkd.{name}') if name else None

    def cell(self, cell):
        if not cell.get('has_sd'):
            return
        name = re.search(r'^show_doc\((.+)\)$', cell.source, re.M)[1]
        meant = attrgetter(name)(self.module)
        shown = show_doc(meant)
        if inspect.isfunction(meant) and not meant.__doc__:
            shown.docs = ''  # that of the method it takes the place of
        data = {'text/markdown': shown._repr_markdown_().splitlines(keepends=True)}
        cell.outputs = _dict2obj([dict(output_type='display_data', data=data, metadata={})])


class Documented(FilterDefaults):
    def base_procs(self):
        return [show_exported if p is exec_show_docs else p for p in super().base_procs()]

    def xtra_procs(self):
        return [signatures]


def opened_elsewhere(notebook, page):
    "In the front matter of a page: where its notebook can be run"
    path = notebook.name if notebook.is_symlink() else notebook  # the index stands at the root
    repository = get_config().git_url.removeprefix('https://github.com/')
    links = {'Open in Colab': f'{COLAB}/{repository}/blob/{get_config().branch}/{path}',
             'Open in your JupyterLab': f'{JUPYTERLAB}/{path}'}
    found = json.loads(page.read_text('utf-8'))
    front = found['cells'][0]
    lines = ''.join(front['source']).rstrip().removesuffix('---').splitlines()
    lines.append('other-links:')
    for text, address in links.items():
        lines += [f'- text: {text}', f'  href: {address}']
    front['source'] = '\n'.join([*lines, '---'])
    page.write_text(json.dumps(found), 'utf-8')


def process(folder):
    "Fill `folder` with what smalldocs reads: documented notebooks, pages, settings"
    for source in [*sorted(Path('nbs').iterdir()), *sorted(Path('nbs/studies').glob('*.ipynb'))]:
        target = folder/re.sub(r'^\d\d_', '', source.name)
        if source.suffix == '.ipynb':
            exec_nb(source, target, Documented)
            opened_elsewhere(source, target)
        elif source.is_file():
            shutil.copy(source, target)
        elif source.name == 'drawings':
            shutil.copytree(source, target)
        if target.suffix in ('.ipynb', '.md') or target.name == 'sidebar.yml':
            target.write_text(page_links(target.read_text('utf-8')), 'utf-8')


def as_mathml(match):
    display = 'block' if match[1] == 'display' else 'inline'
    return convert(html.unescape(match[2]), display=display)


def formulas(page):
    "Formulas as MathML, which browsers show by themselves"
    page = re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?\s*', '', page)
    formula = r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>'
    return re.sub(formula, as_mathml, page, flags=re.S)


def build(out):
    "Write the site to `out`; returns the links that lead nowhere as pairs of page and link"
    out = out.resolve()
    with chdir(ROOT), tempfile.TemporaryDirectory() as folder:
        process(Path(folder))
        site = Site(load(folder), quiet=True)
        site.out = out
        site.build()
    for page in site.out.rglob('*.html'):
        page.write_text(formulas(page.read_text('utf-8')), 'utf-8')
    for theme in site.out.rglob('themes/*.css'):  # fonts from elsewhere
        text = re.sub(r'@import[^;]*?url\([^)]*\);', '', theme.read_text('utf-8'))
        theme.write_text(text, 'utf-8')
    return site.broken


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT/'_docs',
                        help='directory of the site (default: _docs/)')
    broken = build(parser.parse_args().out)
    if broken:
        sys.exit('\n'.join(f'{page}: {link} leads nowhere' for page, link in broken))


if __name__ == '__main__':
    main()
