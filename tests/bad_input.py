"""What people get wrong, as commands, and what they are told: one line, and nothing is written.

`CASES` is a table: a group, what is wrong, the command (a list, or a function of an empty
directory that makes one) and a part of what is said.
"""
import contextlib
import gzip
import io
import json
import shutil
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from families import make, tokenizer
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer

from cotkd.cli import main
from cotkd.files import QUARANTINE
from cotkd.models import load_lm
from cotkd.toy import make_toy

ASSETS = resources.files('cotkd')/'assets'
ROWS = make_toy(['web_of_lies'], 12, seed=1)


@dataclass(frozen=True)
class Case:
    group: str
    wrong: str  # in words
    command: object  # arguments of cotkd, or function of a directory
    says: str  # a part of the line


@dataclass(frozen=True)
class Told:
    "What came of a command"
    code: int
    lines: list  # that begin with "cotkd:"
    before: dict  # of the directory: path -> content
    after: dict


def files_of(folder):
    "Path -> content, but for rows that were put aside"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and not path.name.endswith(QUARANTINE)}


def tell(wrong, folder):
    "Do what a `Case` says"
    command = wrong.command(folder)
    before = files_of(folder)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(command)
        except SystemExit as stopped:
            code = stopped.code
    lines = [line for line in said.getvalue().splitlines() if line.startswith('cotkd')]
    return Told(code, lines, before, files_of(folder))


CASES = []


def case(group, wrong, says):
    "Add a command, made by a function of an empty directory"
    def add(command):
        CASES.append(Case(group, wrong, command, says))
        return command
    return add


def rows_file(path, rows=ROWS):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def distill(folder, *more, data=None, teacher='toy-teacher', student='toy-student'):
    data = data or rows_file(folder/'rows.jsonl')
    return ['distill', '--teacher', teacher, '--student', student, '--data', data,
            '--no-rationales', '--batch-size', '4', '--out', str(folder/'out'), *more]


def evaluate(folder, *more, model='toy-student'):
    return ['eval', '--model', str(model), '--tasks', 'navigate', '--mode', 'direct',
            '--shots', '0', '--limit', '2', '--out', str(folder/'out'), *more]


def run(folder, *settings, preset='toy', more=()):
    small = ['rows=16', 'heldout=2', 'other_prompt=1', 'max_new_tokens=8']
    return ['run', preset, '--set', *small, *settings, '--out', str(folder/'out'), *more]


# --- data ----------------------------------------------------------------------------------------

def data_case(wrong, says, text, name='bad.jsonl'):
    @case('data', wrong, says)
    def command(folder):
        raw = text if isinstance(text, bytes) else text.encode()
        (folder/name).write_bytes(raw)
        return distill(folder, data=str(folder/name))


LINE = json.dumps(ROWS[0])
data_case('an empty file', 'no rows', '')
data_case('a broken line', 'line 2: not valid JSON', LINE + '\n{"source": "a", \n')
data_case('a JSON list that is cut', 'ends too early', json.dumps(ROWS)[:-9], 'bad.json')
data_case('columns of another name', 'is known to hold the question',
          '{"frage": "a", "schritte": "b", "antwort": "c"}\n')
data_case('only empty answers', 'none of its 1 rows',
          LINE.replace('"target": "', '"target": " ", "x": "'))
data_case('an end in the middle of an answer', 'where a student would learn to stop',
          (LINE + '\n').replace('"target": "', '"target": "yes<|end|>') * 8)
data_case('a workbook', 'save it as .csv', b'PK\3\4 and so on', 'bad.xlsx')
data_case('a damaged table', 'cannot be read as .parquet', b'PAR1 and so on', 'bad.parquet')
data_case('a packed file', 'unpack it', gzip.compress(LINE.encode()), 'bad.jsonl.gz')
data_case('another encoding', 'not valid JSON', LINE.encode('utf-16'))
data_case('an object that is cut off', 'ends too early', '{"0": ' + LINE + ', "1": {"sou',
          'bad.json')
