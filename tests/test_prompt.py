"Examples as texts, tokens and batches, worked out by hand"
import copy

import pytest
import torch
from datasets import Dataset
from strategies import END, tokenizer_named
from transformers import ByT5Tokenizer

from cotkd.files import InputError
from cotkd.prompt import (ANSWER, MODES, QUESTION, RATIONALE, KDCollator, Limits, chat_prompt,
                          cut, encode, encode_rows, format_example, split_by_length)

ROW = dict(source='Is it?', target='Yes', rationale='It is.')


def test_the_template():
    assert format_example('Is it?', 'Yes', 'It is.') == dict(
        question="Q: Is it?\nA: Let's think step by step.\n", rationale='It is.',
        answer=' So the answer is Yes.')
    direct = dict(question='Q: Is it?\nA:', rationale='', answer=' Yes')
    assert format_example('Is it?', 'Yes', 'It is.', 'direct') == direct
    after = format_example('Is it?', 'Yes', 'It is.', 'after')
    assert list(after.items()) == [('question', 'Q: Is it?\nA:'), ('answer', ' Yes'),
                                   ('rationale', '\nIt is.')]
    assert list(MODES) == ['cot', 'direct'] and (QUESTION, RATIONALE, ANSWER) == (0, 1, 2)
    with pytest.raises(ValueError, match="mode 'why' is unknown; choose from cot, direct, after"):
        format_example('', mode='why')


@pytest.mark.parametrize('name', ['byte-level', 'with an end'])
def test_spans_of_one_row(name):
    tokenizer = tokenizer_named(name)
    encoded = encode(ROW, tokenizer)
    texts = {}
    for token, span in zip(encoded['input_ids'], encoded['spans']):
        texts[span] = texts.get(span, '') + tokenizer.decode([token])
    assert texts == {0: "Q: Is it?\nA: Let's think step by step.\n", 1: 'It is.',
                     2: ' So the answer is Yes.' + tokenizer.eos_token}
    assert encode_rows([ROW, ROW], tokenizer) == [encoded, encoded]
    direct = encode(ROW, tokenizer, 'direct')
    assert encode_rows([ROW], tokenizer, 'direct') == [direct]
    assert {*direct['spans']} == {QUESTION, ANSWER}
    after = encode(ROW, tokenizer, 'after')
    learned = [span for span in after['spans'] if span != QUESTION]
    assert learned == sorted(learned, reverse=True) and {*learned} == {ANSWER, RATIONALE}
    assert direct['input_ids'][:-1] == after['input_ids'][:len(direct['input_ids']) - 1]


def test_a_row_is_never_cut():
    "What a tokenizer takes for its longest text is no limit of ours"
    tokenizer = copy.deepcopy(tokenizer_named('byte-level'))
    whole = encode(ROW, tokenizer)
    tokenizer.model_max_length = 5
    assert encode(ROW, tokenizer) == whole


def test_rows_on_disk_become_rows_on_disk():
    tokenizer = tokenizer_named('byte-level')
    rows = Dataset.from_list([ROW, ROW])
    assert list(encode_rows(rows, tokenizer)) == encode_rows([ROW, ROW], tokenizer)


def test_rows_that_a_model_cannot_read():
    tokenizer = tokenizer_named('byte-level')
    ids = encode(ROW, tokenizer)['input_ids']
    encode_rows([ROW], tokenizer, limits=Limits(max(ids) + 1, len(ids)))
    with pytest.raises(InputError, match=f'a row has {len(ids)} tokens'):
        encode_rows([ROW], tokenizer, limits=Limits(max(ids) + 1, len(ids) - 1))
    with pytest.raises(InputError, match=f'a row has the token .*{max(ids)}'):
        encode_rows([ROW], tokenizer, limits=Limits(max(ids)))
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(InputError, match='has no end-of-text token'):
        encode_rows([ROW], endless)


class Chatty:
    "Shows what it is given"
    chat_template = 'yes'
    name_or_path = 'chatty'

    def apply_chat_template(self, turns, tokenize, add_generation_prompt, **kwargs):
        assert (tokenize, add_generation_prompt) == (False, True)
        return ''.join(f"[{turn['role']}: {turn['content']}]" for turn in turns)


def test_chat_prompt():
    text = chat_prompt('Q: 1?\nA: 2\n\nQ: Is it?\nA: Let me', Chatty())
    assert text == '[user: Q: 1?\nA: 2\n\nQ: Is it?]A: Let me'
    with pytest.raises(InputError, match='has no chat template'):
        chat_prompt('Q: Is it?\nA:', tokenizer_named('byte-level'))


def test_cut():
    assert cut('one two one', ('two', 'one')) == ''
    assert cut('a one two', ('two', 'one')) == 'a '
    assert cut('a one', ('x',)) == 'a one' == cut('a one', ())


