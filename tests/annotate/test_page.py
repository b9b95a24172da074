"""The page in a real browser: keyboard and mouse, two people at once, lost connections, ended tokens, contrast."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from medtune.annotate.app import PAGE
from tests.annotate.browser import CHROMIUM, Browser, Tab, chromium
from tests.annotate.running import Page, page

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (or $MEDTUNE_CHROMIUM)")
READY = "document.querySelector('#work').hidden === false && !document.querySelector('[data-choice]').disabled"
SETTLED = "performance.now() - shownAt > TOO_SOON && !busy"
CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility()) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    found.push([e.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return found; })()"""
NAMELESS = """[...document.querySelectorAll('button, input, textarea, canvas, progress, [role=group], main section')]
  .filter((e) => e.checkVisibility() && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || (e.labels && e.labels.length) || (e.tagName === 'BUTTON' && e.textContent.trim()))).map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Page]:
    with page(tmp_path, 6) as found:
        yield found


def sign_in(browser: Browser, running: Page, who: str) -> Tab:
    tab = browser.tab()
    tab.size(1280, 800)
    tab.open(f"{running.url}#token={running.tokens[who]}")
    tab.until(READY)
    tab.until(SETTLED)
    return tab


def stored(running: Page) -> dict[tuple[str, str], tuple[str, str]]:
    return {(row.id, who): (made.preference, made.comment) for row, who, made in running.store.choices()}


def meant(running: Page, who: str, id: str, side: str) -> str:
    swapped = running.desk.shares.swapped(who, id)
    return {"left": "second" if swapped else "first", "right": "first" if swapped else "second"}.get(side, side)


def shown_id(tab: Tab) -> str:
    return tab.text("#name").removeprefix("Question ")


def after(tab: Tab, done: int) -> None:
    tab.until(f"document.querySelector('#count').textContent.startsWith('{done} of') && !busy")
    tab.until(SETTLED)


def clean(tab: Tab, running: Page) -> None:
    assert tab.problems == []
    assert all(url.startswith((running.url, "data:", "about:")) for url in tab.asked), tab.asked


@needs_chromium
@pytest.mark.slow
def test_two_people_annotate_at_once_one_by_keyboard_and_one_by_mouse(browser: Browser, running: Page) -> None:
    one, two = sign_in(browser, running, "one"), sign_in(browser, running, "two")
    assert "token" not in one.run("location.href")
    expected = {}
    sides = ["left", "right", "both", "neither", "left", "right"]
    for number, side in enumerate(sides):
        expected["one", shown_id(one)] = (meant(running, "one", shown_id(one), side), f"note {number}" * (number == 1))
        expected["two", shown_id(two)] = (meant(running, "two", shown_id(two), side), "")
        if number == 1:
            one.press("c")
            one.write("note 1")
            one.press("1")  # a digit of the comment, and no choice
            one.press("Backspace")
            one.run("document.querySelector('#comment').value = 'note 1'")
            one.press("Escape")
        one.press(str(1 + ["left", "right", "both", "neither"].index(side)))
        two.click(f"[data-choice={side}]")
        if number < 5:
            after(one, number + 1)
            after(two, number + 1)
    for tab in (one, two):
        tab.until("document.querySelector('#done').hidden === false")
        clean(tab, running)
    assert stored(running) == {(id, who): made for (who, id), made in expected.items()}


@needs_chromium
@pytest.mark.slow
def test_undo_later_and_a_double_click(browser: Browser, running: Page) -> None:
    tab = sign_in(browser, running, "one")
    first = shown_id(tab)
    button = "document.querySelector('[data-choice=both]').click()"
    # The second click comes as soon as the next question stands there.
    tab.run(f"(async () => {{ {button}; while (busy) await pause(0.005); {button}; await pause(0.2); }})()")
    after(tab, 1)
    assert len(stored(running)) == 1
    tab.press("u")
    after(tab, 0)
    assert shown_id(tab) == first and stored(running) == {}
    tab.press("l")
    tab.until(f"document.querySelector('#name').textContent !== 'Question {first}' && !busy")
    tab.click("#undo")
    tab.until("document.querySelector('#notice').textContent === 'There is no choice to undo.'")
    clean(tab, running)


@needs_chromium
@pytest.mark.slow
def test_the_image_is_zoomed_moved_and_windowed_by_keys_and_mouse(browser: Browser, running: Page) -> None:
    tab = sign_in(browser, running, "one")
    tab.until("document.querySelector('#view').dataset.scale")
    scale = "Number(document.querySelector('#view').dataset.scale)"
    offset = "document.querySelector('#view').dataset.offset"
    whole, at = tab.run(scale), tab.run(offset)
    tab.press("+")
    assert tab.run(scale) == pytest.approx(1.4 * whole, rel=1e-3)
    tab.press("i")
    before = [float(v) for v in tab.run(offset).split()]
    tab.press("ArrowRight")
    assert [float(v) for v in tab.run(offset).split()] == pytest.approx([before[0] - 60, before[1]], abs=0.2)
    tab.drag("#view", 30, -20)
    assert [float(v) for v in tab.run(offset).split()] == pytest.approx([before[0] - 30, before[1] - 20], abs=0.2)
    x, y = tab.middle("#view")
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200)
    tab.until(f"{scale} > {1.5 * 1.4 * whole}")
    tab.press("0")
    assert (tab.run(scale), tab.run(offset)) == (whole, at)
    grey = "document.querySelector('#window').hidden === false"
    while not tab.run(grey):  # one image is coloured
        tab.press("l")
        tab.until(SETTLED)
        tab.until("document.querySelector('#view').dataset.scale")
    pixel = "(() => { const c = document.querySelector('#view'); return c.getContext('2d')"
    pixel += ".getImageData(c.width / 2, c.height * 0.25, 1, 1).data[0]; })()"
    plain = tab.run(pixel)
    tab.run("document.querySelector('#width').focus()")
    for _ in range(60):
        tab.press("ArrowLeft")
    width = tab.run("Number(document.querySelector('#width').value)")
    assert width == 195
    assert tab.run(pixel) == pytest.approx(255 * (plain - 128 + width / 2) / width, abs=2)
    clean(tab, running)


@needs_chromium
@pytest.mark.slow
def test_a_choice_made_while_the_server_is_away_is_sent_when_it_is_back(browser: Browser, running: Page) -> None:
    tab = sign_in(browser, running, "one")
    id, port = shown_id(tab), running.url.rstrip("/").rpartition(":")[2]
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.press("3")
    tab.until("document.querySelector('#notice').textContent.includes('connection is lost')")
    assert stored(running) == {} and port
    tab.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    after(tab, 1)
    assert stored(running) == {(id, "one"): ("both", "")}
    assert tab.run("document.querySelector('#notice').hidden")


@needs_chromium
@pytest.mark.slow
def test_a_token_that_ends_asks_for_a_new_one_and_the_choice_is_sent_with_it(browser: Browser, running: Page) -> None:
    tab = sign_in(browser, running, "one")
    id = shown_id(tab)
    running.store.set_token("one", "token-of-one", 1.0)
    tab.press("4")
    tab.until("document.querySelector('#sign-in').hidden === false")
    assert "token has ended" in tab.text("#notice") and stored(running) == {}
    tab.write("wrong")
    tab.press("Enter")
    tab.until("document.querySelector('#notice').textContent.includes('not known')")
    running.store.set_token("one", "newer", None)
    tab.write("newer")
    tab.press("Enter")
    after(tab, 1)
    assert stored(running) == {(id, "one"): ("neither", "")}


@needs_chromium
@pytest.mark.slow
def test_an_image_that_is_gone_is_said_in_its_place(browser: Browser, running: Page, tmp_path: Path) -> None:
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    tab = sign_in(browser, running, "two")
    tab.until("document.querySelector('#gone').hidden === false")
    assert re.match(r"Image 1 of question q\d cannot be read any more; .* Choose Later", tab.text("#gone"))


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast_all_controls_have_names_and_the_tab_key_reaches_them(
    browser: Browser, running: Page, dark: bool
) -> None:
    tab = sign_in(browser, running, "one")
    tab.size(1280, 800, dark=dark)
    tab.until("document.querySelector('#view').dataset.scale")
    tab.run("(document.querySelector('#help').open = true, notice('A notice.'))")
    found = tab.run(CONTRAST)
    assert len(found) > 25 and [one for one in found if one[1] < 4.5] == []
    assert tab.run(NAMELESS) == []
    tab.run("document.querySelector('#help').open = false")
    reached = []
    tab.run("document.activeElement.blur()")
    for _ in range(25):
        tab.press("Tab")
        reached.append(tab.run("document.activeElement.id || document.activeElement.dataset.choice || ''"))
    for name in ("undo", "later", "view", "closer", "farther", "whole", "left", "right", "both", "neither", "comment"):
        assert name in reached
    clean(tab, running)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1024, 768), (768, 1024), (390, 844)])
def test_nothing_is_wider_than_the_window_and_buttons_are_large_enough_for_fingers(
    browser: Browser, running: Page, width: int, height: int
) -> None:
    tab = sign_in(browser, running, "one")
    tab.size(width, height, touch=width < 1280)
    tab.until("document.querySelector('#view').dataset.scale")
    assert tab.run("document.documentElement.scrollWidth") <= width
    sizes = "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility()).map((b) => "
    sizes += "Math.min(b.getBoundingClientRect().width, b.getBoundingClientRect().height))"
    assert min(tab.run(sizes)) >= 44


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5


def test_the_colours_of_the_page_reach_aa_in_both_schemes() -> None:
    text = (PAGE / "page.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)
    ]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    words = [("text", "ground"), ("text", "card"), ("quiet", "card"), ("quiet", "ground"), ("on-strong", "strong")]
    words += [("on-strong", "strong-over"), ("on-notice", "notice")]
    edges = [("edge", "card"), ("edge", "ground"), ("focus", "card"), ("focus", "ground"), ("strong", "card")]
    for colours in schemes:
        assert [pair for pair in words if contrast(*(colours[name] for name in pair)) < 4.5] == []
        assert [pair for pair in edges if contrast(*(colours[name] for name in pair)) < 3] == []


def test_the_page_asks_for_nothing_from_elsewhere_and_holds_no_inline_code() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"https?:|//[a-z]|@import|url\(|innerHTML|eval\(", re.sub(r"(?m)(^|\s)// .*$", "", text)
        ), path
    markup = (PAGE / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|<script>", markup)
    ids = re.findall(r'\sid="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'at\("([^"]+)"\)', (PAGE / "page.js").read_text(encoding="utf-8")))
    assert used <= set(ids)
    levels = [int(level) for level in re.findall(r"<h([1-6])", markup)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