data_case('a value that is no row', 'none of its 1 rows', '[1, 2]\n')
case('data', 'no such file', 'no such file')(
    lambda folder: distill(folder, data=str(folder/'nothing.jsonl')))


@case('data', 'a directory without rows', 'no file of rows in this directory')
def empty_directory(folder):
    (folder/'data').mkdir()
    return distill(folder, data=str(folder/'data'))


@case('data', 'fewer rows than an update', 'do not fill one update')
def few_rows(folder):
    return distill(folder, data=rows_file(folder/'few.jsonl', ROWS[:2]))


@case('data', 'rows longer than was asked for', 'rows to train on do not fill')
def long_rows(folder):
    return distill(folder, '--max-tokens', '5')


# --- settings of a training ----------------------------------------------------------------------

for option, value, says in (
        ('--lr', '0', 'lr is 0'), ('--lr', 'nan', 'lr is nan'), ('--epochs', '0', 'epochs is 0'),
        ('--epochs', 'inf', 'epochs is inf'), ('--batch-size', '0', 'batch_size is 0'),
        ('--batch-size', '50', 'do not fill one update'),
        ('--temperature', '0', 'temperature is 0'),
        ('--temperature', 'inf', 'temperature is inf'),
        ('--temperature', 'nan', 'temperature is nan'), ('--seed', '-1', 'seed is -1'),
        ('--lora-rank', '-1', 'lora_rank is -1'), ('--micro-tokens', '0', 'micro_tokens is 0'),
        ('--divergence', 'kl', "'kl' is unknown"), ('--loss', 'mse', "'mse' is unknown"),
        ('--limit', '0', 'limit is 0'), ('--limit', '-5', 'limit is -5'),
        ('--dev', '1.5', 'dev is 1.5'), ('--dev', '1', 'dev is 1.0'),
        ('--answer-weight', '0', 'answer_weight is 0'),
        ('--learning_rate', '1e-3', '--lr'), ('--num_train_epochs', '3', '--epochs'),
        ('--per_device_train_batch_size', '4', '--batch-size'), ('--output_dir', 'x', '--out'),
        ('--label_smoothing_factor', '0.1', 'no effect'),
        ('--neftune_noise_alpha', '5', 'no effect'),
        ('--hub_token', 'secret', 'no effect'), ('--load_best_model_at_end', 'true', '--dev'),
        ('--report_to', 'clearml', 'report_to=clearml'),
        ('--gradient_accumulation_steps', '2', '--micro-tokens'),
        ('--auto_find_batch_size', 'true', '--micro-tokens')):
    case('settings', f'{option} {value}', says)(
        lambda folder, option=option, value=value: distill(folder, option, value))


@case('settings', 'a loss that needs a teacher, and none', 'none was given')
def no_teacher(folder):
    command = distill(folder)
    del command[1:3]
    return command


@case('settings', 'a cache for a loss without a teacher', 'no use for')
def sft_cache(folder):
    return distill(folder, '--loss', 'sft', '--cache', str(folder/'cache'))


# --- models --------------------------------------------------------------------------------------

def copy_model(folder, name='toy-student'):
    shutil.copytree(ASSETS/name, folder/'model', dirs_exist_ok=True)
    return folder/'model'


def model_case(wrong, says):
    "A function that spoils a copy of the embedded student, which is then asked"
    def add(spoil):
        @case('models', wrong, says)
        def command(folder):
            path = copy_model(folder)
            spoil(path)
            return evaluate(folder, model=path)
        return spoil
    return add


def save_model(path, model, tokens):
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    return str(path)


case('models', 'no such directory', 'no config could be loaded')(
    lambda folder: evaluate(folder, model='./nothing/here'))
case('models', 'a hub that does not answer', 'a hub id that can be reached')(
    lambda folder: evaluate(folder, model='someone/some-model'))
case('models', 'layers it does not have', 'numbers from 0 to')(
    lambda folder: evaluate(folder, model='toy-student[1,9]'))


