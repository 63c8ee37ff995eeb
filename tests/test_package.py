"What is built can be published, and runs where the repository is not."
import os, subprocess, sys, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def call(*command, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory): # made from the source distribution, as an index would serve it
    source, dist = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    files = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, check=True).stdout.split(b'\0')
    for name in map(os.fsdecode, filter(None, files)):
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT/name).is_file(): (source/name).write_bytes((ROOT/name).read_bytes())
    call('-m', 'build', '--outdir', dist, source)
    call('-m', 'twine', 'check', '--strict', *dist.iterdir())
    return next(dist.glob('*.whl'))


def test_everything_that_is_needed_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(p.relative_to(ROOT)) for p in (ROOT/'cotkd').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert ours <= inside, ours - inside
    assert not [name for name in inside if name.startswith(('nbs/', 'tests/', 'tools/'))]


def test_it_runs_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path/'site')
    env = {k: v for k, v in os.environ.items() if k != 'COTKD_BBH'} | dict(PYTHONPATH=str(tmp_path/'site'))
    where = call('-c', 'import cotkd; print(cotkd.__file__)', cwd=tmp_path, env=env).strip()
    assert Path(where).is_relative_to(tmp_path), where
    call('-c', 'import sys; from cotkd.cli import main; sys.exit(main())', 'run', '--set', 'rows=48', 'heldout=6', 'other_prompt=6', cwd=tmp_path, env=env)
    assert (tmp_path/'runs/toy/report.html').stat().st_size > 100_000


def test_torch_is_not_imported_before_it_is_needed():
    call('-c', 'import sys, cotkd.cli; cotkd.cli.parser("run"); assert not {"torch", "pandas"} & set(sys.modules)')
    call('-c', 'import sys, cotkd.records, cotkd.stats, cotkd.gains; assert not {"torch", "scipy", "matplotlib"} & set(sys.modules)')  # and with it: stats, gains, the scorers
