"What `load_cot` does with good, broken and large files; the generated rows, to the byte."
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from cotkd.bbh import load_bbh
from cotkd.data import (COLUMNS, HUB_FILE, HUB_ID, InputError, browse, contamination, describe,
                        find_rows, lengths, load_cot, show_row, split_cot)
from cotkd.toy import EVALUATED, MIX, TOY_TASKS, make_toy

ROWS = []
for i in range(30):
    ROWS.append(dict(source=f'What is {i} plus 1?', target=str(i + 1),
                     rationale=f'{i} plus 1 is {i + 1}.', task='add', type='CoT'))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "A cache of its own for every test"
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', folder)
    return folder/'cotkd'


@pytest.fixture
def write(tmp_path):
    "Write text, bytes, or rows as JSON lines"
    def _write(content, name='rows.jsonl'):
        if isinstance(content, list):
            content = '\n'.join(json.dumps(row) for row in content)
        path = tmp_path/name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return _write


def error(source, **kwargs):
    "The message of the InputError that loading `source` raises: always one line"
    with pytest.raises(InputError) as caught:
        load_cot(source, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    return message


def keyed(rows, **kwargs):
    return json.dumps({str(i): row for i, row in enumerate(rows)}, **kwargs)


def dataset(n, **columns):
    "n rows whose columns are functions of their number"
    rows = []
    for i in range(n):
        rows.append(ROWS[0] | {name: value(i) for name, value in columns.items()})
    return datasets.Dataset.from_list(rows)


def quarantined(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Good files

@pytest.mark.parametrize('content, name', [
    (ROWS, 'rows.jsonl'),
    (ROWS, 'lines.json'),
    (keyed(ROWS), 'hub.json'),
    (keyed(ROWS, indent=4), 'hub.json'),
    (b'\xef\xbb\xbf' + keyed(ROWS).encode(), 'bom.json'),
    ('\r\n\r\n'.join(map(json.dumps, ROWS)), 'rows.jsonl'),
])
def test_every_shape_gives_the_same_rows(write, caplog, content, name):
    ds = load_cot(write(content, name))
    assert ds.column_names == list(COLUMNS)
    assert list(ds) == ROWS
    assert not caplog.records


def test_directory_and_list(write, tmp_path):
    b = write(ROWS[:2], 'b.jsonl')
    a = write(ROWS[2:5], 'a.jsonl')
    write('no rows', 'notes.txt')
    assert list(load_cot(tmp_path)) == ROWS[2:5] + ROWS[:2]
    assert list(load_cot([b, str(a)])) == ROWS[:5]


def test_defaults_extra_columns_numbers_and_spaces(write):
    raw = dict(source=' 6 times 7?\n', target=42, rationale='It is 42.', score=.5)
    row, = load_cot(write([raw]))
    assert row == dict(source='6 times 7?', target='42', rationale='It is 42.', task='unknown',
                       type='CoT')


def test_numbers_mean_the_same_in_both_shapes(write):
    rows = [ROWS[0] | dict(target=target) for target in (7, 7.5, 1e3, -3, 10**30)]
    lines = load_cot(write(rows))
    assert load_cot(write(keyed(rows), 'hub.json'))['target'][:] == lines['target'][:]


@pytest.mark.parametrize('text', ['\U0001fae8', '\ue000', '8\u200b'])
def test_what_is_seen_is_a_text(write, text):
    "Also a letter that this Python does not know yet"
    row = ROWS[0] | dict(target=text)
    assert load_cot(write(json.dumps(row)))[0]['target'] == text


def test_line_separators_inside_text_do_not_end_a_line(write):
    row = ROWS[0] | dict(rationale='one\u2028two\x85three')
    assert list(load_cot(write(json.dumps(row, ensure_ascii=False)))) == [row]


def test_limit_counts_usable_rows(write):
    path = write([ROWS[0] | dict(target=''), *ROWS])
    assert list(load_cot(path, limit=3)) == ROWS[:3]
    assert len(load_cot(path, limit=1000)) == 30
    assert error(path, limit=0).startswith('limit is 0; expected')


def test_limit_does_not_read_on(write):
    lines = '\n'.join(map(json.dumps, ROWS))
    assert len(load_cot(write(lines + '\nbroken'), limit=30)) == 30
    assert len(load_cot(write(keyed(ROWS)[:-20], 'hub.json'), limit=20)) == 20


# Rows that cannot be used

def test_unusable_rows_are_dropped_counted_and_kept_aside(write, caplog, tmp_path):
    without_source = {k: v for k, v in ROWS[3].items() if k != 'source'}
    bad = [ROWS[0] | dict(rationale=' '), ROWS[1] | dict(rationale=''),
           ROWS[2] | dict(target=None), 7, without_source,
           ROWS[4] | dict(source='caf\ufffd'), ROWS[5] | dict(target=[1])]
    path = write([ROWS[6], *bad, ROWS[7]])
    quarantine = tmp_path/'quarantine.jsonl'
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert list(load_cot(path, quarantine=quarantine)) == ROWS[6:8]
        assert [record.getMessage() for record in caplog.records] == [
            f'{path}: 7 of 9 rows dropped (2 rationale empty, 1 target missing, '
            '1 not an object, 1 source missing, 1 source unreadable, 1 target not text), '
            f'kept in {quarantine}']
        kept = quarantined(quarantine)
        quarantine.unlink()
    assert [line['row'] for line in kept] == [2, 3, 4, 5, 6, 7, 8]
    assert [line['data'] for line in kept] == bad
    assert kept[0] == dict(reason='rationale empty', file='rows.jsonl', row=2, data=bad[0])


def test_quarantine_names_the_key_of_the_hub_shape(write, tmp_path):
    bad = ROWS[1] | dict(target=2.5, source=None)
    path = write(keyed([ROWS[0], bad]), 'hub.json')
    load_cot(path, quarantine=tmp_path/'new'/'q')
    assert quarantined(tmp_path/'new'/'q') == [
        dict(reason='source missing', file='hub.json', row='1', data=bad)]


def test_quarantine_of_a_clean_file_is_empty(write, tmp_path):
    load_cot(write(ROWS), quarantine=tmp_path/'q')
    assert (tmp_path/'q').read_text() == ''


def test_wrong_bytes_and_lone_surrogates_cost_a_row_not_the_run(write):
    wrong_byte = json.dumps(ROWS[1] | dict(target='XX')).encode().replace(b'XX', b'caf\xe9')
    lines = [json.dumps(ROWS[0]).encode(), wrong_byte,
             json.dumps(ROWS[2] | dict(rationale='\ud800')).encode(),
             json.dumps(ROWS[3] | dict(source='a\x00')).encode()]
    assert list(load_cot(write(b'\n'.join(lines)))) == ROWS[:1]


UNUSABLE = {
    'missing': [None],
    'empty': ['', ' ', ' \n\t', '\u2003\xa0', '\u200b', '\ufeff'],
    'not text': [True, False, [], ['a', ['b']], {}, {'text': 'a'}, float('nan'), float('inf'),
                 -float('inf')],
    'unreadable': ['a\x00', '\x1b[1m', '\x08', '\x7f', 'a\ud83d', '\ude00b', '\ude00\ud83d',
                   'caf\ufffd'],
}
NO_OBJECTS = [None, True, 7, -.5, float('nan'), 'text', '', [], [ROWS[0]], [[]]]


def broken_rows():
    "(reason, row) for every kind of row that cannot be used"
    for column in ('source', 'target', 'rationale'):
        yield f'{column} missing', {k: v for k, v in ROWS[0].items() if k != column}
        for reason, values in UNUSABLE.items():
            for value in values:
                yield f'{column} {reason}', ROWS[0] | {column: value}
    for column in ('source', 'rationale'):
        for value in (7, 7.5):
            yield f'{column} not text', ROWS[0] | {column: value}
    for value in NO_OBJECTS:
        yield 'not an object', value
    yield 'source missing', {}
    yield 'source missing', dict(question='a', target='b', rationale='c')


@pytest.mark.parametrize('shape', ['lines', 'keyed', 'keyed, indented'])
def test_exactly_the_broken_rows_end_in_quarantine(write, tmp_path, shape):
    "Every kind of broken row, one to three good ones between two of them"
    broken = list(broken_rows())
    assert len(broken) > 50
    rows, good, places = [], [], []
    for i, (_, row) in enumerate(broken):
        for _ in range(1 + i % 3):
            good.append(ROWS[len(good) % 30] | dict(
                source=f'Question {len(good)}?',
                rationale='one\ttwo\n\U0001f600 "three" \\u0000'))
            rows.append(good[-1])
        places.append(len(rows) + 1 if shape == 'lines' else str(len(rows)))
        rows.append(row)
    if shape == 'lines':
        path = write(rows)
    else:
        path = write(keyed(rows, indent=4 if 'indented' in shape else None), 'hub.json')
    assert list(load_cot(path, quarantine=tmp_path/'q')) == good
    kept = quarantined(tmp_path/'q')
    reasons = [reason for reason, _ in broken]
    assert [(line['row'], line['reason']) for line in kept] == list(zip(places, reasons))
    texts = [json.dumps(row) for _, row in broken]  # as text, for NaN is not NaN
    assert [json.dumps(line['data']) for line in kept] == texts


def test_wrong_bytes_cost_a_row_of_the_hub_shape(write, tmp_path):
    path = write(keyed(ROWS).encode().replace(b'What is 7', b'What is \xe9'), 'hub.json')
    assert list(load_cot(path, quarantine=tmp_path/'q')) == ROWS[:7] + ROWS[8:]
    assert quarantined(tmp_path/'q')[0]['row'] == '7'


# Files that cannot be used

def test_no_such_file(tmp_path):
    path = tmp_path/'no.jsonl'
    assert error(path) == (
        f'{path}: no such file; expected one of JSON lines, JSON, parquet, arrow, csv or tsv, a '
        'directory of these, or an id of the hub such as "kaist-ai/CoT-Collection". Check the '
        'path.')


def test_empty_directory(tmp_path):
    assert error(tmp_path) == (f'{tmp_path}: no file of rows in this directory (.jsonl, .parquet, '
                               '.arrow, .csv, .tsv). Pass the file itself.')


@pytest.mark.parametrize('source', [[], '', None])
def test_empty_source(source):
    assert error(source) == (f'source is {source!r}; expected a file, a directory, a list of '
                             'them or "kaist-ai/CoT-Collection".')


@pytest.mark.parametrize('broken', [
    '{"source": "a"',
    'source,target',
    '{"source": "a"} {"source": "b"}',
])
def test_broken_line_is_named(write, broken):
    path = write('\n'.join([json.dumps(ROWS[0]), '', broken, json.dumps(ROWS[1])]))
    message = error(path)
    assert message.startswith(f'{path}, line 3: not valid JSON (')
    assert message.endswith('); expected one object per line. Repair or delete this line.')


WHOLE = keyed(ROWS)


@pytest.mark.parametrize('text, place, problem', [
    (WHOLE[:-10], 'after key "28"', 'the file ends too early'),
    (WHOLE.replace('"12": {"source"', '"12": {source'), 'after key "11"', 'not valid JSON'),
    (WHOLE.replace('"0": {"source"', '"0": {source'), 'before its first complete row',
     'not valid JSON'),
    (WHOLE + ' more', 'after key "29"', 'not valid JSON'),
], ids=['cut', 'middle', 'start', 'more'])
def test_broken_object_names_the_last_good_key(write, text, place, problem):
    path = write(text, 'hub.json')
    assert error(path) == (f'{path}, {place}: {problem}; expected one object keyed "0", "1", … '
                           'Repair the file, or download it again.')


def test_a_cut_list_names_the_last_good_row(write):
    path = write(json.dumps(ROWS)[:-10], 'list.json')
    assert error(path) == (f'{path}, after row 29: the file ends too early; expected a list of '
                           'objects. Repair the file, or download it again.')


@pytest.mark.parametrize('name', ['rows.jsonl', 'hub.json'])
def test_question_missing_everywhere(write, name):
    rows = [dict(frage='a', target='b', rationale='c')] * 3
    path = write(rows if name == 'rows.jsonl' else keyed(rows), name)
    assert error(path) == (
        f'{path}: none of the columns frage, target, rationale is known to hold the question: '
        'name the columns, such as --columns source=question,rationale=steps,target=answer')


def test_no_usable_row(write):
    path = write([ROWS[i] | dict(rationale=text) for i, text in enumerate(['', None, ''])])
    assert error(path) == (
        f'{path}: none of its 3 rows can be used (2 rationale empty, 1 rationale missing). '
        'Each needs text in source, target, rationale; other columns are named with --columns.')


@pytest.mark.parametrize('content, name', [
    ('', 'rows.jsonl'),
    ('\n \n', 'rows.jsonl'),
    ('', 'hub.json'),
])
def test_no_rows(write, content, name):
    path = write(content, name)
    assert error(path) == (f'{path}: no rows; expected one object per line with source, target, '
                           'rationale.')


def test_errors_leave_no_files(write, cache, tmp_path):
    quarantine = tmp_path/'quarantine.jsonl'
    for content in ([ROWS[0] | dict(target='')], 'broken', ''):
        error(write(content), quarantine=quarantine)
    assert not list(cache.iterdir())
    assert not quarantine.exists()


def test_quarantine_never_overwrites_the_source(write):
    path = write(ROWS)
    assert error(path, quarantine=path) == (f'quarantine is {path}, one of the files to read; it '
                                            'would be overwritten. Name another file.')
    assert len(load_cot(path)) == 30


def test_a_cache_that_cannot_be_written_is_one_line(write, cache):
    cache.write_text('a file in its place')
    assert f'{cache}/' in error(write(ROWS))


# The hub

def test_hub_id_is_resolved_to_its_file(write, monkeypatch, caplog):
    path = write(keyed(ROWS), 'hub.json')
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        return str(path)

    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    assert list(load_cot(HUB_ID, limit=4)) == ROWS[:4]
    assert asked == [((HUB_ID, HUB_FILE), dict(repo_type='dataset'))]
    assert 'CC-BY-4.0' in caplog.text


def test_the_licence_is_told_once(write, monkeypatch, caplog, cache):
    hub = write(keyed(ROWS), 'CoT_collection_en.json')
    other = write(ROWS)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda *args, **kwargs: str(hub))
    load_cot(other)
    assert not caplog.records
    for source, limit in [(HUB_ID, None), (HUB_ID, None), (HUB_ID, 3), (hub, 4),
                          ([other, hub], None)]:
        load_cot(source, limit)
    assert len(caplog.records) == 1
    assert 'CC-BY-4.0' in (cache/'CoT-Collection.licence.txt').read_text()


def test_the_licence_is_told_of_the_file_itself(write, caplog):
    load_cot(write(keyed(ROWS), 'CoT_collection_en.json'))
    assert ['CC-BY-4.0' in record.getMessage() for record in caplog.records] == [True]


def test_unreachable_hub_says_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no route\nto host')

    monkeypatch.setattr('huggingface_hub.hf_hub_download', fail)
    assert error(HUB_ID) == (
        'kaist-ai/CoT-Collection: could not be fetched from the hub (OSError). Download '
        'data/CoT_collection_en.json from '
        'https://huggingface.co/datasets/kaist-ai/CoT-Collection elsewhere and pass its path.')


@pytest.fixture
def school(tmp_path, monkeypatch):
    "A copy of a data set of the hub, with two configs and splits"
    place = tmp_path/'school/math'
    names = []
    for config in 'main', 'hard':
        (place/config).mkdir(parents=True)
        names.append(f'- config_name: {config}\n  data_files:\n')
        for split, n in ('train', 5), ('test', 3):
            lines = [json.dumps(dict(question=f'{config} {split} {i}?', answer=f'So.\n#### {i}'))
                     for i in range(n)]
            (place/config/f'{split}.jsonl').write_text('\n'.join(lines))
            names.append(f'  - {{split: {split}, path: {config}/{split}.jsonl}}\n')
    (place/'README.md').write_text('---\nconfigs:\n' + ''.join(names) + '---\n')
    monkeypatch.chdir(tmp_path)


def test_config_and_split_of_the_hub(school):
    assert load_cot('school/math:main@test')['source'] == [f'main test {i}?' for i in range(3)]
    assert load_cot('school/math:hard', limit=4)['target'] == ['0', '1', '2', '3']
    assert len(load_cot(['school/math:hard@train', 'school/math:main@test'])) == 8


def test_the_hub_is_asked_for_config_and_split(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        whole = datasets.Dataset.from_list([dict(question='q', answer='So.\n#### 7')])
        whole.save_to_disk(tmp_path/'kept')
        return datasets.load_from_disk(tmp_path/'kept')

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    assert load_cot('school/math:main@test')['target'] == load_cot('a-b/c.d')['target'] == ['7']
    assert asked == [('school/math', 'main', 'test'), ('a-b/c.d', None, 'train')]


def test_a_data_set_of_the_hub_is_known_by_its_bytes(school):
    from cotkd.experiment import data_identity
    before = data_identity('school/math:main@test')
    assert before == data_identity('school/math:main@test') != data_identity('school/math:main')
    file = Path('school/math/main/test.jsonl')
    file.write_text(file.read_text().replace('#### 0', '#### 9'))
    assert data_identity('school/math:main@test') != before


@pytest.mark.parametrize('source, message', [
    ('school/math:other', "'other' not found. Available: ['main', 'hard']"),
    ('school/math:main@dev', "Unknown split 'dev', it has train, test"),
    ('school/none', "Couldn't reach 'school/none' on the Hub"),
    ('school/math:main@train[:2]', 'no such file')])
def test_what_the_hub_does_not_have(school, source, message):
    assert message in error(source) and '\n' not in error(source)


# The cache

def test_second_load_reads_the_cache_and_a_changed_file_does_not(write, monkeypatch):
    path = write(ROWS)
    load_cot(path)
    with monkeypatch.context() as patch:
        patch.setattr('cotkd.data._write_arrow', None)
        assert list(load_cot(path)) == ROWS
    path.write_text(json.dumps(ROWS[3]))
    assert list(load_cot(path)) == ROWS[3:4]


LARGE = """
import re, sys, datasets
from pathlib import Path
from cotkd.data import load_cot
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
def peak():
    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024
before = peak()
ds = load_cot(sys.argv[1])
print(len(ds), ds.num_columns, peak() - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(),
                    reason='needs the peak memory that Linux keeps')
def test_large_object_is_never_in_memory(tmp_path):
    "40 MB in one line; to read it whole takes 80 MB and more"
    path, n = tmp_path/'large.json', 20_000
    with open(path, 'w') as file:
        for i in range(n):
            row = dict(source=f'{i} ' + 'question ' * 110, target=str(i), rationale='step ' * 180)
            file.write(('{' if i == 0 else ', ') + f'"{i}": {json.dumps(row)}')
        file.write('}')
    assert path.stat().st_size > 36e6
    result = subprocess.run([sys.executable, '-c', LARGE, path, tmp_path], capture_output=True,
                            text=True, check=True)
    rows, columns, grown = result.stdout.split()
    assert (int(rows), int(columns)) == (n, 5)
    assert float(grown) < 34, f'peak memory grew by {grown} MB'


class Bar:
    "What `load_cot` needs of a progress bar"
    bars = []

    def __init__(self, total, **kwargs):
        self.total = total
        self.n = 0
        self.kwargs = kwargs
        Bar.bars.append(self)

    def update(self, n):
        assert n >= 0
        self.n += n

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_progress_is_counted_in_bytes(write, monkeypatch):
    monkeypatch.setattr(Bar, 'bars', [])
    monkeypatch.setattr('cotkd.data.tqdm', Bar)
    paths = [write(ROWS), write(keyed(ROWS), 'hub.json'), write(ROWS[:3], 'more.jsonl')]
    load_cot(paths)
    bar, = Bar.bars
    assert bar.n == bar.total == sum(path.stat().st_size for path in paths)
    assert bar.kwargs['unit'] == 'B'


# Measuring, splitting, showing

def test_lengths_and_shares():
    ds = dataset(4, task=lambda i: 'ab'[i % 2], rationale=lambda i: 'one ' * (10 * i))
    sizes = lengths(ds)
    assert list(sizes.columns) == ['task', 'question', 'rationale', 'target']
    assert sizes.rationale.tolist() == [0, 10, 20, 30]
    table = describe(ds)
    assert table.index.tolist() == ['a', 'b', 'all']
    assert table['share']['b'] == 40 / (40 + 2 * 5 + 2 * 1)
    assert find_rows(sizes, 'b') == [1, 3]
    assert find_rows(sizes, 'b', least=11) == [3]
    assert find_rows(sizes, 'b', most=9) == []


def test_split_is_stable_and_keeps_equal_questions_together():
    ds = dataset(1000, source=lambda i: f'question {i % 700}', target=str)
    train, dev = split_cot(ds, dev=.2)
    assert len(train) + len(dev) == 1000
    assert .15 < len(dev) / 1000 < .25
    assert not set(train['source']) & set(dev['source'])
    again = split_cot(ds.shuffle(seed=3).select(range(500)), dev=.2)
    assert set(again[1]['source']) <= set(dev['source'])
    assert set(again[0]['source']) <= set(train['source'])
    assert set(split_cot(ds, dev=.1)[1]['source']) <= set(dev['source'])
    assert set(split_cot(ds, dev=.2, seed=1)[1]['source']) != set(dev['source'])


def test_split_is_the_same_on_every_machine():
    ds = dataset(40, source=lambda i: f'question {i}')
    dev = split_cot(ds, dev=.1)[1]
    assert dev['source'][:] == ['question 31', 'question 36', 'question 39']


def test_split_by_task_is_stable_and_keeps_tasks_together():
    ds = dataset(2000, source=lambda i: f'question {i}', task=lambda i: f'{i * i % 997 % 40}')
    train, dev = split_cot(ds, dev=.25, by='task')
    assert len(train) + len(dev) == 2000
    assert not set(train['task']) & set(dev['task'])
    assert 4 <= len(set(dev['task'])) <= 16
    again = split_cot(ds.shuffle(seed=3), dev=.25, by='task')
    for side, same in zip((train, dev), again):
        assert sorted(side['source']) == sorted(same['source'])
    assert set(split_cot(ds, dev=.25, seed=1, by='task')[1]['task']) != set(dev['task'])


@pytest.mark.parametrize('by', ['source', 'task'])
def test_split_is_the_same_after_shuffling(by):
    ds = dataset(3000, source=lambda i: f'question {i % 900}', task=lambda i: f'{i % 90}',
                 target=str)
    sides = [sorted(side['target']) for side in split_cot(ds, by=by)]
    for seed in range(3):
        shuffled = split_cot(ds.shuffle(seed=seed), by=by)
        assert [sorted(side['target']) for side in shuffled] == sides


@pytest.mark.parametrize('tasks', [2, 3, 7])
def test_no_side_is_empty_where_there_are_two_tasks(tasks):
    ds = dataset(20, task=lambda i: f'task {i % tasks}')
    for dev, seed in itertools.product((.001, .1, .5, .999), range(5)):
        assert all(map(len, split_cot(ds, dev, seed, by='task')))


def test_split_of_one_value_or_none_is_all_train():
    ds = datasets.Dataset.from_list(ROWS)
    assert [len(side) for side in split_cot(ds, by='task')] == [30, 0]
    assert [len(side) for side in split_cot(ds.select([]))] == [0, 0]


def test_split_refuses_an_unknown_column():
    message = ("by is 'topic'; expected one of the columns source, target, rationale, task, "
               'type')
    with pytest.raises(InputError, match=message):
        split_cot(datasets.Dataset.from_list(ROWS), by='topic')


@pytest.mark.parametrize('dev', [0, 1, 10, -.1])
def test_split_refuses_a_share_outside_0_to_1(dev):
    with pytest.raises(InputError, match=f'dev is {dev}; expected a share between 0 and 1'):
        split_cot(None, dev=dev)


def test_show_row_escapes():
    assert '&lt;b&gt;' in show_row(ROWS[0] | dict(rationale='<b>'))


def test_browse_lists_the_tasks_in_order():
    browser = browse(dataset(4, task=lambda i: 'bcab'[i]))
    controls = browser.children[0]
    assert controls.children[0].options == (('a (1)', 'a'), ('b (2)', 'b'), ('c (1)', 'c'))


def test_browse_moves_the_slider_back_into_a_shorter_task():
    other = ROWS[5] | dict(task='other')
    browser = browse(datasets.Dataset.from_list([*ROWS[:5], other]))
    controls, view = browser.children
    task, _, row = controls.children
    row.value = 4
    assert view.value == show_row(ROWS[4])
    task.value = 'other'
    assert row.value == 0
    assert view.value == show_row(other)


def test_widgets_are_loaded_for_browsing_only():
    program = 'import sys, cotkd.data; print("ipywidgets" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout == 'False\n', done.stderr


# Generated rows

def sha256(rows):
    text = json.dumps(rows, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_generated_rows_are_those_of_the_first_edition():
    "The embedded models and the committed results depend on every random draw"
    assert sha256(make_toy(MIX, 3000, seed=0)) == (
        '40a0f362bd777a868a3c1a6f56893bedf4d6bd4fcad0ac3ad18f3e773c21c38e')
    assert sha256(make_toy(list(TOY_TASKS), 600, seed=1, heldout=True)) == (
        '6f424ccb6cc8b5dcde8eae8ad72c0c2f4a0519842ed399e200d7a8240ae3d2a2')


@pytest.mark.parametrize('task', TOY_TASKS)
def test_a_generated_rationale_ends_where_its_answer_comes_from(task):
    for row in make_toy([task], 200, seed=11):
        rationale, target = row['rationale'], row['target']
        assert TOY_TASKS[task].solve(row['source']) == target
        if task in ('web_of_lies', 'lamps'):
            assert rationale.endswith(('tells the truth.', ' on.')) == (target == 'Yes')
        elif task in ('navigate', 'crane'):
            at = rationale.rsplit(': ', 1)[1]
            assert at.startswith('0 0') == (target == 'Yes')
        elif task in ('hyperbaton', 'months', 'ages'):
            right = next(part for part in rationale.split('(')[1:] if 'yes.' in part)
            assert right[0] == target[1]
        else:
            assert rationale[-2] == target.strip('()')


def test_excluded_questions_are_not_generated():
    questions = frozenset(row['source'] for row in make_toy(EVALUATED, 25))
    assert not questions & {row['source'] for row in make_toy(EVALUATED, 50, exclude=questions)}


# Real rows

def test_hub_sample(cot_data):
    ds = load_cot(cot_data/'CoT_collection_en.sample.json')
    assert len(ds) == 140
    lines = load_cot(cot_data/'cot_mini.jsonl', limit=140)
    assert list(ds) == list(lines)


def test_real_rows_are_all_usable(cot_data, caplog):
    train = load_cot(cot_data/'cot_train.jsonl')
    dev = load_cot(cot_data/'cot_dev.jsonl')
    assert (len(train), len(dev)) == (33_442, 3_427)
    assert not caplog.records
    table = describe(train)
    assert table['rows']['all'] == 33_442
    assert .3 < table['share']['all'] < .6


@pytest.fixture(scope='module')
def questions(bbh_dir):
    return [item['input'] for items in load_bbh(bbh_dir).values() for item in items]


@pytest.mark.parametrize('name, rows', [('cot_train', 33_442), ('cot_dev', 3_427)])
def test_real_rows_share_no_phrase_with_bbh(cot_data, questions, name, rows):
    counts, found = contamination(load_cot(cot_data/f'{name}.jsonl'), questions)
    assert counts == dict(n=13, rows=rows, questions=6511, too_short=738, overlapping=0)
    assert not found


def test_a_planted_question_of_bbh_is_found(cot_data, questions):
    phrase = ' '.join(questions[300].split()[5:25])

    def planted():  # a stream, with the middle of one question inside the last rationale
        yield from load_cot(cot_data/'cot_dev.jsonl', limit=500)
        yield ROWS[0] | dict(rationale=f'As was said: {phrase}, and so on.')

    counts, found = contamination(planted(), questions)
    assert counts['rows'] == 501
    assert found[300] == 500
    assert set(found.values()) == {500}
    assert counts['overlapping'] == len(found)


@pytest.mark.parametrize('task', EVALUATED)
def test_solvers_answer_the_items_of_bbh(bbh_dir, task):
    items = load_bbh(bbh_dir, [task])[task]
    assert all(TOY_TASKS[task].solve(item['input']) == item['target'] for item in items)