@model_case('a Git LFS pointer', 'Git LFS pointer')
def pointer(path):
    text = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3000000\n'
    (path/'model.safetensors').write_text(text)


@model_case('a tokenizer that is a Git LFS pointer', 'Git LFS pointer')
def pointed_tokenizer(path):
    (path/'tokenizer.json').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')


@model_case('a download that was cut off', 'was cut off or changed')
def cut_off(path):
    whole = (path/'model.safetensors').read_bytes()
    (path/'model.safetensors').write_bytes(whole[:100_000])


def change_weights(path, change):
    weights = change(load_file(path/'model.safetensors'))
    save_file(weights, path/'model.safetensors', metadata=dict(format='pt'))


@model_case('a layer that is missing', 'lacks')
def missing_layer(path):
    change_weights(path, lambda w: {k: x for k, x in w.items() if '.layers.0.' not in k})


@model_case('the names of a compiled model', 'lacks')
def compiled_names(path):
    change_weights(path, lambda w: {f'_orig_mod.{k}': x for k, x in w.items()})


@model_case('a weight that is no number', 'holds NaN or infinity')
def nan_weight(path):
    def spoil(weights):
        next(iter(weights.values())).view(-1)[0] = float('nan')
        return weights
    change_weights(path, spoil)


@model_case('an infinite weight', 'holds NaN or infinity')
def infinite_weight(path):
    def spoil(weights):
        next(iter(weights.values())).view(-1)[0] = float('inf')
        return weights
    change_weights(path, spoil)


@model_case('weights in a pickle', 'no model could be loaded')
def pickled(path):
    torch.save(load_file(path/'model.safetensors'), path/'pytorch_model.bin')
    (path/'model.safetensors').unlink()


@model_case('no weights', 'no model could be loaded')
def no_weights(path):
    (path/'model.safetensors').unlink()


@model_case('a config that is no JSON', 'could be loaded')
def broken_config(path):
    (path/'config.json').write_text('{"model_type": ')


@model_case('a model type that nobody knows', 'could be loaded')
def unknown_type(path):
    (path/'config.json').write_text('{"model_type": "perceptron"}')


@model_case('an adapter that stands on itself', 'base_model_name_or_path')
def own_base(path):
    (path/'adapter_config.json').write_text(json.dumps(dict(base_model_name_or_path=str(path))))


@model_case('an adapter without a base', 'base_model_name_or_path')
def no_base(path):
    (path/'adapter_config.json').write_text('{}')


@model_case('code of its own', '--trust-remote-code')
def own_code(path):
    config = json.loads((path/'config.json').read_text())
    config |= dict(model_type='own')
    config |= dict(auto_map={'AutoConfig': 'own.C', 'AutoModelForCausalLM': 'own.M'})
    (path/'config.json').write_text(json.dumps(config))


@case('models', 'a tokenizer in Python only', 'exists in Python only')
def slow_tokenizer(folder):
    path = save_model(folder/'slow', make('llama', vocab_size=384), ByT5Tokenizer())
    return distill(folder, teacher=path, student=path)


@case('models', 'no end-of-text token', 'no end-of-text token')
def no_end(folder):
    path = copy_model(folder)
    settings = json.loads((path/'tokenizer_config.json').read_text())
    settings.pop('eos_token')
    (path/'tokenizer_config.json').write_text(json.dumps(settings))
    return distill(folder, teacher=str(path), student=str(path))


@case('models', 'teacher and student of two families', 'do not share a vocabulary')
def two_families(folder):
    return distill(folder, student=save_model(folder/'other', make('llama'), tokenizer()))


@cache
def marked():
    "A tokenizer with a token that was added and that rows use"
    tokens = load_lm('toy-student')[1]
    tokens.add_tokens(['Yes'])
    return tokens


@case('models', 'a token that has no row in the embedding', 'the models share 2,048 tokens')
def token_without_row(folder):
    paths = [save_model(folder/name, load_lm(f'toy-{name}')[0], marked())
             for name in ('teacher', 'student')]
    return distill(folder, teacher=paths[0], student=paths[1])


