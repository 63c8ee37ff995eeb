"The page of whole, interrupted and hostile runs."
import json
import os
import shutil
from html.parser import HTMLParser
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cotkd import report
from cotkd.bbh import BBH_TASKS
from cotkd.figures import plot_gains, plot_tasks
from cotkd.files import InputError
from cotkd.gains import arm_label, gains_table, task_label
from cotkd.lens import Lens, plot_token, show_tokens
from cotkd.records import (check_row, load_results, packaged_results, prediction_path,
                           simulated_results)
from cotkd.report import (KINDS, answer_table, arms_table, error_table, headline, length_bins,
                          limits, load_answers, plot_errors, plot_lengths, save_answers,
                          side_by_side, write_report)

HOSTILE = "</div><script>alert('x')</script><img src=https://example.org/a.png>"
TASKS = ['navigate', 'tracking_shuffled_objects_seven_objects']
COST = dict(updates=900, examples=14_400, supervised_tokens=61_234, flops=1.25e13, seconds=161.2,
            lr=1e-3)
QUESTIONS = dict(navigate=[f'Q{i} {HOSTILE}' for i in range(40)])


@pytest.fixture(autouse=True)
def agg():
    plt.switch_backend('agg')
    yield
    plt.close('all')


@pytest.fixture
def no_figure(monkeypatch):
    "For tests of the page around it"
    monkeypatch.setattr(report, 'picture', lambda *args: '')


@pytest.fixture
def results():
    return simulated_results(TASKS, n=40, off_n=10)


@pytest.fixture
def run(results, tmp_path):
    return write_run(tmp_path/'run', results)


def write_json_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_run(path, results):
    "A run whose texts attack the page"
    rows = results.to_dict('records')
    write_json_lines(path/'results.jsonl', rows)
    for row in rows:
        index = row['index'] if isinstance(row['index'], list) else range(row['n'])
        texts = []
        for i, bit in zip(index, row['items']):
            answer = 'Yes' if bit == '1' else HOSTILE
            texts.append(dict(index=i, text=f"{row['arm']} {HOSTILE}", answer=answer,
                              correct=bit == '1'))
        write_json_lines(prediction_path(path, row), texts)
    config = dict(command=f'cotkd run toy {HOSTILE}', versions=dict(torch=HOSTILE),
                  cost=dict(kd=COST, kd_cot=COST))
    (path/'config.json').write_text(json.dumps(config))
    return path


