"Whatever is wrong is said in one line, before any work, and nothing that was there is touched"
import pytest
from bad_input import CASES, tell

import cotkd.distill
import cotkd.evaluate


def worked(*args, **kwargs):
    raise AssertionError('a model has worked')


@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c.group}: {c.wrong}')
def test_one_line_and_nothing_written(case, tmp_path, monkeypatch):
    monkeypatch.setattr(cotkd.distill, '_train', worked)
    monkeypatch.setattr('cotkd.generate.complete_batch', worked)
    told = tell(case, tmp_path)
    assert told.code == 2, told
    assert len(told.lines) == 1, told.lines
    assert case.says in told.lines[0]
    assert told.after == told.before


def test_there_are_many():
    assert len(CASES) >= 60
    assert len({(case.group, case.wrong) for case in CASES}) == len(CASES)
