"The paper's pairs, but small: their architecture, their kind of tokenizer and their context."
import json
from itertools import islice

import torch
from qwen import ranks_of, trained_bpe, write_qwen
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaTokenizer

from cotkd.names import parse_name
from cotkd.plan import ARCHITECTURES, SHAPE

CONTEXTS = {'paper-qwen': 8192, 'paper-llama2-7b': 4096, 'paper-tinyllama': 2048}
BYTES = [f'<0x{i:02X}>' for i in range(256)]
SPECIAL = ['<unk>', '<s>', '</s>', *BYTES]
LLAMA_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}")


def some_texts(cot_data, n=2000):
    "Rationales, never a question of the benchmark"
    with (cot_data/'cot_train.jsonl').open() as lines:
        rows = [json.loads(line) for line in islice(lines, n)]
    return [f"{row['source']} {row['rationale']}" for row in rows]


def llama_tokenizer(texts, size=2000):
    "Pieces of words with their space in front, and bytes for what no piece covers"
    learned = Tokenizer(models.BPE(byte_fallback=True))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False))
    found = json.loads(learned.to_str())['model']
    merges = [tuple(pair) for pair in found['merges']]
    return LlamaTokenizer(found['vocab'], merges, add_bos_token=True)


def tiny_config(path, context, vocab, layers):
    "With the heads, groups and ties of the model that has this name"
    kind, *numbers = ARCHITECTURES[path]
    shape = dict(zip(SHAPE, numbers))
    group = shape['num_attention_heads'] // shape['num_key_value_heads']
    return AutoConfig.for_model(kind, **shape | dict(
        vocab_size=vocab, hidden_size=16 * group, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2 * group, num_key_value_heads=2, max_position_embeddings=context,
        bos_token_id=1, eos_token_id=2))


def llama_pair(name, experiment, folder, cot_data):
    "Teacher, which talks in a chat template, and base student, which has none"
    tokenizer = llama_tokenizer(some_texts(cot_data))
    places = {}
    for i, role in enumerate(('teacher', 'student')):
        path = parse_name(getattr(experiment, role)).path
        context = 4096 if role == 'teacher' else CONTEXTS[name]
        torch.manual_seed(i)
        model = AutoModelForCausalLM.from_config(
            tiny_config(path, context, len(tokenizer) + 8, 2 - i))
        model.save_pretrained(folder/role)
        tokenizer.chat_template = LLAMA_CHAT if role == 'teacher' else None
        tokenizer.save_pretrained(folder/role)
        places[role] = str(folder/role)
    return places


def qwen_pair(folder, cot_data):
    "As the hub has them"
    ranks = ranks_of(trained_bpe(some_texts(cot_data))[0])
    return {role: str(write_qwen(folder/role, ranks, seed=i, seq_length=CONTEXTS['paper-qwen'],
                                 num_hidden_layers=2 - i))
            for i, role in enumerate(('teacher', 'student'))}


def make_pair(
    name,  # preset of the paper
    experiment,
    folder,  # where the models go
    cot_data,  # directory of rationales
):  # {role: place}
    if name == 'paper-qwen':
        return qwen_pair(folder, cot_data)
    return llama_pair(name, experiment, folder, cot_data)
