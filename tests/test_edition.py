"One experiment from the command line, start to report, and what a second start does"
import os
import subprocess
import sys

import pytest

from cotkd.arms import ARMS
from cotkd.cli import main
from cotkd.gains import gains_table
from cotkd.records import load_results

SMALL = ['--arms', 'kd,kd_cot,sft,sft_cot', '--set', 'rows=48', 'heldout=2', '--set',
         'other_prompt=1', 'max_new_tokens=16']


@pytest.fixture(autouse=True)
def no_bbh(monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('COTKD_BBH', raising=False)
        out = tmp_path_factory.mktemp('run')/'toy'
        assert main(['run', 'toy', '--out', str(out), *SMALL]) is None
    return out


def test_four_arms_and_four_contrasts(run_dir):
    results = load_results(run_dir)
    assert set(results.arm) == set(ARMS) and results.weights.notna().all()
    assert results.start[results.arm == 'kd'].notna().all()
    contrasts = gains_table(results).index.unique('contrast')
    assert list(contrasts) == ['kd:kd_cot', 'kd:sft', 'sft:sft_cot', 'kd_cot:sft_cot']
    page = (run_dir/'report.html').read_text()
    assert 'SFT → SFT+CoT, task by task' in page and (run_dir/'gains.png').stat().st_size > 10_000


def test_a_finished_run_loads_nothing(run_dir):
    code = ('import sys; from cotkd.cli import main; code = main(sys.argv[1:]); '
            'assert not {"torch", "transformers"} & set(sys.modules); sys.exit(code)')
    env = {k: v for k, v in os.environ.items() if k != 'COTKD_BBH'}
    before = (run_dir/'results.jsonl').read_bytes()
    done = subprocess.run([sys.executable, '-c', code, 'run', 'toy', '--out', str(run_dir), *SMALL],
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (run_dir/'results.jsonl').read_bytes() == before
