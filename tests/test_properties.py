"""Properties that hold for whatever hypothesis thinks of, a target each

Few examples here, always the same ones; `tools/campaigns/properties.py` runs these tests on many.
"""
import functools
import json
import os
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from math import comb, isfinite
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from strategies import (JSON, PIECES, RAW_ROWS, SEEDS, TEXTS, TOKENIZERS, normal, tokenizer_named,
                        usable_rows)
from transformers import LlamaConfig, LlamaForCausalLM

import cotkd.cache as cache_module
from cotkd.arms import Asked, Contrast
from cotkd.bbh import AVERAGES, BBH_TASKS, SCORERS, extract_answer, is_correct
from cotkd.cache import TeacherCache, write_cache
from cotkd.data import COLUMNS, REQUIRED, check_row, load_cot
from cotkd.files import (InputError, claim, identity, read_json, read_lines, write_json,
                         write_lines)
from cotkd.generate import Prefix, attend_both, cut_batches, encode_prompts, shared_length
from cotkd.losses import fused_kd_loss, kd_loss
from cotkd.prompt import ANSWER, MODES, QUESTION, cut, encode, format_example, split_by_length
from cotkd.records import load_results, pair_items, read_results, result_key, write_results
from cotkd.stats import aggregate, holm, mcnemar, paired_bootstrap, wilson

EXAMPLES = int(os.environ.get('COTKD_EXAMPLES', 0))  # of a campaign; 0: the few of every day
COUNTS = Counter()  # target -> examples that were run
settings.register_profile('any', deadline=None, database=None, derandomize=not EXAMPLES,
                          suppress_health_check=list(HealthCheck))
settings.load_profile('any')


def target(examples, **strategies):
    "A test of drawn arguments; `examples`: how many are drawn every day"
    def decorate(test):
        @functools.wraps(test)
        def counted(**drawn):
            COUNTS[test.__name__] += 1
            test(**drawn)
        return settings(max_examples=EXAMPLES or examples)(given(**strategies)(counted))
    return decorate


# --- the parser of rows

def loaded(content, name, quarantine):
    "(rows kept, rows dropped) of a file of this content"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/name
        path.write_text(content, encoding='utf-8')
        with patch.object(datasets.config, 'HF_DATASETS_CACHE', folder):
            try:
                kept = load_cot(path, quarantine=Path(folder)/quarantine).to_list()
            except InputError:
                return [], None
        return kept, len((Path(folder)/quarantine).read_text('utf-8').splitlines())


@target(60, rows=st.lists(RAW_ROWS, min_size=1, max_size=4), keyed=st.booleans())
def test_row_parser(rows, keyed):
    "Whatever JSON comes, a row is either kept, with text in every column, or dropped"
    checked = [check_row(row) for row in rows]
    for clean, reason in checked:
        assert (clean is None) == bool(reason)
    keyed = keyed and isinstance(rows[0], dict)
    if keyed:
        content, name = json.dumps({str(i): row for i, row in enumerate(rows)}), 'rows.json'
    else:
        content, name = ''.join(json.dumps(row) + '\n' for row in rows), 'rows.jsonl'
    kept, dropped = loaded(content, name, 'dropped.jsonl')
    assert kept == [clean for clean, _ in checked if clean]
    assert dropped == (len(rows) - len(kept) if kept else None)
    for row in kept:
        assert list(row) == list(COLUMNS)
        assert all(isinstance(text, str) and text.strip() == text for text in row.values())
        assert all(row[column] and row[column].encode() for column in REQUIRED)


# --- spans

