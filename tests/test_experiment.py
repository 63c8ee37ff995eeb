"The command line from outside: a whole run, a killed one, and every kind of bad input"
import json, os, signal, subprocess, sys, time

import pytest

TINY = ['--set', 'rows=64', 'heldout=2', 'other_prompt=1', 'max_new_tokens=24']


def cotkd(*args):
    "Run the command line in a process of its own, without BBH"
    env = {k: v for k, v in os.environ.items() if k != 'COTKD_BBH'}
    return subprocess.run([sys.executable, '-c', 'import sys; from cotkd.cli import main; sys.exit(main())', *map(str, args)],
                          capture_output=True, text=True, env=env)


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'toy'
    done = cotkd('run', '--out', out, *TINY)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_writes_every_file(run_dir):
    assert {'results.jsonl', 'config.json', 'gains.png', 'report.html', 'predictions'} <= {p.name for p in run_dir.iterdir()}
    rows = [json.loads(line) for line in (run_dir/'results.jsonl').read_text().splitlines()]
    assert {(r['arm'], r['mode']) for r in rows} == {(a, m) for a in ('teacher', 'student', 'kd', 'kd_cot') for m in ('cot', 'direct')}
    assert {r['benchmark'] for r in rows} == {'toy'}
    for r in rows:
        texts = [json.loads(line) for line in (run_dir/f"predictions/{r['arm']}/{r['mode']}-0-0/{r['task']}.jsonl").read_text().splitlines()]
        assert ''.join(str(int(t['correct'])) for t in texts) == r['items'] and len(texts) == r['n']
    config = json.loads((run_dir/'config.json').read_text())
    assert config['settings']['rows'] == 64 and config['versions']['torch'] and config['cost']['kd']['updates'] == config['cost']['kd_cot']['updates']


def test_the_same_command_does_nothing_twice(run_dir):
    before = {p: p.read_bytes() for p in run_dir.rglob('*.jsonl')}
    assert cotkd('run', '--out', run_dir, *TINY).returncode == 0
    assert before == {p: p.read_bytes() for p in run_dir.rglob('*.jsonl')}


def test_a_killed_run_continues_to_the_same_results(run_dir, tmp_path):
    out = tmp_path/'toy'
    env = {k: v for k, v in os.environ.items() if k != 'COTKD_BBH'}
    running = subprocess.Popen([sys.executable, '-c', 'from cotkd.cli import main; main()', 'run', '--out', str(out), *TINY],
                               env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out/'results.jsonl').exists() and running.poll() is None: time.sleep(.05)
    running.send_signal(signal.SIGKILL); running.wait()
    assert not (out/'report.html').exists()
    assert cotkd('run', '--out', out, *TINY).returncode == 0
    assert (out/'results.jsonl').read_bytes() == (run_dir/'results.jsonl').read_bytes()


