"Scoring against published numbers, damaged benchmark files, prompts to the byte, and evaluations that are interrupted."
import functools, gzip, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cotkd import bbh, generate
from cotkd.bbh import (BBH_COUNTS, BBH_TASKS, DEFAULTS, FIELDS, evaluate, extract_answer, few_shot_prompt, is_correct, load_bbh, prediction_path,
                       read_results, sample_rows, write_result)
from cotkd.data import InputError
from cotkd.generate import WORTHWHILE, can_share, encode_prompts, generate_batch, shared_length
from cotkd.models import load_lm
from cotkd.prompt import format_example
from cotkd.toy import EVALUATED, make_toy


@pytest.fixture(scope='module')
def babbler():
    "A random model and a tokenizer with one token for each byte"
    torch.manual_seed(0)
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(['<eos>'] + sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = LlamaConfig(vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=256, initializer_range=0.4, bos_token_id=None, eos_token_id=0)
    return LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<eos>')


@pytest.fixture
def items():
    "Toy questions of two tasks"
    return {task: [dict(input='Is ' + 'not '*(i % 5) + f'{i} even?', target=['Yes', 'No'][i % 2]) for i in range(n)]
            for task, n in [('navigate', 12), ('web_of_lies', 7)]}


@pytest.fixture
def ask(babbler, items, tmp_path):
    "Evaluate the random model on the toy questions, in a run directory of this test"
    def _ask(**kwargs):
        defaults = dict(out=tmp_path/'run', arm='kd', model_name='random', benchmark='toy', max_new_tokens=8, batch_size=4, progress=False)
        return evaluate(*babbler, items, **{**defaults, **kwargs})
    return _ask


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


# the scorer

@pytest.fixture(scope='module')
def golden(bbh_dir):
    "Texts of Codex on 14 tasks, and the accuracy that was published for them"
    texts, scores = bbh_dir/'golden'/'codex_cot_14_tasks.jsonl.gz', bbh_dir/'golden'/'codex_cot_14_scores.json'
    if not (texts.is_file() and scores.is_file()): pytest.skip(f'no golden outputs of Codex in {bbh_dir/"golden"}')
    with gzip.open(texts, 'rt', encoding='utf-8') as f: rows = [json.loads(line) for line in f]
    return rows, json.loads(scores.read_text())


def test_golden(golden, bbh_dir):
    "Real outputs of Codex get exactly the accuracy that was published for them"
    rows, published = golden
    assert len(published) == 14
    targets = load_bbh(bbh_dir, list(published))
    for task, accuracy in published.items():
        mine = [r for r in rows if r['task'] == task]
        assert sorted(r['index'] for r in mine) == list(range(BBH_COUNTS[task]))
        assert all(r['target'] == targets[task][r['index']]['target'] for r in mine)
        correct = sum(is_correct(r['prediction'], r['target'], r['mode']) for r in mine)
        assert round(100*correct/len(mine), 6) == accuracy, task


@functools.lru_cache
def lm_eval_file(name):
    "A file of lm-evaluation-harness's bbh_cot_fewshot"
    import yaml
    return yaml.safe_load((Path(pytest.importorskip('lm_eval').__file__).parent/'tasks'/'bbh'/'cot_fewshot'/name).read_text())


def lm_eval_filter(text, task):
    "What lm-evaluation-harness itself makes of a text: its stops, then the filter of its own file for the task"
    extraction, utils = pytest.importorskip('lm_eval.filters.extraction'), pytest.importorskip('lm_eval.models.utils')
    rules = lm_eval_file('_cot_fewshot_template_yaml')
    (rule, first), = [f['filter'] for f in rules['filter_list']]
    assert (rule['function'], first['function']) == ('regex', 'take_first')
    assert 'filter_list' not in lm_eval_file(f'{task}.yaml') # none of its own
    text = utils.postprocess_generated_text(text, rules['generation_kwargs']['until'], None)
    return extraction.RegexFilter(rule['regex_pattern']).apply([[text]], [{}])[0][0]


def test_golden_lm_eval(golden):
    "The compatibility scorer and the installed harness read the same answer in every text of Codex"
    metrics = pytest.importorskip('lm_eval.api.metrics')
    filters = {}
    for r in golden[0]:
        theirs = lm_eval_filter(r['prediction'], r['task'])
        assert extract_answer(r['prediction'], 'cot', 'lm-eval') == theirs, (r['task'], r['index'])
        exact = metrics.exact_match_hf_evaluate(predictions=[theirs], references=[r['target']])['exact_match']
        assert is_correct(r['prediction'], r['target'], 'cot', 'lm-eval') == bool(exact)


@pytest.mark.parametrize('text, mode, answer', [
    ('So the answer is (B).', 'cot', '(B)'), ('so the answer is ] ) }.\nMore.', 'cot', '] ) }'), ('the answer is 3. the answer is 4', 'cot', '3. the answer is 4'),
    ('The answer: 3', 'cot', ''), ('\n\nQ: x\nSo the answer is 3.', 'cot', ''), ('the answer is -21.', 'cot', '-21'), ('', 'cot', ''),
    (' Yes.\nNo.', 'direct', 'Yes'), (' a b c', 'direct', 'a b c'), ('(A)\n\nQ: x', 'direct', '(A)'), ('\n(A)', 'direct', '')])
def test_extract_answer(text, mode, answer): assert extract_answer(text, mode) == answer


# loading

def test_load_all(bbh_dir):
    found = load_bbh(bbh_dir)
    assert list(found) == list(BBH_TASKS) and {t: len(r) for t, r in found.items()} == BBH_COUNTS
    assert {frozenset(r) for rows in found.values() for r in rows} == {frozenset(['input', 'target'])}
    assert {t: len(r) for t, r in load_bbh(bbh_dir, 'snarks,navigate', limit=3).items()} == dict(snarks=3, navigate=3)
    assert len(load_bbh(bbh_dir, 'nlp')) == 12 and len(load_bbh(bbh_dir, 'algorithmic')) == 15


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A directory in BBH's layout with one task of toy questions"
    rows = [dict(input=f'Sentence {i}?', target='(A)') for i in range(178)]
    (tmp_path/'tasks').mkdir()
    (tmp_path/'cot-prompts').mkdir()
    (tmp_path/'tasks'/'snarks.json').write_text(json.dumps(dict(canary='canary GUID of a toy', examples=rows), indent=1))
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest(rows))
    return tmp_path