def read_back(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def as_read(name, text):
    "What a tokenizer leaves of a text"
    return ' ' + text.replace('▁', ' ') if name == 'byte fallback' else text


def check_span(tokenizer, encoded, span, wanted, whole_words):
    "The tokens up to this span are those that the text up to it begins in"
    ids = [token for token, of in zip(*encoded.values()) if of <= span]
    found = read_back(tokenizer, ids)
    if whole_words:
        assert found == wanted
        return
    assert found.startswith(wanted)  # the last token may reach into the next part
    before = read_back(tokenizer, ids[:-1]).rstrip('\ufffd')  # part of a letter
    begins_here = span < ANSWER and encoded['spans'][len(ids) - 1] == span
    assert len(before) < len(wanted) or not begins_here


@target(150, row=usable_rows(), name=st.sampled_from([*TOKENIZERS]),
        mode=st.sampled_from([*MODES]))
def test_spans(row, name, mode):
    "A span for each token, one end that is learned, and the prompt of an evaluation"
    tokenizer, whole_words = tokenizer_named(name), name != 'across words'
    parts = format_example(row['source'], row['target'], row['rationale'], mode)
    assume(tokenizer.eos_token not in row['source'])  # it is read, and not read back
    if tokenizer.eos_token in parts['rationale'] + parts['answer']:
        with pytest.raises(InputError, match='where a student would learn to stop'):
            encode(row, tokenizer, mode)
        return
    encoded = encode(row, tokenizer, mode)
    ids, spans = encoded['input_ids'], encoded['spans']
    assert len(ids) == len(spans) and spans == sorted(spans) and {*spans} <= {0, 1, 2}
    assert [token for token, span in zip(ids, spans) if span].count(tokenizer.eos_token_id) == 1
    assert (ids[-1], spans[-1]) == (tokenizer.eos_token_id, ANSWER)
    text = ''
    for span, part in enumerate(parts.values()):
        text += part
        check_span(tokenizer, encoded, span, as_read(name, text), whole_words)
    prompt = [token for token, span in zip(ids, spans) if span == QUESTION]
    if whole_words:
        assert encode_prompts(tokenizer, [parts['question']]) == [prompt]


# --- the scorer

def official(text, mode):
    "The rule of BBH's authors, once more: what is in the line after these words"
    stop = '\n\nQ:' if mode == 'cot' else '\n'
    text = text[:text.index(stop)] if stop in text else text
    if mode == 'cot':
        parts = text.split('the answer is ', 1)
        text = parts[1] if len(parts) == 2 else ''
    line = text.split('\n', 1)[0].strip()
    return line[:-1] if line.endswith('.') else line


def lm_eval(text, mode):
    "The rule of the harness, once more, without regular expressions"
    places = [text.index(stop) for stop in ('</s>', 'Q', '\n\n') if stop in text]
    text = text[:min(places)] if places else text
    if mode == 'direct':
        return text
    for line in text.split('\n'):
        _, found, rest = line.partition('the answer is ')
        if found and rest:
            return rest[:-1].strip()
    return '[invalid]'


@target(300, text=PIECES, more=PIECES, answer=TEXTS, mode=st.sampled_from([*MODES]))
def test_scorer(text, more, answer, mode):
    found = extract_answer(text, mode)
    assert found == official(text, mode) and found in text
    assert extract_answer(text, mode, 'lm-eval') == lm_eval(text, mode)
    again = format_example('', found, mode='cot')['answer'] if mode == 'cot' else f' {found}.'
    assert extract_answer(again, mode) == found  # read back from how it is written
    assert is_correct(text, f' {found}\n', mode) == (found == found.strip())
    assert is_correct(text, answer, mode) == (found == answer.strip())
    assert is_correct(text, answer, mode, 'lm-eval') == (lm_eval(text, mode) == answer)
    assert extract_answer(f'{more}</think>\n{text}', mode) == official(text.lstrip(), mode)
    stops = SCORERS['official'].stops[mode]
    assert extract_answer(text + stops[0] + more, mode) == found
    for stops in (stops, SCORERS['lm-eval'].stops[mode]):
        begun = cut(text + more, stops)
        assert (text + more).startswith(begun)
        ends = [i for i in range(len(text + more)) if (text + more).startswith(stops, i)]
        assert len(begun) == min(ends, default=len(text + more))


# --- the shared prefix, and batches

def plain_attention(query, prefix, keys, values, mask, scaling):
    "Softmax over the keys of the prefix and of the row, one head and one row after the other"
    out = torch.empty_like(query)
    B, H = query.shape[:2]
    for b in range(B):
        for head in range(H):
            group = head * len(prefix.keys) // H
            all_keys = torch.cat([prefix.keys[group], keys[b, group]])
            all_values = torch.cat([prefix.values[group], values[b, group]])
            scores = query[b, head] @ all_keys.T * scaling
            scores[:, prefix.keys.shape[1]:] += mask[b, 0]
            out[b, head] = scores.softmax(-1) @ all_values
    return out


SMALL = st.integers(1, 4)


def check_attention(seed, B, h, groups, T, S, P, D):
    shapes = [(B, h * groups, T, D), (h, P, D), (h, P, D), (B, h, S, D), (B, h, S, D)]
    query, *of_prefix, keys, values = [normal((seed, i), *s) for i, s in enumerate(shapes)]
    hidden = normal((seed, 9), B, 1, T, S) > .5
    mask = torch.zeros(B, 1, T, S, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    arguments = query, Prefix(*of_prefix), keys, values, mask, D**-.5
    want = plain_attention(*arguments)
    for scores in (2**21, h * groups * T * P):  # all rows at once, or one by one
        with patch('cotkd.generate.SCORES', scores):
            assert torch.allclose(attend_both(*arguments), want, rtol=1e-5, atol=1e-6)


def check_shared(rows):
    n = shared_length(rows)
    assert all(row[:n] == rows[0][:n] and len(row) > n for row in rows)
    longer = {tuple(row[:n + 1]) for row in rows}
    assert len(longer) > 1 or min(map(len, rows)) == n + 1  # no more could be shared


def check_batches(lengths, most, batch_size):
    "Neighbours in order, as many as fit"
    batches = cut_batches(lengths, most, batch_size)
    assert [i for batch in batches for i in batch] == [*range(len(lengths))]

    def fits(batch):
        return len(batch) * max(lengths[i] for i in batch) <= most and len(batch) <= batch_size

    assert all(len(batch) == 1 or fits(batch) for batch in batches)
    assert not any(fits([*a, b[0]]) for a, b in zip(batches, batches[1:]))


def check_micro_batches(lengths, most, pack, spare):
    groups = split_by_length(lengths, most, pack, spare)
    assert sorted(i for group in groups for i in group) == [*range(len(lengths))]
    for group in groups:
        real = sum(lengths[i] for i in group)
        size = real if pack else len(group) * max(lengths[i] for i in group)
        assert len(group) == 1 or size <= most and size - real <= max(.05 * size, spare)


@target(60, shape=st.tuples(SEEDS, SMALL, SMALL, SMALL, SMALL, SMALL, SMALL, SMALL),
        rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4),
        lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), most=st.integers(1, 200),
        batch_size=st.integers(1, 5), pack=st.booleans(), spare=st.integers(0, 50))
