"""A small experiment, killed at a chosen write, continued, and compared with an unbroken one.

Python tells an audit hook of each file that is opened for writing, renamed or removed, just before
it happens. So "the n-th event in the run directory" is the same moment in every run.
"""
import json
import os
import signal
import sys
from pathlib import Path

from processes import call, finish

from cotkd.files import is_scratch

SIGNALS = {'SIGKILL': signal.SIGKILL, 'SIGTERM': signal.SIGTERM, 'SIGINT': signal.SIGINT}
EVENTS = ('open', 'os.rename', 'os.remove', 'os.rmdir')
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    "Counts events below a directory; calls `at_last` before the n-th"

    def __init__(self, folder, n=0, at_last=None):
        self.folder, self.n, self.at_last = str(folder), n, at_last
        self.seen = []
        sys.addaudithook(self)

    def __call__(self, event, args):
        if self.seen is None or event not in EVENTS or not isinstance(args[0], (str, os.PathLike)):
            return
        path = str(args[0])
        if not path.startswith(self.folder) or (event == 'open' and not (args[2] or 0) & WRITES):
            return
        self.seen.append(f'{event} {path.removeprefix(self.folder)}')
        if len(self.seen) == self.n:
            self.at_last(self.seen[-1])


def experiment(folder):
    "Rows from a file, a cache, held-out rows, two arms, a benchmark of four questions"
    from cotkd.bbh import Benchmark
    from cotkd.experiment import Experiment, run
    from cotkd.toy import make_toy
    rows = make_toy(['web_of_lies', 'navigate'], 40, seed=2)
    data = Path(folder)/'rows.jsonl'
    if not data.exists():
        data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    test = make_toy(['web_of_lies'], 4, seed=3, heldout=True)
    items = [dict(input=row['source'], target=row['target']) for row in test]
    settings = Experiment(data=str(data), rows=24, dev=.3, epochs=2., batch_size=8,
                          max_new_tokens=12, other_prompt=2)
    run(settings, Path(folder)/'run', Benchmark('four', items={'liars': items}),
        trainer=dict(logging_steps=1))


def whole(folder, datasets_cache):
    "An unbroken run; -> the events, on the last line printed"
    import datasets
    datasets.config.HF_DATASETS_CACHE = datasets_cache
    watch = Watch(folder)
    experiment(folder)
    seen, watch.seen = watch.seen, None
    print('EVENTS ' + json.dumps(seen))


def killed(folder, datasets_cache, n, name):
    "A run that gets a signal before its n-th event"
    import datasets
    datasets.config.HF_DATASETS_CACHE = datasets_cache
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def die(event):
        Path(f'{folder}.event').write_text(event)
        os.kill(os.getpid(), SIGNALS[name])

    Watch(folder, n, die)
    experiment(folder)


VARIES = ('config.json', 'distill.json', 'report.html', 'gains.png')  # hold times
STAGES = dict(datasets='load', cache='cache', models='distil', predictions='eval', gains='report',
              report='report')  # beginning of a path -> stage


def stage(event):
    "In which part of the experiment an event falls"
    path = event.split(' ', 1)[1].removeprefix('/run').lstrip('/.')
    return next((name for start, name in STAGES.items() if path.startswith(start)), 'records')


def contents(folder):
    "What a run left, but for files that hold times, locks and half-written files"
    run = Path(folder)/'run'
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob('*'))
            if path.is_file() and path.name not in VARIES and not is_scratch(path)}


def try_kill(folder, want, n, name):
    "A kill at the n-th event and a continuation; -> what happened"
    folder = Path(folder)
    folder.mkdir()
    cache = str(folder/'datasets')
    ended = call(killed, str(folder), cache, n, name)
    event = Path(f'{folder}.event')
    at = event.read_text() if event.exists() else None
    finish(experiment_again, str(folder), cache)
    found = contents(folder)
    differ = sorted(k for k in want.keys() | found.keys() if want.get(k) != found.get(k))
    drawn = all((folder/'run'/name).stat().st_size for name in ('gains.png', 'report.html'))
    return dict(n=n, signal=name, before=at, code=ended.codes[0], differ=differ, drawn=drawn)


def experiment_again(folder, datasets_cache):
    "The same call"
    import datasets
    datasets.config.HF_DATASETS_CACHE = datasets_cache
    experiment(folder)


def run_whole(folder):
    "-> (events, contents)"
    folder = Path(folder)
    folder.mkdir()
    said = finish(whole, str(folder), str(folder/'datasets'))
    events = json.loads(next(line for line in said.splitlines() if line.startswith('EVENTS'))[7:])
    return events, contents(folder)
