"""Make README.md from index.ipynb (nbdev_readme would need Quarto).

    python tools/build/make_readme.py            # write README.md and the figures it shows
    python tools/build/make_readme.py --check    # change nothing; print what differs and exit 1
"""
import argparse
import difflib
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
FIGURES = '.github/readme'  # a tracked folder that stays out of the way
END = '<!-- README ends here -->'  # what follows in the notebook is for those who run it
NOTE = ('<!-- Made from index.ipynb by tools/build/make_readme.py: edit the notebook, not this '
        'file. -->\n\n')


def directives(cell):
    "The `#|` lines at the top of a cell, and the source without them"
    lines, found = cell.source.splitlines(), []
    while lines and re.match(r'#\s*\|', lines[0]):
        found.append(re.sub(r'^#\s*\|\s*', '', lines.pop(0)).strip())
    return found, '\n'.join(lines).strip('\n')


def shown_outputs(outputs):
    "Without warnings and style sheets"
    kept = [out for out in outputs if out.get('name') != 'stderr']
    for out in kept:
        data = out.get('data', {})
        if 'text/html' in data:
            data['text/html'] = re.sub(r'<style.*?</style>\s*', '', data['text/html'], flags=re.S)
    return kept


def readable(cell):
    "A code cell as a reader should see it, or None"
    flags, source = directives(cell)
    flags = set(flags)
    if flags & {'hide', 'include: false'}:
        return None
    cell.source = '' if flags & {'hide_input', 'echo: false'} else source
    hidden = flags & {'hide_output', 'output: false'}
    cell.outputs = [] if hidden else shown_outputs(cell.outputs)
    return cell if cell.source or cell.outputs else None


def convert(path):
    "The text of the README and its figures as {path from the root: bytes}"
    nb = nbformat.read(path, as_version=4)
    cells = [readable(cell) if cell.cell_type == 'code' else cell for cell in nb.cells]
    nb.cells = [cell for cell in cells if cell is not None]
    nb.metadata = nbformat.from_dict({'language_info': {'name': 'python'}})
    text, resources = MarkdownExporter().from_notebook_node(nb)
    # what is left of a cell whose input is hidden
    text = re.sub(r'```python\n\s*```\n', '', text.partition(END)[0])
    figures = {}
    for number, (name, content) in enumerate(resources['outputs'].items(), 1):
        new = f'{FIGURES}/figure-{number}{Path(name).suffix}'
        text = re.sub(rf'!\[\w*\]\({re.escape(name)}\)', f'![Figure {number}]({new})', text)
        figures[new] = content
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', figures


def differences(root, text, figures):
    "One entry for each line or file that is not as it should be"
    readme = root/'README.md'
    old = readme.read_text(encoding='utf-8') if readme.exists() else ''
    lines = list(difflib.unified_diff(old.splitlines(), text.splitlines(), 'README.md',
                                      'made from index.ipynb', lineterm=''))
    if old != text and not lines:
        lines = ['README.md: line ends differ']
    here = {str(path.relative_to(root)) for path in (root/FIGURES).glob('*')}
    lines += [f'{name}: not made from index.ipynb' for name in sorted(here - set(figures))]
    lines += [f'{name}: missing or different' for name, content in figures.items()
              if name not in here or (root/name).read_bytes() != content]
    return lines


def write(root, text, figures):
    for old in (root/FIGURES).glob('*'):
        old.unlink()
    for name, content in figures.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)
    (root/'README.md').write_text(text, encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true',
                        help='change nothing; exit 1 where README.md is not up to date')
    parser.add_argument('--root', type=Path, default=ROOT, help='directory of index.ipynb')
    args = parser.parse_args()
    text, figures = convert(args.root/'index.ipynb')
    if not args.check:
        return write(args.root, text, figures)
    lines = differences(args.root, text, figures)
    if lines:
        lines.append('README.md is not up to date: run `python tools/build/make_readme.py`.')
        sys.exit('\n'.join(lines))


if __name__ == '__main__':
    main()