def test_prefix_sharing(shape, rows, lengths, most, batch_size, pack, spare):
    check_attention(*shape)
    check_shared(rows)
    check_batches(lengths, most, batch_size)
    check_micro_batches(lengths, most, pack, spare)


# --- the teacher's cache

@functools.cache
def tiny_teacher():
    tokenizer = tokenizer_named('byte-level')
    torch.manual_seed(0)
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    return model, tokenizer


@torch.no_grad()
def heard(row, mode):
    "Last hidden states of the teacher in front of each supervised token of one row"
    model, tokenizer = tiny_teacher()
    encoded = encode(row, tokenizer, mode)
    ids = torch.tensor([encoded['input_ids']])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
    return hidden[[i - 1 for i, span in enumerate(encoded['spans']) if span != QUESTION]]


def write_tiny(rows, out, mode, size):
    model, tokenizer = tiny_teacher()
    loading = dict(load_lm=lambda *_, **__: (model, tokenizer), load_config=lambda *_: model.config,
                   load_tokenizer=lambda *_: tokenizer, model_identity=lambda *_: 'tiny')
    with patch.multiple(cache_module, FILE_BYTES=size, **loading):
        return write_cache('tiny', rows, out, mode)


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


@target(8, rows=st.lists(usable_rows(), min_size=1, max_size=3), mode=st.sampled_from([*MODES]),
        size=st.integers(1, 3000), place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_cache_round_trip(rows, mode, size, place, bit):
    "What is read is what the teacher said, and a flipped bit is refused"
    with tempfile.TemporaryDirectory() as folder:
        out = write_tiny(rows, Path(folder)/'cache', mode, size)
        cache = TeacherCache(out)
        assert len(cache) == len(rows)
        assert torch.equal(cache.head.weight, tiny_teacher()[0].lm_head.weight)
        for i, row in enumerate(rows):
            assert torch.allclose(cache[i], heard(row, mode), rtol=1e-4, atol=1e-5)
        files = sorted(path for path in out.iterdir() if path.name[0] != '.')
        chosen = files[place % len(files)]
        flip(chosen, place, bit)
        with pytest.raises(InputError, match=chosen.name):
            TeacherCache(out)
        cache_module._open.cache_clear()  # or 10,000 files stay open


# --- records

@st.composite
def results(draw):
    "A result of one of two arms, on one of two tasks"
    index = draw(st.none() | st.lists(st.integers(0, 5), unique=True, max_size=4))
    n = draw(st.integers(0, 4)) if index is None else len(index)
    items = draw(st.text('01', min_size=n, max_size=n))
    return dict(
        arm=draw(st.sampled_from(['kd', 'kd_cot'])), task=draw(st.sampled_from('xy')),
        seed=draw(st.integers(0, 2)), mode=draw(st.sampled_from([*MODES])), shots=0,
        scorer='official', n=n, correct=items.count('1'), items=items, index=index, skipped=0,
        examples=None, truncated=0, context_cut=0, model=draw(TEXTS), weights=None, start=None,
        benchmark='mine', temperature=0., dtype='float32', chat=False, recipe=None)


def numbered(row):
    "Question -> 0 or 1"
    return dict(zip(row['index'] or range(row['n']), map(int, row['items'])))


def pairs_by_hand(rows, contrast):
    "(task, seed, question, a, b): of every question that both answered under all their seeds"
    def of(asked):
        return {(r['task'], r['seed']): numbered(r) for r in rows
                if (r['arm'], r['mode']) == (asked.arm, asked.mode)}

    a, b = of(contrast.a), of(contrast.b)
    both = {run: a[run].keys() & b[run].keys() for run in a.keys() & b.keys()}
    by_task = defaultdict(list)
    for (task, _), questions in both.items():
        if questions:
            by_task[task].append(questions)
    shared = {task: set.intersection(*found) for task, found in by_task.items()}
    return {(*run, i, a[run][i], b[run][i]) for run, questions in both.items()
            for i in questions & shared.get(run[0], set())}


CONTRAST = Contrast(Asked('kd', 'direct'), Asked('kd_cot', 'cot'))


@target(20, rows=st.lists(results(), min_size=1, max_size=8), order=st.randoms())
def test_records(rows, order):
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            write_results(folder, [row])
        last = {result_key(row): row for row in rows}  # in the place of the first
        assert read_results(folder) == [*last.values()]
        assert len((Path(folder)/'results.jsonl').read_text('utf-8').split('\n')) == len(last) + 1
        mixed = [*last.values()]
        order.shuffle(mixed)
        write_lines(Path(folder)/'others.jsonl', mixed)
        found = load_results(folder, Path(folder)/'others.jsonl')
        again = load_results(Path(folder)/'others.jsonl')
    assert found.astype(object).where(found.notna(), None).to_dict('records') == [*last.values()]
    pairs = pair_items(again, CONTRAST)
    assert list(pairs) == ['task', 'seed', 'index', 'a', 'b']
    want = pairs_by_hand(last.values(), CONTRAST)
    assert Counter(map(tuple, pairs.values.tolist())) == Counter(want)


# --- statistics

P_VALUES = st.lists(st.floats(0, 1) | st.just(float('nan')), min_size=1, max_size=8)


def check_holm(p):
    p = np.array(p)
    real = ~np.isnan(p)
    adjusted = holm(p)
    assert np.isnan(adjusted[~real]).all()
    order = np.argsort(p[real])
    assert (np.diff(adjusted[real][order]) >= 0).all() and (adjusted[real] >= p[real]).all()
    if real.any():
        with patch('gc.collect'):  # which it calls each time: a third of a second
            want = multipletests(p[real], method='holm')[1]
        assert np.allclose(adjusted[real], want, rtol=1e-9, atol=1e-12)


def check_interval(a, b, groups):
    found = paired_bootstrap(a, b, groups, n_boot=500)
    back = paired_bootstrap(b, a, groups, n_boot=500)
    tasks = set(groups)
    gains = {t: np.mean([y - x for x, y, g in zip(a, b, groups) if g == t]) for t in tasks}
    delta = 100 * sum(gains.values()) / len(tasks)
    assert found['delta'] == pytest.approx(delta, abs=1e-9) == pytest.approx(-back['delta'])
    for result in (found, back):
        if isfinite(result['low']):
            assert result['low'] - 1e-6 <= result['delta'] <= result['high'] + 1e-6
        assert not isfinite(result['p']) or 0 < result['p'] <= 1


def check_mcnemar(a, b):
    gained = sum(x < y for x, y in zip(a, b))
    lost = sum(x > y for x, y in zip(a, b))
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail)) == pytest.approx(mcnemar(b, a))


