"""What each family of models can do here: every check of `tests/families.py` on every family.

    python tools/campaigns/families.py            all of them, about 40 minutes on one core
    python tools/campaigns/families.py llama gpt2

A family that is there already is not asked again; remove its line to ask it anew.
"""
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT/'tests'))

import transformers
from families import CHECKS, FAMILIES, outcome

from cotkd.files import read_lines, write_lines

OUT = ROOT/'cotkd'/'results'/'campaigns'/'families.jsonl'
VERSIONS = {name: version(name) for name in ('torch', 'transformers', 'peft')}


def ask(name):
    started = time.time()
    found = {check: outcome(name, check) for check in CHECKS}
    return dict(family=name, **found, seconds=round(time.time() - started), versions=VERSIONS)


def main(names):
    warnings.simplefilter('ignore')
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names or FAMILIES:
        known = {line['family']: line for line in read_lines(OUT)}
        if name in known and not names:
            continue
        known[name] = ask(name)
        print(json.dumps(known[name]), flush=True)
        write_lines(OUT, [known[name] for name in FAMILIES if name in known])


if __name__ == '__main__':
    main(sys.argv[1:])