def error(*args, call=load_bbh, **kwargs):
    "The message of the InputError: always one line"
    with pytest.raises(InputError) as caught: call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_load_source(home, monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    assert 'COTKD_BBH' in error(tasks='snarks')
    monkeypatch.setenv('COTKD_BBH', str(home))
    assert len(load_bbh(tasks='snarks')['snarks']) == 178
    assert 'does not exist' in error(home/'elsewhere')
    assert 'navigate.json is missing' in error(home, 'navigate,snarks')


@pytest.mark.parametrize('change, message', [
    (lambda t: t.replace('"input": "Sentence 3?",', '"input": "Sentence 3?"'), 'line 18'), # the file is indented: a comma short
    (lambda t: t[:500], 'snarks.json is broken'), (lambda t: t.replace('"examples"', '"rows"'), 'expected "examples"'),
    (lambda t: '[]', 'expected "examples"'), (lambda t: t.replace('"Sentence 5?"', '5'), 'example 5'),
    (lambda t: json.dumps(dict(examples=json.loads(t)['examples'][:-1])), 'has 177 questions, snarks has 178'),
    (lambda t: json.dumps(dict(examples=json.loads(t)['examples'][::-1])), 'another order'), (lambda t: t.replace('Sentence 7?', 'Sentence 07?'), 'other texts'),
    (lambda t: t.replace('canary GUID of a toy', ''), 'lost its canary')])
def test_load_damaged(home, change, message):
    path = home/'tasks'/'snarks.json'
    path.write_text(change(path.read_text()))
    assert message in error(home, 'snarks') and str(path) in error(home, 'snarks')


def test_load_not_text(home):
    (home/'tasks'/'snarks.json').write_bytes(b'\xff\xfe\x00')
    assert 'snarks.json is broken' in error(home, 'snarks')


def test_unknown_task(home):
    assert "did you mean 'tracking_shuffled_objects_five_objects'" in error(home, 'tracking_five_objects')
    assert 'unknown task' in error(home, 'snarks,') and 'unknown task' in error(home, [])


def test_defects(bbh_dir):
    "Each known defect is there"
    found, letter = load_bbh(bbh_dir, list(bbh.DEFECTS)), lambda t: len(t) == 3 and t[0] + t[2] == '()'
    for task, rows in bbh.DEFECTS.items():
        for i, reason in rows.items():
            item, options = found[task][i], [line[4:] for line in found[task][i]['input'].split('\n') if line.startswith('(')]
            same = [j for j, r in enumerate(found[task]) if r['input'].strip() == item['input'].strip() and j != i]
            assert {'the answer on file is no letter': not letter(item['target']), 'both options are equal': len(options) == 2 and len(set(options)) == 1,
                    'the question is cut off': len(options) == 1, 'asked before': any(found[task][j]['target'] == item['target'] for j in same),
                    'asked twice, with opposite answers on file': any(found[task][j]['target'] != item['target'] for j in same)}[reason], (task, i)


def test_hub(monkeypatch):
    "The hub is asked task by task; where it cannot be reached, the message says what to set"
    import datasets
    rows = datasets.Dataset.from_list([dict(input='q', target='(A)')]*178)
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest(rows.to_list()))
    asked = dict(split='test', revision='b5306be6f827cfafbb545ff5a51f96916029b0fd')
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, task, **kwargs: rows if (name, task, kwargs) == (bbh.HUB, 'snarks', asked) else None)
    assert load_bbh('hub', 'snarks') == dict(snarks=rows.to_list())
    def offline(*args, **kwargs): raise ConnectionError('no network')
    monkeypatch.setattr(datasets, 'load_dataset', offline)
    assert 'COTKD_BBH' in error('hub', 'snarks')
    assert 'COTKD_BBH' in error('snarks', 'q', shots=3, source='hub', call=few_shot_prompt)


