"Notebooks in JupyterLab and the report of a run, as a reader sees them"
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import nbformat
import pytest
from browser import check_page, faint_texts
from playwright.sync_api import TimeoutError
from test_report import QUESTIONS, TASKS, write_run

from cotkd.records import simulated_results
from cotkd.report import write_report

NOTEBOOKS = {  # and the widgets that are moved: label -> how many of that name
    'index': {'Ask them': 1},
    'nbs/03_data': {'task': 1, 'row': 1, 'words': 1},
    'nbs/08_losses': {'beta': 1, 'divergence': 1, 'temperature': 1, 'share': 1, 'gap': 1},
    'nbs/12_lens': {'example': 1, 'token': 2, 'student': 2},
    'nbs/22_figures': {'a': 1, 'b': 1, 'task': 1},
}
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    # cells off the screen are in the page too
    'notebook-extension/tracker': dict(windowingMode='none'),
    'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
}
OF_JUPYTER = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data',
                  JUPYTER_RUNTIME_DIR='runtime', IPYTHONDIR='ipython',
                  JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces')
NOT_OURS = ('MPLBACKEND', 'JUPYTER_PATH', 'JUPYTER_CONFIG_PATH')


@pytest.fixture
def shoot(page, tmp_path):
    "Save a screenshot in the test's directory, or in COTKD_SCREENSHOTS"
    folder = Path(os.environ.get('COTKD_SCREENSHOTS') or tmp_path)

    def shoot(name, **options):
        page.screenshot(path=folder/f'{name}.png', **options)

    return shoot


# --- the report

@pytest.fixture(scope='module')
def report(tmp_path_factory):
    results = simulated_results(TASKS, n=40, off_n=10)
    run = write_run(tmp_path_factory.mktemp('report')/'run', results)
    return write_report(run, QUESTIONS).as_uri()


FLAWS = {
    '<script>console.error("oh")</script>': 'console: oh',
    '<script>no()</script>': 'error: no is not defined',
    '<script>alert(1)</script>': 'dialog: 1',
    '<img src=other.png>': 'request: ',
    '<img alt=torn src="data:image/png;base64,AAAA">': 'torn',
    '<p style="width: 500px">wide': 'wider than 400',
    '<p style="color: #888">grey': 'grey',
    '<style>:root {color-scheme: dark}</style><p style="color: #333">on dark': 'on dark',
}


@pytest.mark.parametrize('body', FLAWS, ids=FLAWS.values())
def test_flaws_of_a_page_are_noticed(page, tmp_path, body):
    file = tmp_path/'page.html'
    file.write_text(f'<!doctype html><title>Flawed</title><meta charset=utf-8>{body}')
    with pytest.raises(AssertionError, match=FLAWS[body]):
        check_page(page, file.as_uri(), 400, 'light')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 400])
def test_report_is_whole_and_legible(report, page, shoot, width, scheme):
    check_page(page, report, width, scheme)
    shoot(f'report-{width}-{scheme}', full_page=True)
    shown = page.locator('.figure img:visible').evaluate_all('all => all.map(i => i.className)')
    assert shown == [scheme] * 3


def test_report_prints_on_white_with_every_answer(report, page, shoot):
    check_page(page, report, 800, 'dark')
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.emulate_media(media='print', color_scheme='dark')
    assert page.locator('.figure .light:visible').count() == 3
    assert not page.locator('.figure .dark:visible').count()
    visible = 'all => all.every(e => e.checkVisibility({contentVisibilityAuto: true}))'
    assert page.locator('details .answer').evaluate_all(visible)
    assert not faint_texts(page)
    shoot('report-print', full_page=True)
    assert page.pdf().startswith(b'%PDF')


# --- JupyterLab

def copy_notebooks(home):
    shutil.copytree(ROOT/'nbs', home/'files/nbs', symlinks=True)
    shutil.copy(ROOT/'index.ipynb', home/'files')
    for name, values in SETTINGS.items():
        file = home/f'settings/@jupyterlab/{name}.jupyterlab-settings'
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_server(home, port, token, log):
    env = {name: x for name, x in os.environ.items() if name not in NOT_OURS}
    env |= {name: str(home/folder) for name, folder in OF_JUPYTER.items()}
    options = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
               '--LabApp.extension_manager=readonly',  # asks no registry
               '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
               f"--ServerApp.root_dir={home/'files'}",
               '--ServerApp.shutdown_no_activity_timeout=900']  # should the tests be killed
    return subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], env=env, stdout=log,
                            stderr=log)


def wait_until_up(server, url, log):
    deadline = time.monotonic() + 120
    while True:
        try:
            return urlopen(url).close()
        except URLError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(.2)


