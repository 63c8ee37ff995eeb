"The first generation of Qwen: read without its own code, the same model and the same tokens"
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path

import pytest
import regex
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from qwen import CONFIG, SPECIAL, ranks_of, trained_bpe, write_qwen
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, silu
from training import equal
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from cotkd.bbh import toy_benchmark
from cotkd.cli import main
from cotkd.distill import distill
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.files import InputError, digest, read_json, read_lines, write_json
from cotkd.models import align_vocab, load_config, load_lm, load_tokenizer
from cotkd.names import first_qwen, model_identity, parse_name
from cotkd.plan import find_config
from cotkd.prompt import chat_end, chat_prompt
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig

# how a text is cut into pieces, as published with the first Qwen
PIECES = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+')
# --- the model, by its published definition

def normed(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + CONFIG['layer_norm_epsilon']).sqrt() * weight


def rotated(x):
    "x (positions, heads, channels): pairs (i, i + half) turn by position / base^(i / half)"
    half = x.shape[-1] // 2
    speed = CONFIG['rotary_emb_base'] ** -(torch.arange(half) / half)
    angle = (torch.arange(len(x))[:, None] * speed)[:, None]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(),
                      right * angle.cos() + left * angle.sin()], -1)


def attended(x, weights):
    heads = (len(x), CONFIG['num_attention_heads'], CONFIG['kv_channels'])
    mixed = linear(x, weights['attn.c_attn.weight'], weights['attn.c_attn.bias'])
    query, key, value = (part.reshape(heads) for part in mixed.split(mixed.shape[-1] // 3, -1))
    scores = torch.einsum('qhc,khc->hqk', rotated(query), rotated(key)) / heads[2] ** .5
    future = torch.ones(len(x), len(x)).triu(1).bool()
    shares = scores.masked_fill(future, -inf).softmax(-1)
    return linear(torch.einsum('hqk,khc->qhc', shares, value).flatten(1),
                  weights['attn.c_proj.weight'])


def published_logits(weights, ids):
    x = weights['transformer.wte.weight'][ids]
    for i in range(CONFIG['num_hidden_layers']):
        start = f'transformer.h.{i}.'
        own = {name.removeprefix(start): x for name, x in weights.items() if name.startswith(start)}
        x = x + attended(normed(x, own['ln_1.weight']), own)
        y = normed(x, own['ln_2.weight'])
        inner = linear(y, own['mlp.w1.weight']) * silu(linear(y, own['mlp.w2.weight']))
        x = x + linear(inner, own['mlp.c_proj.weight'])
    return linear(normed(x, weights['transformer.ln_f.weight']), weights['lm_head.weight'])


# --- the tokens, by their published definition

def joined_by_rank(text, ranks):
    "Of a piece's neighbours those of the lowest rank are joined, until no two have one"
    ids = []
    for piece in PIECES.findall(unicodedata.normalize('NFC', text)):
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            found = [(ranks.get(a + b, inf), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
            rank, i = min(found)
            if rank == inf:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


ODD = ['', ' ', '  \t\n \r\n\n  x', 'a\u00a0b\u2003c\u3000d', "I'M we'Ll he'D it's ’s", 'ẛ̣ ẛ̣',
       '007 3.14e-10', 'e\u0301 A\u030a o\u0308\u0323 \u1100\u1161 \u212b \ufb01', '\x00\x7f',
       '👩‍👩‍👧‍👦🏽 ❤️‍🔥 🇩🇪', 'שלום עולם, مرحبا بالعالم!', '混合 text と 日本語、한국어', 'नमस्ते ไทย',
       '\u200b\u200d\ufeff', '<|im_start|', '<|extra_0 |>', '٣٤٥ ⅷ ²³ ½', '\ud7ff\ue000\U0010ffff']
BLOCKS = [(0x20, 0x7e), (0xa0, 0x24f), (0x2c6, 0x36f), (0x590, 0x6ff), (0x900, 0x97f),
          (0x2000, 0x206f), (0x3040, 0x30ff), (0x4e00, 0x4eff), (0xac00, 0xacff),
          (0x1f300, 0x1f6ff)]


def texts(cot_data):
    "Rationales, code, odd lines, and random characters of all kinds"
    rationales = [row['rationale'] for row in read_lines(cot_data/'cot_train.jsonl')[:600]]
    lines = Path(__file__).read_text(encoding='utf-8').splitlines()
    code = [line for line in lines if '|>' not in line]  # no special tokens
    code += [f'{"    " * (i % 5)}x[{i ** 3}] = {i / 7:.9f}  # {i:05}' for i in range(100)]
    chance = random.Random(0)
    wild = [''.join(chr(chance.randint(*chance.choice(BLOCKS))) for _ in range(i % 50))
            for i in range(500)]
    return rationales + code + ODD + wild


# --- what the tests share

@pytest.fixture(scope='module')
def trained(cot_data):
    return trained_bpe([row['rationale'] for row in read_lines(cot_data/'cot_mini.jsonl')])


@pytest.fixture(scope='module')
def ranks(trained):
    return ranks_of(trained[0])


@pytest.fixture(scope='module')
def teacher(ranks, tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp('qwen')/'teacher', ranks)


@pytest.fixture(scope='module')
def student(ranks, tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp('qwen')/'student', ranks, seed=1,
                      num_hidden_layers=1)


@pytest.fixture
def copy(teacher, tmp_path):
    return Path(shutil.copytree(teacher, tmp_path/'copy'))


def load(name):
    return load_lm(name, device='cpu', dtype='float32')


def old_weights(folder):
    return {name: x for file in folder.glob('*.safetensors') for name, x in load_file(file).items()}


def refuses(folder, *words):
    with pytest.raises(InputError) as refused:
        load_lm(folder)
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert 'trust_remote_code' not in message and '\n' not in message


# --- the model

def test_logits_are_those_of_the_published_definition(teacher):
    model, tokenizer = load(teacher)
    ids = torch.arange(90) * 13 % len(tokenizer)
    with torch.no_grad():
        got = model(ids[None]).logits[0]
    want = published_logits(old_weights(teacher), ids)
    assert want.std() > .3  # there is something to be wrong about
    assert (got - want).abs().max() <= 1e-5


def test_config_says_what_the_model_keeps(teacher):
    config = load_config(teacher)
    assert config.max_position_embeddings == CONFIG['seq_length']
    assert config.intermediate_size == CONFIG['intermediate_size'] // 2
    assert config.eos_token_id == len(load_tokenizer(teacher)) - SPECIAL
    assert find_config(str(teacher)).num_hidden_layers == 3


@pytest.mark.parametrize('trust', [False, True])
def test_none_of_its_code_is_run(teacher, trust):
    load_lm(teacher, trust_remote_code=trust)
    load_config(teacher, trust)
    model_identity(str(teacher), trust)
    assert not (teacher/'was_run').exists()


def test_dtype_and_layers_can_be_chosen(teacher):
    model, _ = load_lm(f'{teacher}[0,2]', dtype='bfloat16')
    assert model.dtype == torch.bfloat16 and model.config.num_hidden_layers == 2


def test_saved_it_is_an_ordinary_qwen2(teacher, tmp_path):
    model, tokenizer = load(teacher)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again).__name__ == 'Qwen2ForCausalLM' and equal(model, again)
    assert first_qwen(tmp_path) is None
    for loaded in AutoTokenizer.from_pretrained(tmp_path), load_lm(tmp_path)[1]:
        assert type(loaded) is Qwen2Tokenizer and loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.eos_token == '<|endoftext|>'
        text = 'So the answer is 7.<|im_end|>'
        assert loaded(text)['input_ids'] == tokenizer(text)['input_ids']


# --- what is refused

def test_a_missing_shard(copy):
    (copy/'model-00002-of-00002.safetensors').unlink()
    refuses(copy, 'lacks', 'Qwen2ForCausalLM', str(copy))


def test_no_weights_at_all(copy):
    for file in copy.glob('*.safetensors'):
        file.unlink()
    refuses(copy, 'lacks')


def test_weights_of_another_kind(copy):
    save_file({'transformer.h.0.mlp.c_proj.bias': torch.zeros(48)}, copy/'more.safetensors')
    refuses(copy, 'model.layers.0.mlp.down_proj.bias')


def test_shapes_that_are_not_the_config_s(copy):
    write_json(copy/'config.json', read_json(copy/'config.json') | dict(intermediate_size=256))
    refuses(copy, str(copy))


def test_a_cut_shard(copy):
    file = copy/'model-00001-of-00002.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    refuses(copy, file.name, 'cut off')


@pytest.mark.parametrize('content, word', [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
    (b'no ranks', 'no tokenizer'), (None, 'qwen.tiktoken')])
def test_a_broken_table_of_ranks(copy, content, word):
    file = copy/'qwen.tiktoken'
    file.unlink() if content is None else file.write_bytes(content)
    refuses(copy, word)


@pytest.mark.parametrize('setting', ['quantization_config', 'visual', 'audio'])
def test_relatives_that_are_something_else(copy, setting):
    "Qwen-7B-Chat-Int4, Qwen-VL and Qwen-Audio"
    write_json(copy/'config.json', read_json(copy/'config.json') | {setting: dict(bits=4)})
    refuses(copy, setting, 'Qwen/Qwen-7B')


# --- the tokenizer

def test_tokens_are_those_of_qwen2_and_of_the_ranks(trained, ranks, teacher, cot_data):
    "Ours from ranks alone; Qwen2's from the merges that were trained; by hand from the definition"
    ours, qwen2 = load_tokenizer(teacher), Qwen2Tokenizer(*trained)
    lines = texts(cot_data)
    assert len(lines) >= 1000
    assert any(unicodedata.normalize('NFC', line) != line for line in lines)
    for line, got, want in zip(lines, ours(lines)['input_ids'], qwen2(lines)['input_ids']):
        assert got == want == joined_by_rank(line, ranks), repr(line)
        assert ours.decode(got) == unicodedata.normalize('NFC', line)


def test_special_tokens_stand_behind_the_ranks(teacher, ranks):
    tokenizer = load_tokenizer(teacher)
    names = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|extra_0|>', '<|extra_204|>']
    places = [0, 1, 2, 3, 207]
    assert tokenizer.convert_tokens_to_ids(names) == [len(ranks) + i for i in places]
    assert len(tokenizer) == len(ranks) + SPECIAL and tokenizer.eos_token == names[0]
    for i, name in zip(places, names):
        ids = tokenizer(f'a{name}b')['input_ids']
        assert ids == [ranks[b'a'], len(ranks) + i, ranks[b'b']]
        assert tokenizer.decode(ids, skip_special_tokens=True) == 'ab'


def test_a_model_that_chats(ranks, tmp_path):
    tokenizer = load_tokenizer(write_qwen(tmp_path, ranks, chat=True))
    assert chat_prompt('Q: Is 3 odd?\nA: Well.', tokenizer) == (
        '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
        '<|im_start|>user\nQ: Is 3 odd?<|im_end|>\n<|im_start|>assistant\nA: Well.')
    assert chat_end(tokenizer) == tokenizer.eos_token_id == len(ranks) + 2


# --- used like any other

def test_a_pair_shares_one_vocabulary(teacher, student):
    assert align_vocab(load_tokenizer(teacher), load_tokenizer(student)) == 1200 + SPECIAL
    identities = {model_identity(str(path)) for path in (teacher, student)}
    assert len(identities) == 2 and model_identity(str(teacher)) in identities


def test_a_student_is_distilled_and_asked(teacher, student, tmp_path, bbh_dir):
    old = load(student)[0]
    model, tokenizer = load(teacher)
    out = tmp_path/'student'
    distill(old, model, tokenizer, make_toy(['navigate'], 16), out, config=KDConfig(batch_size=8))
    trained, its_tokenizer = load(out)
    assert not equal(trained, load(student)[0])
    assert equal(trained, AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    score = ['eval', '--model', str(out), '--bbh', str(bbh_dir), '--tasks', 'navigate', '--limit',
             '3', '--mode', 'direct', '--shots', '0', '--out', str(tmp_path/'scores')]
    assert main(score) is None
    assert main([*score[:2], str(teacher), *score[3:], '--arm', 'teacher']) is None
    rows = read_lines(tmp_path/'scores'/'results.jsonl')
    assert [row['n'] for row in rows] == [3, 3] and rows[0]['weights'] != rows[1]['weights']
    results = evaluate(trained, its_tokenizer, toy_benchmark(2), Subject('kd', str(out)),
                       Asking(mode='direct', max_new_tokens=4), out=tmp_path/'toy', progress=False)
    assert all(row['n'] == 2 for row in results)


def test_adapters_name_it_as_their_base(student, tmp_path):
    base, _ = load(student)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules='all-linear',
                                              init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    assert read_json(tmp_path/'adapter_config.json')['base_model_name_or_path'] == str(student)
    merged, tokenizer = load(tmp_path)
    assert not equal(merged, load(student)[0])
    assert len(tokenizer) == 1200 + SPECIAL and load_config(tmp_path).model_type == 'qwen2'


# --- on the hub

NAME, COMMIT = 'Qwen/Qwen-7B', 'ef3c5c9c57b252f3149c1408daf4d649ec8b6c85'
ASK = f"""
from cotkd.models import load_lm
from cotkd.names import model_identity
print(load_lm('{NAME}', trust_remote_code=True)[0].name_or_path, model_identity('{NAME}'))
"""


def hub(folder, asked):
    "As much of the hub's interface as it takes to fetch one model"
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition('?')[0]
            asked.append(path)
            if path.startswith(f'/api/models/{NAME}/tree/'):
                files = [dict(type='file', path=file.name, oid=file.name, size=file.stat().st_size)
                         for file in folder.iterdir()]
                return self.say(json.dumps(files).encode())
            if path.startswith('/api/'):
                return self.say(json.dumps(dict(id=NAME, sha=COMMIT, siblings=[])).encode())
            file = folder/path.rpartition('/')[2]
            if not file.is_file():
                return self.say(b'', 404, **{'X-Error-Code': 'EntryNotFound'})
            return self.say(file.read_bytes(), ETag=f'"{file.name}"')

        do_HEAD = do_GET

        def say(self, body, status=200, **headers):
            self.send_response(status)
            headers |= {'Content-Length': len(body), 'X-Repo-Commit': COMMIT}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(('127.0.0.1', 0), Hub)


@contextmanager
def served(folder, asked):
    server = hub(folder, asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()


def ask_hub(folder, home):
    "Its answer to ASK, where the hub holds this folder -> (what was printed, files fetched)"
    asked = []
    with served(folder, asked) as address:
        env = os.environ | dict(HF_ENDPOINT=address, HF_HUB_OFFLINE='0', HF_HOME=str(home),
                                HF_HUB_CACHE=str(home/'hub'), NO_PROXY='*')
        done = subprocess.run([sys.executable, '-c', ASK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), {path.rpartition('/')[2] for path in asked if '/resolve/' in path}


def without_hub(home, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(home/'hub'))
    monkeypatch.setattr('cotkd.names.hub_answers', lambda: False)
    monkeypatch.setattr('cotkd.models.hub_answers', lambda: False)


def test_from_the_hub_and_then_without_it(teacher, tmp_path, monkeypatch):
    said, fetched = ask_hub(teacher, tmp_path)
    assert fetched >= {'config.json', 'qwen.tiktoken', 'model-00001-of-00002.safetensors'}
    assert not [name for name in fetched if name.endswith('.py')]
    without_hub(tmp_path, monkeypatch)
    model, tokenizer = load(NAME)
    assert said == [model.name_or_path, model_identity(NAME)]
    assert model.name_or_path == NAME and first_qwen(NAME).name == COMMIT
    assert equal(model, load(teacher)[0]) and len(tokenizer) == 1200 + SPECIAL
    next((tmp_path/'hub').rglob('model-00002*.safetensors')).unlink()
    refuses(NAME, NAME)


def test_a_model_of_another_family_from_the_hub(tmp_path, monkeypatch):
    said, _ = ask_hub(Path(parse_name('toy-student').path), tmp_path)
    without_hub(tmp_path, monkeypatch)
    assert said == [NAME, model_identity(NAME)] == [NAME, digest(COMMIT, None)]
    assert equal(load_lm(NAME)[0], load_lm('toy-student')[0])


def test_one_that_is_not_in_the_cache(tmp_path, monkeypatch):
    without_hub(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=re.escape(NAME)):
        load_lm(NAME)
    with pytest.raises(InputError, match=re.escape(NAME)):
        model_identity(NAME)