# prompts

@pytest.mark.parametrize('task', BBH_TASKS)
def test_prompt_bytes(bbh_dir, task):
    file = (bbh_dir/'cot-prompts'/f'{task}.txt').read_bytes()
    prompt = few_shot_prompt(task, 'Is it?', source=bbh_dir)
    shots = b''.join(file.splitlines(keepends=True)[2:])
    assert prompt.encode() == shots + b"\n\nQ: Is it?\nA: Let's think step by step.\n"
    assert 'canary' not in prompt and '-----' not in prompt[:6]
    direct = few_shot_prompt(task, 'Is it?', mode='direct', source=bbh_dir)
    assert direct.endswith('\n\nQ: Is it?\nA:') and direct.split('\n')[0] == prompt.split('\n')[0]
    assert direct.count('\n\nQ: ') == 4 and 'step by step' not in direct and 'the answer is' not in direct
    for given, bare in zip(prompt.split('\n\nQ: ')[1:4], direct.split('\n\nQ: ')[1:4]):
        question, answer = bare.rsplit('\nA: ', 1)
        assert given.startswith(question + "\nA: Let's think step by step.") and given.endswith(f'the answer is {answer}.')


def test_prompts_of_lm_eval(bbh_dir):
    "The harness shows the same prompts, but for a line break in the first example of one task"
    differ = []
    for task in BBH_TASKS:
        file = lm_eval_file(f'{task}.yaml')
        ask = lambda question: file['doc_to_text'].replace('{{input}}', question)
        theirs = file['description'] + ''.join(ask(s['input']) + s['target'] + '\n\n' for s in file['fewshot_config']['samples']) + ask('Is it?')
        if theirs != few_shot_prompt(task, 'Is it?', source=bbh_dir): differ.append(task)
    assert differ == ['sports_understanding']


