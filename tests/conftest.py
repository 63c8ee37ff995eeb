"Where the test data is, and the rule that a skipped test is a failure where it has to be there."
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported

import pytest
from browser import CHROMIUMS, find_chromium
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadFileScheduling


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A file is one process's: what its tests share is made once"
    return LoadFileScheduling(config, log)


def _directory(variable, what):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f'{variable} is not set; it is the directory of {what}')
    return Path(folder)


@pytest.fixture(scope='session')
def cot_data():
    "The directory of rationale files"
    return _directory('COTKD_DATA', 'the rationale files')


@pytest.fixture(scope='session')
def bbh_dir():
    "The directory of BIG-Bench-Hard"
    return _directory('COTKD_BBH', 'BIG-Bench-Hard (tasks/ and cot-prompts/)')


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    "Nothing kept from the hub, and no way to it"
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    for name in ('HF_HOME', 'HF_HUB_CACHE'):
        monkeypatch.setattr(constants, name, str(tmp_path/'no-hub'))
    monkeypatch.setattr('cotkd.bbh.hub_answers', lambda: False)  # it would remember for longer


# not for longer than a module: the event loop that comes with it would be in the way of others
@pytest.fixture(scope='module')
def chromium():
    "The installed Chromium or Chrome"
    program = find_chromium()
    if not program:
        pytest.skip(f'no Chromium: none of {", ".join(CHROMIUMS)} is installed, and '
                    'COTKD_CHROMIUM names none')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    "A page of its own, with nothing stored"
    with chromium.new_context() as context:
        yield context.new_page()


MAY_BE_SKIPPED = ('CUDA', 'GPU', 'no Chromium')


def _must_run(report):
    "With COTKD_REQUIRE_DATA=1 only a test that needs a GPU or a browser may be skipped"
    required = os.environ.get('COTKD_REQUIRE_DATA') == '1'
    if not required or not report.skipped or hasattr(report, 'wasxfail'):
        return
    told = report.longrepr
    reason = str(told[2] if isinstance(told, tuple) else told)
    if any(word in reason for word in MAY_BE_SKIPPED):
        return
    report.outcome = 'failed'
    report.longrepr = f'{reason}\nCOTKD_REQUIRE_DATA=1 is set, so this skip is a failure.'


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