def check_averages(accuracy):
    found = aggregate(accuracy)
    assert found.keys() == AVERAGES.keys()
    for name, weights in AVERAGES.items():
        if any(accuracy.get(task) is None for task in weights):
            assert found[name] is None
        else:
            want = sum(weight * accuracy[task] for task, weight in weights.items())
            assert found[name] == pytest.approx(want, abs=1e-9)


@target(100, items=st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from('xyz')),
                           min_size=1, max_size=40),
        p=P_VALUES, correct=st.integers(0, 60), wrong=st.integers(0, 60),
        percent=st.lists(st.none() | st.floats(0, 100), min_size=27, max_size=27),
        whole=st.booleans())
def test_statistics(items, p, correct, wrong, percent, whole):
    a, b, groups = [list(column) for column in zip(*items)]
    check_interval(a, b, groups)
    check_mcnemar(a, b)
    check_holm(p)
    assume(correct + wrong)
    low, high = wilson(correct, correct + wrong)
    assert 0 <= low <= 100 * correct / (correct + wrong) <= high <= 100
    below, above = wilson(wrong, correct + wrong)
    assert (low, high) == pytest.approx((100 - above, 100 - below))
    known = [x or 0. for x in percent] if whole else percent
    check_averages(dict(zip(BBH_TASKS, known)))