def refused(capsys, args, *words):
    "Exit code 2 and one clear line (in this process: starting another one takes seconds)"
    from cotkd.cli import main
    capsys.readouterr()
    assert main(list(map(str, args))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('cotkd: ')
    for word in words: assert str(word) in line, line


@pytest.fixture(autouse=True)
def no_bbh(monkeypatch): monkeypatch.delenv('COTKD_BBH', raising=False)


def test_an_output_directory_with_another_run_is_refused(run_dir, tmp_path, capsys):
    refused(capsys, ['run', '--out', run_dir, '--set', 'rows=96'], run_dir, 'another run')
    (tmp_path/'mine.txt').write_text('keep me')
    refused(capsys, ['run', '--out', tmp_path, *TINY], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


@pytest.mark.parametrize('text, words', [
    ('{"source": "q", "target": "a", "rationale": "r"}\n{"source": "q", "tar', ['line 2']),
    ('{"source": "q", "target": "a"}\n', ['rationale']),
    ('{"source": "", "target": "a", "rationale": "r"}\n', ['none of its 1 rows', 'source empty']),
])
def test_bad_data_is_refused_before_anything_is_written(text, words, tmp_path, capsys):
    data, out = tmp_path/'rows.jsonl', tmp_path/'out'
    data.write_text(text)
    refused(capsys, ['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data', data, '--rationales', '--out', out], *words)
    assert [p.name for p in tmp_path.iterdir()] == ['rows.jsonl']


def test_bad_names_are_refused(tmp_path, capsys):
    (tmp_path/'tasks').mkdir()
    score = ['eval', '--model', 'toy-student', '--bbh', tmp_path, '--out', tmp_path/'out', '--tasks']
    refused(capsys, [*score, 'web_of_lie'], 'web_of_lies')
    refused(capsys, [*score, 'web_of_lies'], 'web_of_lies.json')
    refused(capsys, ['eval', '--model', 'toy-student', '--out', tmp_path/'out', '--tasks', 'web_of_lies'], 'COTKD_BBH')
    refused(capsys, ['run', 'tyo'], 'tyo')
    refused(capsys, ['run', '--set', 'row=1'], 'row')
    refused(capsys, ['gains', tmp_path/'none'], 'none')
    assert not (tmp_path/'out').exists()


def test_distill_then_eval_on_bbh(tmp_path, bbh_dir, capsys):
    from cotkd.cli import main
    from cotkd.toy import EVALUATED, make_toy
    (tmp_path/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in make_toy(EVALUATED, 32)))
    distill = ['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data', str(tmp_path/'rows.jsonl'), '--lr', '1e-3',
               '--out', str(tmp_path/'student')]
    assert main([*distill, '--no-rationales']) is None
    refused(capsys, [*distill, '--rationales'], 'another distillation', 'mode')
    scores = str(tmp_path/'scores')
    assert main(['eval', '--model', str(tmp_path/'student'), '--bbh', str(bbh_dir), '--tasks', 'web_of_lies,navigate', '--mode', 'direct',
                 '--shots', '0', '--arm', 'kd', '--limit', '5', '--out', scores]) is None
    assert [json.loads(line)['n'] for line in (tmp_path/'scores/results.jsonl').read_text().splitlines()] == [5, 5]
    refused(capsys, ['eval', '--model', 'toy-teacher', '--bbh', bbh_dir, '--tasks', 'web_of_lies', '--mode', 'direct', '--shots', '0',
                     '--arm', 'kd', '--limit', '5', '--out', scores], 'another')
    assert main(['gains', scores]) is None


def test_a_cache_by_shards_then_distill_from_it(tmp_path, capsys):
    from cotkd.cli import main
    from cotkd.toy import EVALUATED, make_toy
    (tmp_path/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in make_toy(EVALUATED, 24)))
    what = ['--teacher', 'toy-teacher', '--data', str(tmp_path/'rows.jsonl'), '--rationales', '--dev', '.2']
    student = [*what, '--student', 'toy-student', '--lr', '1e-3']
    cache = ['cache', *what, '--out', str(tmp_path/'cache')]
    refused(capsys, [*cache, '--shard', '2'], "'2'", 'i/n')
    assert main([*cache, '--shard', '2/2']) is None
    refused(capsys, ['distill', *student, '--out', tmp_path/'a', '--cache', tmp_path/'cache'], 'not there yet')
    assert main([*cache, '--shard', '1/2']) is None
    for arguments in ([], ['--cache', str(tmp_path/'cache')]):
        assert main(['distill', *student, '--out', str(tmp_path/f'out{len(arguments)}'), *arguments]) is None
    live, cached = ([x for line in (tmp_path/name/'log.jsonl').read_text().splitlines() for k, x in json.loads(line).items() if k in ('loss', 'kl')] for name in ('out0', 'out2'))
    assert len(live) > 3 and cached == pytest.approx(live, rel=1e-5)
    refused(capsys, ['distill', *student, '--out', tmp_path/'b', '--cache', tmp_path/'cache', '--dev', '.5'], 'rows of it')
    refused(capsys, ['distill', *student[:4], '--no-rationales', *student[5:], '--out', tmp_path/'b', '--cache', tmp_path/'cache'], 'mode, prompt')
    refused(capsys, ['distill', *student, '--divergence', 'kl', '--out', tmp_path/'b'], "'kl'", 'forward_kl')
    refused(capsys, ['distill', *student, '--temperature', '0', '--out', tmp_path/'b'], 'temperature is 0')
    assert not (tmp_path/'b').exists()


