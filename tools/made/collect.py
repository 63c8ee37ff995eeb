"""Keep what a run found in cotkd/results: numbers and 0/1 strings, no text of a benchmark.

    python tools/made/collect.py runs/why why

Writes NAME.jsonl, the results of all arms, and NAME.json: how it was run, what each student cost,
and, of a single seed, how its training went. Models and data go by their names, without the place
where they lay.
"""
import argparse
from pathlib import Path, PurePath

from cotkd.files import read_json, read_lines, write_json, write_lines
from cotkd.records import read_results

RESULTS = Path(__file__).resolve().parents[2]/'cotkd/results'
PLACES = ('teacher', 'student', 'data')  # settings that may be paths


def keep_results(rows, name):
    write_lines(RESULTS/f'{name}.jsonl',
                [row | dict(model=PurePath(row['model']).name) for row in rows])


def cost_of(job):
    return dict(lr=job['recipe']['lr'], **job['cost'])


def keep_run(out, name):
    config = read_json(out/'config.json')
    settings = config['settings']
    settings |= {key: PurePath(settings[key]).name for key in PLACES}
    for key in ('command', 'cost'):  # `costs` has those of all seeds
        del config[key]
    students = sorted(path.parent for path in out.glob('models/*/log.jsonl'))
    config['costs'] = {place.name: cost_of(read_json(place/'distill.json')) for place in students}
    if config['seeds'] == 1:
        config['logs'] = {place.name: read_lines(place/'log.jsonl') for place in students}
    write_json(RESULTS/f'{name}.json', config)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='run directory')
    parser.add_argument('name', help='of the files in cotkd/results, without their endings')
    args = parser.parse_args()
    keep_results(read_results(args.run), args.name)
    keep_run(args.run, args.name)


if __name__ == '__main__':
    main()
