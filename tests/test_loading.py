"How models are read: in fewer bits, at a revision, with adapters, with arguments of their own."
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from cotkd import models
from cotkd.cache import TeacherCache
from cotkd.cli import main
from cotkd.distill import distill
from cotkd.experiment import PRESETS, Loading, check_pair, configure, find_identities
from cotkd.files import InputError, read_json, read_lines
from cotkd.models import (arithmetic, check_finite, check_head, check_quantize, count_parameters,
                          load_config, load_lm, load_tokenizer, packs, read_head, state_identity,
                          weight_bytes)
from cotkd.names import adapter_base, model_identity, parse_kwargs, parse_name
from cotkd.plan import Workload, find_writer, model_pair, read_bytes, teacher_bytes
from cotkd.toy import make_toy

EIGHT = replace(PRESETS['toy'], quantize='8bit', dtype='float32')


@pytest.fixture(scope='module')
def full():
    return load_lm('toy-teacher', 'cpu', dtype='float32')[0]


@pytest.fixture(scope='module')
def small():
    return load_lm('toy-teacher', 'cpu', dtype='float32', quantize='8bit')[0]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A file of 16 rows with rationales"
    path = tmp_path_factory.mktemp('data')/'rows.jsonl'
    rows = make_toy(['web_of_lies', 'navigate'], 16, seed=1)
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)