# --- losses

def mix(p, q, share):
    return share * p + (1 - share) * q


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


def by_definition(name, dial, p, q):
    "Nats (N,), by the formulas of the papers"
    if name == 'jsd':
        middle = mix(p, q, dial)
        return mix(kl(p, middle), kl(q, middle), dial)
    return {
        'forward_kl': lambda: kl(p, q),
        'reverse_kl': lambda: kl(q, p),
        'skew_kl': lambda: kl(p, mix(p, q, dial)),
        'skew_rkl': lambda: kl(q, mix(q, p, dial)),
        'tvd': lambda: (p - q).abs().sum(-1) / 2}[name]()


DEFAULT_DIALS = dict(jsd=.5, skew_kl=.1, skew_rkl=.1)


@st.composite
def losses(draw):
    "What two models say, and how they are compared"
    name = draw(st.sampled_from(['forward_kl', 'reverse_kl', 'tvd', *DEFAULT_DIALS]))
    dial = draw(st.none() | st.integers(1, 99)) if name in DEFAULT_DIALS else None
    return dict(
        name=name, dial=dial, seed=draw(SEEDS), N=draw(st.integers(1, 5)),
        V=draw(st.integers(2, 9)), widths=draw(st.tuples(SMALL, SMALL)),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        loud=draw(st.floats(.01, 4)), temperature=draw(st.sampled_from([.5, 1., 2., 3.7])),
        weighted=draw(st.booleans()), t_squared=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])))


def make_side(case, i):
    width, rows = case['widths'][i], case['V'] + case['padding'][i]
    hidden = normal((case['seed'], i), case['N'], width, dtype=case['dtype'])
    head = normal((case['seed'], i + 2), rows, width, dtype=case['dtype']) * case['loud']
    bias = normal((case['seed'], i + 4), rows, dtype=case['dtype'])
    return hidden, head, bias


