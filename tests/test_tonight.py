"The page `On one H100, tonight`: its figures are the plan's, and its commands work."
import re
import shlex
import subprocess
from pathlib import Path

from pairs import make_pair

from cotkd import experiment
from cotkd.bbh import bbh_benchmark
from cotkd.cli import main
from cotkd.experiment import PRESETS
from cotkd.records import load_results

PAGE = (Path(__file__).resolve().parents[1]/'nbs/tonight.md').read_text('utf-8')
BLOCKS = re.findall(r'```sh\n(.*?)```', PAGE, re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
COMMANDS = [shlex.split(line)[1:] for line in LINES if line.startswith('cotkd ')]


def test_the_costs_on_the_page_are_those_of_the_plan(capsys):
    told = dict(re.findall(r'\| `(paper-\S+)` \| (On one H100: .*) \|', PAGE))
    assert len(told) == 3
    for preset, line in told.items():
        main(['plan', preset, '--gpu', 'H100'])
        assert capsys.readouterr().out.splitlines()[0] == line


def test_what_is_no_command_of_ours_is_shell():
    others = [line for line in LINES if not line.startswith('cotkd ')]
    assert [shlex.split(line)[0] for line in others] == ['git', 'cd', 'pip', 'hf', 'rm']
    subprocess.run(['bash', '-n'], input='\n'.join(LINES), text=True, check=True)


def test_every_command_on_the_page(cot_data, bbh_dir, tmp_path, monkeypatch, capsys):
    "One after the other, with a small pair, few rows and one task"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, 'bbh_benchmark', lambda *_: bbh_benchmark(bbh_dir, 'navigate'))
    monkeypatch.delenv('COTKD_BBH')
    pair = make_pair('paper-qwen', PRESETS['paper-qwen'], tmp_path, cot_data)
    small = dict(pair, data=cot_data/'CoT_collection_en.sample.json', rows=16, epochs=1, dev=.2,
                 limit=2, max_new_tokens=4)
    settings = ['--set', *(f'{key}={x}' for key, x in small.items())]
    for words in COMMANDS:
        more = settings if words[0] == 'run' else []
        assert not main([*words, *more]), words
    results = load_results('runs/paper-qwen')
    assert results.groupby('arm').seed.nunique().to_dict() == dict(
        teacher=1, student=1, kd=3, kd_cot=3, sft_cot=3)
    for file in 'report.html', 'gains.png', 'greedy/results.jsonl', 'last/results.jsonl':
        assert Path('runs/paper-qwen', file).exists()
    assert Path('from-the-base-student.png').exists()
    assert 'KD, step by step → KD+CoT' in capsys.readouterr().out
