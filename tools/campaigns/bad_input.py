"""What people get wrong and what they are told: every case of `tests/bad_input.py`.

    python tools/campaigns/bad_input.py            about a minute
"""
import contextlib
import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT/'tests'))

from bad_input import CASES, tell

from cotkd.files import write_lines

OUT = ROOT/'cotkd'/'results'/'campaigns'/'bad_input.jsonl'


def main():
    lines = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                told = tell(case, Path(folder))
            said = told.lines[0].removeprefix('cotkd: ').replace(folder, '…')
            said = said.replace(str(ROOT), '…')
        lines.append(dict(group=case.group, wrong=case.wrong, said=said))
    write_lines(OUT, lines)
    print(f'{len(lines)} cases')


if __name__ == '__main__':
    main()
