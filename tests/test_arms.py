"What an arm makes of real rows: same questions, exact spans, other rationales"
import random
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from datasets import Dataset
from strategies import tokenizer_named
from transformers import AutoTokenizer

from cotkd.arms import ARMS, RATIONALES, choose_arms, with_rationales
from cotkd.bbh import toy_benchmark
from cotkd.cli import main
from cotkd.data import load_cot
from cotkd.experiment import PRESETS, check_settings, check_training, is_cached, run, train_config
from cotkd.files import InputError, read_json, read_lines, write_json
from cotkd.prompt import ANSWER, QUESTION, RATIONALE, encode, format_example
from cotkd.records import load_results

CHANGED = [name for name, kind in RATIONALES.items() if kind.change]
TOKENIZERS = ('toy', 'byte-level', 'across words', 'byte fallback')


@pytest.fixture(scope='module')
def rows(cot_data):
    "Real rationales, of many tasks, and what a teacher may have written"
    rows = load_cot(cot_data/'cot_mini.jsonl').shuffle(seed=0).select(range(300))
    return [row | dict(written=f"In short: {row['rationale']}") for row in rows]


def find_tokenizer(name):
    if name == 'toy':
        return AutoTokenizer.from_pretrained(str(files('cotkd')/'assets'/'toy-teacher'))
    return tokenizer_named(name)


def spans_of(row, tokenizer, mode):
    "Texts of the parts, in the order in which they stand"
    encoded = encode(row, tokenizer, mode)
    parts = {}
    for token, span in zip(encoded['input_ids'][:-1], encoded['spans']):
        parts.setdefault(span, []).append(token)
    return {span: tokenizer.decode(ids) for span, ids in parts.items()}


@pytest.mark.parametrize('kind', RATIONALES)
def test_spans_are_exact(kind, rows):
    "What is supervised decodes to rationale and answer, and to nothing else"
    tokenizer, mode = find_tokenizer('byte-level'), RATIONALES[kind].mode
    changed = with_rationales(rows[:60], kind, tokenizer)
    assert [row['source'] for row in changed] == [row['source'] for row in rows[:60]]
    names = dict(question=QUESTION, rationale=RATIONALE, answer=ANSWER)
    for row in changed:
        parts = format_example(row['source'], row['target'], row['rationale'], mode)
        texts = {names[name]: text for name, text in parts.items() if text}
        assert list(spans_of(row, tokenizer, mode).items()) == list(texts.items())


@pytest.mark.parametrize('kind', CHANGED)
def test_the_same_rows_change_in_the_same_way(kind, rows):
    tokenizer = find_tokenizer('byte-level')
    once = with_rationales(rows, kind, tokenizer)
    assert once == with_rationales(rows, kind, tokenizer)
    same = [a['rationale'] for a, b in zip(once, rows) if a['rationale'] == b['rationale']]
    if kind == 'sentences':  # nearly half of them have just one
        same = [text for text in same if len(re.split(r'[.!?]\s', text)) > 2]
    assert len(same) < .05 * len(rows)
    as_dataset = with_rationales(Dataset.from_list(rows), kind, tokenizer)
    assert isinstance(as_dataset, Dataset) and list(as_dataset) == once


@pytest.mark.parametrize('kind', ['shuffled', 'sentences'])
def test_shuffled_words_are_the_same_words(kind, rows):
    for row, changed in zip(rows, with_rationales(rows, kind, None)):
        words, others = row['rationale'].split(), changed['rationale'].split()
        assert sorted(words) == sorted(others)
        assert words != others or len({*words}) == 1 or kind == 'sentences'
        assert row | dict(rationale='') == changed | dict(rationale='')


def test_what_cannot_change_is_counted(caplog):
    rows = [dict(source='', rationale=text) for text in ('One. Two! Three?', 'One and only.')]
    first, second = with_rationales(rows, 'sentences', None)
    assert sorted(first['rationale'].split()) == ['One.', 'Three?', 'Two!'] and second == rows[1]
    assert first != rows[0]
    assert '1 of 2 rationales stay as they are: they have no sentences form' in caplog.text


def lengths(rows, tokenizer):
    return [encode(row, tokenizer)['spans'].count(RATIONALE) for row in rows]


@pytest.mark.parametrize('name', TOKENIZERS)
def test_filler_has_as_many_tokens(name, rows):
    tokenizer = find_tokenizer(name)
    filled = with_rationales(rows[:60], 'filler', tokenizer)
    assert lengths(filled, tokenizer) == lengths(rows[:60], tokenizer)
    assert {*''.join(row['rationale'] for row in filled)} <= {'.', ' '}


