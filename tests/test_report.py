"The page of whole, interrupted and hostile runs."
import json
import os
import shutil
from html.parser import HTMLParser
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cotkd import report
from cotkd.bbh import BBH_TASKS
from cotkd.figures import plot_gains, plot_tasks
from cotkd.files import InputError
from cotkd.gains import gains_table
from cotkd.records import load_results, packaged_results, prediction_path, simulated_results
from cotkd.report import (KINDS, answer_table, error_table, length_bins, load_answers, plot_errors,
                          plot_lengths, save_answers, write_report)

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
    monkeypatch.setattr(report, 'picture', lambda draw, text: '')


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
