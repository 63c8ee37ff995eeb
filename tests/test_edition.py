"One experiment from the command line, start to report, and what a second start does"
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from cotkd.arms import ARMS
from cotkd.bbh import Benchmark
from cotkd.cli import main
from cotkd.distill import distill
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.gains import gains_table
from cotkd.models import load_lm
from cotkd.records import load_results
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig

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


@pytest.mark.parametrize('settings, words', [
    (['student=toy-studnet'], "'toy-studnet'"), (['rows=4'], 'batch_size'),
    (['rows=-1'], 'rows=-1'), (['arms=kdd'], "unknown arm 'kdd'"), (['row=1'], "'row'")])
def test_mistakes_are_refused_before_anything_is_written(settings, words, tmp_path, capsys):
    start = time.monotonic()
    assert main(['run', '--set', *settings, 'toy', '--out', str(tmp_path/'out')]) == 2
    assert words in capsys.readouterr().err and time.monotonic() - start < 20
    assert not (tmp_path/'out').exists()


def test_another_run_and_a_foreign_directory_are_refused(run_dir, tmp_path, capsys):
    assert main(['run', '--set', 'rows=96', '--out', str(run_dir)]) == 2
    assert 'another run, which differs in settings' in capsys.readouterr().err
    (tmp_path/'mine.txt').write_text('keep me')
    assert main(['run', *SMALL, '--out', str(tmp_path)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


def test_a_benchmark_of_ones_own_in_fifteen_lines(tmp_path):
    example = "\n\nQ: Is {}?\nA: Let's think step by step.\nIt is. So the answer is Yes."
    mine = Benchmark(
        'mine', items={'even': [dict(input=f'Is {n} even?', target='Yes') for n in range(4)],
                       'odd': [dict(input=f'Is {n} odd?', target='No') for n in range(4)]},
        examples=lambda task: 'Say yes or no.' + ''.join(example.format(x) for x in 'abc'))
    model, tokenizer = load_lm('toy-student')
    for arm, mode in ('kd', 'direct'), ('kd_cot', 'cot'):
        evaluate(model, tokenizer, mine, Subject(arm, 'toy-student'),
                 Asking(mode=mode, shots=3, max_new_tokens=8), out=tmp_path, progress=False)
    results = load_results(tmp_path)
    assert set(results.benchmark) == {'mine'} and set(results.shots) == {3}
    assert list(gains_table(results).loc['kd:kd_cot'].index) == ['even', 'odd', 'macro']


def test_a_stopped_training_goes_on_exactly(tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    rows = make_toy(['web_of_lies'], 48, seed=5)
    teacher, tokenizer = load_lm('toy-teacher')
    for rank in 0, 4:
        config = KDConfig(batch_size=8, lora_rank=rank, trainer=dict(save_steps=4))

        def train(name, *callbacks):
            distill(load_lm('toy-student')[0], teacher, tokenizer, rows, tmp_path/f'{name}{rank}',
                    config=config, callbacks=callbacks)
            return load_lm(tmp_path/f'{name}{rank}')[0].state_dict()

        whole = train('whole')
        with pytest.raises(KeyboardInterrupt):
            train('parts', Stop())
        parts = train('parts')
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_compiled_training_has_the_same_loss(tmp_path):
    rows = make_toy(['web_of_lies'], 16, seed=5)
    teacher, tokenizer = load_lm('toy-teacher')
    losses = []
    for compiled in False, True:
        config = KDConfig(batch_size=8, trainer=dict(logging_steps=1, torch_compile=compiled))
        out = tmp_path/str(compiled)
        distill(load_lm('toy-student')[0], teacher, tokenizer, rows, out, config=config)
        lines = [json.loads(line) for line in (out/'log.jsonl').read_text().splitlines()]
        losses.append([line['loss'] for line in lines])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)