def test_a_tokenizer_that_joins_dots():
    class Joins:
        name_or_path, eos_token_id, chat_template, is_fast = 'joins', 0, None, True

        def __call__(self, text, **kwargs):  # one token for a whole row of dots
            tokens = 1 if '..' in text or '. .' in text else 3
            return dict(input_ids=[1] * tokens, offset_mapping=[(36, 37)] * tokens)

    row = dict(source='', target='', rationale='It is so.', task='t')
    with pytest.raises(InputError, match="tokenizer of 'joins' joins dots"):
        with_rationales([row], 'filler', Joins())


def test_another_rationale_is_of_the_task_and_as_long(rows):
    tokenizer = find_tokenizer('byte-level')
    owners = {row['rationale']: row for row in rows}
    other = with_rationales(rows, 'other', tokenizer)
    by_task = {row['task'] for row in rows if sum(x['task'] == row['task'] for x in rows) > 1}
    for row, changed in zip(rows, other):
        owner = owners[changed['rationale']]
        assert changed['target'] == row['target'] and owner['source'] != row['source']
        assert owner['task'] == row['task'] or row['task'] not in by_task
    rng = random.Random(0)
    chance = [rng.choice(rows) for _ in rows]
    own = lengths(rows, tokenizer)

    def error(found):
        return sum(abs(a - b) for a, b in zip(own, lengths(found, tokenizer)))

    assert error(other) < .5 * error(chance)


def test_the_nearest_in_length_is_lent():
    tokenizer = find_tokenizer('byte-level')
    rows = [dict(source=text, target='yes', rationale=text, task='t')
            for text in ('a', 'a b c d', 'a b c d e', 'a b c d e f g h')]
    changed = with_rationales(rows, 'other', tokenizer)
    assert [row['rationale'] for row in changed] == [
        'a b c d', 'a b c d e', 'a b c d', 'a b c d e']
    alone = [*rows, dict(source='x', target='yes', rationale='a b c d x', task='alone')]
    assert with_rationales(alone, 'other', tokenizer)[-1]['rationale'] == 'a b c d e'
    with pytest.raises(InputError, match='no other rationale for some of the rows'):
        with_rationales(rows[:1], 'other', tokenizer)


def test_a_wrong_answer_comes_with_its_rationale(rows):
    tokenizer = find_tokenizer('byte-level')
    pairs = {(row['rationale'], row['target']) for row in rows}
    for row, changed in zip(rows, with_rationales(rows, 'wrong', tokenizer)):
        assert changed['target'] != row['target']
        assert (changed['rationale'], changed['target']) in pairs


def test_rows_that_no_teacher_wrote(rows):
    rows = [{key: x for key, x in row.items() if key != 'written'} for row in rows]
    with pytest.raises(InputError, match='the rows have no column "written"'):
        with_rationales(rows, 'teacher', None)


def test_held_out_rows_lend_nothing_to_the_others(rows):
    tokenizer = find_tokenizer('byte-level')
    changed = with_rationales(rows, 'other', tokenizer, held_out=100)
    first, last = ({row['rationale'] for row in part} for part in (rows[:200], rows[200:]))
    assert {row['rationale'] for row in changed[:200]} <= first
    assert {row['rationale'] for row in changed[200:]} <= last


def test_every_kind_has_an_arm():
    assert {arm.rationale for arm in choose_arms(list(ARMS)[2:])} == {*RATIONALES}


def test_a_kind_by_its_name_from_the_command_line(cot_data, tmp_path):
    "What `cotkd cache` wrote is what `cotkd distill` of the same kind reads, and no other"
    rows = ['--data', str(cot_data/'cot_mini.jsonl'), '--limit', '16', '--teacher', 'toy-teacher']
    assert not main(['cache', *rows, '--rationale', 'other', '--out', str(tmp_path/'cache')])
    distil = ['distill', *rows, '--student', 'toy-student', '--cache', str(tmp_path/'cache')]
    assert not main([*distil, '--rationale', 'other', '--out', str(tmp_path/'kd')])
    assert main([*distil, '--rationales', '--out', str(tmp_path/'no')]) == 2
    assert not (tmp_path/'no').exists()


