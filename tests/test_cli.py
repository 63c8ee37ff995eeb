"The command line from outside: what each command takes, what it refuses, and how it ends"
import argparse
import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from cotkd.cli import COMMANDS, add_fields, main, parser, read_choice, trainer_settings
from cotkd.evaluate import Asking
from cotkd.experiment import Experiment
from cotkd.files import read_json, read_lines
from cotkd.toy import EVALUATED, make_toy


@pytest.fixture(autouse=True)
def no_bbh(monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)


def refused(capsys, args, *words):
    "Exit code 2 and one clear line"
    capsys.readouterr()
    assert main(list(map(str, args))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('cotkd: ')
    for word in words:
        assert str(word) in line, line


def read(*words):
    return parser().parse_known_args(list(words))[0]


# --- options

@pytest.mark.parametrize('command', COMMANDS)
def test_help_says_every_default_once(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, '--help'])
    assert ended.value.code == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert 'None)' not in said and 'False)' not in said and '[])' not in said
    assert not re.search(r'\(default[^)]*\) \(default', said)


def test_settings_explain_themselves(capsys):
    with pytest.raises(SystemExit):
        main(['run', '--help'])
    said = capsys.readouterr().out
    for field in fields(Experiment):
        assert f'  {field.name} ' in said and f'[{field.default}]' in said


def test_help_and_light_commands_do_without_heavy_libraries():
    code = ('import sys, cotkd.cli; from contextlib import suppress\n'
            'for words in ["--help"], ["run", "--help"], ["eval", "--help"], ["gains", "--help"]:\n'
            '    with suppress(SystemExit): cotkd.cli.main(words)\n'
            'bad = {"torch", "transformers", "datasets", "matplotlib"} & {*sys.modules}\n'
            'assert not bad, bad')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for code in ('import sys, cotkd.cli; cotkd.cli.parser(); assert "pandas" not in sys.modules',
                 'import sys, cotkd.report; assert "torch" not in sys.modules'):
        assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_fields_become_options():
    demo = argparse.ArgumentParser()
    add_fields(demo, Asking, ['limit', 'skip_long', 'shots'], shots=3)
    args = demo.parse_args(['--skip-long', '--limit', '4'])
    assert vars(args) == dict(limit=4, skip_long=True, shots=3)


@pytest.mark.parametrize('words, preset, changed', [
    ([], 'toy', {}),
    (['qwen2.5'], 'qwen2.5', {}),
    (['--set', 'rows=300', 'toy'], 'toy', dict(rows='300')),
    (['--set', 'a=1', '--set', 'b=2'], 'toy', dict(a='1', b='2')),
    (['smollm2', '--set', 'a=1', 'b=2', '--set', 'a=x=3'], 'smollm2', dict(a='x=3', b='2')),
    (['--arms', 'kd,kd_cot', '--set', 'rows=3'], 'toy', dict(rows='3', arms='kd,kd_cot')),
    (['--trust-remote-code', 'paper-qwen'], 'paper-qwen', dict(trust_remote_code='true')),
])
@pytest.mark.parametrize('command', ['run', 'plan'])
def test_settings_have_an_equals_sign_and_a_preset_has_none(command, words, preset, changed):
    choice = read_choice(read(command, *words))
    assert (choice.preset, choice.changed) == (preset, changed)


def test_a_preset_may_stand_behind_the_options(monkeypatch):
    seen = []
    monkeypatch.setattr('cotkd.experiment.run', lambda *args: seen.append(args))
    for words in (['--out', 'x', 'smollm2'], ['smollm2', '--weight_decay', '.1', '--out', 'x']):
        assert main(['run', *words]) is None
    assert [(args[1], args[4], args[6]) for args in seen] == \
        [('x', 'smollm2', {}), ('x', 'smollm2', dict(weight_decay=.1))]
    assert seen[0][5] == 'cotkd run --out x smollm2'


def test_options_of_the_trainer():
    given = ['--gradient_checkpointing', '--report_to', 'tensorboard', '--max_steps', '5']
    assert trainer_settings(given) == dict(gradient_checkpointing=True, report_to='tensorboard',
                                           max_steps=5)
    assert trainer_settings([]) == {}


def test_unknown_options_are_refused(capsys):
    for words in (['gains', 'x', '--bogus', '1'], ['eval', '--model', 'm', '--out', 'o', 'word'],
                  ['run', '--bogus_flag', '3'], ['none']):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert 'error' in capsys.readouterr().err


# --- mistakes and interruptions

