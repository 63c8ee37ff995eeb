"The browser of the tests, and what every page has to satisfy in it"
import os
import shutil

CHROMIUMS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def find_chromium():
    "The program that COTKD_CHROMIUM names, else the first one installed, else None"
    installed = filter(None, map(shutil.which, CHROMIUMS))
    return os.environ.get('COTKD_CHROMIUM') or next(installed, None)


FAINT = """() => {
  const parse = color => (color.match(/[\\d.]+/g) || []).map(Number)
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4
  const light = rgb => rgb.slice(0, 3).map(c => linear(c / 255))
                          .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const opaque = e => {
    const c = parse(getComputedStyle(e).backgroundColor)
    return c.length == 3 || c[3] === 1 ? c : null
  }
  const probe = document.body.appendChild(document.createElement('i'))
  probe.style.color = 'Canvas'
  const canvas = parse(getComputedStyle(probe).color), faint = []
  probe.remove()
  const behind = e => e ? opaque(e) || behind(e.parentElement) : canvas
  for (const e of document.body.querySelectorAll('*')) {
    const texts = [...e.childNodes].filter(n => n.nodeType == 3)
    const own = texts.map(n => n.data.trim()).join(' ').trim()
    if (!own || !e.checkVisibility()) continue
    const style = getComputedStyle(e), size = parseFloat(style.fontSize)
    const [a, b] = [light(parse(style.color)), light(behind(e))]
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    const large = size >= 24 || size >= 18.6 && style.fontWeight >= 700
    if (ratio < (large ? 3 : 4.5)) faint.push([own.slice(0, 40), Math.round(ratio * 10) / 10])
  }
  return faint
}"""


def faint_texts(page):
    "Text on its nearest opaque background below the contrast of WCAG 2 (AA): 4.5, large text 3"
    return page.evaluate(FAINT)


def _watch(page, own):
    "A list that fills with what goes wrong; requests may go to `own` only"
    wrong = []

    def dismiss(dialog):
        wrong.append(f'dialog: {dialog.message}')
        dialog.dismiss()

    def request(asked):
        if not asked.url.startswith(('data:', own)):
            wrong.append(f'request: {asked.url[:200]}')

    def console(message):
        if message.type == 'error':
            wrong.append(f'console: {message.text}')

    page.on('console', console)
    page.on('dialog', dismiss)
    page.on('request', request)
    page.on('pageerror', lambda error: wrong.append(f'error: {error}'))
    page.on('requestfailed', lambda asked: wrong.append(f'not loaded: {asked.url[:200]}'))
    return wrong


def check_page(page, url, width, scheme, home=None):
    "Open `url` and assert that it is whole, fits the width, is legible, asks only `home` (itself)"
    wrong = _watch(page, home or url)
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    page.wait_for_function('[...document.images].every(i => i.complete)')
    assert not wrong, wrong
    fits = page.evaluate('document.scrollingElement.scrollWidth <= innerWidth')
    assert fits, f'{url} is wider than {width} pixels'
    broken = page.evaluate('[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)')
    assert broken == [], broken
    faint = faint_texts(page)
    assert faint == [], faint
