"A whole run: four arms, an arm of one's own, what is refused, what is not done twice, and kills"
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import SERVER, finish

from cotkd import experiment, figures, models
from cotkd.arms import ARMS, Arm
from cotkd.bbh import OFFICIAL_STOPS, Scorer, toy_benchmark
from cotkd.cli import main
from cotkd.distill import training_bytes
from cotkd.experiment import PRESETS, Run, check_names, choose_benchmark, find_identities, missing
from cotkd.experiment import configure, run, sample_fitting
from cotkd.files import InputError, read_json, read_lines
from cotkd.records import load_results

SMALL = dict(rows=32, heldout=2, other_prompt=1, max_new_tokens=12)
TINY = replace(PRESETS['toy'], **SMALL)
SETTINGS = [f'{name}={x}' for name, x in SMALL.items()]
TOY = toy_benchmark(2)
TWO = replace(TOY, items={task: TOY.items[task] for task in ('navigate', 'web_of_lies')})
FOUR_ARMS = ['--arms', 'kd,kd_cot,sft,sft_cot', '--set', *SETTINGS]


@pytest.fixture(autouse=True)
def no_bbh(monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)


def forbid(monkeypatch):
    "No model is loaded"
    def loaded(name, *args, **kwargs):
        raise AssertionError(f'{name} was loaded')
    for name in ('cotkd.models.load_lm', 'cotkd.cache.load_lm'):
        monkeypatch.setattr(name, loaded)


@pytest.fixture
def drawn(monkeypatch):
    "Runs whose figure and page are not looked at: they are empty, and counted"
    times = []

    def draw(out, questions=None, chosen=None):
        times.append(out)
        for name in ('gains.png', 'report.html'):
            (Path(out)/name).write_text('')

    monkeypatch.setattr(experiment, 'draw', draw)
    return times


# --- start to report

@pytest.fixture(scope='module')
def four(tmp_path_factory):
    "A run of four arms"
    out = tmp_path_factory.mktemp('four')/'toy'
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.delenv('COTKD_BBH', raising=False)
        assert main(['run', 'toy', *FOUR_ARMS, '--out', str(out)]) is None
    assert 'COTKD_BBH is not set' in said.getvalue()
    assert f'side by side: {out}/report.html' in said.getvalue()
    return out


def test_four_arms_from_rows_to_report(four):
    results = load_results(four)
    assert set(results.arm) == {'teacher', 'student', 'kd', 'kd_cot', 'sft', 'sft_cot'}
    assert set(results.benchmark) == {'toy'} and set(results['mode']) == {'cot', 'direct'}
    config = read_json(four/'config.json')
    updates = {arm: cost['updates'] for arm, cost in config['cost'].items()}
    assert updates == dict.fromkeys(('kd', 'kd_cot', 'sft', 'sft_cot'), 4)
    assert config['cost']['sft_cot']['flops'] < config['cost']['kd_cot']['flops']
    assert {arm: config['cost'][arm]['lr'] for arm in ('kd', 'sft', 'sft_cot')} == \
        dict(kd=2e-3, sft=2e-3, sft_cot=8e-3)
    page = (four/'report.html').read_text()
    for text in ('KD → KD+CoT', 'KD → SFT', 'SFT → SFT+CoT', 'KD+CoT → SFT+CoT'):
        assert text in page, text
    assert (four/'gains.png').stat().st_size > 10_000


def test_results_are_those_of_their_texts_and_weights(four):
    trained = read_json(four/'config.json')['trained']
    identities = read_json(four/'config.json')['identities']
    for row in read_lines(four/'results.jsonl'):
        where = four/'predictions'/row['arm']/f"{row['mode']}-0-0"/f"{row['task']}.jsonl"
        assert ''.join(str(int(t['correct'])) for t in read_lines(where)) == row['items']
        if row['arm'] in identities:
            assert row['weights'] == identities[row['arm']] and row['start'] is None
        else:
            assert row['weights'] == trained[f"{row['arm']}-0"]
            assert row['start'] == identities['student']
    assert read_json(four/'models/sft-0/distill.json')['recipe']['teacher_id'] is None


