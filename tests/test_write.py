"Rationales that a teacher writes: which are kept, and that a kill loses none"
import json
from dataclasses import replace

import pytest
from datasets import Dataset

from cotkd import write as module
from cotkd.cli import main
from cotkd.files import InputError, read_json, read_lines
from cotkd.generate import Answer
from cotkd.models import load_lm
from cotkd.prompt import encode
from cotkd.toy import EVALUATED, make_toy
from cotkd.write import Verdict, Writing, about_path, ask_for_rationales, judge, write_rationales

ROWS = make_toy(EVALUATED, 10, seed=3, heldout=True)
QUICK = Writing(batch_size=4, max_new_tokens=130)


@pytest.fixture(scope='module')
def teacher():
    return load_lm('toy-teacher')


@pytest.mark.parametrize('text, kind, rationale', [
    ('It is. So the answer is Yes.', 'kept', 'It is.'),
    (' It is.\n So the answer is Yes. It is clear.', 'kept', 'It is.'),
    ('It is. So the answer is Yes.\nSo the answer is No.', 'kept', 'It is.'),
    ('It is. So the answer is Yes', 'kept', 'It is.'),
    ('It is. So the answer is yes.', 'wrong', ''),
    ('It is. So the answer is Yes or No.', 'wrong', ''),
    ('It is. So the answer is ', 'wrong', ''),
    ('So the answer is Yes.', 'none', ''),
    ('Yes.', 'none', ''),
    ('', 'none', '')])
def test_what_a_text_is_worth(text, kind, rationale):
    assert judge(Answer(text, False), 'Yes') == Verdict(kind, rationale)


def test_a_text_that_ran_out_of_room():
    assert judge(Answer('It is, since', True), 'Yes').kind == 'cut'
    assert judge(Answer('It is. So the answer is Yes. And', True), 'Yes').kind == 'kept'


def test_examples_stand_before_each_question_and_are_not_asked():
    prompts = ask_for_rationales(ROWS, 2)
    assert len(prompts) == 8
    for row, prompt in zip(ROWS[2:], prompts):
        assert prompt.count('Q: ') == 3 and prompt.count('So the answer is') == 2
        assert prompt.endswith(f"\n\nQ: {row['source']}\nA: Let's think step by step.\n")
        assert ROWS[0]['rationale'] in prompt and row['rationale'] not in prompt
    with pytest.raises(InputError, match='leave some to ask'):
        ask_for_rationales(ROWS, 10)


def test_rows_become_rows(teacher, tmp_path):
    "Of the same columns and answers, and every one can be trained on"
    out = tmp_path/'written.jsonl'
    counts = write_rationales(*teacher, Dataset.from_list(ROWS), out, 'me', QUICK)
    written = read_lines(out)
    assert counts['rows'] == counts['texts'] == 10 == sum(
        counts[kind] for kind in ('kept', 'wrong', 'cut', 'none'))
    assert counts['kept'] == counts['rows_kept'] == counts['written'] == len(written) > 3
    sources = {row['source']: row for row in ROWS}
    for row in written:
        assert row | dict(rationale='') == sources[row['source']] | dict(rationale='')
        assert 'So the answer' not in row['rationale'] and encode(row, teacher[1])
    about = read_json(about_path(out))
    assert about['counts'] == counts and about['belongs']['writer'] == 'me'
    assert [path.name for path in sorted(tmp_path.iterdir()) if not path.name.startswith('.')] == [
        'written.jsonl', 'written.jsonl.about.json']


def test_all_or_one_of_several_samples(teacher, tmp_path):
    hot = replace(QUICK, samples=3, temperature=1.5, keep='all')
    found = {}
    for keep in ('all', 'one'):
        write_rationales(*teacher, ROWS, tmp_path/keep, 'me', replace(hot, keep=keep))
        found[keep] = read_lines(tmp_path/keep)
    counts = read_json(about_path(tmp_path/'all'))['counts']
    assert counts['texts'] == 30 and counts['kept'] >= counts['written'] > counts['rows_kept']
    sources = [row['source'] for row in found['one']]
    assert len({*sources}) == len(sources) == counts['rows_kept']
    pairs = [(row['source'], row['rationale']) for row in found['all']]
    assert len({*pairs}) == len(pairs)
    assert {(row['source'], row['rationale']) for row in found['one']} <= {*pairs}