def test_prompt_without_shots(monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    assert few_shot_prompt('anything', 'Is it?', shots=0) == "Q: Is it?\nA: Let's think step by step.\n"
    assert few_shot_prompt('anything', 'Is it?', mode='direct', shots=0) == 'Q: Is it?\nA:'
    assert 'COTKD_BBH' in error('navigate', 'q', call=few_shot_prompt)


def test_prompt_damaged(home):
    assert 'snarks.txt is missing' in error('snarks', 'q', source=home, call=few_shot_prompt)
    (home/'cot-prompts'/'snarks.txt').write_text('Which one is sarcastic?\n\nQ: x\nA: y')
    assert 'expected a first line with the canary, a rule' in error('snarks', 'q', source=home, call=few_shot_prompt)


# evaluation

def test_evaluate(ask, items, tmp_path):
    results = ask()
    assert [list(r) for r in results] == [[*FIELDS, *DEFAULTS]]*2 and results == read_results(tmp_path/'run')
    assert [(r['task'], r['n'], r['index'], r['skipped'], r['scorer']) for r in results] == [
        ('navigate', 12, None, 0, 'official'), ('web_of_lies', 7, None, 0, 'official')]
    assert sorted(files(tmp_path/'run')) == ['predictions/kd/cot-0-0/navigate.jsonl', 'predictions/kd/cot-0-0/web_of_lies.jsonl', 'results.jsonl']
    for r in results:
        texts = [json.loads(line) for line in prediction_path(tmp_path/'run', r).read_text().splitlines()]
        assert [list(t) for t in texts] == [['index', 'text', 'answer', 'correct']]*r['n']
        assert [t['index'] for t in texts] == list(range(r['n']))
        assert r['items'] == ''.join(str(int(t['correct'])) for t in texts) and r['correct'] == r['items'].count('1')


def test_scores_are_wired(ask, items, monkeypatch):
    "Answers reach the question they belong to, whatever order they are generated in"
    answers = {few_shot_prompt('', r['input'], shots=0): r['target'] for rows in items.values() for r in rows}
    def oracle(model, tokenizer, prompts, *, on_batch, **kwargs):
        for i in reversed(range(len(prompts))): on_batch([i], [f"Sure. So the answer is {answers[prompts[i]]}." if 'not' in prompts[i] else 'Hm.'])
    monkeypatch.setattr(generate, 'generate_batch', oracle)
    for r in ask(): assert r['items'] == ''.join(str(int('not' in x['input'])) for x in items[r['task']])


def test_settings_reach_generation(ask, monkeypatch):
    seen = []
    def spy(*args, max_new_tokens, stop, on_batch, **kwargs):
        seen.append((max_new_tokens, stop))
        return generate_batch(*args, max_new_tokens=2, on_batch=on_batch, **kwargs)
    monkeypatch.setattr(generate, 'generate_batch', spy)
    ask(mode='direct', max_new_tokens=None)
    ask(mode='cot', max_new_tokens=None)
    assert set(seen) == {(3 + 8, ('\n',)), (512, ('\n\nQ:',))} # the longest target has three tokens here


def test_resume_by_task(ask, tmp_path, monkeypatch):
    first = ask()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path/'run').rglob('*') if p.is_file()}
    def never(*args, **kwargs): raise AssertionError('asked again')
    with monkeypatch.context() as m:
        m.setattr(generate, 'generate_batch', never)
        assert ask() == first
        assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path/'run').rglob('*') if p.is_file()}
        for other in [dict(model_name='other'), dict(seed=1), dict(temperature=.2), dict(arm='kd_cot'), dict(mode='direct'), dict(limit=3), dict(benchmark='bbh')]:
            with pytest.raises(AssertionError, match='asked again'): ask(**other)
    prediction_path(tmp_path/'run', first[0]).unlink() # the texts of one task are lost: that task is asked again
    assert ask() == first and len(read_results(tmp_path/'run')) == 2
    ask(limit=3)
    assert [r['n'] for r in read_results(tmp_path/'run')] == [3, 3] # replaced, not added