def texts_of(figure):
    "All that is written in a figure"
    import matplotlib.text
    return ' '.join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_an_arm_of_ones_own(tmp_path, monkeypatch):
    "A line in the table: it is trained, asked, compared, drawn and reported; so is an own scorer"
    loose = Scorer('loose', OFFICIAL_STOPS, equal=lambda answer, target: target in answer)
    mixed = Arm('mixed', 'Half KD', loss='kd+0.5ce', against=('kd',))
    monkeypatch.setitem(ARMS, 'mixed', mixed)
    plot, seen = figures.plot_gains, []

    def watched(*args, **kwargs):
        figure = plot(*args, **kwargs)
        seen.append(texts_of(figure))
        return figure

    monkeypatch.setattr('cotkd.report.plot_gains', watched)
    benchmark = replace(TWO, scorers=(loose,))
    report = run(replace(TINY, arms='kd,mixed'), tmp_path/'run', benchmark)
    results = load_results(tmp_path/'run')
    assert set(results.scorer) == {'loose'}
    assert len(results[results.arm == 'mixed']) == 4
    page = report.read_text()
    assert 'Half KD' in page and 'KD → Half KD' in page and 'Half KD' in seen[0]
    from cotkd.gains import gains_table
    assert [*gains_table(results, n_boot=100).index.unique('contrast')] == ['kd:mixed']
    recipe = read_json(tmp_path/'run/models/mixed-0/distill.json')['recipe']
    assert recipe['ce_weight'] == pytest.approx(1 / 3) and recipe['teacher_id']


# --- nothing twice

