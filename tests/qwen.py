"The first generation of Qwen as its directories are laid out, but small."
import base64
import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, trainers
from transformers import Qwen2Tokenizer

from cotkd.files import write_json

SPECIAL = 208  # tokens behind the ranks: three, and 205 spare ones
CONFIG = dict(  # as published, but small
    architectures=['QWenLMHeadModel'], model_type='qwen', tokenizer_class='QWenTokenizer',
    auto_map={'AutoConfig': 'modeling_qwen.QWenConfig',
              'AutoModelForCausalLM': 'modeling_qwen.QWenLMHeadModel'},
    attn_dropout_prob=0., emb_dropout_prob=0., bf16=False, fp16=False, fp32=False, no_bias=True,
    hidden_size=48, kv_channels=16, num_attention_heads=3, num_hidden_layers=3,
    intermediate_size=128, initializer_range=.02, layer_norm_epsilon=1e-6, rotary_emb_base=10000,
    rotary_pct=1., scale_attn_weights=True, seq_length=1024, max_position_embeddings=8192,
    use_dynamic_ntk=True, use_logn_attn=True, use_flash_attn='auto', use_cache=True,
    tie_word_embeddings=False, transformers_version='4.32.0')


# --- the layout, written

def random_weights(config, seed=0):
    "Under the published names"
    torch.manual_seed(seed)
    width, inner = config['hidden_size'], config['intermediate_size'] // 2
    wide = config['kv_channels'] * config['num_attention_heads']
    shapes = {'transformer.wte.weight': (config['vocab_size'], width),
              'transformer.ln_f.weight': (width,), 'lm_head.weight': (config['vocab_size'], width)}
    for i in range(config['num_hidden_layers']):
        shapes |= {f'transformer.h.{i}.{name}': shape for name, shape in {
            'ln_1.weight': (width,), 'ln_2.weight': (width,),
            'attn.c_attn.weight': (3 * wide, width), 'attn.c_attn.bias': (3 * wide,),
            'attn.c_proj.weight': (width, wide), 'mlp.w1.weight': (inner, width),
            'mlp.w2.weight': (inner, width), 'mlp.c_proj.weight': (width, inner)}.items()}
    return {name: torch.randn(shape) * .15 + (len(shape) == 1) for name, shape in shapes.items()}


def write_qwen(folder, ranks, seed=0, chat=False, **changes):
    "A directory as the hub has it, in two shards, with code that leaves a trace if it is run"
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | dict(vocab_size=-(-(len(ranks) + SPECIAL) // 128) * 128) | changes
    weights = random_weights(config, seed)
    names = sorted(weights)
    halves = names[::2], names[1::2]
    files = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
    for file, half in zip(files, halves):
        save_file({name: weights[name] for name in half}, folder/file, {'format': 'pt'})
    where = {name: file for file, half in zip(files, halves) for name in half}
    write_json(folder/'model.safetensors.index.json', dict(metadata={}, weight_map=where))
    write_json(folder/'config.json', config)
    write_json(folder/'tokenizer_config.json', dict(
        model_max_length=1024, tokenizer_class='QWenTokenizer',
        auto_map=dict(AutoTokenizer=['tokenization_qwen.QWenTokenizer', None])))
    write_json(folder/'generation_config.json', dict(
        chat_format='chatml' if chat else 'raw', eos_token_id=len(ranks), max_window_size=512,
        pad_token_id=len(ranks), do_sample=True, top_k=0, top_p=.8))
    lines = [b'%s %d\n' % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (folder/'qwen.tiktoken').write_bytes(b''.join(lines))
    for file in 'modeling_qwen.py', 'tokenization_qwen.py':
        (folder/file).write_text(f'open({str(folder/"was_run")!r}, "w")\nraise SystemExit\n')
    return folder


# --- its tokens

def byte_signs():
    "The sign that stands for each byte in a vocabulary: itself, if it can be seen (GPT-2's table)"
    seen = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): x for i, x in enumerate(unseen)}


def trained_bpe(texts):
    "A byte-level BPE of 1,200 tokens: vocabulary and merges as its trainer left them"
    plain = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1200, show_progress=False, initial_alphabet=sorted(byte_signs())))
    model = json.loads(bpe.to_str())['model']
    return model['vocab'], [tuple(pair) for pair in model['merges']]


def ranks_of(vocab):
    "{bytes of a token: its rank}, as the file of ranks has them"
    signs = byte_signs()
    return {bytes(signs[sign] for sign in token): rank for token, rank in vocab.items()}