@case('models', 'a question with such a token', 'the embedding of the model 2048 rows')
def question_without_row(folder):
    return evaluate(folder, model=save_model(folder/'m', load_lm('toy-student')[0], marked()))


@case('models', 'a context shorter than the rows', 'the context of these models 32')
def short_context(folder):
    path = copy_model(folder)
    config = json.loads((path/'config.json').read_text()) | dict(max_position_embeddings=32)
    (path/'config.json').write_text(json.dumps(config))
    return distill(folder, student=str(path))


@case('models', 'a conversation without a template', 'no chat template')
def no_template(folder):
    return evaluate(folder, '--chat')


@case('models', 'a template that wants a system first', 'refuses a conversation')
def system_first(folder):
    path = copy_model(folder)
    (path/'chat_template.jinja').write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}")
    return evaluate(folder, '--chat', model=path)


# --- caches --------------------------------------------------------------------------------------

def write_some_cache(folder, *more):
    from cotkd.cache import write_cache
    return str(write_cache('toy-teacher', ROWS, folder/'cache', 'direct', *more))


case('caches', 'a directory that is no cache', 'no cache here')(
    lambda folder: distill(folder, '--cache', str(folder)))


@case('caches', 'a file of it is missing', 'are not there yet')
def missing_file(folder):
    where = write_some_cache(folder)
    next(Path(where).glob('hidden-*')).unlink()
    return distill(folder, '--cache', where)


@case('caches', 'a byte of it changed', 'changed or damaged')
def changed_byte(folder):
    where = write_some_cache(folder)
    path = next(Path(where).glob('hidden-*'))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return distill(folder, '--cache', where)


@case('caches', 'a cache of other rows', 'belongs to something else')
def other_rows(folder):
    where = write_some_cache(folder)
    other = make_toy(['web_of_lies'], 12, seed=2)
    return distill(folder, '--cache', where, data=rows_file(folder/'other.jsonl', other))


@case('caches', 'a cache of another teacher', 'belongs to something else')
def other_teacher(folder):
    return distill(folder, '--cache', write_some_cache(folder), teacher='toy-student')


for shard, says in ('3/2', 'expected i/n'), ('half', 'expected i/n'), ('0/2', 'expected i/n'):
    case('caches', f'share {shard}', says)(
        lambda folder, shard=shard: ['cache', '--teacher', 'toy-teacher', '--data',
                                     rows_file(folder/'rows.jsonl'), '--no-rationales', '--shard',
                                     shard, '--out', str(folder/'out')])


# --- evaluation ----------------------------------------------------------------------------------

for more, says in (
        (('--tasks', 'navigat'), "'navigat'"), (('--limit', '0'), 'limit=0'),
        (('--temperature', '-1'), 'temperature is -1'),
        (('--temperature', 'nan'), 'temperature is nan'),
        (('--scorer', 'mine'), "scorer 'mine' is unknown"),
        (('--scorer', 'lm-eval'), 'scorer lm-eval with shots=0'), (('--shots', '2'), 'shots=2'),
        (('--max-new-tokens', '-3'), 'max_new_tokens'), (('--batch-size', '0'), 'batch_size'),
        (('--seed', '-3'), 'seed is -3'), (('--bbh', '/nothing/here'), 'does not exist'),
        (('--arm', ''), 'arm')):
    case('evaluation', ' '.join(more), says)(lambda folder, more=more: evaluate(folder, *more))


@case('evaluation', 'results of another model under the same name', 'of another kind')
def other_model(folder):
    row = dict(RESULT, weights='0' * 32)
    (folder/'out').mkdir()
    (folder/'out'/'results.jsonl').write_text(json.dumps(row) + '\n')
    return evaluate(folder)


@case('evaluation', 'a benchmark that lacks a task', 'is missing')
def missing_task(folder):
    (folder/'bbh'/'tasks').mkdir(parents=True)
    return evaluate(folder, '--bbh', str(folder/'bbh'))


