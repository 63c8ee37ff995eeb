"""Keep what a run found in cotkd/results: numbers and 0/1 strings, no text of a benchmark.

    python tools/made/collect.py runs/why why
    python tools/made/collect.py runs/why why --back

Writes NAME.jsonl, the results of all arms, and NAME.json: how it was run, what was decided before,
what each student cost, and, of a single seed, how its training went. Models and data go by their
names, without the place where they lay. What the teacher wrote, if it did, goes into
tools/made/NAME_written.xz.

`--back` makes a run directory of the two files, on any machine. The command of the run goes on
there with the arms and seeds that are still missing; texts and weights of those that are done stay
where they were made. Models and data that lay somewhere are named with --set.
"""
import argparse
import lzma
from pathlib import Path, PurePath

from cotkd.arms import order_arms
from cotkd.experiment import LATER
from cotkd.files import read_json, read_lines, write_json, write_lines
from cotkd.records import prediction_path, read_results, write_results

RESULTS = Path(__file__).resolve().parents[2]/'cotkd/results'
WRITTEN = Path(__file__).parent
PLACES = ('teacher', 'student', 'data')  # settings that may be paths


def keep_results(rows, name):
    write_lines(RESULTS/f'{name}.jsonl',
                [row | dict(model=PurePath(row['model']).name) for row in rows])


def cost_of(job):
    return dict(lr=job['recipe']['lr'], **job['cost'])


def kept_before(config, name):
    "What is known of students of the same run whose weights lie elsewhere"
    path = RESULTS/f'{name}.json'
    old = read_json(path) if path.exists() else {}
    same = old.get('identities') == config['identities']
    if not same or LATER | old['settings'] != LATER | config['settings']:
        return {}
    return {key: old.get(key, {}) for key in ('costs', 'logs')}


def keep_run(out, name):
    config = read_json(out/'config.json')
    settings = config['settings']
    settings |= {key: PurePath(settings[key]).name for key in PLACES}
    for key in ('command', 'cost'):  # `costs` has those of all seeds
        config.pop(key, None)
    if 'hypotheses' in config:
        config['decided'] = read_json(out/'hypotheses.json')
    old = kept_before(config, name)
    students = sorted(path.parent for path in out.glob('models/*/log.jsonl'))
    costs = {place.name: cost_of(read_json(place/'distill.json')) for place in students}
    config['costs'] = old.get('costs', {}) | costs
    config['arms'] = ','.join(order_arms(place.rpartition('-')[0] for place in config['costs']))
    if config['seeds'] == 1:
        logs = {place.name: read_lines(place/'log.jsonl') for place in students}
        config['logs'] = old.get('logs', {}) | logs
    write_json(RESULTS/f'{name}.json', config)


def keep_written(out, name):
    "It chooses the rows that all arms train on, so another machine must not write it again"
    texts = out/'written.jsonl'
    if texts.exists():
        about = (out/'written.jsonl.about.json').read_bytes()
        packed = lzma.compress(about + b'\0' + texts.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (WRITTEN/f'{name}_written.xz').write_bytes(packed)


def bring_back_written(out, name):
    packed = WRITTEN/f'{name}_written.xz'
    if packed.exists():
        about, texts = lzma.decompress(packed.read_bytes()).split(b'\0', 1)
        (out/'written.jsonl').write_bytes(texts)
        (out/'written.jsonl.about.json').write_bytes(about)


def bring_back(out, name, places):
    "A run directory that knows what is done"
    config = read_json(RESULTS/f'{name}.json')
    config['settings'] |= places
    for key in ('costs', 'logs'):
        config.pop(key, None)
    out.mkdir(parents=True)
    if 'decided' in config:
        write_json(out/'hypotheses.json', config.pop('decided'))
    rows = read_lines(RESULTS/f'{name}.jsonl')
    for row in rows:
        texts = prediction_path(out, row)
        texts.parent.mkdir(parents=True, exist_ok=True)
        texts.touch()
    write_results(out, rows)
    bring_back_written(out, name)
    write_json(out/'config.json', config)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='run directory')
    parser.add_argument('name', help='of the files in cotkd/results, without their endings')
    parser.add_argument('--back', action='store_true', help='make the run directory of the files')
    parser.add_argument('--set', nargs='+', default=[], metavar='KEY=PLACE',
                        help='with --back: where teacher, student and data lie')
    args = parser.parse_args()
    if args.back:
        bring_back(args.run, args.name, dict(part.split('=', 1) for part in args.set))
    else:
        keep_results(read_results(args.run), args.name)
        keep_run(args.run, args.name)
        keep_written(args.run, args.name)


if __name__ == '__main__':
    main()
