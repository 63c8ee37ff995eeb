"The browser of the tests, and what every page has to satisfy in it"
import os
import shutil

CHROMIUMS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def find_chromium():
    "The program that COTKD_CHROMIUM names, else the first one installed, else None"
    return os.environ.get('COTKD_CHROMIUM') or next(filter(None, map(shutil.which, CHROMIUMS)), None)


_FAINT = """() => {
  const parse = color => (color.match(/[\\d.]+/g) || []).map(Number)
  const light = rgb => rgb.slice(0, 3).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
                          .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const opaque = e => { const c = parse(getComputedStyle(e).backgroundColor); return c.length == 3 || c[3] === 1 ? c : null }
  const probe = document.body.appendChild(document.createElement('i'))
  probe.style.color = 'Canvas'
  const canvas = parse(getComputedStyle(probe).color), faint = []
  probe.remove()
  const behind = e => e ? opaque(e) || behind(e.parentElement) : canvas
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.data.trim()).join(' ').trim()
    if (!own || !e.checkVisibility()) continue
    const style = getComputedStyle(e), size = parseFloat(style.fontSize)
    const [a, b] = [light(parse(style.color)), light(behind(e))]
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (ratio < (size >= 24 || size >= 18.6 && style.fontWeight >= 700 ? 3 : 4.5)) faint.push([own.slice(0, 40), Math.round(ratio * 10) / 10])
  }
  return faint
}"""


def faint_texts(page):
    "Text whose contrast with the nearest opaque background is below what WCAG 2 (AA) asks for: 4.5, and 3 for large text"
    return page.evaluate(_FAINT)


def check_page(page, url, width, scheme, home=None):
    "Open `url` and assert that it is whole: no error, no dialog, no request outside `home` (itself), no overflow, images there, text legible"
    wrong = []
    page.on('console', lambda m: m.type == 'error' and wrong.append(f'console: {m.text}'))
    page.on('pageerror', lambda e: wrong.append(f'error: {e}'))
    page.on('dialog', lambda d: (wrong.append(f'dialog: {d.message}'), d.dismiss()))
    page.on('requestfailed', lambda r: wrong.append(f'not loaded: {r.url[:200]}'))
    page.on('request', lambda r: r.url.startswith(('data:', home or url)) or wrong.append(f'request: {r.url[:200]}'))
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    page.wait_for_function('[...document.images].every(i => i.complete)')
    assert not wrong, wrong
    assert page.evaluate('document.scrollingElement.scrollWidth <= innerWidth'), f'{url} is wider than {width} pixels'
    assert (broken := page.evaluate('[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)')) == [], broken
    assert (faint := faint_texts(page)) == [], faint