def logits_of(side, vocab):
    hidden, head, bias = [x.double() for x in side]
    return hidden @ head[:vocab].T + bias[:vocab]


def settings_of(case):
    "The arguments of a loss, and the dial of its divergence"
    name, dial = case['name'], case['dial']
    objective = dict(divergence=name if dial is None else f'{name}({dial / 100})',
                     temperature=case['temperature'], t_squared=case['t_squared'])
    return objective, DEFAULT_DIALS.get(name) if dial is None else dial / 100


def wanted_loss(case, dial, z, t, weights):
    T = case['temperature']
    terms = by_definition(case['name'], dial, (t / T).softmax(-1), (z / T).softmax(-1))
    share = torch.ones(len(z)).double() if weights is None else weights
    return (terms * share / share.sum()).sum() * (T**2 if case['t_squared'] else 1)


def fused(student, teacher, vocab, weights, objective):
    return fused_kd_loss(*student[:2], *teacher[:2], student_bias=student[2],
                         teacher_bias=teacher[2], vocab=vocab, weights=weights, **objective)


@target(120, case=losses())
def test_losses(case):
    "Values and gradients of both losses are those of the definitions in float64"
    vocab, dtype = case['V'], case['dtype']
    bounds = dict(rtol=1e-6, atol=1e-6) if dtype == torch.float64 else dict(rtol=1e-3, atol=1e-3)
    student, teacher = make_side(case, 0), make_side(case, 1)
    weights = normal((case['seed'], 6), case['N']).abs() + .1 if case['weighted'] else None
    objective, dial = settings_of(case)
    for x in student:
        x.requires_grad_()
    z, t = logits_of(student, vocab), logits_of(teacher, vocab)
    wanted = wanted_loss(case, dial, z, t, weights)
    slopes = torch.autograd.grad(wanted, student, retain_graph=True)
    for loss in (fused(student, teacher, vocab, weights, objective),
                 kd_loss(z.to(dtype), t.to(dtype), weights, **objective)):
        assert torch.allclose(loss.double(), wanted, **bounds) and loss > -1e-5
        found = torch.autograd.grad(loss, student, retain_graph=True)
        assert all(torch.allclose(x, y, **bounds) for x, y in zip(found, slopes))
    assert fused(student, student, None, weights, objective).abs() < 1e-5


# --- files

NAMES = st.text('abc', min_size=1, max_size=4)
MODEL = st.dictionaries(
    st.tuples(NAMES, st.sampled_from(['.safetensors', '.json', '.txt'])).map(''.join),
    st.binary(min_size=1, max_size=30), min_size=1, max_size=3)
PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
                     lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5)
RECORDS = st.dictionaries(TEXTS, PLAIN, max_size=4)


def check_identity(folder, model, place, bit):
    for name, content in model.items():
        (folder/name).write_bytes(content)
    first = identity(folder)
    (folder/'distill.json').write_text('beside a student')
    (folder/'notes.md').write_text('no part of a model')
    assert identity(folder) == first
    names = sorted(model)
    path = folder/names[place % len(names)]
    flip(path, place, bit)
    assert identity(folder) != first
    flip(path, place, bit)
    assert identity(folder) == first
    path.rename(folder/f'another-{path.name}')
    assert identity(folder) != first


@target(40, record=RECORDS, rows=st.lists(RECORDS, max_size=3), model=MODEL, other=PLAIN,
        place=st.integers(0, 99), bit=st.integers(0, 7))
def test_files(record, rows, model, other, place, bit):
    "What is read is what was written, and what is something else is told apart"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_json(folder/'record.json', record)
        assert read_json(folder/'record.json') == record
        write_lines(folder/'rows.jsonl', rows)
        assert read_lines(folder/'rows.jsonl') == rows
        run = folder/'run'
        assert claim(run, 'run.json', record, 'run') is None
        assert claim(run, 'run.json', record, 'run') == record
        for part in record:
            if record[part] != other:
                with pytest.raises(InputError, match='holds another run, which differs in'):
                    claim(run, 'run.json', record | {part: other}, 'run')
        assert read_json(run/'run.json') == record
        (folder/'model').mkdir()
        check_identity(folder/'model', model, place, bit)
