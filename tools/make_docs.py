"""Make the documentation site: nbdev documents the notebooks, smalldocs renders them (nbdev_docs would need Quarto).

    python tools/make_docs.py                       # into _docs/; open _docs/index.html
    python -m http.server --directory _docs         # with search

Runs what nbdev needs to run, the exported cells and the imports, and shows the outputs that are committed. The pages need nothing from elsewhere.
"""
import argparse, html, os, re, shutil, sys, tempfile
from contextlib import chdir
from pathlib import Path

from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, _default_exp, exec_show_docs
from nbdev.serve_drv import exec_nb
from smalldocs.config import load
from smalldocs.site import Site

ROOT = Path(__file__).resolve().parent.parent


def page_links(text):
    "Links as the site has them: notebooks without their number, names of our own without the host"
    text = re.sub(r'(?<=[( ])(?:nbs/)?(?:\d\d_)?(\w+\.(?:ipynb|md))(?=[)}#])', r'\1', text)
    return text.replace(f'{get_config().doc_host}{get_config().doc_baseurl}/', '')


def signatures(cell):
    "In the documentation of a name: links of nbdev's that stand in code are text again, and a missing docstring is not that of `object.__call__`"
    for data in (out.data for out in cell.get('outputs', []) if 'text/markdown' in out.get('data', {})):
        text = ''.join(data['text/markdown']).replace('*Call self as a function.*', '')
        data['text/markdown'] = re.sub(r'```.*?```', lambda code: re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', code[0]), text, flags=re.S)


class run_as_module(exec_show_docs):
    "Run a notebook's cells under the name of its module, where the source of a class and the comments in it can be found"
    def begin(self):
        super().begin()
        if name := _default_exp(self.nb): self.k.run_cell(f'import cotkd.{name}; __name__ = "cotkd.{name}"')


class Documented(FilterDefaults):
    def base_procs(self): return [run_as_module if p is exec_show_docs else p for p in super().base_procs()]
    def xtra_procs(self): return [signatures]


def process(folder):
    "Fill `folder` with what smalldocs reads: notebooks with the documentation of their exported names, pages, settings"
    os.environ['IN_TEST'] = '1'  # an `nbdev_export()` in a notebook does nothing
    for source in sorted(Path('nbs').iterdir()):
        target = folder/re.sub(r'^\d\d_', '', source.name)
        if source.suffix == '.ipynb': exec_nb(source, target, Documented)
        elif source.is_file(): shutil.copy(source, target)
        if target.suffix in ('.ipynb', '.md') or target.name == 'sidebar.yml': target.write_text(page_links(target.read_text('utf-8')), 'utf-8')


def formulas(page):
    "Formulas as MathML, which browsers show by themselves, in place of a script from elsewhere"
    page = re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?\s*', '', page)
    return re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>',
                  lambda m: convert(html.unescape(m[2]), display='block' if m[1] == 'display' else 'inline'), page, flags=re.S)


def build(out):
    "Write the site to `out`; returns the links that lead nowhere as pairs of page and link"
    with chdir(ROOT), tempfile.TemporaryDirectory() as folder:
        process(Path(folder))
        site = Site(load(folder), quiet=True)
        site.out = out.resolve()
        site.build()
    for page in site.out.rglob('*.html'): page.write_text(formulas(page.read_text('utf-8')), 'utf-8')
    for theme in site.out.rglob('themes/*.css'): theme.write_text(re.sub(r'@import[^;]*?url\([^)]*\);', '', theme.read_text('utf-8')), 'utf-8')  # fonts from elsewhere
    return site.broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT/'_docs', help='directory of the site (default: _docs/)')
    args = parser.parse_args()
    if broken := build(args.out): sys.exit('\n'.join(f'{page}: {link} leads nowhere' for page, link in broken))


if __name__ == '__main__': main()