def test_plan_needs_no_model(capsys):
    from cotkd.cli import main
    assert main(['plan', 'paper-llama2-7b', '--gpu', 'H100']) is None
    assert 'hours cached' in capsys.readouterr().out
    refused(capsys, ['plan', 'toy', '--gpu', 'A1'], "'A1'", 'H100')
    refused(capsys, ['plan', 'qwem'], "'qwem'", 'qwen2.5')


# --- the presets

def tiny_pair(preset, folder):
    "The preset's pair with its kind of model, heads, ties and vocabularies of unequal padding, but tiny and with the embedded tokenizer"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from cotkd.experiment import ARCHITECTURES, _SHAPE
    from cotkd.models import _split_name, load_tokenizer
    tokenizer = load_tokenizer('toy-teacher')
    names = {}
    for i, role in enumerate(('teacher', 'student')):
        name, keep = _split_name(getattr(preset, role))[0], '[' in preset.student
        kind, *numbers = ARCHITECTURES[name]
        shape = dict(zip(_SHAPE, numbers))
        group = shape['num_attention_heads'] // shape['num_key_value_heads']
        shape |= dict(vocab_size=2048 + shape['vocab_size'] // 1000, hidden_size=16 * group, intermediate_size=32, num_attention_heads=2 * group, num_key_value_heads=2,
                      num_hidden_layers=4 if keep else 2 - i)
        path = folder/name.replace('/', '-')
        torch.manual_seed(i)
        if not path.exists():
            AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, max_position_embeddings=8192, **shape)).save_pretrained(path)
            tokenizer.save_pretrained(path)
        names[role] = f'{path}[0-1,3]' if keep and role == 'student' else str(path)
    return names


def presets():
    from cotkd.experiment import PRESETS
    return [name for name in PRESETS if name not in ('toy', 'paper-qwen')]  # `toy` is run above; the other one is not native


@pytest.mark.parametrize('name', presets())
def test_a_preset_runs_from_rows_to_report(name, cot_data, bbh_dir, tmp_path):
    "The same `run`, with other sizes of models and fewer rows and questions"
    from dataclasses import replace
    from cotkd.experiment import PRESETS, run
    from cotkd.models import load_lm
    preset = PRESETS[name]
    small = replace(preset, **tiny_pair(preset, tmp_path), data=str(cot_data/'CoT_collection_en.sample.json'), rows=24, epochs=2., limit=1, max_new_tokens=4)
    run(small, tmp_path/'run', bbh_dir, preset=name)
    results = [json.loads(line) for line in (tmp_path/'run/results.jsonl').read_text().splitlines()]
    assert len(results) == 4 * 2 * 27 and {r['benchmark'] for r in results} == {'bbh'} and {r['temperature'] for r in results} == {preset.temperature}
    config = json.loads((tmp_path/'run/config.json').read_text())
    assert config['cost']['kd']['updates'] == config['cost']['kd_cot']['updates'] == 6 and config['settings']['lora_rank'] == preset.lora_rank
    for arm in ('kd', 'kd_cot'):
        assert json.loads((tmp_path/f'run/models/{arm}-0/distill.json').read_text())['validation']['best']['step'] > 0
        assert load_lm(tmp_path/f'run/models/{arm}-0')[0].config.num_hidden_layers == load_lm(small.student)[0].config.num_hidden_layers
        assert (tmp_path/f'run/cache/{arm}/cache.json').exists()
    assert (tmp_path/'run/report.html').stat().st_size > 10_000 and (tmp_path/'run/gains.png').exists()
    before = (tmp_path/'run/results.jsonl').read_bytes()
    if name != 'smollm2': return
    (tmp_path/'run/report.html').unlink()
    run(small, tmp_path/'run', bbh_dir, preset=name)  # nothing is done again but the report
    assert before == (tmp_path/'run/results.jsonl').read_bytes() and (tmp_path/'run/report.html').exists()


