"BIG-Bench-Hard without a directory: a server on this machine plays the hub and the repository"
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cotkd import bbh
from cotkd.bbh import AUTHORS, BBH_TASKS, HUB, MIRROR, REVISION, load_bbh, read_shots
from cotkd.experiment import PRESETS, choose_benchmark

TREE = f'/api/datasets/{HUB}/tree/{REVISION}'
RESOLVE = f'/datasets/{HUB}/resolve/{REVISION}/'
TWO = ['navigate', 'snarks']
NOWHERE = 'http://127.0.0.1:9'  # the port of `discard`: nobody listens


class Handler(BaseHTTPRequestHandler):
    "As the hub answers its library, or as a proxy would on its behalf"
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self):
        self.server.asked.append((self.command, self.path, self.headers))
        path = urlsplit(self.path).path  # of a whole address: we are a proxy
        found = self.server.files.get(path)
        self.send_response(404 if found is None else 200)
        self.send_header('Content-Length', str(len(found or b'')))
        self.send_header('ETag', f'"{hash(found)}"')
        self.send_header('X-Repo-Commit', REVISION)
        self.end_headers()
        return found

    def do_GET(self):
        self.wfile.write(self.do_HEAD() or b'')

    def log_message(self, *args):
        "Nothing is printed"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked = dict(files), []

    @cached_property
    def address(self):
        return 'http://127.0.0.1:{}'.format(self.server_address[1])

    def paths(self, word):
        return [path for command, path, _ in self.asked if command == 'GET' and word in path]


@contextlib.contextmanager
def serving(files):
    "A server, for a while"
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope='module')
def local(bbh_dir):
    "Questions and examples of the directory"
    return dict(items=load_bbh(bbh_dir),
                shots={task: read_shots(task, bbh_dir) for task in BBH_TASKS})


@pytest.fixture(scope='module')
def published(bbh_dir, local):
    "What both places hold: path -> bytes; one file is of no task"
    files = {'/': b''}
    tables = {f'{task}/test-00000-of-00001.parquet': parquet(items)
              for task, items in local['items'].items()}
    tables['data/test-00000-of-00001.parquet'] = parquet([dict(input='Why?', target='So')])
    tree = [dict(type='file', oid=f'{i:040}', path=path, size=len(table))
            for i, (path, table) in enumerate(tables.items())]
    files |= {RESOLVE + path: table for path, table in tables.items()}
    files[TREE] = json.dumps(tree).encode()
    for path in (bbh_dir/'cot-prompts').glob('*.txt'):
        files[f'/{AUTHORS}/{path.name}'] = path.read_bytes()
    return files


@pytest.fixture
def server(published):
    with serving(published) as server:
        yield server


OURS = re.compile('HF_|HUGGING|COTKD_BBH|.*_proxy$', re.IGNORECASE)