@pytest.mark.parametrize('after', [1, 2, 4])
def test_interrupt(ask, items, tmp_path, monkeypatch, after):
    "Ctrl-C after some batches: what is there is valid, and the same call goes on there and ends with the same files"
    whole = ask(out=tmp_path/'whole')
    asked, batches = [], 0
    def interrupted(model, tokenizer, prompts, *, on_batch, **kwargs):
        def count(rows, texts):
            nonlocal batches
            on_batch(rows, texts)
            batches += 1
            asked.extend((len(prompts), i) for i in rows)
            if batches == after: raise KeyboardInterrupt
        return generate_batch(model, tokenizer, prompts, on_batch=count, **kwargs)
    monkeypatch.setattr(generate, 'generate_batch', interrupted)
    with pytest.raises(KeyboardInterrupt): ask()
    for path in (tmp_path/'run').rglob('*'):
        if path.is_file(): [json.loads(line) for line in path.read_text().splitlines()]
    assert [r['task'] for r in read_results(tmp_path/'run')] == (['navigate'] if after > 3 else [])
    assert ask() == whole
    assert len(asked) == len(set(asked)) == sum(map(len, items.values())) # no question was asked twice
    assert files(tmp_path/'run') == files(tmp_path/'whole')


def test_part_of_another_model(ask, tmp_path, monkeypatch):
    "Texts left by an interrupted run of another model are not taken for those of this one"
    whole = ask(out=tmp_path/'whole')
    def interrupted(model, tokenizer, prompts, *, on_batch, **kwargs):
        on_batch([0], ['So the answer is Yes.'])
        raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(generate, 'generate_batch', interrupted)
        ask(model_name='other')
    assert ask() == whole and files(tmp_path/'run') == files(tmp_path/'whole')


def test_interrupt_while_writing(ask, tmp_path, monkeypatch):
    "A file is the old one or the new one, also when writing is interrupted; the texts of the task are not lost"
    run = tmp_path/'run'
    write_result(run, dict(arm='kd', task='snarks', mode='cot', shots=0, seed=0))
    before = (run/'results.jsonl').read_bytes()
    def stop(source, target):
        if Path(target).name == 'results.jsonl': raise KeyboardInterrupt
        os.rename(source, target)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', stop)
        with pytest.raises(KeyboardInterrupt): ask()
    assert (run/'results.jsonl').read_bytes() == before
    asked = []
    def count(model, tokenizer, prompts, *, only, **kwargs):
        asked.append(len(only))
        return generate_batch(model, tokenizer, prompts, only=only, **kwargs)
    monkeypatch.setattr(generate, 'generate_batch', count)
    ask()
    assert asked == [7] # all texts of the first task were there
    assert [r['task'] for r in read_results(run)] == ['snarks', 'navigate', 'web_of_lies']


def test_sample(ask, items):
    assert sample_rows('navigate', 250, 50) == sample_rows('navigate', 250, 50) == sorted(set(sample_rows('navigate', 250, 50)))
    kd, cot = ask(limit=5), ask(limit=5, arm='kd_cot', mode='direct')
    assert [r['index'] for r in kd] == [r['index'] for r in cot] == [sample_rows(t, len(items[t]), 5) for t in items]
    assert [r['n'] for r in kd] == [5, 5]
    assert [r['index'] for r in ask(limit=7)] == [sample_rows('navigate', 12, 7), None]
    assert [r['index'] for r in ask(index=dict(navigate=[9, 2]), limit=7)] == [[2, 9], None]
    assert 'limit=0' in error(limit=0, call=ask)


def test_too_long(ask, items, capsys):
    "A question that does not fit is an error, or is left out and counted, and said so; it is never cut"
    items['navigate'][3]['input'] *= 20
    items['web_of_lies'] = [dict(r, input=r['input']*30) for r in items['web_of_lies']]
    assert '--skip-long' in error(call=ask)
    some, none = ask(skip_long=True)
    assert (some['n'], some['skipped'], some['index']) == (11, 1, [i for i in range(12) if i != 3])
    assert (none['n'], none['skipped'], none['index'], none['items'], none['correct']) == (0, 7, [], '', 0)
    assert '1 of 12 prompts do not fit' in capsys.readouterr().err
    assert ask(skip_long=True) == [some, none]


def test_damaged_results(ask, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'results.jsonl').write_text('{"arm": "kd"}\n{"arm": \n')
    assert 'results.jsonl, line 2' in error(call=ask)