def test_mistakes_are_one_line(tmp_path, capsys, no_hub):
    (tmp_path/'tasks').mkdir()
    score = ['eval', '--model', 'toy-student', '--bbh', tmp_path, '--out', tmp_path/'out',
             '--tasks']
    refused(capsys, [*score, 'web_of_lie'], 'web_of_lies')
    refused(capsys, [*score, 'web_of_lies'], 'web_of_lies.json')
    refused(capsys, ['eval', '--model', 'toy-student', '--out', tmp_path/'out', '--tasks',
                     'web_of_lies'], 'COTKD_BBH')
    refused(capsys, [*score, 'web_of_lies', '--mode', 'cott'], "'cott'")
    refused(capsys, ['run', 'tyo'], 'tyo')
    refused(capsys, ['run', '--set', 'row=1'], 'row')
    refused(capsys, ['run', 'toy', '--set', 'rows'], "'rows'", 'key=value')
    refused(capsys, ['run', '--seeds', '0'], '--seeds 0')
    refused(capsys, ['run', '--arms', 'kd,kdcot'], "'kd_cot'")
    refused(capsys, ['gains', tmp_path/'none'], 'none')
    refused(capsys, ['plan', 'toy', '--gpu', 'A1'], "'A1'", 'H100')
    refused(capsys, ['plan', 'qwem'], "'qwem'", 'qwen2.5')
    assert not (tmp_path/'out').exists()


DISTILL = ['distill', '--student', 'toy-student', '--out']


@pytest.mark.parametrize('text, words', [
    ('{"source": "q", "target": "a", "rationale": "r"}\n{"source": "q", "tar', ['line 2']),
    ('{"source": "q", "target": "a"}\n', ['rationale']),
    ('{"source": "", "target": "a", "rationale": "r"}\n', ['none of its 1 rows', 'source empty']),
])
def test_bad_data_is_refused_before_anything_is_written(text, words, tmp_path, capsys):
    data, out = tmp_path/'rows.jsonl', tmp_path/'out'
    data.write_text(text)
    refused(capsys, [*DISTILL, out, '--teacher', 'toy-teacher', '--data', data, '--rationales'],
            *words)
    assert [path.name for path in tmp_path.iterdir()] == ['rows.jsonl']


def test_loss_and_teacher_have_to_fit(tmp_path, capsys):
    base = [*DISTILL, tmp_path/'out', '--data', 'none.jsonl', '--rationales']
    refused(capsys, base, '--teacher', '--loss sft')
    refused(capsys, [*base, '--loss', 'sft', '--cache', 'c'], '--cache')
    refused(capsys, [*base, '--teacher', 'toy-teacher', '--loss', 'kl'], "'kl'", 'kd+0.5ce')
    refused(capsys, [*base, '--teacher', 'toy-teacher', '--divergence', 'kl'], 'forward_kl')
    refused(capsys, [*base, '--teacher', 'toy-teacher', '--temperature', '0'], 'temperature is 0')


@pytest.mark.parametrize('words, command', [
    (['run', '--out', 'a b'], "cotkd run --out 'a b'"),
    ([*DISTILL, 'o', '--data', 'd', '--rationales'],
     'cotkd distill --student toy-student --out o --data d --rationales --resume'),
    ([*DISTILL, 'o', '--data', 'd', '--rationales', '--resume'],
     'cotkd distill --student toy-student --out o --data d --rationales --resume'),
])
def test_ctrl_c_says_what_continues(words, command, monkeypatch, capsys):
    def stopped(*args):
        raise KeyboardInterrupt
    for name in ('cotkd.experiment.run', 'cotkd.cli._config'):
        monkeypatch.setattr(name, stopped)
    assert main(words) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith(command) and line.count('--resume') == command.count('--resume')


# --- real models

@pytest.fixture
def rows(tmp_path):
    "24 rows in a file"
    path = tmp_path/'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in make_toy(EVALUATED, 24)))
    return str(path)


