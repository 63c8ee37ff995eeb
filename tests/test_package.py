"What is built can be published, and runs where the repository is not"
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ('rows=16', 'heldout=2', 'other_prompt=1', 'max_new_tokens=12', 'arms=kd_cot')


def python(*words, **settings):
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def tracked_files():
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, check=True).stdout
    names = map(os.fsdecode, filter(None, listed.split(b'\0')))
    return [name for name in names if (ROOT/name).is_file()]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Made from the source distribution, as an index would serve it"
    source, dist = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in tracked_files():
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_bytes((ROOT/name).read_bytes())
    # in this environment: another one would be fetched from an index
    python('-m', 'build', '--no-isolation', '--outdir', dist, source)
    python('-m', 'twine', 'check', '--strict', *dist.iterdir())
    return next(dist.glob('*.whl'))


def test_everything_that_is_needed_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in tracked_files() if name.startswith('cotkd/')}
    assert ours and ours <= inside, ours - inside
    assert not [name for name in inside if name.startswith(('nbs/', 'tests/', 'tools/'))]


def test_it_runs_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path/'site')
    env = {name: value for name, value in os.environ.items() if name != 'COTKD_BBH'}
    place = dict(cwd=tmp_path, env=env | dict(PYTHONPATH=str(tmp_path/'site')))
    where = python('-c', 'import cotkd; print(cotkd.__file__)', **place).strip()
    assert Path(where).is_relative_to(tmp_path), where
    python('-c', 'import sys; from cotkd.cli import main; sys.exit(main())',
           'run', '--set', *SMALL, **place)
    assert (tmp_path/'runs/toy/report.html').stat().st_size > 100_000