def test_few_shot_end_to_end(babbler, bbh_dir, tmp_path):
    "Real questions with three examples; a model with room for some tasks only"
    model = LlamaForCausalLM(LlamaConfig(**{**babbler[0].config.to_dict(), 'max_position_embeddings': 1600}))
    ask = dict(out=tmp_path, arm='student', model_name='random', shots=3, limit=2, max_new_tokens=4, source=bbh_dir, progress=False, skip_long=True)
    short, long = evaluate(model, babbler[1], load_bbh(bbh_dir, 'sports_understanding,snarks'), **ask)[::-1]
    assert {short['task'], long['task']} == {'sports_understanding', 'snarks'}
    assert (short['n'], short['skipped'], long['n'], long['skipped']) == (2, 0, 0, 2)


# several processes

def three_ways(out, progress=False):
    "A few real questions to the trained student: greedy, sampled, and in half precision, where a text can depend on its batch"
    model, tokenizer = load_lm('toy-student')
    items, results = load_bbh(tasks='navigate,boolean_expressions'), []
    for arm, dtype, temperature, shots in [('student', torch.float32, 0., 3), ('kd', torch.float32, .2, 3), ('kd_cot', torch.bfloat16, 0., 0)]:
        results += evaluate(model.to(dtype), tokenizer, items, out=out, arm=arm, model_name='toy-student', shots=shots, limit=12, temperature=temperature,
                            max_new_tokens=16, batch_size=4, progress=progress)
    return results


@pytest.fixture(scope='module')
def whole(bbh_dir, tmp_path_factory):
    "What one process leaves, and returns"
    out = tmp_path_factory.mktemp('whole')
    return out, three_ways(out)


PROCESS = """
import contextlib, io, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_bbh import generate, generate_batch, three_ways
me, killed_after, batches = os.environ['RANK'], int(sys.argv[4]), 0
def counted(*args, on_batch, **kwargs):
    def count(rows, texts):
        global batches
        on_batch(rows, texts)
        batches += 1
        if me == '1' and batches == killed_after: os.kill(os.getpid(), signal.SIGKILL)
    return generate_batch(*args, on_batch=count, **kwargs)
generate.generate_batch = counted
with contextlib.redirect_stderr(io.StringIO()) as shown: results = three_ways(sys.argv[2], progress=True)
with open(f'{sys.argv[3]}.{me}', 'w') as file: json.dump(dict(results=results, batches=batches, shown=shown.getvalue()), file)
"""


def in_processes(n, out, said, killed_after=0):
    "Whether `n` processes came to the end"
    (script := out.parent/'process.py').write_text(PROCESS)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(n), str(script),
                           str(Path(__file__).parent), str(out), str(said), str(killed_after)], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    if not killed_after: assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode == 0


def test_two_processes_leave_the_files_of_one(whole, tmp_path):
    assert in_processes(2, tmp_path/'run', tmp_path/'said')
    said = [json.loads((tmp_path/f'said.{i}').read_text()) for i in (0, 1)]
    assert files(tmp_path/'run') == files(whole[0])
    assert [s['results'] for s in said] == [whole[1]]*2
    assert [s['batches'] for s in said] == [3*(2 + 1)]*2 # each task has 3 batches
    assert 'boolean_expressions, 1 of 2 shares' in said[0]['shown'] and 'shares' not in said[1]['shown']


def test_killed_with_two_processes_continued_with_one(whole, tmp_path, monkeypatch):
    run, asked = tmp_path/'run', []
    assert not in_processes(2, run, tmp_path/'said', killed_after=5) # in the second task of the second evaluation
    there = {(p.name.split('.')[0], json.loads(line)['index']) for p in run.rglob('*.part') for line in p.read_text().splitlines()}
    assert len(there) >= 8 and len(read_results(run)) == 2
    def count(*args, only, **kwargs):
        asked.append(len(only))
        return generate_batch(*args, only=only, **kwargs)
    monkeypatch.setattr(generate, 'generate_batch', count)
    assert three_ways(run) == whole[1] and files(run) == files(whole[0])
    assert sum(asked) == 4*12 - len(there) # no question was asked twice


# what an answer depends on

