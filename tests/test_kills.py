"A run that was killed and continued leaves the files of one that was not, wherever that was"
import pytest
from kills import run_whole, stage, try_kill


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    return run_whole(tmp_path_factory.mktemp('kills')/'whole')


@pytest.mark.parametrize('at, name', [('cache', 'SIGKILL'), ('distil', 'SIGTERM'),
                                      ('eval', 'SIGINT')])
def test_nothing_is_lost(at, name, unbroken, tmp_path):
    "One kill in each stage; `tools/campaigns/kills.py` tries many"
    events, want = unbroken
    numbers = [n for n, event in enumerate(events, 1) if stage(event) == at]
    found = try_kill(tmp_path/'kill', want, numbers[len(numbers) // 2], name)
    assert found['code'] and found['drawn'] and not found['differ'], found
