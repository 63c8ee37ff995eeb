"What is decided before the first training stays decided"
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cotkd import experiment as module
from cotkd.arms import ARMS, Hypotheses, contrast, read_hypotheses
from cotkd.bbh import toy_benchmark
from cotkd.cli import _find_hypotheses, main, parser
from cotkd.experiment import PRESETS, run
from cotkd.files import InputError, digest, read_json, write_json
from cotkd.gains import average_gain, decided_table, gains_table
from cotkd.records import simulated_results, write_results
from cotkd.report import _decided, _number_sections, write_report
from cotkd.stats import holm

TOY = toy_benchmark(1)
ONE = replace(TOY, items=dict(navigate=TOY.items['navigate']))
SFT = replace(PRESETS['toy'], arms='sft,sft_cot', rows=8, other_prompt=1, max_new_tokens=4)
ASKED = Hypotheses({'sft:sft_cot': 'Do rationales help without a teacher?'}, seeds=1, margin=3.)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    "Nobody looks at figure and page"
    monkeypatch.delenv('COTKD_BBH', raising=False)

    def draw(out, questions=None, chosen=None):
        for name in ('gains.png', 'report.html'):
            (Path(out)/name).write_text('')

    monkeypatch.setattr(module, 'draw', draw)


def test_they_are_written_before_anything_is_trained(tmp_path, monkeypatch):
    "By themselves: the contrasts of the arms"
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, '_train_arm', stop)
    with pytest.raises(KeyboardInterrupt):
        run(SFT, tmp_path/'run', ONE, seeds=2)
    written = read_hypotheses(tmp_path/'run/hypotheses.json')
    assert written.primary == {'sft:sft_cot': 'SFT → SFT+CoT'} and written.seeds == 2
    config = read_json(tmp_path/'run/config.json')
    assert config.pop('hypotheses') == digest(asdict(written)) and 'trained' not in config
    write_json(tmp_path/'run/config.json', config)  # as if killed between the two files
    with pytest.raises(InputError, match='holds other hypotheses'):
        run(SFT, tmp_path/'run', ONE, seeds=2, hypotheses=ASKED)


@pytest.fixture(scope='module')
def decided(tmp_path_factory):
    out = tmp_path_factory.mktemp('decided')/'run'
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, 'draw', lambda *args: None)
        run(SFT, out, ONE, hypotheses=ASKED)
    return out


def test_the_same_is_decided_again(decided):
    before = (decided/'hypotheses.json').read_bytes()
    run(SFT, decided, ONE, hypotheses=ASKED)
    run(SFT, decided, ONE)
    assert (decided/'hypotheses.json').read_bytes() == before
    assert read_json(decided/'config.json')['hypotheses'] == digest(asdict(ASKED))


def test_nothing_else_is_decided_afterwards(decided):
    path = decided/'hypotheses.json'
    before = path.read_text()
    with pytest.raises(InputError, match='holds other hypotheses'):
        run(SFT, decided, ONE, hypotheses=replace(ASKED, margin=9.))
    try:
        path.write_text(before.replace('3.0', '9.0'))
        with pytest.raises(InputError, match='was changed after the run began'):
            run(SFT, decided, ONE)
        path.unlink()
        with pytest.raises(InputError, match='is gone'):
            run(SFT, decided, ONE)
        config = read_json(decided/'config.json')
        config.pop('hypotheses')
        write_json(decided/'config.json', config)
        with pytest.raises(InputError, match='trained already'):
            run(SFT, decided, ONE, hypotheses=ASKED)
        run(replace(SFT, arms='sft'), decided, ONE)  # as from before there were any
        assert not path.exists()
    finally:
        path.write_text(before)
        write_json(decided/'config.json', config | dict(hypotheses=digest(asdict(ASKED))))


@pytest.mark.parametrize('text, why', [
    ('{}', "missing 1 required positional argument: 'primary'"),
    ('{"primary": ["kd:kd_cot"]}', 'expected contrasts and what they ask'),
    ('{"primary": {}}', 'expected contrasts and what they ask'),
    ('{"primary": {"kd": "?"}}', "contrast 'kd'"), ('[]', 'not one JSON object'),
    ('{"primary": {"kd:kd_cot": "?"}, "seeds": 0}', 'at least one'),
    ('{"primary": {"kd:kd_cot": "?"}, "alpha": 0.1}', 'alpha')])
def test_a_file_that_decides_nothing(text, why, tmp_path, capsys):
    path = tmp_path/'hypotheses.json'
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_hypotheses(path)
    words = ['run', 'toy', '--out', str(tmp_path/'run'), '--hypotheses', str(path), '--bbh', '']
    assert main(words) == 2 and not (tmp_path/'run').exists()


def test_the_primary_contrasts_share_one_error_rate():
    results = simulated_results(['navigate', 'snarks'], n=40, seeds=range(3), arms=list(ARMS)[:6])
    asked = Hypotheses({'kd:kd_cot': 'a', 'sft:kd': 'b', 'kd:kd_after': 'c'}, margin=2.)
    table = decided_table(results, asked)
    gains = {name: average_gain(results, contrast(name)) for name in ('kd:kd_cot', 'sft:kd')}
    assert table.p_holm[:2].tolist() == pytest.approx(
        holm([gain.p for gain in gains.values()]).tolist())
    assert table.low['sft:kd'] == pytest.approx(gains['sft:kd'].low)
    assert table.no_worse.tolist() == [gain.low > -2 for gain in gains.values()] + [False]
    assert table.n['kd:kd_after'] == 0 and np.isnan(table.p_holm['kd:kd_after'])


def test_a_page_says_what_was_decided_before(tmp_path):
    results = simulated_results(['navigate'], n=40, seeds=range(3))
    write_results(tmp_path, results.to_dict('records'))
    asked = Hypotheses({'kd:kd_cot': 'Do <b>they</b> help?'}, seeds=3, margin=2.)
    write_json(tmp_path/'hypotheses.json', asdict(asked))
    config = dict(hypotheses=digest(asdict(asked)))
    write_json(tmp_path/'config.json', config)
    page = write_report(tmp_path).read_text()
    assert page.index('Decided before') < page.index('Do &lt;b&gt;they&lt;/b&gt; help?')
    assert digest(asdict(asked))[:12] in page and '3 seeds planned' in page
    assert 'loses less than 2 points' in page
    write_json(tmp_path/'hypotheses.json', asdict(replace(asked, margin=9.)))
    (_, text), = _decided(tmp_path, results, config)
    assert 'changed since' in text
    (tmp_path/'hypotheses.json').unlink()
    assert not list(_decided(tmp_path, results, config))


def test_other_contrasts_were_looked_at_afterwards():
    results = simulated_results(['navigate'], n=40, arms=[*ARMS][:6])
    for afterwards in (False, True):
        headings = [name for name, _ in _number_sections(results, gains_table(results), afterwards)]
        assert ('All contrasts, also those looked at afterwards' in headings) == afterwards


def test_a_repeated_run_decides_the_same(decided, tmp_path):
    words = ['run', str(decided/'config.json'), '--out', str(tmp_path/'again')]
    args = parser().parse_known_args(words)[0]
    args.words = []
    assert _find_hypotheses(args, SimpleNamespace(preset=words[1])) == ASKED
    assert _find_hypotheses(args, SimpleNamespace(preset='toy')) is None