def test_remote_code_is_run_only_when_asked_for(tmp_path, capsys):
    import shutil
    from importlib.resources import files
    folder = tmp_path/'odd'
    shutil.copytree(files('cotkd')/'assets'/'toy-teacher', folder)
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | dict(model_type='odd', auto_map=dict(AutoConfig='odd.OddConfig', AutoModelForCausalLM='odd.Odd'))))
    (folder/'odd.py').write_text('from transformers import LlamaConfig, LlamaForCausalLM\n'
                                 'class OddConfig(LlamaConfig): model_type = "odd"\nclass Odd(LlamaForCausalLM): config_class = OddConfig\n')
    from cotkd.data import InputError
    from cotkd.models import load_lm
    with pytest.raises(InputError, match='--trust-remote-code'): load_lm(folder)
    assert load_lm(folder, trust_remote_code=True)[0].num_parameters() == load_lm('toy-teacher')[0].num_parameters()


def test_dry_run_of_the_papers_smallest_pair(capsys):
    from cotkd.cli import main
    assert main(['run', 'paper-tinyllama', '--dry-run', '--gpu', 'A100-80GB', '--set', 'rows=8000']) is None
    said = capsys.readouterr().out
    for words in ('TinyLlama', 'paper', 'ours', '--set', 'hours cached', 'fits', '10,000'): assert words in said, words


def test_the_script_for_a_gpu(cot_data, bbh_dir, tmp_path):
    "`tools/gpu_run.py` with tiny models"
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
    from gpu_run import main
    from cotkd.experiment import PRESETS
    pair = tiny_pair(PRESETS['smollm2'], tmp_path)
    (tmp_path/'results').mkdir()
    main(['smollm2', '--teacher', pair['teacher'], '--student', pair['student'], '--data', str(cot_data/'CoT_collection_en.sample.json'), '--bbh', str(bbh_dir), '--out', str(tmp_path/'run'),
          '--results', str(tmp_path/'results'), '--set', 'rows=16', 'epochs=2', 'limit=1', 'other_prompt=1', 'max_new_tokens=2'])
    speed = [json.loads(line) for line in (tmp_path/'results/smollm2_speed.jsonl').read_text().splitlines()]
    assert [s['arm'] for s in speed] == ['kd', 'kd_cot'] and all(s['tokens_per_second'] > 0 and 0 < s['share_of_product_rate'] < 1 for s in speed)
    assert (tmp_path/'results/smollm2.jsonl').read_bytes() == (tmp_path/'run/results.jsonl').read_bytes()


def test_a_run_in_two_processes(tmp_path):
    "Cache, training and questions are shared; what is said and drawn comes from one of them"
    from pathlib import Path
    env = {k: v for k, v in os.environ.items() if k != 'COTKD_BBH'} | dict(OMP_NUM_THREADS='1')
    settings = ['--set', 'rows=32', 'epochs=2', 'heldout=3', 'other_prompt=1', 'max_new_tokens=8']
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone', '--no-python',
                           str(Path(sys.executable).with_name('cotkd')), 'run', '--out', str(tmp_path/'run'), *settings], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('32 rows to train on') == done.stdout.count('answers side by side') == 1
    results = [json.loads(line) for line in (tmp_path/'run/results.jsonl').read_text().splitlines()]
    assert len(results) == 4 * 2 * 6 and {r['n'] for r in results} == {3, 1} and (tmp_path/'run/report.html').exists()
    config = json.loads((tmp_path/'run/config.json').read_text())
    assert config['cost']['kd']['updates'] == config['cost']['kd_cot']['updates'] == 8 and config['preset'] == 'toy'
    assert len(list((tmp_path/'run/cache').iterdir())) == 2 and not list((tmp_path/'run').rglob('*.part'))