def start(code, home, server, words=(), **more):
    "A Python process that knows of nothing but a server; None: there is none"
    env = {name: x for name, x in os.environ.items() if not OURS.match(name)}
    address = server.address if server else NOWHERE
    env |= dict(HF_HOME=str(home), HF_ENDPOINT=address, HF_TOKEN='hf_secret') | {MIRROR: address}
    return subprocess.Popen([sys.executable, '-c', code, *map(str, words)], env=env | more,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


READ = '''
import json, sys
from cotkd.bbh import load_bbh, read_shots
from cotkd.files import InputError
try:
    items = load_bbh('hub', sys.argv[1])
    shots = {task: read_shots(task, 'hub') for task in items}
except InputError as error:
    print(error, file=sys.stderr)
else:
    print(json.dumps(dict(items=items, shots=shots)))
'''


def ask(home, server, tasks=TWO, **more):
    "What a process reads from the hub: all of it, or the one line that says why not"
    process = start(READ, home, server, [','.join(tasks)], **more)
    out, said = process.communicate()
    assert process.returncode == 0, said
    if out:
        assert said == ''  # no bars, no warnings
        return json.loads(out)
    assert said.count('\n') == 1
    return said


def chosen(local, tasks):
    return {part: {task: x[task] for task in tasks} for part, x in local.items()}


@pytest.fixture(scope='module')
def kept(published, tmp_path_factory):
    "Where two tasks were kept by an earlier run"
    home = tmp_path_factory.mktemp('kept')
    with serving(published) as server:
        assert set(ask(home, server)) == {'items', 'shots'}
    return home


@pytest.fixture
def home(kept, tmp_path):
    "A copy of it"
    subprocess.run(['cp', '-a', f'{kept}/.', tmp_path], check=True)
    return tmp_path


# what it is like when all is well

def test_all_tasks_from_the_hub_alone(local, server, tmp_path):
    "To the byte; fetched once, each file by itself, and read without a network ever after"
    assert ask(tmp_path, server, BBH_TASKS) == local
    assert len(server.paths(TREE)) == 1 and len(server.paths(RESOLVE)) == 27
    assert len(server.paths(AUTHORS)) == 27
    trusted = [path for _, path, headers in server.asked if 'Authorization' in headers]
    assert trusted and not any(AUTHORS in path for path in trusted)  # the token is the hub's
    asked = len(server.asked)
    assert ask(tmp_path, server) == chosen(local, TWO) and len(server.asked) == asked
    assert ask(tmp_path, None, BBH_TASKS) == local
    assert ask(tmp_path, None, HF_HUB_OFFLINE='1') == chosen(local, TWO)


def test_one_task_more(local, server, home):
    "Of what is missing no more than that is fetched"
    assert ask(home, server, ['navigate', 'word_sorting']) == chosen(
        local, ['navigate', 'word_sorting'])
    assert {Path(path).parent.name for path in server.paths('.parquet')} == {'word_sorting'}
    assert [Path(path).name for path in server.paths('.txt')] == ['word_sorting.txt']


def test_two_processes_at_once(local, server, tmp_path):
    both = [start(READ, tmp_path, server, [','.join(TWO)]) for _ in range(2)]
    for process in both:
        assert json.loads(process.communicate()[0]) == chosen(local, TWO)
    assert not list(tmp_path.rglob('*.tmp'))


def test_through_a_proxy(local, server, tmp_path):
    "Neither place has an address here: the proxy answers for both"
    places = {'HF_ENDPOINT': 'http://hub.invalid', MIRROR: 'http://prompts.invalid/'}
    found = ask(tmp_path, server, HTTP_PROXY=server.address, **places)
    assert found == chosen(local, TWO)
    hosts = {urlsplit(path).hostname for _, path, _ in server.asked}
    assert hosts == {'hub.invalid', 'prompts.invalid'}


# what it says when not

def prompt(home, task='snarks'):
    return Path(home)/'cotkd'/AUTHORS/f'{task}.txt'


def table(home, task='snarks'):
    return next(Path(home).rglob(f'{task}/*.parquet')).resolve()


def has(said, *words):
    for word in words:
        assert str(word) in said, said


def test_nothing_kept_and_no_way_to_it(tmp_path):
    has(ask(tmp_path, None), HUB, NOWHERE, 'no answer', 'HTTPS_PROXY', 'HF_ENDPOINT', 'COTKD_BBH')
    has(ask(tmp_path, None, HF_HUB_OFFLINE='1'), HUB, tmp_path, 'HF_HUB_OFFLINE is set')
    assert not list(tmp_path.rglob('*.parquet'))


def test_prompts_cannot_be_reached(home):
    prompt(home).unlink()
    has(ask(home, None), 'snarks.txt', NOWHERE, 'ConnectError', f'set {MIRROR}', 'COTKD_BBH')
    has(ask(home, None, HF_HUB_OFFLINE='1'), 'snarks.txt', home, 'HF_HUB_OFFLINE is set')
    has(ask(home, None, **{MIRROR: 'no-address'}), 'no-address', 'UnsupportedProtocol')
    assert not prompt(home).exists()


def test_prompts_that_are_other_ones(home, server):
    "A damaged file is fetched again; one that comes damaged is not kept"
    address = f'{server.address}/{AUTHORS}/snarks.txt'
    whole = prompt(home).read_bytes()
    prompt(home).write_bytes(whole[:-1])
    assert ask(home, server)['shots']['snarks'] and prompt(home).read_bytes() == whole
    server.files[f'/{AUTHORS}/snarks.txt'] = whole[:-1]
    prompt(home).unlink()
    found = bbh.digest_prompt(whole[:-1])
    has(ask(home, server), address, found, bbh.PROMPT_DIGESTS['snarks'], MIRROR, 'COTKD_BBH')
    del server.files[f'/{AUTHORS}/snarks.txt']
    has(ask(home, server), address, 'HTTP 404', MIRROR, 'COTKD_BBH')
    assert not prompt(home).exists()


def test_questions_that_are_other_ones(home, local, server):
    "A damaged file is named; once it is gone it is fetched again"
    way_out = 'delete it, and the next run fetches it again'
    path = table(home)
    path.write_bytes(path.read_bytes()[:-1])
    has(ask(home, None), path, 'is broken', way_out)
    path.write_bytes(parquet(local['items']['snarks'][::-1]))
    has(ask(home, None), path, 'other texts or another order', way_out)
    path.unlink()
    assert ask(home, server) == chosen(local, TWO)


@pytest.mark.parametrize('lacks, words', [
    (TREE, ['cannot be fetched', 'Error', 'HF_ENDPOINT']),
    (RESOLVE + 'snarks/test-00000-of-00001.parquet', ['cannot be fetched', 'EntryNotFound'])])
def test_a_hub_that_lacks_something(lacks, words, server, tmp_path):
    del server.files[lacks]
    has(ask(tmp_path, server), HUB, *words, 'COTKD_BBH')


# who takes the hub

EVAL = '''
import sys
from cotkd.cli import main
code = main(sys.argv[1:])
print(sorted({'cotkd.models', 'transformers'} & set(sys.modules)))
sys.exit(code)
'''


@pytest.mark.parametrize('where', (['--bbh', 'hub'], []), ids=('asked', 'default'))
def test_eval_says_it_before_a_model_is_loaded(where, home, tmp_path):
    prompt(home).unlink()
    words = ['eval', '--model', 'toy-student', *where, '--tasks', 'snarks', '--out', tmp_path/'out']
    process = start(EVAL, home, None, words)
    out, said = process.communicate()
    assert process.returncode == 2 and out == '[]\n'
    assert said.startswith('cotkd: snarks.txt cannot be fetched') and said.count('\n') == 1
    assert not (tmp_path/'out').exists()


def test_presets_take_the_hub_but_for_the_toy(monkeypatch):
    sources = []
    monkeypatch.delenv('COTKD_BBH', raising=False)
    monkeypatch.setattr(bbh, '_hub_folder', lambda tasks: sources.append(tasks))
    monkeypatch.setattr(bbh, '_read_hub', lambda folder, task: [dict(input='q', target='a')])
    monkeypatch.setattr(bbh, 'hub_prompt', lambda task: pytest.fail('no examples were asked for'))
    assert choose_benchmark(PRESETS['toy']).name == 'toy' and not sources
    paper = PRESETS['paper-tinyllama']
    monkeypatch.setattr(bbh, 'read_shots', lambda task, source: 'd' + '\n\nQ: q\nA: a'*3)
    found = choose_benchmark(paper)
    assert found.name == 'bbh' and sources == [list(BBH_TASKS)]