def test_sampled_answers_depend_on_seed_and_item_alone(ask, tmp_path):
    warm = dict(temperature=.7, arm='kd')
    texts = lambda out: {p.name: p.read_bytes() for p in out.rglob('*.jsonl') if p.name != 'results.jsonl'}
    for i, kwargs in enumerate([dict(), dict(batch_size=1), dict(batch_size=32)]):
        assert {r['temperature'] for r in ask(out=tmp_path/str(i), **warm, **kwargs)} == {.7}
    assert texts(tmp_path/'0') == texts(tmp_path/'1') == texts(tmp_path/'2')
    ask(out=tmp_path/'cold'); ask(out=tmp_path/'other', seed=1, **warm)
    assert texts(tmp_path/'cold') != texts(tmp_path/'0') != texts(tmp_path/'other')


def test_chat(babbler, items, tmp_path):
    from copy import deepcopy
    tokenizer, seen = deepcopy(babbler[1]), []
    ask = dict(out=tmp_path, arm='teacher', model_name='random', benchmark='toy', max_new_tokens=2, progress=False, chat=True)
    assert 'no chat template' in error(babbler[0], tokenizer, items, call=evaluate, **ask)
    tokenizer.chat_template = '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(generate, 'generate_batch', lambda model, tokenizer, prompts, **kwargs: seen.extend(prompts) or generate_batch(model, tokenizer, prompts, **kwargs))
        assert all(r['chat'] for r in evaluate(babbler[0], tokenizer, items, **ask))
    assert seen[0] == f"<user>Q: {items['navigate'][0]['input']}<reply>A: Let's think step by step.\n"


def test_lm_eval_needs_shots(ask): assert 'choose 3 shots' in error(call=ask, scorer='lm-eval')


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_bbh import babbler, evaluate
items = {task: [dict(input='Is ' + 'not '*(i % 5) + f'{i} even?', target=['Yes', 'No'][i % 2]) for i in range(n)] for task, n in [('navigate', 60), ('snarks', 40)]}
model = babbler.__wrapped__()
print('ready', flush=True)
evaluate(*model, items, out=sys.argv[1], arm='kd', model_name='random', benchmark='toy', max_new_tokens=64, batch_size=4, progress=False)
print('done', flush=True)
"""


def test_sigkill(tmp_path):
    "Killed at ten random moments and continued each time, an evaluation leaves the files of an undisturbed one"
    def start(out):
        child = subprocess.Popen([sys.executable, '-c', CHILD, str(out), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == 'ready\n'
        return child
    child, began = start(tmp_path/'whole'), time.perf_counter()
    assert child.stdout.read() == 'done\n'
    needed, moments = time.perf_counter() - began, random.Random(0)
    for _ in range(10):
        child = start(tmp_path/'run')
        time.sleep(moments.uniform(0, needed/10))
        assert child.poll() is None # not done yet
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    child = start(tmp_path/'run')
    assert child.stdout.read() == 'done\n'
    assert files(tmp_path/'run') == files(tmp_path/'whole')


def test_answers_do_not_depend_on_company():
    "One at a time, 32 at a time, in reverse order, with and without the shared prefix: the trained student writes the same in float32"
    model, tokenizer = load_lm('toy-student')
    rows = make_toy(EVALUATED, 123, seed=3, heldout=True)
    shots = ''.join(format_example(r['source'], mode='cot')['question'] + r['rationale'] + '\n\n' for r in rows[:3])
    prompts = [shots + format_example(r['source'], mode='cot')['question'] for r in rows[3:]]
    assert shared_length(encode_prompts(tokenizer, prompts)) >= WORTHWHILE and can_share(model, encode_prompts(tokenizer, prompts)[0])
    write = lambda prompts, **kwargs: generate_batch(model.float(), tokenizer, prompts, max_new_tokens=32, **kwargs)
    alone = write(prompts, batch_size=1)
    assert len(alone) == 120 and len(set(alone)) > 60
    assert write(prompts, batch_size=32) == alone
    assert write(prompts[::-1], batch_size=32)[::-1] == alone
    assert write(prompts, batch_size=32, share_prefix=False) == alone
    assert write(prompts[::-1], batch_size=1, share_prefix=False)[::-1] == alone
