"""Make README.md from index.ipynb (nbdev_readme would need Quarto).

    python tools/build/make_readme.py            # write README.md and the figures it shows
    python tools/build/make_readme.py --check    # change nothing; print the difference and exit 1 if there is one
"""
import argparse, difflib, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

FIGURES = '.github/readme'  # a tracked folder that stays out of the way
END = '<!-- README ends here -->'  # what follows in the notebook is for those who run it
NOTE = '<!-- Made from index.ipynb by tools/build/make_readme.py: edit the notebook, not this file. -->\n\n'


def directives(cell):
    "The `#|` lines at the top of a cell, and the source without them"
    lines, found = cell.source.splitlines(), []
    while lines and re.match(r'#\s*\|', lines[0]): found.append(re.sub(r'^#\s*\|\s*', '', lines.pop(0)).strip())
    return found, '\n'.join(lines).strip('\n')


def readable(nb):
    "Only what a reader should see: no hidden cells, directives, warnings or style sheets"
    cells = []
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cells.append(cell)
        if cell.cell_type != 'code': continue
        flags, cell.source = directives(cell)
        if {'hide', 'include: false'} & set(flags): continue
        if {'hide_input', 'echo: false'} & set(flags): cell.source = ''
        if {'hide_output', 'output: false'} & set(flags): cell.outputs = []
        cell.outputs = [out for out in cell.outputs if out.get('name') != 'stderr']
        for out in cell.outputs:
            if 'text/html' in out.get('data', {}):
                out.data['text/html'] = re.sub(r'<style.*?</style>\s*', '', out.data['text/html'], flags=re.S)
        if cell.source or cell.outputs: cells.append(cell)
    nb.cells, nb.metadata = cells, nbformat.from_dict({'language_info': {'name': 'python'}})
    return nb


def convert(path):
    "The text of the README and its figures as {path from the root: bytes}"
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(readable(nbformat.read(path, as_version=4)))
    text = re.sub(r'```python\n\s*```\n', '', text.partition(END)[0])  # what is left of a cell whose input is hidden
    figures = {}
    for number, (name, content) in enumerate(resources['outputs'].items(), 1):
        new = f'{FIGURES}/figure-{number}{Path(name).suffix}'
        text = re.sub(rf'!\[\w*\]\({re.escape(name)}\)', f'![Figure {number}]({new})', text)
        figures[new] = content
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', figures


def differences(root, text, figures):
    "One entry for each file that is not as it should be"
    readme = root/'README.md'
    old = readme.read_text(encoding='utf-8') if readme.exists() else ''
    lines = list(difflib.unified_diff(old.splitlines(), text.splitlines(), 'README.md', 'made from index.ipynb', lineterm=''))
    if old != text and not lines: lines = ['README.md: line ends differ']
    here = {str(p.relative_to(root)) for p in (root/FIGURES).glob('*')}
    lines += [f'{name}: not made from index.ipynb' for name in sorted(here - set(figures))]
    lines += [f'{name}: missing or different' for name, content in figures.items()
              if name not in here or (root/name).read_bytes() != content]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 where README.md is not up to date')
    parser.add_argument('--root', type=Path, default=Path(__file__).resolve().parents[2], help='directory of index.ipynb')
    args = parser.parse_args()
    text, figures = convert(args.root/'index.ipynb')
    if args.check:
        if lines := differences(args.root, text, figures):
            sys.exit('\n'.join([*lines, 'README.md is not up to date: run `python tools/build/make_readme.py`.']))
        return
    for old in (args.root/FIGURES).glob('*'): old.unlink()
    for name, content in figures.items():
        (args.root/name).parent.mkdir(parents=True, exist_ok=True)
        (args.root/name).write_bytes(content)
    (args.root/'README.md').write_text(text, encoding='utf-8')


if __name__ == '__main__': main()