@pytest.mark.parametrize('torn', [b'', b'{"row": 9, "sam'])
def test_a_kill_loses_nothing(torn, teacher, tmp_path, monkeypatch):
    "What was written before is not written again, and the file is the same"
    hot = replace(QUICK, samples=2, temperature=.7)
    write_rationales(*teacher, ROWS, tmp_path/'whole', 'me', hot)
    batches, generate = [], module.generate_batch

    def die_after_two(*args, on_batch, **kwargs):
        def once(positions, answers):
            if len(batches) == 2:
                raise KeyboardInterrupt
            on_batch(positions, answers)
            batches.append(positions)
        return generate(*args, on_batch=once, **kwargs)

    monkeypatch.setattr(module, 'generate_batch', die_after_two)
    with pytest.raises(KeyboardInterrupt):
        write_rationales(*teacher, ROWS, tmp_path/'killed', 'me', hot)
    part, = tmp_path.glob('.killed.*.part')
    assert len(read_lines(part)) == 8 and not (tmp_path/'killed').exists()
    part.write_bytes(part.read_bytes() + torn)
    asked = []

    def count(*args, only, **kwargs):
        asked.extend(only)
        return generate(*args, only=only, **kwargs)

    monkeypatch.setattr(module, 'generate_batch', count)
    write_rationales(*teacher, ROWS, tmp_path/'killed', 'me', hot)
    assert len(asked) == 20 - 8
    assert (tmp_path/'killed').read_bytes() == (tmp_path/'whole').read_bytes()
    write_rationales(None, None, ROWS, tmp_path/'killed', 'me', hot)  # there is nothing to do


def test_a_file_of_others_is_left_alone(teacher, tmp_path):
    out = tmp_path/'written.jsonl'
    write_rationales(*teacher, ROWS[:2], out, 'me', QUICK)
    before = out.read_bytes()
    for rows, writer, how in ((ROWS[:2], 'you', QUICK), (ROWS[:3], 'me', QUICK),
                              (ROWS[:2], 'me', Writing(max_new_tokens=5))):
        with pytest.raises(InputError, match='rationales of another model, or of other rows'):
            write_rationales(None, None, rows, out, writer, how)
    write_rationales(None, None, ROWS[:2], out, 'me', replace(QUICK, batch_size=1))  # speed
    other = tmp_path/'mine.jsonl'
    other.write_text('{"source": "mine"}\n')
    with pytest.raises(InputError, match='is there already'):
        write_rationales(None, None, ROWS[:2], other, 'me', QUICK)
    assert out.read_bytes() == before and 'mine' in other.read_text()


@pytest.mark.parametrize('settings, why', [
    (dict(keep='some'), "'some': expected one or all"), (dict(samples=0), 'samples is 0'),
    (dict(samples=2), 'give a temperature'), (dict(shots=-1), 'shots is -1')])
def test_settings_that_make_no_sense(settings, why):
    with pytest.raises(InputError, match=why):
        Writing(**settings)


def test_from_the_command_line_to_a_student(tmp_path, capsys):
    data, out = tmp_path/'rows.jsonl', tmp_path/'written.jsonl'
    data.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    words = ['write', '--model', 'toy-teacher', '--data', str(data), '--out', str(out)]
    assert not main(words)
    said = capsys.readouterr().out
    counts = read_json(about_path(out))['counts']
    assert f"{counts['written']} rationales of {counts['rows_kept']} of 10 rows" in said
    assert f"{counts['wrong']} wrong" in said and 'cut at 320 tokens' in said
    assert not main(words) and capsys.readouterr().out == said
    assert not main(['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data',
                     str(out), '--rationales', '--batch-size', '2', '--out', str(tmp_path/'kd')])