class Page(HTMLParser):
    "Every tag closed in order, and the addresses a page would fetch"

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.addresses = []
        self.tags = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'srcset', 'href')]
        if tag not in ('meta', 'img', 'source', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(run):
    return write_report(run).read_text()


def test_one_safe_page(run):
    text = write_report(run, QUESTIONS).read_text()
    page = Page(text)
    assert not page.open
    assert 'script' not in page.tags and 'h2' in page.tags
    assert page.addresses
    assert all(address.startswith('data:image/png;base64,') for address in page.addresses)
    assert write_report(run, QUESTIONS).read_text() == text
    for words in ('kd &lt;/div&gt;', 'kd_cot &lt;/div&gt;', 'Q0 &lt;/div&gt;', '61,234',
                  '1.25e+13', 'cotkd run toy', 'SIMULATED'):
        assert words in text
    found = sorted(os.listdir(run))
    assert found == ['config.json', 'predictions', 'report.html', 'results.jsonl']


def test_headline_and_table_say_the_same(run, results, no_figure):
    text = page_of(run)
    macro = gains_table(results).loc['kd:kd_cot', 'macro']
    for number in (macro.delta, macro.low, macro.high):
        assert f'{number:+.1f}'.replace('-', '−') in text
    assert f'{macro.a:.1f}%' in text and f'{macro.b:.1f}%' in text


def test_an_interrupted_run_has_figure_and_page(tmp_path, no_figure):
    results = simulated_results(['navigate', 'snarks'], n=20, off_n=5)
    part = results[results.arm.isin(['student', 'kd_cot'])]
    for draw in (plot_gains, plot_tasks):
        draw(part).canvas.draw()
    run = write_run(tmp_path/'run', part)
    for draw in (plot_errors, plot_lengths):
        draw(answer_table(run)).canvas.draw()
    text = page_of(run)
    assert 'Base student' in text and 'KD+CoT' in text


def test_texts_of_an_arm_that_stayed_elsewhere(tmp_path, no_figure):
    "As where a run went on from another machine: the numbers are there, its answers are not"
    run = write_run(tmp_path/'run', simulated_results(['navigate', 'snarks'], n=20, off_n=5))
    for path in (run/'predictions/kd').rglob('*.jsonl'):
        path.write_text('')
    text = write_report(run, chosen=['kd:kd_cot']).read_text()
    assert 'KD → KD+CoT' in text and 'Inside the answers' not in text


@pytest.mark.parametrize('arm', ['teacher', 'kd'])
def test_one_arm_alone_cannot_be_compared(arm, tmp_path, no_figure):
    results = simulated_results(['navigate', 'snarks'], n=20, off_n=5)
    part = results[results.arm == arm]
    run = write_run(tmp_path/'run', part)
    for ask in (lambda: plot_gains(part), lambda: plot_errors(answer_table(run)),
                lambda: write_report(run)):
        with pytest.raises(InputError, match=f'only the arm {arm} has results'):
            ask()
    plot_tasks(part).canvas.draw()
    plot_lengths(answer_table(run)).canvas.draw()


def test_a_task_without_a_question_that_fits(tmp_path, no_figure):
    results = simulated_results(['navigate', 'geometric_shapes'], n=20, off_n=5)
    nothing = dict(n=0, correct=0, items='', index=[], skipped=20)
    rows = results.to_dict('records')
    for row in rows:
        if (row['task'], row['arm']) == ('geometric_shapes', 'kd_cot'):
            row |= nothing
    results = type(results)(rows)
    assert '40 questions could not be asked' in page_of(write_run(tmp_path/'run', results))
    table = gains_table(results).loc['kd:kd_cot']
    assert np.isnan(table.delta['geometric_shapes'])
    assert table.a['macro'] == table.a['navigate']


def test_all_27_tasks_fit_and_name_their_averages(tmp_path, no_figure):
    results = simulated_results(BBH_TASKS, n=10, seeds=(0, 1), off_n=3).assign(benchmark='bbh')
    fig = plot_gains(results)
    fig.canvas.draw()
    width, height = fig.get_size_inches() * fig.dpi
    for ax in fig.axes:  # every label and printed interval is inside the figure
        for text in [*ax.get_yticklabels(), *ax.texts]:
            box = text.get_window_extent()
            inside = 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height
            assert inside, text.get_text()
    text = page_of(write_run(tmp_path/'run', results))
    for name in ('all_27', 'micro', 'all_23', 'nlp_12', 'algorithmic_11'):
        assert name in text


def test_failure_leaves_the_old_page(run, no_figure, monkeypatch):
    old = write_report(run).read_bytes()
    monkeypatch.setattr(report, 'picture', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert (run/'report.html').read_bytes() == old
    assert len(os.listdir(run)) == 4


@pytest.mark.parametrize('file, text', [
    ('results.jsonl', '{'), ('results.jsonl', ''), ('config.json', '{'), ('config.json', '[]'),
    ('predictions/kd/direct-0-0/navigate.jsonl', '[1]')])
def test_damaged_files_get_one_clear_line(file, text, run, no_figure):
    (run/file).write_text(text)
    with pytest.raises(InputError) as error:
        write_report(run)
    assert (file if text else 'no result in') in str(error.value)
    assert '\n' not in str(error.value)
    assert not (run/'report.html').exists()


def test_kinds_of_answers_are_counted_from_the_predictions(run, tmp_path):
    file = run/'predictions/kd/direct-0-0/navigate.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = [row for row in rows if not row['correct']]
    for row in rows:
        row |= dict(text='one two three', answer='Yes')
    for row, answer in zip(wrong, ('No', '(A)', '', 'yes')):
        row['answer'] = answer
    write_json_lines(file, rows)
    answers = answer_table(run)
    own = answers[(answers.arm == 'kd') & (answers['mode'] == 'direct')
                  & (answers.task == 'navigate')]
    assert len(wrong) >= 4 and set(own.words) == {3}
    kinds = dict(zip(own['index'], own.kind))
    # yes is no answer to a question with Yes and No
    assert [kinds[row['index']] for row in wrong[:4]] == [KINDS[kind] for kind in 'wfnf']
    save_answers(answers, tmp_path/'answers.jsonl')
    assert 'three' not in (tmp_path/'answers.jsonl').read_text()
    again = load_answers(tmp_path/'answers.jsonl', load_results(run))
    assert again[list(answers)].to_dict('records') == answers.to_dict('records')


def test_length_bins_hold_every_answer_once(run):
    answers = answer_table(run)
    answers['words'] = np.arange(len(answers)) % 50
    bins = length_bins(answers, 'kd_cot')
    assert bins.n.sum() == 80 and len(bins) == 5
    assert (bins.shortest[1:].to_numpy() > bins.longest[:-1].to_numpy()).all()
    assert ((bins.low < bins.accuracy) & (bins.accuracy < bins.high)).all()
    assert len(length_bins(answers.assign(words=7), 'kd_cot')) == 1
    assert length_bins(answers[:0], 'teacher').empty


def test_packaged_answers_belong_to_the_packaged_results():
    results = packaged_results()
    with resources.as_file(resources.files('cotkd')/'results'/'toy_bbh_answers.jsonl') as file:
        assert 'text' not in file.read_text()
        answers = load_answers(file, results)
    assert len(answers) == results.n.sum()
    keys = [answers[name] for name in ('arm', 'task', 'mode', 'seed')]
    right = (answers.kind == 'right').groupby(keys).sum()
    for row in results.to_dict('records'):
        assert right[row['arm'], row['task'], row['mode'], row['seed']] == row['correct']


def test_right_answers_and_the_headline_are_one_number(run):
    table = error_table(answer_table(run))
    macro = gains_table(load_results(run)).loc['kd:kd_cot', 'macro']
    right = table.loc['right'].astype(float).to_numpy()
    for number in (macro.a, macro.b, macro.delta):
        assert np.isclose(right, number).any()


def test_without_predictions_there_is_no_section_about_answers(run, no_figure):
    assert 'Inside the answers' in page_of(run)
    shutil.rmtree(run/'predictions')
    assert answer_table(run).empty
    assert 'Inside the answers' not in page_of(run)


def test_contamination_is_told_where_it_was_checked(run, no_figure):
    assert 'words in a row' not in page_of(run)
    config = json.loads((run/'config.json').read_text())
    found = dict(n=13, rows=12_000, questions=80, too_short=3)
    for overlapping, words in ((0, '0 of 80 questions share 13 words in a row'),
                               (7, 'compare them before you trust')):
        config['contamination'] = found | dict(overlapping=overlapping)
        (run/'config.json').write_text(json.dumps(config))
        text = page_of(run)
        assert words in text and '12,000 training rows' in text


def test_every_number_names_its_scorer(run, no_figure):
    text = page_of(run)
    for part in ("<p class='lead'>", '<h2>The arms</h2>', '<h2>KD → KD+CoT, task by task</h2>',
                 '<h2>Every arm on every task</h2>'):
        assert 'official exact-match scorer' in text.split(part)[1].split('</p>')[0], part


# --- a comparison is of what both answered

def result(arm, items, mode=None, **changes):
    mode = mode or dict(kd='direct').get(arm, 'cot')
    row = dict(arm=arm, task='navigate', seed=0, mode=mode, shots=0, scorer='official',
               n=len(items), correct=items.count('1'), items=items, index=None, skipped=0,
               model=arm, benchmark='toy')
    return check_row(row | changes)


WHOLE = '1' * 50 + '0' * 200
PART = result('kd_cot', '1' * 40 + '0' * 10, index=list(range(50)))


def test_the_headline_is_of_the_paired_questions(tmp_path, no_figure):
    run = write_run(tmp_path/'run', pd.DataFrame([result('kd', WHOLE), PART]))
    text = page_of(run)
    assert ('On 50 questions of 1 task (Held-out toy questions), KD+CoT answers 80.0% correctly '
            'and KD 100.0%') in text
    assert 'Rationales cost 20.0 points' in text
    assert '20.0 (n=250)' in text and 'from, %' in text
    assert '20.0%' not in text


def test_shares_of_other_questions_carry_their_n(tmp_path):
    run = write_run(tmp_path/'run', pd.DataFrame([result('kd', WHOLE), PART]))
    fig = plot_errors(answer_table(run))
    ticks = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert ticks == ['KD (n=250)\ndirect', 'KD+CoT\nstep by step']


@pytest.mark.parametrize('rows, why', [
    ([result('kd', '01' * 10), result('kd_cot', '01' * 10, seed=1)], 'other seeds, 0 / 1'),
    ([result('kd', '01' * 10), result('kd_cot', '01' * 10, task='snarks')],
     'other tasks, navigate / snarks'),
    ([result('kd', '01' * 10), result('kd_cot', '01' * 10, mode='direct')],
     'the run is not finished')])
def test_the_page_says_why_there_is_no_comparison(rows, why, tmp_path):
    results = pd.DataFrame(rows)
    assert why in headline(results, gains_table(results))
    text = page_of(write_run(tmp_path/'run', results))
    lead = text.split("<p class='lead'>")[1].split('</p>')[0]
    assert lead.startswith('No question has been answered by both') and why in lead
    assert 'nan' not in lead and 'Rationales' not in lead


@pytest.mark.parametrize('a, b, gain', [('0', '1', '+100.0'), ('000', '111', '+100.0'),
                                        ('000', '000', '+0.0'), ('1' * 9, '0' * 9, '−100.0')])
def test_a_page_of_few_questions_has_no_interval(a, b, gain, tmp_path):
    results = pd.DataFrame([result('kd', a), result('kd_cot', b)])
    text = page_of(write_run(tmp_path/'run', results))
    said = f'KD → KD+CoT: {gain} points (too few questions for an interval)'
    assert said in headline(results, gains_table(results)) and said in text
    assert f'{gain} (too few questions)' in text
    lead = text.split("<p class='lead'>")[1].split('</p>')[0]
    for words in ('Rationales add', 'Rationales cost', '95% CI', 'nan'):
        assert words not in lead
    assert '(too few questions)' in arms_table(results).loc['KD', 'headline, % [95% CI]']


def test_an_arm_with_some_of_the_tasks_says_how_many(tmp_path):
    results = simulated_results(['navigate', 'snarks', 'web_of_lies'], n=20)
    part = results[~((results.arm == 'kd_cot') & (results.task == 'snarks'))]
    table = arms_table(part)['headline, % [95% CI]']
    assert table['KD+CoT'].endswith('(2 of 3 tasks)') and 'tasks' not in table['KD']
    found = limits(part, gains_table(part))
    assert any('over the 2 tasks that both arms answered' in text for text in found)
    found = limits(results, gains_table(results))
    assert any('over the 3 tasks listed here' in text for text in found)


def test_students_of_other_models_have_a_page_only_when_named(tmp_path):
    rows = [result('kd', '01' * 20, start='s1'), result('kd_cot', '10' * 20, start='s2')]
    run = write_run(tmp_path/'run', pd.DataFrame(rows))
    for ask in (lambda: write_report(run), lambda: plot_errors(answer_table(run))):
        with pytest.raises(InputError, match='kd .from s1. and kd_cot .from s2. are students of'):
            ask()
    assert not (run/'report.html').exists()
    text = write_report(run, chosen=['kd:kd_cot']).read_text()
    assert '(students of different base models)' in text


def test_of_two_numbers_of_shots_one_is_chosen(tmp_path, no_figure):
    asked = {0: '01' * 10, 3: '1' * 19 + '0'}
    rows = [result(arm, items, shots=shots) for shots, items in asked.items()
            for arm in ('kd', 'kd_cot')]
    run = write_run(tmp_path/'run', pd.DataFrame(rows))
    with pytest.raises(InputError, match='mix shots 0 and 3.*--shots 0 or --shots 3'):
        write_report(run)
    text = write_report(run, shots=3).read_text()
    assert 'KD+CoT answers 95.0% correctly' in text and '3-shot' in text


def test_examples_are_of_a_seed_that_both_have(tmp_path):
    rows = [result('kd', '01' * 6), result('kd', '01' * 6, seed=1),
            result('kd_cot', '10' * 6, seed=1)]
    results = pd.DataFrame(rows)
    html = side_by_side(write_run(tmp_path/'run', results), results)
    assert html.count('<details') == 2 and 'mathjax_ignore' in html


def test_what_each_arm_cost(run, no_figure):
    "Arms that read on are told apart from those that saw the same rows"
    config = json.loads((run/'config.json').read_text())
    assert 'for the same number of updates' in page_of(run)
    config['cost']['kd'] = COST | dict(updates=2_000, supervised_tokens=61_240)
    (run/'config.json').write_text(json.dumps(config))
    text = page_of(run)
    assert 'for the same number of updates' not in text and 'read on, for more updates' in text
    for words in '2,000', '900', '61,240', '61,234', '1.25e+13':
        assert f'<td>{words}</td>' in text


# --- names and texts

NAMES = ['..', 'mine@v2', '../../../escape', '/etc/escape', '.hidden', '', 'C:\\Users\\me',
         'x' * 300, '$x_$', '<script>alert(1)</script>', "' onload='x", 'a\x1b[31m', '\u202eexe',
         '模型', 'KD', 'new\nline']


@pytest.mark.parametrize('name', NAMES)
def test_any_name_of_arm_and_task_stays_in_the_run_and_is_read_back(name, tmp_path, no_figure):
    rows = [result(arm, '01' * 10, task=task, model=name)
            for arm in ('kd', 'kd_cot', name) for task in ('navigate', name)]
    run = write_run(tmp_path/'run', pd.DataFrame(rows))
    files = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert len(files) == 8 and all((run/'predictions') in path.parents for path in files
                                   if path.parent != run)
    answers = answer_table(run)
    assert len(answers) == 120 and set(answers.arm) == {'kd', 'kd_cot', name}
    assert set(answers.task) == {'navigate', name}
    text = page_of(run)
    page = Page(text)
    assert not page.open and 'script' not in page.tags and not page.addresses
    assert report.escape(arm_label(name)) in text and report.escape(task_label(name)) in text
    assert '\x1b' not in text and '\u202e' not in text


TWO = pd.DataFrame([result('kd', '01' * 10), result('kd_cot', '10' * 10)])


@pytest.mark.parametrize('mark, shown', [
    ('\x1b[31m', '\\x1b[31m'), ('\u202e', '\\u202e'), ('\u200b', '\\u200b'), ('\x00', '\\x00'),
    ('\u2066', '\\u2066'), ('\ud800', '\\ud800')])
def test_marks_in_answers_and_questions_are_written_out(mark, shown, tmp_path, no_figure):
    run = write_run(tmp_path/'run', TWO)
    for file in (run/'predictions').rglob('*.jsonl'):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_json_lines(file, [row | dict(text=f'before{mark}after', answer=f'No{mark}')
                                for row in rows])
    text = write_report(run, dict(navigate=[f'Who{mark}?'] * 20)).read_text()
    assert mark not in text
    for words in (f'before{shown}after', f'No{shown}', f'Who{shown}?'):
        assert words in text


def test_the_lens_shows_dollars_and_marks_as_they_are():
    tokens = [' $', '5', '\n', 'a_$', '\\alpha$', '\x1b', '\u202e', '<b>', '$^', ' {z}$']
    best = [[(token, .9), ('$x$', .1)] for token in tokens]
    kl = pd.DataFrame({'$s_1$\u202e': np.linspace(0, 3, len(tokens))})
    lens = Lens(tokens, ['rationale'] * len(tokens), kl, {'teacher': best, '$s_1$\u202e': best})
    for i, token in enumerate(tokens):
        fig = plot_token(lens, i)
        fig.canvas.draw()
        words = [text for text in fig.findobj(plt.Text) if '$' in text.get_text()]
        assert words and not any(text.get_parse_math() for text in words)
        assert repr(token) in fig._suptitle.get_text()
        assert '\u202e' not in ''.join(text.get_text() for text in fig.findobj(plt.Text))
        plt.close(fig)
    fig = plot_token(lens, 0, ['teacher'])  # some of the models
    assert [ax.get_title('left') for ax in fig.axes] == ['teacher']
    plt.close(fig)
    html = show_tokens(lens, '$s_1$\u202e')
    assert not Page(html).open and 'b' in Page(html).tags and html.count('<b>') == 1
    assert 'mathjax_ignore' in html and '\\x1b' in html and '\\u202e' in html
    assert '\x1b' not in html and '\u202e' not in html


def test_an_answer_about_money_is_no_mathematics(tmp_path):
    run = write_run(tmp_path/'run', TWO)
    answers = answer_table(run)
    for draw in (plot_errors, plot_lengths):
        for text in draw(answers).findobj(plt.Text):
            if text.get_text().strip('0123456789−.'):
                assert not text.get_parse_math(), text.get_text()
