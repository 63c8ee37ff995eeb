"Where the test data is, and the rule that a skipped test is a failure where the data has to be there."
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import pytest


def _directory(variable, what):
    if not (folder := os.environ.get(variable)): pytest.skip(f'{variable} is not set; it is the directory of {what}')
    return Path(folder)


@pytest.fixture(scope='session')
def cot_data():
    "The directory of rationale files"
    return _directory('COTKD_DATA', 'the rationale files')


@pytest.fixture(scope='session')
def bbh_dir():
    "The directory of BIG-Bench-Hard"
    return _directory('COTKD_BBH', 'BIG-Bench-Hard (tasks/ and cot-prompts/)')


def _must_run(report):
    "With COTKD_REQUIRE_DATA=1 only a test that needs a GPU may be skipped"
    if not report.skipped or hasattr(report, 'wasxfail') or os.environ.get('COTKD_REQUIRE_DATA') != '1': return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if 'CUDA' in reason or 'GPU' in reason: return
    report.outcome, report.longrepr = 'failed', f'{reason}\nCOTKD_REQUIRE_DATA=1 is set, so this skip is a failure.'


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _must_run(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _must_run(report)
    return report