EXAMPLES = [dict(input_ids=[5, 6, 7, 8, 9], spans=[0, 0, 1, 2, 2]),
            dict(input_ids=[5, 8, 9], spans=[0, 2, 2])]


def lists(batch):
    return {name: column.tolist() for name, column in batch.items()}


def test_a_padded_batch():
    batch = lists(KDCollator(pad_id=3)(EXAMPLES))
    assert batch == dict(
        input_ids=[[5, 6, 7, 8, 9], [5, 8, 9, 3, 3]],
        spans=[[0, 0, 1, 2, 2], [0, 2, 2, 0, 0]],
        labels=[[-100, -100, 7, 8, 9], [-100, 8, 9, -100, -100]],
        weights=[[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    assert lists(KDCollator()(EXAMPLES))['input_ids'][1] == [5, 8, 9, 0, 0]
    assert lists(KDCollator()(EXAMPLES[1:]))['input_ids'] == [[5, 8, 9]]


def test_a_packed_batch():
    batch = lists(KDCollator(rationale_weight=.5, answer_weight=2., pack=True)(EXAMPLES))
    assert batch == dict(
        input_ids=[[5, 6, 7, 8, 9, 5, 8, 9]], position_ids=[[0, 1, 2, 3, 4, 0, 1, 2]],
        spans=[[0, 0, 1, 2, 2, 0, 2, 2]], labels=[[-100, -100, 7, 8, 9, -100, 8, 9]],
        weights=[[0, 0, .5, 2, 2, 0, 2, 2]])


@pytest.mark.parametrize('weights, kept', [((1., 1.), [0, 1, 2, 3, 4]), ((0., 1.), [1, 2, 3, 4]),
                                           ((.5, 0.), [0]), ((.25, .5), [0, 1, 2, 3, 4])])
def test_hidden_states_of_a_cache_come_with_their_labels(weights, kept):
    "A row for each label: what is not supervised is left out of both"
    hidden = torch.arange(10.).view(5, 2)
    examples = [dict(EXAMPLES[0], teacher_hidden=hidden[:3]),
                dict(EXAMPLES[1], teacher_hidden=hidden[3:])]
    batch = KDCollator(0, *weights)(examples)
    assert batch['teacher_hidden'].tolist() == hidden[kept].tolist()
    assert (batch['labels'] != -100).sum() == len(kept)
    assert 'teacher_hidden' not in KDCollator(0, *weights)(EXAMPLES)


@pytest.mark.parametrize('lengths, options, groups', [
    ([5, 1, 5], dict(tokens=10), [[1], [0, 2]]),
    ([5, 1, 5], dict(tokens=9), [[1], [0], [2]]),
    ([5, 1, 5], dict(tokens=6, pack=True), [[1, 0], [2]]),
    ([5, 1, 5], dict(tokens=11, pack=True), [[1, 0, 2]]),
    ([9, 10], dict(tokens=20), [[0, 1]]),
    ([89, 100], dict(), [[0], [1]]),  # 5.5% padding
    ([90, 100], dict(), [[0, 1]]),  # 5%
    ([2048, 2048], dict(), [[0, 1]]),
    ([2049, 2049], dict(), [[0], [1]]),
    ([2048, 2049], dict(pack=True), [[0], [1]]),
    ([7], dict(tokens=3), [[0]]),
    ([50, 100], dict(spare=50), [[0, 1]]),
    ([50, 100], dict(spare=49), [[0], [1]]),
    ([50, 90, 100], dict(spare=50), [[0, 1], [2]]),  # the first has spared 40 already
    ([50, 100], dict(spare=50, tokens=199), [[0], [1]]),
    ([90, 100], dict(spare=1), [[0, 1]]),  # 5% is never too much
    ([], dict(), [])])
def test_micro_batches(lengths, options, groups):
    assert split_by_length(lengths, **options) == groups


@pytest.mark.parametrize('mode, field', [('cot', 'rationale'), ('cot', 'target'),
                                         ('direct', 'target')])
def test_a_row_ends_once(mode, field):
    row = dict(source='Is it?', target='Yes', rationale='It is so.')
    row[field] += f' {END} and more'
    with pytest.raises(InputError, match='where a student would learn to stop'):
        encode_rows([row], tokenizer_named('byte-level'), mode)
    row = dict(source=f'Is it {END}?', target='Yes', rationale='It is so.')  # read, not learned
    assert encode_rows([row], tokenizer_named('byte-level'), mode)


def test_rows_need_a_tokenizer_with_offsets():
    with pytest.raises(InputError, match='ByT5Tokenizer, which exists in Python only'):
        encode_rows([ROW], ByT5Tokenizer())