def test_a_run_of_controls(tmp_path):
    "Matched arms learn from as much as KD+CoT does; every arm answers under both prompts"
    names = ['kd_cot', 'kd_matched', 'kd_flops', 'kd_filler']
    settings = dict(rows=20, arms=','.join(names), other_prompt=1, max_new_tokens=6)
    toy = toy_benchmark(1)
    one = replace(toy, items=dict(navigate=toy.items['navigate']))
    run(replace(PRESETS['toy'], **settings), tmp_path/'run', one)
    cost = read_json(tmp_path/'run/config.json')['cost']
    assert cost['kd_matched']['supervised_tokens'] == pytest.approx(
        cost['kd_cot']['supervised_tokens'], rel=.01)  # of the 16 rows that fill its batches
    assert cost['kd_matched']['examples'] > 10 * cost['kd_cot']['examples']
    update = cost['kd_flops']['flops'] * 8 / cost['kd_flops']['examples']
    assert cost['kd_flops']['flops'] == pytest.approx(cost['kd_cot']['flops'], abs=.6 * update)
    assert cost['kd_filler']['supervised_tokens'] == cost['kd_cot']['supervised_tokens']
    results = load_results(tmp_path/'run')
    assert {*results.arm} == {'teacher', 'student', *names}
    assert set(results.groupby('arm')['mode'].nunique()) == {2}


def test_what_an_arm_sets_for_itself():
    experiment = replace(PRESETS['toy'], temperature=2., divergence='jsd(0.9)')
    shared, own = (train_config(experiment, ARMS[name]) for name in ('kd_cot', 'kd_own'))
    assert (shared.divergence, shared.temperature, shared.lmbda) == ('jsd(0.9)', 2., 0.)
    assert own == replace(shared, lmbda=.5)
    reverse = replace(ARMS['kd_cot'], config=dict(divergence='reverse_kl', rationale_weight=.5))
    config = train_config(experiment, reverse)
    assert (config.divergence, config.rationale_weight) == ('reverse_kl', .5)
    with pytest.raises(InputError, match="arm 'kd_cot' sets lr: expected one of"):
        replace(ARMS['kd_cot'], config=dict(lr=1.))
    with pytest.raises(InputError, match='divergence'):
        check_training(replace(experiment, divergence='nearness'), {})


def test_what_a_student_writes_is_in_no_cache():
    assert is_cached(PRESETS['toy'], ARMS['kd_cot'], seeds=2)
    assert not is_cached(PRESETS['toy'], ARMS['kd_own'], seeds=2)
    assert not is_cached(PRESETS['toy'], ARMS['sft'], seeds=2)


@pytest.fixture(scope='module')
def own_words(tmp_path_factory):
    "A run in which the teacher writes first"
    toy = toy_benchmark(1)
    one = replace(toy, items=dict(navigate=toy.items['navigate']))
    experiment = replace(PRESETS['toy'], rows=24, arms='kd_cot,kd_teacher', other_prompt=1,
                         max_new_tokens=150)
    out = tmp_path_factory.mktemp('own')/'run'
    run(experiment, out, one)
    return experiment, out, one


def test_all_arms_train_on_what_the_teacher_could_answer(own_words):
    "The same questions; only the words differ"
    experiment, out, _ = own_words
    written = read_lines(out/'written.jsonl')
    recipes = {arm: read_json(out/f'models/{arm}-0/distill.json') for arm in ('kd_cot',
                                                                             'kd_teacher')}
    rows = [recipe['recipe']['rows'].split(',')[0] for recipe in recipes.values()]
    assert rows == [f'{len(written)} rows'] * 2 and 8 <= len(written) <= 24
    assert recipes['kd_cot']['recipe']['rows'] != recipes['kd_teacher']['recipe']['rows']
    assert {*load_results(out).arm} == {'teacher', 'student', 'kd_cot', 'kd_teacher'}


def test_a_student_that_a_kill_kept_out_of_the_books_is_taken_as_it_is(own_words):
    experiment, out, one = own_words
    config = read_json(out/'config.json')
    before = dict(config['trained'])
    del config['trained']['kd_teacher-0']
    write_json(out/'config.json', config)
    run(experiment, out, one)
    assert read_json(out/'config.json')['trained'] == before


def test_other_rows_are_another_experiment(own_words):
    experiment, out, one = own_words
    with pytest.raises(InputError, match='differs in settings.written'):
        run(replace(experiment, arms='kd_cot'), out, one)
    before = (out/'results.jsonl').read_bytes()
    run(experiment, out, one)  # there is nothing to do
    assert (out/'results.jsonl').read_bytes() == before


def test_arms_with_a_learning_rate_of_their_own():
    experiment = replace(PRESETS['toy'], lrs='kd_after=4e-3, kd_filler=1e-3')
    rates = {name: train_config(experiment, ARMS[name]).lr
             for name in ('kd', 'kd_cot', 'kd_after', 'kd_filler')}
    assert rates == dict(kd=2e-3, kd_cot=8e-3, kd_after=4e-3, kd_filler=1e-3)
    for text in ('kd_after', 'kd_after=0', 'nobody=1e-3', 'kd=fast'):
        with pytest.raises(InputError, match='is no arm with a learning rate'):
            check_settings(replace(experiment, lrs=text))