@pytest.fixture(scope='module')
def lab(chromium, tmp_path_factory):
    "A JupyterLab over a copy of the notebooks, settings and kernels its own: a path -> URL"
    home, port, token = tmp_path_factory.mktemp('lab'), free_port(), secrets.token_hex()
    copy_notebooks(home)

    def address(path):
        return f'http://127.0.0.1:{port}/{path}token={token}'

    with (home/'log').open('w') as log:
        server = start_server(home, port, token, log)
    try:
        wait_until_up(server, address('api/status?'), home/'log')
        yield address
    finally:
        server.terminate()
        server.wait(60)


STDERR = '[data-mime-type="application/vnd.jupyter.stderr"]'
HAS_RUN = f"""() =>
    [...document.querySelectorAll('{STDERR}')].some(e => e.innerText.includes('Traceback'))
    || document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')
    && [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
        .every(p => /\\[\\d+\\]/.test(p.textContent))"""
SHOWN = """cell => [...cell.querySelectorAll(
        '.jp-OutputArea img, .widget-html-content, .jp-RenderedHTML')]
    .map(e => e.tagName == 'IMG' ? e.complete && e.naturalWidth ? e.src : '' : e.innerHTML)
    .join('')"""


def wait_until_run(page):
    "Wait for an idle kernel and a number before every cell, or for the first error"
    page.wait_for_function(HAS_RUN, polling=250)
    errors = page.locator(STDERR, has_text='Traceback').all_inner_texts()
    assert not errors, errors[0]


def push(control):
    "Next entry of a menu, a press of a button, or further along a slider"
    menu, handles = control.locator('select'), control.locator('.noUi-handle')
    if menu.count():
        menu.select_option(index=menu.evaluate('m => (m.selectedIndex + 1) % m.length'))
    elif not handles.count():
        control.click()
    elif handles.count() == 2:  # the lower end of a range, beyond what is shown
        handles.first.press('End')
    else:
        at_end = handles.evaluate('h => h.ariaValueNow == h.ariaValueMax')
        handles.press('ArrowLeft' if at_end else 'ArrowRight')


def controls(page, label):
    "All that have this label"
    exactly = re.compile(f'^{label}$')
    text = page.locator('.widget-label', has_text=exactly)
    labelled = page.locator('.widget-inline-hbox', has=text)
    return labelled.or_(page.locator('button.widget-button', has_text=exactly))


def move(page, control):
    "Push a control until its cell shows something else"
    cell = control.locator('xpath=ancestor::*[contains(@class, "jp-CodeCell")]')
    before = cell.evaluate(SHOWN)
    for _ in range(6):  # what is pushed before the kernel's first word arrives, that word undoes
        push(control)
        with suppress(TimeoutError):
            return page.wait_for_function(
                f'([cell, before]) => ![before, ""].includes(({SHOWN})(cell))', timeout=5_000,
                arg=[cell.element_handle(), before], polling=250)
    raise AssertionError('a control was pushed six times, and nothing changed: '
                         + control.inner_text())


@pytest.fixture(params=NOTEBOOKS)
def notebook(lab, page, shoot, request):
    "A notebook open beside an idle kernel, which ends with the test; its last look is kept"
    page.set_default_timeout(240_000)
    page.goto(lab(f'lab/tree/{request.param}.ipynb?reset&'))
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    yield request.param
    panel = page.locator('.jp-WindowedPanel-outer')
    height = panel.evaluate('notebook => { notebook.scrollTop = 0; return notebook.scrollHeight }')
    page.set_viewport_size(dict(width=1280, height=min(16_000, 150 + height)))
    shoot(Path(request.param).name)
    for session in json.load(urlopen(lab('api/sessions?'))):
        end = Request(lab(f"api/sessions/{session['id']}?"), method='DELETE')
        urlopen(end).close()


def committed(name):
    "How many code cells there are, and figures among their outputs"
    code = [c for c in nbformat.read(ROOT/f'{name}.ipynb', 4).cells if c.cell_type == 'code']
    outputs = [output for cell in code for output in cell.outputs]
    return len(code), sum('image/png' in output.get('data', {}) for output in outputs)


def test_notebook_runs_in_jupyterlab(notebook, page):
    for item in ('Run', 'Run All Cells'):
        page.get_by_role('menuitem', name=item, exact=True).click()
    wait_until_run(page)
    cells, figures = committed(notebook)
    drawn = 'all => all.filter(i => i.naturalWidth).length'
    assert page.locator('.jp-CodeCell').count() == cells
    assert page.locator('.jp-OutputArea img').evaluate_all(drawn) >= figures
    for label, count in NOTEBOOKS[notebook].items():
        found = controls(page, label)
        assert found.count() == count, label
        for i in range(count):
            move(page, found.nth(i))
    wait_until_run(page)
    assert not page.locator('.jp-Dialog').count()
