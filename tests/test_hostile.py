"Names and answers that would leave the run directory, or do something where they are shown"
import json
import os
import pickle

import pytest
from families import make, tokenizer

from cotkd.bbh import Benchmark
from cotkd.cli import main
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.experiment import Experiment, run
from cotkd.files import InputError, visible
from cotkd.models import load_lm
from cotkd.records import load_results
from cotkd.report import write_report

ARMS = ('kd', 'kd_cot')
NAMES = ('../../outside', '/etc/cron.d/x', '..', '.hidden', 'con\x07', 'a/b',
         '<script>hacked=1</script>', '"><img src=x onerror=hacked=1>', '\u202egnp.exe',
         '\x1b[2J', '$(touch hacked)', 'x' * 300)
ANSWERS = ('<script>window.hacked = 1</script>', '<img src=x onerror="window.hacked=1">',
           '</pre></div><iframe src="https://example.com"></iframe>', '\x1b[31mred\x07',
           '\u202eevil', '<svg onload="window.hacked=1">', '{{ 7 * 7 }}',
           '$\\alpha$ [x](javascript:hacked=1)')


@pytest.fixture
def says(monkeypatch):
    "A model that answers what is hostile"
    from cotkd import generate

    def answers(model, tokens, prompts, *, on_batch, **kwargs):
        texts = [ANSWERS[i % len(ANSWERS)] + ' So the answer is Yes.' for i in range(len(prompts))]
        on_batch(range(len(prompts)), [generate.Answer(text, False) for text in texts])

    monkeypatch.setattr(generate, 'generate_batch', answers)


def hostile_run(folder):
    "Both arms on tasks with such names, each with questions like its answers"
    items = [dict(input=text, target='Yes') for text in ANSWERS * 2]
    benchmark = Benchmark('<b>mine</b>', items={name: items for name in NAMES})
    model, tokens = make('llama'), tokenizer()
    for arm in ARMS:
        for mode in 'cot', 'direct':
            evaluate(model, tokens, benchmark, Subject(arm, NAMES[6], 'w' + arm), Asking(mode=mode),
                     out=folder/'run', progress=False)
    questions = {name: [item['input'] for item in items] for name in NAMES}
    return write_report(folder/'run', questions)


def everything_below(folder):
    return {path.relative_to(folder).parts[0] for path in folder.rglob('*')}


def test_a_hostile_run_stays_inside_and_is_harmless(says, tmp_path, page):
    "In a browser: nothing runs, nothing is fetched, and the page is whole"
    report = hostile_run(tmp_path)
    assert everything_below(tmp_path) == {'run'}
    assert len(load_results(tmp_path/'run')) == len(NAMES) * len(ARMS) * 2
    asked, alerts = [], []
    page.on('request', lambda request: asked.append(request.url))
    page.on('dialog', lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate('typeof window.hacked') == 'undefined' and not alerts
    assert {url.split(':')[0] for url in asked} <= {'file', 'data'}
    assert page.locator('iframe, svg[onload], img[onerror]').count() == 0
    text = page.locator('body').text_content()  # also what is folded
    assert '<script>window.hacked = 1</script>' in text  # shown as what it is
    assert r'\u202e' in text and '\u202e' not in text and '\x1b' not in text


def test_a_hostile_arm_stays_inside(says, tmp_path):
    benchmark = Benchmark('b', items={'t': [dict(input='a', target='b')]})
    for name in NAMES:
        evaluate(make('llama'), tokenizer(), benchmark,
                 Subject(name, 'm', 'w'), Asking(), out=tmp_path/'run', progress=False)
    assert everything_below(tmp_path) == {'run'}
    assert {*load_results(tmp_path/'run').arm} == {*NAMES}


@pytest.mark.parametrize('text, shown', [
    ('\x1b[2J\x07', r'\x1b[2J\x07'), ('a\u202eb\u2066c\u200f', r'a\u202eb\u2066c\u200f'),
    ('plain é 模型\n\tx', 'plain é 模型\n\tx')])
def test_a_terminal_shows_what_is_there(text, shown):
    assert visible(text) == shown


def test_a_message_moves_no_cursor(tmp_path, capsys):
    assert main(['gains', str(tmp_path/'\x1b[2Jx')]) == 2
    assert '\x1b' not in capsys.readouterr().err


class Bomb:
    "What a pickle can do when it is loaded"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.bin', 'training_args.bin'])
def test_no_pickle_is_loaded(name, tmp_path):
    model = tmp_path/'model'
    make('llama').save_pretrained(model)
    tokenizer().save_pretrained(model)
    (model/name).write_bytes(pickle.dumps(Bomb(tmp_path/'exploded')))
    load_lm(model)  # has its safetensors
    (model/'model.safetensors').unlink()
    with pytest.raises(InputError):
        load_lm(model)
    assert not (tmp_path/'exploded').exists()


def test_code_of_a_model_runs_only_if_it_is_asked_for(tmp_path):
    "And then the settings of the run say so"
    model = tmp_path/'model'
    make('llama').save_pretrained(model)
    tokenizer().save_pretrained(model)
    config = json.loads((model/'config.json').read_text())
    config |= dict(model_type='own')
    config |= dict(auto_map=dict(AutoConfig='own.Own', AutoModelForCausalLM='own.M'))
    (model/'config.json').write_text(json.dumps(config))
    (model/'own.py').write_text(f'import os\nos.mkdir({str(tmp_path/"exploded")!r})\n')
    with pytest.raises(InputError, match='--trust-remote-code'):
        load_lm(model)
    assert not (tmp_path/'exploded').exists()
    assert 'trust_remote_code' in vars(Experiment(trust_remote_code=True))


def test_no_secret_is_written(tmp_path, monkeypatch):
    "What the environment holds is in no file of a run"
    secrets = dict(HF_TOKEN='hf_s3cret1', WANDB_API_KEY='s3cret2', AWS_SECRET_ACCESS_KEY='s3cret3')
    for name, x in secrets.items():
        monkeypatch.setenv(name, x)
    items = [dict(input='Is 3 odd?', target='Yes')]
    run(Experiment(rows=16, max_new_tokens=4, other_prompt=1), tmp_path/'run',
        Benchmark('one', items={'odd': items}))
    for path in (tmp_path/'run').rglob('*'):
        if path.is_file():
            raw = path.read_bytes()
            assert not any(x.encode() in raw for x in secrets.values()), path