def refuses(capsys, words, *texts):
    "Exit code 2 and one line with all of these texts"
    assert main([str(word) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cotkd: ')]
    assert len(said) == 1 and all(text in said[0] for text in texts), said


# --- fewer bits

def test_what_is_known_of_a_quantized_model(full, small):
    "Its head is as it was, and every number but the bytes is that of the whole one"
    assert (arithmetic(full), arithmetic(small)) == ('float32', 'float32, 8bit by torchao')
    assert torch.equal(read_head(full).weight, read_head(small).weight)
    check_head(small)
    assert packs(small) and not any(p.requires_grad for p in small.parameters())
    assert count_parameters(small).body == count_parameters(full).body
    assert state_identity(small) != state_identity(full)
    assert state_identity(small) == state_identity(load_lm('toy-teacher', quantize='8bit')[0])
    with torch.no_grad():
        small.model.layers[0].mlp.up_proj.weight.scale[0] = torch.nan
        with pytest.raises(InputError, match='NaN or infinity, first in .*up_proj'):
            check_finite(small, 'it')
        small.model.layers[0].mlp.up_proj.weight.scale[0] = 1.


def test_numbers_and_scales_of_bitsandbytes():
    "Two weights of 4 bits share a byte; a scale that is NaN is found beside them"
    weight = torch.nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = SimpleNamespace(shape=(8, 8), absmax=torch.ones(1))
    layer = torch.nn.Linear(8, 8, bias=False)
    layer.weight = weight
    check_finite(layer, 'it')
    assert models._numbers(weight) == 64 and models.is_rounded(weight)
    assert weight_bytes(layer) == 32 + 4
    weight.quant_state.absmax[0] = torch.nan
    with pytest.raises(InputError, match='first in weight'):
        check_finite(layer, 'it')


def first_loss(out):
    return read_lines(out/'log.jsonl')[0]['loss']


def test_a_student_learns_from_a_teacher_in_8_bits(data, tmp_path, capsys):
    "On this machine 7.4231 nats at the first update, and 7.4239 from the teacher in full"
    rows = ['--data', data, '--rationales', '--dtype', 'float32']
    pair = ['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', *rows,
            '--batch-size', '8', '--lr', '1e-3']
    few = ['--quantize', '8bit']
    teacher = ['cache', '--teacher', 'toy-teacher', *rows, '--out', str(tmp_path/'cache')]
    assert main([*teacher, *few]) is None
    held = TeacherCache(tmp_path/'cache').fingerprint
    assert held['quantize'] == '8bit' and held['teacher'] == model_identity(
        'toy-teacher', quantize='8bit') != model_identity('toy-teacher')
    refuses(capsys, teacher, 'holds another cache, which differs in teacher')
    cached = [*pair, '--cache', str(tmp_path/'cache')]
    refuses(capsys, [*cached, '--out', tmp_path/'no'], 'was read in 8bit')
    assert main([*cached, *few, '--out', str(tmp_path/'cached')]) is None
    assert main([*pair, *few, '--out', str(tmp_path/'live')]) is None
    assert main([*pair, '--out', str(tmp_path/'full')]) is None
    recipe = read_json(tmp_path/'cached'/'distill.json')['recipe']
    assert recipe['quantize'] == '8bit' and recipe['teacher_id'] == held['teacher']
    losses = [first_loss(tmp_path/name) for name in ('cached', 'live', 'full')]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] != losses[2] and losses[0] == pytest.approx(losses[2], abs=.01)


@pytest.mark.parametrize('quantize, device, text', [
    ('3bit', 'cpu', "'3bit' is unknown: choose 8bit or 4bit"),
    ('4bit', 'cpu', '4bit on a CPU: .*take 8bit'),
    ('8bit', 'cpu', 'needs torchao, .*: pip install -U torchao'),
    ('4bit', 'cuda:0', 'needs bitsandbytes, .*: pip install -U bitsandbytes')])
def test_bits_that_cannot_be_had_are_refused_first(quantize, device, text, monkeypatch):
    for name in models._LIBRARIES:
        monkeypatch.setitem(models._LIBRARIES, name, lambda: False)
    monkeypatch.setattr(models, 'load_tokenizer', None)
    with pytest.raises(InputError, match=text):
        load_lm('toy-teacher', device, quantize=quantize)


def test_a_run_finds_that_first(monkeypatch):
    check_pair(EIGHT)
    monkeypatch.setitem(models._LIBRARIES, 'torchao', lambda: False)
    with pytest.raises(InputError, match='pip install -U torchao'):
        check_pair(EIGHT)
    with pytest.raises(InputError, match="quantize='2bit': expected 8bit or 4bit"):
        configure('toy', dict(quantize='2bit'))


@pytest.mark.parametrize('quantize', ['8bit', '4bit'])
def test_what_bitsandbytes_is_asked_for(quantize, monkeypatch):
    "A GPU is missing here: we look at what `from_pretrained` would get"
    monkeypatch.setitem(models._LIBRARIES, 'bitsandbytes', lambda: True)
    seen = []
    monkeypatch.setattr(models, '_load', lambda name, how: seen.append(how) or models.Sizes)
    with pytest.raises(AttributeError):  # there is no model
        load_lm('toy-teacher', 'cuda:0', dtype='bfloat16', quantize=quantize)
    config = seen[0]['quantization_config']
    assert seen[0]['device_map'] == {'': 'cuda:0'} and seen[0]['dtype'] == torch.bfloat16
    assert (config.load_in_8bit, config.load_in_4bit) == (quantize == '8bit', quantize == '4bit')
    assert config.llm_int8_skip_modules is None  # then transformers leaves out the head
    if quantize == '4bit':
        assert config.bnb_4bit_quant_type == 'nf4'
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_student_keeps_all_its_bits(small, tmp_path, data, capsys):
    rows = make_toy(['navigate'], 8)
    with pytest.raises(InputError, match=r'8bit by torchao.*Quantize the teacher.*lora_rank'):
        distill(small, None, load_tokenizer('toy-teacher'), rows, tmp_path/'out')
    words = ['distill', '--student', 'toy-student', '--data', data, '--no-rationales', '--loss',
             'sft', '--quantize', '8bit', '--out', tmp_path/'out']
    refuses(capsys, words, 'how a teacher is read', '--lora-rank')


def test_models_that_cannot_be_read_in_fewer_bits(tmp_path):
    config = GPT2Config(vocab_size=2048, n_embd=16, n_layer=1, n_head=1, bos_token_id=0,
                        eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    load_tokenizer('toy-teacher').save_pretrained(tmp_path)
    with pytest.raises(InputError, match='GPT2LMHeadModel, whose matrices cannot'):
        load_lm(tmp_path, quantize='8bit')
    with pytest.raises(InputError, match='names layers.*save_pretrained'):
        load_lm('toy-teacher[0-1]', quantize='8bit')


def test_a_plan_counts_fewer_bits(full, small):
    teacher, _ = model_pair(EIGHT, None)
    assert read_bytes(teacher) == weight_bytes(full)
    assert teacher_bytes(EIGHT, teacher)['live'] == pytest.approx(weight_bytes(small), rel=.02)
    head = read_head(full).weight.nbytes
    layers = [x for x in full.model.modules() if isinstance(x, torch.nn.Linear)]
    matrices = sum(layer.weight.nbytes for layer in layers)
    assert read_bytes(teacher, '8bit') == weight_bytes(full) - .75 * matrices
    assert read_bytes(teacher, '4bit') < read_bytes(teacher, '8bit')
    assert teacher_bytes(EIGHT, teacher)['cached'] == head
    few, whole = (find_writer('toy-teacher', EIGHT, None, bits) for bits in ('8bit', ''))
    assert whole.memory - few.memory == whole.read - few.read == .75 * matrices
    assert Workload(EIGHT, None).memory().loc['teacher weights', 'live'] == few.memory


# --- results

def test_results_of_other_bits_are_no_mixture(data, tmp_path, capsys):
    out = str(tmp_path/'scores')
    ask = ['eval', '--model', 'toy-student', '--data', data, '--limit', '2', '--mode', 'direct',
           '--max-new-tokens', '2', '--out', out, '--arm']
    assert main([*ask, 'kd', '--quantize', '8bit']) is None
    refuses(capsys, [*ask, 'kd'], 'of another kind', 'weights')
    refuses(capsys, [*ask, 'kd', '--model-kwargs', 'use_cache=true'], 'of another kind', 'weights')
    assert main([*ask, 'kd_cot']) is None
    rows = read_lines(Path(out)/'results.jsonl')
    assert {row['arm']: row['dtype'] for row in rows} == dict(
        kd='float32, 8bit by torchao', kd_cot='float32')
    refuses(capsys, ['gains', out, '--contrast', 'kd@direct:kd_cot@direct'], 'results mix dtype')
    assert main([*ask, 'teacher', '--quantize', '8bit']) is None
    assert main([*ask, 'student']) is None
    kept = [row for row in read_lines(Path(out)/'results.jsonl') if row['arm'] != 'kd']
    (Path(out)/'results.jsonl').write_text('\n'.join(map(json.dumps, kept)) + '\n')
    # the teacher is apart
    assert main(['gains', out, '--contrast', 'student@direct:kd_cot@direct']) is None


def test_a_run_belongs_to_its_bits():
    whole, few = find_identities(PRESETS['toy']), find_identities(EIGHT)
    assert few['teacher'] == model_identity('toy-teacher', quantize='8bit') != whole['teacher']
    assert few['student'] == whole['student']
    assert EIGHT.read == dict(quantize='8bit') and PRESETS['toy'].read == {}


# --- arguments of from_pretrained

@pytest.mark.parametrize('text, found', [
    ('', {}), ('use_cache=false', dict(use_cache=False)), ('variant=fp16', dict(variant='fp16')),
    ("a=1e3 'b={\"c\": [1, 2]}'", dict(a=1000., b=dict(c=[1, 2]))), ('a=b=c', dict(a='b=c'))])
def test_arguments_are_json_where_they_can_be(text, found):
    assert parse_kwargs(text) == found
    assert Loading(model_kwargs=text).read == ({'model_kwargs': found} if found else {})


@pytest.mark.parametrize('text, error', [
    ('use_cache', 'expected key=value'), ('=1', 'expected key=value'), ("a='b", 'expected key='),
    ('dtype=float32', 'choose it with --dtype'), ('revision=main', 'org/name@main'),
    ('load_in_4bit=true', '--quantize 4bit'), ('use_safetensors=false', 'a pickle can run code')])
def test_arguments_with_a_place_of_their_own(text, error):
    with pytest.raises(InputError, match=error):
        parse_kwargs(text)


def test_arguments_reach_the_model_and_its_identity():
    longer = dict(max_position_embeddings=4096, use_cache=False)
    model, _ = load_lm('toy-teacher', model_kwargs=longer)
    assert (model.config.max_position_embeddings, model.config.use_cache) == (4096, False)
    assert load_config('toy-teacher', False, longer).max_position_embeddings == 4096
    assert model_identity('toy-teacher', model_kwargs=longer) != model_identity('toy-teacher')
    assert model_identity('toy-teacher', model_kwargs={}) == model_identity('toy-teacher')
    with pytest.raises(InputError, match="unexpected keyword argument 'nonsense'"):
        load_lm('toy-teacher', model_kwargs=dict(nonsense=1))


# --- revisions

@pytest.mark.parametrize('name, found', [
    ('org/name@v1.0', ('org/name', None, 'v1.0')), ('name@main', ('name', None, 'main')),
    ('org/name@refs/pr/1[0-1]', ('org/name', (0, 1), 'refs/pr/1')),
    ('./runs/kd@0', ('./runs/kd@0', None, None)), ('a/b/c@d', ('a/b/c@d', None, None))])
def test_a_name_may_end_in_a_revision(name, found):
    parsed = parse_name(name)
    assert (parsed.path, parsed.layers, parsed.revision) == found


def test_a_directory_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path('kd'), Path('kd@0')):
        path.mkdir()
    assert parse_name('kd@0').path == 'kd@0'
    for name in ('kd@1', 'toy-student@main'):
        with pytest.raises(InputError, match='only a model on the hub has revisions'):
            parse_name(name)


@pytest.fixture
def hub(tmp_path, monkeypatch, full):
    "What is kept of a model on the hub: the student is its branch main, the teacher the tag v1"
    place = tmp_path/'hub'/'models--org--name'
    for ref, commit, name in (('main', 'a' * 40, 'toy-student'), ('v1', 'b' * 40, 'toy-teacher')):
        (place/'snapshots').mkdir(parents=True, exist_ok=True)
        (place/'snapshots'/commit).symlink_to(parse_name(name).path)
        (place/'refs').mkdir(exist_ok=True)
        (place/'refs'/ref).write_text(commit)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr('cotkd.names.hub_answers', lambda: False)
    monkeypatch.setattr('cotkd.models.hub_answers', lambda: False)


def test_a_revision_decides_what_is_loaded_and_whose_it_is(hub, full, data, tmp_path):
    assert state_identity(load_lm('org/name@v1', dtype='float32')[0]) == state_identity(full)
    assert load_lm('org/name')[0].config.hidden_size == 96
    assert model_identity('org/name') == model_identity('org/name@main')
    assert model_identity('org/name@v1') == model_identity(f'org/name@{"b" * 40}')
    assert model_identity('org/name@v1') != model_identity('org/name')
    for name in ('org/name@v2', 'org/other@v1'):
        with pytest.raises(InputError, match=name):
            load_lm(name)
    ask = ['eval', '--data', data, '--limit', '1', '--mode', 'direct', '--max-new-tokens', '2',
           '--out', str(tmp_path/'scores'), '--model']
    assert main([*ask, 'org/name@v1']) is None
    assert main([*ask, 'org/name', '--revision', 'v1']) is None  # it is there already
    assert main([*ask, 'org/name[0-1]', '--revision', 'v1', '--arm', 'two']) is None
    rows = read_lines(tmp_path/'scores'/'results.jsonl')
    assert {row['model'] for row in rows} == {'org/name@v1', 'org/name@v1[0-1]'}


# --- adapters

def adapters(folder, base, config):
    model = get_peft_model(load_lm(base)[0], config)
    model.peft_config['default'].base_model_name_or_path = base
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def adapted(tmp_path_factory):
    "Of the teacher, and of the student"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('adapters')
    config = LoraConfig(r=2, target_modules='all-linear', init_lora_weights=False)
    return [adapters(folder/name, name, config) for name in ('toy-teacher', 'toy-student')]


def test_adapters_on_either_side(adapted, data, tmp_path, capsys):
    teacher, student = adapted
    pair = ['distill', '--teacher', teacher, '--student', student, '--data', data, '--limit', '8',
            '--no-rationales', '--batch-size', '8', '--out', str(tmp_path/'student')]
    assert main(pair) is None
    recipe = read_json(tmp_path/'student'/'distill.json')['recipe']
    assert recipe['start'] == model_identity(student) != model_identity('toy-student')
    assert recipe['teacher_id'] == model_identity(teacher) != model_identity('toy-teacher')
    assert main(['eval', '--model', teacher, '--data', data, '--limit', '1', '--mode', 'direct',
                 '--max-new-tokens', '2', '--out', str(tmp_path/'scores')]) is None


def test_adapters_stay_beside_weights_in_8_bits(adapted, full):
    "Merged into them they would be rounded; beside them they say nearly what the whole says"
    whole, few = (load_lm(adapted[0], dtype='float32', quantize=bits)[0] for bits in (None, '8bit'))
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        says = [model(ids).logits.log_softmax(-1) for model in (whole, few, full)]
    near, far = ((says[0].exp() * (says[0] - x)).sum(-1).mean() for x in says[1:])
    assert 0 < near < .02 < .2 < far
    check_head(few)
    assert arithmetic(few) == 'float32, 8bit by torchao'


def test_adapters_that_cannot_be_merged(tmp_path):
    config = PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=2)
    folder = adapters(tmp_path/'prompt', 'toy-teacher', config)
    for bits in (None, '8bit'):
        with pytest.raises(InputError, match='kind PROMPT_TUNING.*such as LORA'):
            load_lm(folder, quantize=bits)


def test_adapters_may_name_the_revision_of_their_base(tmp_path):
    about = dict(base_model_name_or_path='org/name', revision='v1')
    (tmp_path/'adapter_config.json').write_text(json.dumps(about))
    assert adapter_base(tmp_path) == 'org/name@v1'


def test_nothing_is_asked_of_a_model_in_all_its_bits():
    assert check_quantize(None) is None and check_quantize('') is None
