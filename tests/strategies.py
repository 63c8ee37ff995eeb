"What hypothesis draws for the tests of properties: JSON, rows, tokenizers, logits."
import functools
import json

import numpy as np
import torch
from hypothesis import strategies as st
from tokenizers import (Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)
from transformers import PreTrainedTokenizerFast

# no halves of surrogate pairs: a text that is read from UTF-8 has none
TEXTS = st.text(st.characters(exclude_categories=['Cs']), max_size=20)
NUMBERS = st.integers() | st.floats()
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(max_size=10),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)

# --- rows of rationales

_FIELD = st.text(min_size=1, max_size=10) | st.sampled_from(['Yes', ' ', '', '\ufffd', 'a\x00'])
_ROW = st.fixed_dictionaries(
    dict(source=_FIELD, target=_FIELD | NUMBERS, rationale=_FIELD),
    optional=dict(task=_FIELD | JSON, type=JSON, more=JSON))


@st.composite
def _with_a_fault(draw):
    row = draw(_ROW)
    column = draw(st.sampled_from(['source', 'target', 'rationale']))
    if draw(st.booleans()):
        return row | {column: draw(JSON)}
    return {name: value for name, value in row.items() if name != column}


RAW_ROWS = _ROW | _with_a_fault() | JSON


@st.composite
def usable_rows(draw):
    "As `load_cot` returns them: text without space around it"
    part = TEXTS.map(str.strip).filter(bool)
    return dict(source=draw(part), target=draw(part), rationale=draw(part))


# --- tokenizers

END = '<|end|>'
_WORDS = ["Q: Is it so?\nA: Let's think step by step.\nIt is. So the answer is Yes.",
          'Q: How many are there?\nA: Let us count.\nThere are 12. So the answer is 12.'] * 3


def _fast(backend, template=None):
    if template:
        ids = [(name, backend.token_to_id(name)) for name in (END, '<s>')]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    has_start = bool(template) and '<s>' in template
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END,
                                   bos_token='<s>' if has_start else None)


def _byte_level(template=None, whole_words=True):
    "Byte-level BPE; unless it keeps to words, a token may reach from the question beyond it"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=whole_words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[END, '<s>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(_WORDS, trainer)
    return _fast(backend, template)


def _byte_fallback():
    "As Llama's: a space before the text, spaces as ▁, bytes for what is not in the vocabulary"
    pieces = [END, '<s>', '<unk>', *(f'<0x{i:02X}>' for i in range(256)), '▁']
    pieces += 'QAISsotheanwri:.'
    merges = [('▁', 'Q'), ('▁', 'S'), ('▁S', 'o'), ('t', 'h'), ('th', 'e'), ('▁', 'the')]
    pieces += [a + b for a, b in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token='<unk>', byte_fallback=True))
    spaces = normalizers.Replace(' ', '▁')
    backend.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), spaces])
    backend.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END, '<s>'])
    return _fast(backend, '<s> $A')


TOKENIZERS = {
    'byte-level': _byte_level,
    'with a start': functools.partial(_byte_level, '<s> $A'),
    'with an end': functools.partial(_byte_level, f'$A {END}'),
    'across words': functools.partial(_byte_level, whole_words=False),
    'byte fallback': _byte_fallback}


@functools.cache
def tokenizer_named(name):
    return TOKENIZERS[name]()


# --- scoring

_MARKS = ['So the answer is ', 'the answer is ', '\n\nQ: ', '\n\n', '\n', '.', ' ', '(A)', 'Q',
          '</s>']
PIECES = st.lists(TEXTS | st.sampled_from(_MARKS), max_size=8).map(''.join)

# --- tensors

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def as_json(value):
    "What `value` is after writing and reading"
    return json.loads(json.dumps(value))
