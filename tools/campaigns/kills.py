"""Kills at chosen writes of a whole experiment, each continued and compared with an unbroken run.

    python tools/campaigns/kills.py --kills 120        about half an hour on one core

Every stage gets its share of the kills, evenly over its writes; the signals take turns. What has
been tried is kept, so a stopped campaign goes on.
"""
import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT/'tests'))

from kills import SIGNALS, run_whole, stage, try_kill

from cotkd.files import read_lines, write_lines

OUT = ROOT/'cotkd'/'results'/'campaigns'/'kills.jsonl'


def choose(events, kills):
    "Numbers of events: of each stage equally many, evenly spaced"
    stages = {}
    for n, event in enumerate(events, 1):
        stages.setdefault(stage(event), []).append(n)
    share = -(-kills // len(stages))
    chosen = []
    for numbers in stages.values():
        step = max(1, len(numbers) / share)
        chosen += [numbers[int(i * step)] for i in range(min(share, len(numbers)))]
    return chosen


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--kills', type=int, default=120)
    kills = parser.parse_args().kills
    folder = Path(tempfile.mkdtemp())
    events, want = run_whole(folder/'whole')
    done = {(line['n'], line['signal']): line for line in read_lines(OUT)}
    names = list(SIGNALS)
    for i, n in enumerate(choose(events, kills)):
        key = n, names[i % len(names)]
        if key in done:
            continue
        found = try_kill(folder/'kill', want, *key)
        done[key] = found | dict(stage=stage(events[n - 1]))
        print(json.dumps(done[key]), flush=True)
        write_lines(OUT, done.values())
        shutil.rmtree(folder/'kill')
        Path(f'{folder}/kill.event').unlink(missing_ok=True)
    lost = [line for line in done.values() if line['differ'] or not line['drawn']]
    print(f'{len(done)} kills, {len(lost)} of them lost something')


if __name__ == '__main__':
    main()