def test_a_finished_run_started_again_does_nothing(four):
    before = {path: path.stat().st_mtime_ns for path in four.rglob('*') if path.is_file()}
    code = ("import sys; from cotkd.cli import main; assert main() is None\n"
            "bad = {'torch', 'transformers', 'datasets', 'matplotlib'} & {*sys.modules}\n"
            "assert not bad, bad")
    command = [sys.executable, '-c', code, 'run', *FOUR_ARMS, '--out', str(four)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5  # 1 s on an idle machine
    assert before == {path: path.stat().st_mtime_ns for path in four.rglob('*') if path.is_file()}


@pytest.fixture
def copy(four, tmp_path):
    "The four arms, to be changed"
    return Path(shutil.copytree(four, tmp_path/'toy'))


FOUR = replace(TINY, arms='kd,kd_cot,sft,sft_cot')


def test_figure_and_page_are_drawn_again_without_a_model(copy, drawn, monkeypatch):
    forbid(monkeypatch)
    monkeypatch.setattr(experiment, 'check', None)  # not even that
    run(FOUR, copy)
    assert not drawn
    (copy/'gains.png').unlink()
    run(FOUR, copy)
    os.utime(copy/'report.html', (0, 0))  # older than the results
    run(FOUR, copy)
    assert drawn == [copy] * 2


def test_a_student_that_nobody_needs_is_not_trained_again(copy, monkeypatch):
    shutil.rmtree(copy/'models')
    forbid(monkeypatch)
    run(FOUR, copy)
    assert not (copy/'models').exists()


def test_only_the_lost_result_is_asked_again(copy, drawn, monkeypatch):
    lines = (copy/'results.jsonl').read_text().splitlines(keepends=True)
    lost = json.loads(lines[0])
    (copy/'results.jsonl').write_text(''.join(lines[1:]))
    asked = []

    def watched(model, tokenizer, benchmark, subject, asking, **others):
        asked.append((subject.arm, asking.mode, *benchmark.items))
        return evaluate(model, tokenizer, benchmark, subject, asking, **others)

    evaluate = experiment.evaluate
    monkeypatch.setattr(experiment, 'evaluate', watched)
    run(FOUR, copy)
    assert asked == [(lost['arm'], lost['mode'], lost['task'])]
    again = {(r['arm'], r['mode'], r['task']): r for r in read_lines(copy/'results.jsonl')}
    assert again[asked[0]] == lost


def test_an_arm_more_trains_only_that_arm(tmp_path, drawn, monkeypatch):
    run(replace(TINY, arms='sft'), tmp_path/'run', TWO)
    before = (tmp_path/'run/results.jsonl').read_text()
    trained = []
    train = experiment._train
    monkeypatch.setattr(experiment, '_train',
                        lambda run, member, *rest: (trained.append(member.key),
                                                    train(run, member, *rest)))
    run(replace(TINY, arms='sft,sft_cot'), tmp_path/'run', TWO)
    assert trained == ['sft_cot-0']
    assert (tmp_path/'run/results.jsonl').read_text().startswith(before)
    assert not (tmp_path/'run/cache').exists()  # an arm without a teacher has no use for it


# --- one directory, one run

def test_other_settings_models_data_or_questions_are_another_run(four, tmp_path, monkeypatch):
    forbid(monkeypatch)
    with pytest.raises(InputError, match='another run, which differs in settings'):
        run(replace(FOUR, rows=64), four)
    student = shutil.copytree(experiment.parse_name('toy-student').path, tmp_path/'student')
    rows = tmp_path/'rows.jsonl'
    rows.write_text('{"source": "1+1?", "target": "2", "rationale": "One and one."}\n')
    own = replace(FOUR, student=str(student), data=str(rows), epochs=2.)
    benchmark = choose_benchmark(FOUR, False)

    def belongs(**changes):
        found = find_identities(own)
        return Run(replace(own, **changes), tmp_path/'run', benchmark, 1, {}, found).belongs()

    before = belongs()
    assert before == belongs() == belongs(arms='kd', kv_memory=1.)
    rows.write_text(rows.read_text() * 2)
    assert belongs()['identities'] != before['identities']  # the same name, other bytes
    between = belongs()
    config = read_json(student/'generation_config.json')
    (student/'generation_config.json').write_text(json.dumps(config | dict(pad_token_id=1)))
    assert belongs()['identities']['student'] != between['identities']['student']
    fewer = replace(benchmark, items={task: items[:1] for task, items in benchmark.items.items()})
    one = Run(own, tmp_path/'run', fewer, 1, {}, find_identities(own))
    assert one.belongs()['questions'] != before['questions']


def test_a_directory_with_something_else_is_left_alone(tmp_path, monkeypatch):
    forbid(monkeypatch)
    (tmp_path/'mine.txt').write_text('keep me')
    with pytest.raises(InputError, match='not empty'):
        run(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


# --- one look first

def other_vocabulary(folder):
    "The student with two tokens swapped"
    shutil.copytree(experiment.parse_name('toy-student').path, folder)
    path = Path(folder)/'tokenizer.json'
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer['model']['vocab']
    first, second = list(vocab)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(tokenizer))
    return str(folder)


def short_context(folder):
    "The student with a context of 64 tokens"
    shutil.copytree(experiment.parse_name('toy-student').path, folder)
    path = Path(folder)/'config.json'
    path.write_text(json.dumps(read_json(path) | dict(max_position_embeddings=64)))
    return str(folder)


@pytest.mark.parametrize('changed, words', [
    (dict(student='toy-studnet'), ["'toy-studnet'", "'toy-student'"]),
    (dict(teacher='/no/such/place'), ["'/no/such/place'", 'no such directory']),
    (dict(student=other_vocabulary), ['do not share a vocabulary', '2 ids differ']),
    (dict(student=short_context), ['context', '64', 'max_tokens']),
    (dict(batch_size=64), ['rows is 32', 'batch_size 64']),
    (dict(arms='kd,kdcot'), ["'kdcot'", "'kd_cot'"]),
    (dict(data='no/rows.jsonl', epochs=2.), ['COTKD_BBH']),
    (dict(shots=3), ['examples']),
    (dict(dev=1.), ['dev=1.0']),
    (dict(kd_lr=float('nan')), ['kd_lr=nan']),
    (dict(sampling_temperature=-1.), ['temperature is -1']),
], ids=lambda x: next(iter(x)) if isinstance(x, dict) else '')
def test_what_is_wrong_is_said_before_a_model_works(changed, words, tmp_path, monkeypatch, no_hub):
    forbid(monkeypatch)
    folder = tmp_path/'model'
    changed = {name: x(folder) if callable(x) else x for name, x in changed.items()}
    with pytest.raises(InputError) as refused:
        run(replace(TINY, **changed), tmp_path/'run')
    message = str(refused.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    assert not (tmp_path/'run').exists()


def test_a_batch_that_does_not_divide(tmp_path, monkeypatch):
    forbid(monkeypatch)
    for name, x in dict(WORLD_SIZE='3', RANK='0', LOCAL_RANK='0').items():  # as torchrun says
        monkeypatch.setenv(name, x)
    with pytest.raises(InputError, match='batch_size is 8.*3 processes.*a multiple'):
        run(TINY, tmp_path/'run')


def test_a_full_disk(tmp_path, monkeypatch):
    forbid(monkeypatch)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match='0.0 GB are free'):
        run(TINY, tmp_path/'run')
    free = 60_000_000  # enough for the students, too little with a cache of a million tokens
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=free))
    long = replace(TINY, rows=4000)
    benchmark = choose_benchmark(long, False)
    experiment.check(long, benchmark, tmp_path/'run')
    with pytest.raises(InputError, match='caches'):
        experiment.check(replace(long, epochs=2.), benchmark, tmp_path/'run')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=15_000_000))
    with pytest.raises(InputError, match='checkpoints'):
        experiment.check(TINY, benchmark, tmp_path/'run')
    experiment.check(replace(TINY, lora_rank=4), benchmark, tmp_path/'run')  # small ones


