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
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from browser import check_page, faint_texts
from test_report import HOSTILE, write_run

from cotkd.report import write_report
from cotkd.stats import simulated_results

NOTEBOOKS = {  # the labels of the widgets that are moved in each
    'index': [],
    'nbs/01_data': ['task', 'row'],
    'nbs/04_losses': ['divergence', 'temperature'],
    'nbs/10_gains': ['task'],
    'nbs/15_lens': ['token', 'example'],
}
ROOT = Path(__file__).parent.parent
SETTINGS = {
    'notebook-extension/tracker': dict(windowingMode='none'),  # cells off the screen are in the page too
    'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
}


@pytest.fixture
def shoot(page, tmp_path):
    "Save a screenshot in the test's directory, or in COTKD_SCREENSHOTS"
    def shoot(name, **options):
        page.screenshot(path=Path(os.environ.get('COTKD_SCREENSHOTS') or tmp_path)/f'{name}.png', **options)
    return shoot


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    results = simulated_results(['navigate', 'tracking_shuffled_objects_seven_objects'], n=40, off_n=10)
    run = write_run(tmp_path_factory.mktemp('report')/'run', results)
    return write_report(run, questions={task: [f'Question {i} {HOSTILE}' for i in range(40)] for task in results.task.unique()}).as_uri()


@pytest.mark.parametrize('body,words', [
    ('<script>console.error("oh")</script>', 'console: oh'), ('<script>no()</script>', 'error: no is not defined'), ('<script>alert(1)</script>', 'dialog: 1'),
    ('<img src=other.png>', 'request: '), ('<img alt=torn src="data:image/png;base64,AAAA">', 'torn'), ('<p style="width: 500px">wide', 'wider than 400'),
    ('<p style="color: #888">grey', 'grey'), ('<style>:root {color-scheme: dark}</style><p style="color: #333">dark on dark', 'dark on dark')])
def test_flaws_of_a_page_are_noticed(page, tmp_path, body, words):
    file = tmp_path/'page.html'
    file.write_text(f'<!doctype html><title>Flawed</title><meta charset=utf-8>{body}')
    with pytest.raises(AssertionError, match=words): check_page(page, file.as_uri(), 400, 'light')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 400])
def test_report_is_whole_and_legible(report, page, shoot, width, scheme):
    check_page(page, report, width, scheme)
    shoot(f'report-{width}-{scheme}', full_page=True)
    figures = page.locator('.figure img:visible')
    assert figures.count() == 3 and figures.evaluate_all('all => all.map(i => i.className)') == [scheme]*3


def test_report_prints_on_white_with_every_answer(report, page, shoot):
    check_page(page, report, 800, 'dark')
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.emulate_media(media='print', color_scheme='dark')
    assert page.locator('.figure .light:visible').count() == 3 and not page.locator('.figure .dark:visible').count()
    assert page.locator('details .answer').evaluate_all('all => all.every(e => e.checkVisibility({contentVisibilityAuto: true}))')
    assert not faint_texts(page)
    shoot('report-print', full_page=True)
    assert page.pdf().startswith(b'%PDF')


@pytest.fixture(scope='module')
def lab(chromium, tmp_path_factory):
    "The address of a JupyterLab over a copy of the notebooks, with settings and kernels of its own: a path -> URL"
    home, token = tmp_path_factory.mktemp('lab'), secrets.token_hex()
    shutil.copytree(ROOT/'nbs', home/'files/nbs', symlinks=True)
    shutil.copy(ROOT/'index.ipynb', home/'files')
    for name, values in SETTINGS.items():
        file = home/f'settings/@jupyterlab/{name}.jupyterlab-settings'
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    folders = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', IPYTHONDIR='ipython',
                   JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces')
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'JUPYTER_PATH', 'JUPYTER_CONFIG_PATH')}
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    address = lambda path: f'http://127.0.0.1:{port}/{path}token={token}'
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--LabApp.extension_manager=readonly', # asks no registry
               '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
               f"--ServerApp.root_dir={home/'files'}", '--ServerApp.shutdown_no_activity_timeout=900'] # should the tests be killed
    with (home/'log').open('w') as log:
        server = subprocess.Popen(command, env=env | {k: str(home/v) for k, v in folders.items()}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try: urlopen(address('api/status?')).close(); break
            except URLError: assert server.poll() is None and time.monotonic() < deadline, (home/'log').read_text()
            time.sleep(.2)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def wait_until_run(page):
    "Wait for an idle kernel and a number before every cell, or for the first error"
    page.wait_for_function("""() => document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
        || document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')
        && [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /\\[\\d+\\]/.test(p.textContent))""", polling=250)
    assert not (errors := page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()), errors[0]


def move(page, label):
    "Choose the next entry of the menu, or push the slider, of this label, and wait for its cell to show something else"
    control = page.locator('.widget-inline-hbox', has=page.locator('.widget-label', has_text=re.compile(f'^{label}$'))).first
    shown = """cell => [...cell.querySelectorAll('.jp-OutputArea img, .widget-html-content, .jp-RenderedHTML')]
        .map(e => e.tagName == 'IMG' ? e.complete && e.naturalWidth ? e.src : '' : e.innerHTML).join('')"""
    cell = page.locator('.jp-CodeCell', has=control)
    before = cell.evaluate(shown)
    if (menu := control.locator('select')).count(): menu.select_option(index=menu.evaluate('m => (m.selectedIndex + 1) % m.length'))
    else: control.locator('.noUi-handle').press('ArrowRight')
    page.wait_for_function(f'([cell, before]) => ![before, ""].includes(({shown})(cell))', arg=[cell.element_handle(), before], polling=250)


@pytest.fixture(params=NOTEBOOKS)
def notebook(lab, page, shoot, request):
    "A notebook open beside an idle kernel, which ends with the test; its last look is kept: its name"
    page.set_default_timeout(240_000)
    page.goto(lab(f'lab/tree/{request.param}.ipynb?reset&'))
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    yield request.param
    height = page.locator('.jp-WindowedPanel-outer').evaluate('notebook => { notebook.scrollTop = 0; return notebook.scrollHeight }')
    page.set_viewport_size(dict(width=1280, height=min(16_000, 150 + height)))
    shoot(Path(request.param).name)
    for session in json.load(urlopen(lab('api/sessions?'))): urlopen(Request(lab(f"api/sessions/{session['id']}?"), method='DELETE')).close()


def test_notebook_runs_in_jupyterlab(notebook, page):
    cells = [c for c in json.loads((ROOT/f'{notebook}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    wait_until_run(page)
    committed, widgets = sum('image/png' in output.get('data', {}) for c in cells for output in c['outputs']), NOTEBOOKS[notebook]
    drawn = page.locator('.jp-OutputArea img').evaluate_all('all => all.filter(i => i.naturalWidth).length')
    assert page.locator('.jp-CodeCell').count() == len(cells) and drawn >= committed, f'{drawn} figures, {committed} in the file'
    for label in widgets: move(page, label)
    wait_until_run(page)
    assert not page.locator('.jp-Dialog').count()