@case('evaluation', 'a benchmark that was changed', 'copy it from its source again')
def changed_task(folder):
    (folder/'bbh'/'tasks').mkdir(parents=True)
    items = [dict(input='Is it?', target='Yes')]
    (folder/'bbh'/'tasks'/'navigate.json').write_text(json.dumps(dict(canary='x', examples=items)))
    return evaluate(folder, '--bbh', str(folder/'bbh'))


# --- results -------------------------------------------------------------------------------------

RESULT = dict(arm='student', task='navigate', seed=0, mode='direct', shots=0, scorer='official',
              n=4, correct=2, items='0110', index=None, skipped=0, model='m', benchmark='bbh')


def result(arm, **more):
    return RESULT | dict(arm=arm, mode='direct' if arm == 'kd' else 'cot') | more


def results_case(wrong, says, *rows, more=()):
    @case('results', wrong, says)
    def command(folder):
        path = folder/'results.jsonl'
        path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rows))
        return ['gains', str(path), *more]


case('results', 'no such file', 'no results at')(lambda folder: ['gains', str(folder/'nothing')])
results_case('an empty file', 'no result in', '')
results_case('a line that is no JSON', 'line 2', result('kd'), '{"arm": ')
results_case('a field that is missing', 'no items',
             {name: x for name, x in RESULT.items() if name != 'items'})
results_case('more verdicts than questions', 'items must be', result('kd', n=5))
results_case('a count that is not theirs', 'items hold', result('kd', correct=3))
results_case('a verdict that is none', 'items must be', result('kd', items='01x0'))
results_case('a prompt that nobody knows', 'mode is', result('kd', mode='loud'))
results_case('the same question twice', 'index must be', result('kd', index=[1, 1, 2, 3]))
results_case('two results for one', 'two different results', result('kd'),
             result('kd', items='1110', correct=3))
results_case('one arm alone', 'only the arm', result('kd'))
results_case('two numbers of examples', 'mix shots', result('kd'), result('kd_cot', shots=3))
results_case('two benchmarks', 'mix benchmark', result('kd'), result('kd_cot', benchmark='toy'))
results_case('an arm that is not there', "no results of arm 'sft'", result('kd'), result('kd_cot'),
             more=('--contrast', 'kd:sft'))
results_case('a contrast that is none', 'expected two different arms', result('kd'),
             result('kd_cot'), more=('--contrast', 'kd'))
results_case('students of two pairs', 'different base models', result('kd', start='a' * 32),
             result('kd_cot', start='b' * 32))


# --- the whole experiment ------------------------------------------------------------------------

case('experiment', 'a preset that nobody knows', "preset 'toi' is unknown")(
    lambda folder: run(folder, preset='toi'))
for setting, says in (
        ('row=5', "setting 'row' is unknown"), ('rows=many', "expected int"), ('rows=0', 'rows=0'),
        ('epochs=nan', 'epochs=nan'), ('shots=2', 'shots=2'), ('dev=1', 'dev=1'),
        ('batch_size=40', 'expected enough rows'),
        ('teacher=toy-techer', "did you mean 'toy-teacher'"),
        ('student=./nowhere', 'no such directory'), ('arms=kd,kd_cott', "did you mean 'kd_cot'"),
        ('sampling_temperature=-1', 'temperature is -1')):
    case('experiment', setting, says)(lambda folder, setting=setting: run(folder, setting))
case('experiment', 'no training run', '--seeds 0')(
    lambda folder: run(folder, more=('--seeds', '0')))


@case('experiment', 'a directory that holds something else', 'is not empty')
def occupied(folder):
    (folder/'out').mkdir()
    (folder/'out'/'thesis.txt').write_text('chapter 1')
    return run(folder)


@case('experiment', 'a vocabulary that does not fit', 'do not share a vocabulary')
def other_vocabulary(folder):
    path = save_model(folder/'other', make('llama'), tokenizer())
    return run(folder, f'student={path}')