def test_a_student_is_looked_at_before_its_teacher_reads(tmp_path, monkeypatch):
    def odd(model):
        raise InputError(f'a head of {model.num_parameters():,} parameters')
    monkeypatch.setattr('cotkd.models.check_head', odd)
    student = models.load_lm('toy-student')[0].num_parameters()
    with pytest.raises(InputError, match=f'a head of {student:,} parameters'):
        run(replace(TINY, epochs=2.), tmp_path/'run', bbh=False)  # two epochs want a cache
    assert not (tmp_path/'run/cache').exists() and not (tmp_path/'run/config.json').exists()


def test_a_model_on_the_hub_is_not_mistaken_for_a_path():
    check_names(PRESETS['smollm2'])
    check_names(PRESETS['paper-tinyllama'])


def test_the_rows_that_were_asked_for_come():
    "18 rows, of which 20 fit, among many that do not"
    import datasets
    from cotkd.models import load_tokenizer
    short = dict(source='Is it?', rationale='It is.', target='yes', task='t', type='t')
    long = dict(short, source='Is it ' * 200)
    ds = datasets.Dataset.from_list([*[short] * 20, *[long] * 80])
    assert len(sample_fitting(ds, 18, load_tokenizer('toy-student'), 100)) == 18
    assert len(sample_fitting(ds, 30, load_tokenizer('toy-student'), 100)) == 20
    ended = dict(short, rationale='It is.<|end|> ' * 90)
    ds = datasets.Dataset.from_list([*[short] * 20, ended])
    assert len(sample_fitting(ds, 30, load_tokenizer('toy-student'), 100)) == 20


def test_the_disk_is_asked_for_the_same_twice():
    "What a run lets pass, its trainings let pass"
    for rank in 0, 4:
        size = models.load_lm('toy-student')[0].num_parameters()
        one = replace(TINY, arms='kd', lora_rank=rank)
        assert experiment.needed_bytes(one, 'nowhere', [], None) == training_bytes(size, rank)


# --- kills

class Killed(BaseException):
    "At a chosen point"


def kill_at(monkeypatch, name, turn):
    "The process ends when this function is called for the n-th time"
    function, calls = getattr(experiment, name), []

    def deadly(*args, **kwargs):
        calls.append(name)
        if len(calls) == turn:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(experiment, name, deadly)


SFT = replace(TINY, arms='sft,sft_cot')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "The results of a run that nobody killed"
    out = tmp_path_factory.mktemp('unbroken')/'run'
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, 'draw', lambda *args: None)
        run(SFT, out, TWO)
    return (out/'results.jsonl').read_bytes()


def test_a_killed_run_continues_to_the_same_results(unbroken, tmp_path, drawn, monkeypatch):
    with monkeypatch.context() as patched:
        kill_at(patched, 'evaluate', 4)
        with pytest.raises(Killed):
            run(SFT, tmp_path/'run', TWO)
    assert not drawn
    run(SFT, tmp_path/'run', TWO)
    assert (tmp_path/'run/results.jsonl').read_bytes() == unbroken
    assert not missing(Run(SFT, tmp_path/'run', TWO, 1, {}, find_identities(SFT)))


def run_sft(out):
    run(SFT, out, TWO)


def test_a_process_that_is_killed_for_good(unbroken, tmp_path, drawn):
    "While the first student is trained"
    out = tmp_path/'run'
    victim = SERVER.Process(target=run_sft, args=(out,))
    victim.start()
    while not (out/'models/sft-0/distill.json').exists() and victim.is_alive():
        time.sleep(.005)
    victim.kill()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL and not (out/'results.jsonl').exists()
    run(SFT, out, TWO)
    assert (out/'results.jsonl').read_bytes() == unbroken


# --- presets