def test_distill_then_eval_on_bbh(tmp_path, rows, bbh_dir, capsys):
    distill = [*DISTILL, str(tmp_path/'student'), '--teacher', 'toy-teacher', '--data', rows]
    assert main([*distill, '--no-rationales', '--lr', '1e-3']) is None
    recipe = read_json(tmp_path/'student/distill.json')['recipe']
    assert recipe['batch_size'] == 8 and recipe['lr'] == 1e-3 and recipe['mode'] == 'direct'
    assert recipe['teacher_id'] and recipe['start']
    refused(capsys, [*distill, '--rationales', '--lr', '1e-3'], 'another distillation', 'mode')
    scores = ['--tasks', 'web_of_lies,navigate', '--bbh', str(bbh_dir), '--mode', 'direct',
              '--shots', '0', '--arm', 'mine', '--limit', '5', '--out', str(tmp_path/'scores')]
    evaluate = ['eval', *scores, '--model', str(tmp_path/'student')]
    assert main(evaluate) is None
    assert 'trained here' not in capsys.readouterr().err
    results = read_lines(tmp_path/'scores/results.jsonl')
    assert [row['n'] for row in results] == [5, 5] and {row['arm'] for row in results} == {'mine'}
    assert len({row['weights'] for row in results}) == 1 and results[0]['weights']
    refused(capsys, ['eval', *scores, '--model', 'toy-teacher'], 'another kind', '--arm')
    refused(capsys, [*evaluate, '--temperature', '.5'], 'another kind', 'temperature')
    unnamed = [word for word in evaluate if word not in ('--arm', 'mine')]
    unnamed[unnamed.index('--out') + 1] += '-unnamed'
    assert main(unnamed) is None and 'was trained here' in capsys.readouterr().err
    assert main(['eval', *scores, '--model', 'toy-student', '--arm', 'student']) is None
    assert 'web_of_lies' in capsys.readouterr().out
    assert main(['gains', str(tmp_path/'scores'), '--contrast', 'student@direct:mine@direct',
                 '--shots', '0', '--out', str(tmp_path/'gains.svg')]) is None
    assert 'mine' in capsys.readouterr().out and (tmp_path/'gains.svg').exists()
    refused(capsys, ['gains', tmp_path/'scores', '--contrast', 'kd'], "'kd'")


def test_the_text_alone_needs_no_teacher(tmp_path, rows, monkeypatch):
    loaded = []
    from cotkd import models
    load = models.load_lm
    monkeypatch.setattr(models, 'load_lm',
                        lambda name, **kwargs: (loaded.append(name), load(name, **kwargs))[1])
    assert main([*DISTILL, str(tmp_path/'student'), '--data', rows, '--rationales', '--loss',
                 'sft']) is None
    recipe = read_json(tmp_path/'student/distill.json')['recipe']
    assert loaded == ['toy-student'] and recipe['ce_weight'] == 1 and recipe['teacher_id'] is None


def test_a_cache_by_shards_then_distill_from_it(tmp_path, rows, capsys):
    data = ['--teacher', 'toy-teacher', '--data', rows, '--dev', '.2']
    cache = ['cache', *data, '--rationales', '--out', str(tmp_path/'cache')]
    student = ['distill', *data, '--rationales', '--student', 'toy-student', '--lr', '1e-3']
    cached = ['--cache', str(tmp_path/'cache')]
    refused(capsys, [*cache, '--shard', '2'], "'2'", 'i/n')
    assert main([*cache, '--shard', '2/2']) is None
    refused(capsys, [*student, '--out', tmp_path/'a', *cached], 'not there yet')
    assert main([*cache, '--shard', '1/2']) is None
    losses = {}
    for name, more in ('live', []), ('cached', cached):
        assert main([*student, '--out', str(tmp_path/name), *more]) is None
        log = read_lines(tmp_path/name/'log.jsonl')
        losses[name] = [line[key] for line in log for key in ('loss', 'kl') if key in line]
    assert len(losses['live']) > 3
    assert losses['cached'] == pytest.approx(losses['live'], rel=1e-5)
    refused(capsys, [*student, '--out', tmp_path/'b', *cached, '--dev', '.5'], 'rows')
    direct = ['--no-rationales' if word == '--rationales' else word for word in student]
    refused(capsys, [*direct, '--out', tmp_path/'b', *cached], 'mode')
    assert not (tmp_path/'b').exists()


def test_a_dry_run_is_the_plan(capsys):
    words = ['paper-tinyllama', '--gpu', 'A100-80GB', '--set', 'rows=8000']
    assert main(['run', *words, '--dry-run']) is None
    dry = capsys.readouterr().out
    assert main(['plan', *words]) is None
    assert dry == capsys.readouterr().out
    for word in ('TinyLlama', 'paper', 'ours', '--set', 'hours cached', 'fits', '10,000'):
        assert word in dry, word


def test_remote_code_is_run_only_when_asked_for(tmp_path):
    import shutil
    from cotkd.files import InputError
    from cotkd.models import load_lm
    from cotkd.names import parse_name
    folder = tmp_path/'odd'
    shutil.copytree(parse_name('toy-teacher').path, folder)
    classes = dict(AutoConfig='odd.OddConfig', AutoModelForCausalLM='odd.Odd')
    config = read_json(folder/'config.json') | dict(model_type='odd', auto_map=classes)
    (folder/'config.json').write_text(json.dumps(config))
    (folder/'odd.py').write_text(
        'from transformers import LlamaConfig, LlamaForCausalLM\n'
        'class OddConfig(LlamaConfig): model_type = "odd"\n'
        'class Odd(LlamaForCausalLM): config_class = OddConfig\n')
    with pytest.raises(InputError, match='--trust-remote-code'):
        load_lm(folder)
    assert load_lm(folder, trust_remote_code=True)[0].num_parameters() > 1_000_000