def tiny_pair(preset, folder):
    "Its kind of model, heads, ties and vocabularies of unequal padding, but tiny"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from cotkd.models import load_tokenizer
    from cotkd.names import parse_name
    from cotkd.plan import ARCHITECTURES, SHAPE
    keep = parse_name(preset.student).layers
    names = {}
    for i, role in enumerate(('teacher', 'student')):
        path = parse_name(getattr(preset, role)).path
        kind, *numbers = ARCHITECTURES[path]
        shape = dict(zip(SHAPE, numbers))
        group = shape['num_attention_heads'] // shape['num_key_value_heads']
        shape |= dict(vocab_size=2048 + shape['vocab_size'] // 1000, hidden_size=16 * group,
                      intermediate_size=32, num_attention_heads=2 * group, num_key_value_heads=2,
                      num_hidden_layers=4 if keep else 2 - i, max_position_embeddings=8192)
        place = folder/path.replace('/', '-')
        torch.manual_seed(i)
        if not place.exists():
            config = AutoConfig.for_model(kind, **shape)
            AutoModelForCausalLM.from_config(config).save_pretrained(place)
            load_tokenizer('toy-teacher').save_pretrained(place)
        names[role] = f'{place}[0-1,3]' if keep and role == 'student' else str(place)
    return names


def test_a_preset_with_some_layers_runs_from_rows_to_results(cot_data, bbh_dir, tmp_path, drawn):
    "The same `run`, with other sizes of models and fewer rows and questions"
    from cotkd.bbh import bbh_benchmark
    from cotkd.models import load_lm
    name, preset = 'smollm2', PRESETS['smollm2']
    small = replace(preset, **tiny_pair(preset, tmp_path), rows=24, epochs=2., limit=1,
                    data=str(cot_data/'CoT_collection_en.sample.json'), max_new_tokens=4)
    benchmark = bbh_benchmark(bbh_dir, 'navigate')
    run(small, tmp_path/'run', benchmark, preset=name)
    results = load_results(tmp_path/'run')
    assert len(results) == 4 * 2 and set(results.benchmark) == {'bbh'}
    assert set(results.temperature) == {preset.sampling_temperature}
    config = read_json(tmp_path/'run/config.json')
    assert config['cost']['kd']['updates'] == config['cost']['kd_cot']['updates'] == 6
    assert config['settings']['lora_rank'] == preset.lora_rank and config['preset'] == name
    layers = load_lm(small.student)[0].config.num_hidden_layers
    for arm in ('kd', 'kd_cot'):
        place = tmp_path/f'run/models/{arm}-0'
        assert read_json(place/'distill.json')['validation']['best']['step'] > 0
        assert load_lm(place)[0].config.num_hidden_layers == layers
    assert {path.name for path in (tmp_path/'run/cache').iterdir()} == {'direct', 'cot'}
    shutil.rmtree(tmp_path/'run/cache')  # nothing needs it any more
    run(small, tmp_path/'run', benchmark, preset=name)
    assert not (tmp_path/'run/cache').exists()


def test_configure_knows_every_kind_of_setting():
    changed = configure('toy', dict(rows='64', kd_lr='3e-4', trust_remote_code='true', arms='sft'))
    assert changed == replace(PRESETS['toy'], rows=64, kd_lr=3e-4, trust_remote_code=True,
                              arms='sft')
    for settings, word in (dict(row='1'), "'row'"), (dict(rows='many'), "'many'"), \
            (dict(rows='0'), 'rows=0'), (dict(epochs='inf'), 'epochs=inf'):
        with pytest.raises(InputError, match=word):
            configure('toy', settings)


# --- several processes

def run_in_both(out):
    def draw(out, questions, chosen=None):
        (out/f"drawn-{os.environ['RANK']}").write_text('')

    experiment.draw = draw
    run(replace(TINY, arms='kd_cot', rows=16, epochs=2., max_new_tokens=4), out, TWO)


def test_a_run_in_two_processes(tmp_path):
    "Cache, training and questions are shared; what is said and drawn comes from one of them"
    said = finish(run_in_both, tmp_path/'run', processes=2)
    assert said.count('16 rows to train on') == 1
    assert [path.name for path in (tmp_path/'run').glob('drawn-*')] == ['drawn-0']
    results = load_results(tmp_path/'run')
    assert len(results) == 3 * 2 * 2 and set(results.n) == {1, 2}
    assert read_json(tmp_path/'run/config.json')['cost']['kd_cot']['updates'] == 4
    assert (tmp_path/'run/cache/cot/cache.json').exists()
    assert not list((tmp_path/'run').rglob('*.part'))
