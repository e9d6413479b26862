"""The pages in a real Chromium: no console error, no request, usable by keyboard and by tap, on a phone and on paper.

    python -m pytest tests/browser                  not among the fast tests; fails where no Chromium is installed
    SHOTS=shots python -m pytest tests/browser      keeps the screenshots
"""
import os
from pathlib import Path

import pytest

import featviz
from pages.__main__ import main
from pages.atlas import write_atlas
from tests import made
from tests.browser.chromium import Chromium
from tests.tiny import write_model

HOOK = "down_blocks.2.resnets.1.conv_shortcut"
TILES = "[...document.querySelectorAll('.tile')]"
TITLE = "document.querySelector('h1').textContent"
FEATURE = "toy/feature_00012/index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Three features, one of them at another hook point, with their pages and atlas; and an atlas of 60."""
    out = tmp_path_factory.mktemp("out")
    for name in ("feature_00012", "feature_00037", f"{HOOK}_feature_00003"):
        made.feature(out / "toy" / name, finished="fragile", png=made.picture(3, 64))
    assert main([str(out / "toy"), "--atlas"]) == 0
    write_atlas(made.features(out / "wall", 60))
    return out


def look(browser, page, name, shots=Path(os.environ.get("SHOTS", "/tmp"))):
    """What must hold of every page, with a picture of each way to see it where they are asked for."""
    shots.mkdir(parents=True, exist_ok=True)
    for width, dark, media in ((1400, False, "screen"), (1400, True, "screen"), (390, False, "screen"),
                               (1400, True, "print")):
        browser.window(width, dark=dark, media=media)
        browser.open(page)
        browser.settled()
        if "SHOTS" in os.environ:
            browser.screenshot(shots / f"{name}_{width}_{media}{'_dark' * dark}.png", whole=True)
        assert browser.run("document.documentElement.scrollWidth") <= width
        ink = browser.run("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
        assert all((value > 192) == (dark and media == "screen") for value in ink)
        assert browser.run("[...document.images].filter(i => i.checkVisibility() && (!i.naturalWidth || !i.alt))"
                           ".map(i => i.outerHTML)") == []
    browser.window(1400)
    browser.open(page)
    assert browser.errors == []


def tab_to(browser, selector):
    """Press Tab until the focus is there."""
    for _ in range(300):
        browser.key("Tab")
        if browser.run(f"document.activeElement.matches({selector!r})"):
            return
    pytest.fail(f"the Tab key never reaches {selector}")


@pytest.mark.parametrize("page", [FEATURE, f"toy/{HOOK}_feature_00003/index.html", "toy/index.html"])
def test_pages_fit_every_window_and_are_read_in_the_dark(browser, out, page):
    look(browser, out / page, page.replace("/", "_"))


@pytest.mark.parametrize("width, heights", [(1400, 2000), (390, 4000)])
def test_the_sentence_and_the_best_pictures_come_first_and_are_sharp(browser, out, width, heights):
    """Every picture of 64 pixels is shown at a whole multiple of its size, each pixel a square."""
    browser.window(width, 900)
    browser.open(out / FEATURE)
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert browser.run(top.format("h1")) < 150 and browser.run(top.format("#best img")) < 600
    assert browser.run("parseFloat(getComputedStyle(document.querySelector('h1')).fontSize)") >= 24
    assert browser.run("document.documentElement.scrollHeight") < heights
    assert browser.run("[...document.querySelectorAll('details')].every(d => !d.open)")
    found = browser.run("[...document.querySelectorAll('img.small')].filter(i => i.checkVisibility()).map(i => "
                        "[i.getBoundingClientRect().width, i.naturalWidth, getComputedStyle(i).imageRendering])")
    assert len(found) == 6 and all(shown % own == 0 and look == "pixelated" for shown, own, look in found)


def test_each_picture_leads_to_its_own_course_without_a_script(browser, out):
    browser.window(1400)
    for name in ("finished", "ascent"):
        browser.open(out / FEATURE)
        tab_to(browser, f"#best a[href^='#{name}']")
        target = browser.run("document.activeElement.getAttribute('href')")
        browser.key("Enter")
        browser.settled()
        top = browser.run(f"document.querySelector('{target}').getBoundingClientRect().top")
        assert browser.run("document.getElementById('how').open") and -5 <= top < 800
        assert browser.run("document.querySelector(':target img').width") == 384


@pytest.mark.parametrize("width", [1400, 390])
def test_terms_are_explained_on_hover_focus_and_tap(browser, out, width):
    browser.window(width)
    browser.open(out / FEATURE)
    tab_to(browser, ".pair abbr")
    assert len(browser.run("getComputedStyle(document.activeElement, '::after').content")) > 20
    wide = ("[...document.querySelectorAll('abbr')].filter(a => a.checkVisibility()).map(a => { a.focus(); "
            "return document.documentElement.scrollWidth; })")
    assert max(browser.run(wide)) <= width


def test_the_way_to_the_atlas_and_back(browser, out):
    browser.window(1400)
    browser.open(out / FEATURE)
    for target, title in (("nav a", "3 features of toy"), (".tile", "Feature 3 ")):
        tab_to(browser, target)
        browser.key("Enter")
        browser.settled()
        assert browser.run(TITLE).startswith(title) and browser.errors == []


@pytest.mark.parametrize("width", [1400, 390])
def test_a_long_hook_point_leaves_the_atlas_in_order(browser, out, width):
    """Its tile is as wide as the others, shows its picture, and no word stands one letter a line."""
    browser.window(width)
    browser.open(out / "toy/index.html")
    browser.settled()
    boxes = browser.run(f"{TILES}.map(t => (b => [b.left, b.right])(t.getBoundingClientRect()))")
    assert all(0 <= left < right <= width for left, right in boxes)
    assert len({round(right - left) for left, right in boxes}) == 1
    assert browser.run(f"{TILES}.every(t => t.querySelector('img').naturalWidth)")
    assert browser.run(f"{TILES}.some(t => t.textContent.includes('at {HOOK}'))")
    narrow = f"{TILES}.flatMap(t => [...t.children]).filter(e => e.textContent && e.getBoundingClientRect().width < 60)"
    assert browser.run(f"{narrow}.map(e => e.textContent)") == []


def test_the_atlas_is_searched_sorted_and_turned_by_keyboard(browser, out):
    browser.window(1400)
    wall = out / "wall/index.html"
    browser.open(wall)
    assert browser.run("document.getElementById('count').textContent") == "60 of 60"
    tab_to(browser, "[name=search]")
    for letter in "bear":
        browser.key(letter)
    found = browser.run("shown.length")
    assert 2 < found < 60 and browser.run(f"{TILES}.every(t => t.textContent.includes('<b>Bear</b>'))")
    browser.run("form.sort.value = 'number'; form.dispatchEvent(new Event('input')); remember()")
    numbers = browser.run("shown.map(x => x.number)")
    assert numbers == sorted(numbers)
    tab_to(browser, "[name=ascent]")
    browser.key(" ")
    assert browser.run(f"{TILES}.every(t => t.querySelector('img').src.endsWith('_ascent.jpg'))")
    fragment = browser.run("location.hash")
    browser.open(wall, fragment)                                # as after a look at a feature's page
    assert browser.run("shown.length") == found and browser.run("form.ascent.checked")
    tab_to(browser, ".tile")
    places = []
    for key in ("ArrowRight", "ArrowDown", "Home", "End"):
        browser.key(key)
        places.append(browser.run(f"{TILES}.indexOf(document.activeElement)"))
    columns = browser.run("getComputedStyle(wall).gridTemplateColumns.split(' ').length")
    assert places == [1, min(1 + columns, found - 1), 0, found - 1] and browser.errors == []


def test_a_trace_and_a_sound_from_flags_to_the_browser(browser, tmp_path):
    """Every stage of a step by the arrow keys; and from Riffusion's flag to players whose files the browser reads."""
    weights = write_model(tmp_path / "tiny", featviz={"sound": True})
    flags = ["--weights", weights, "--device", "cpu", "--out", tmp_path, "--seed", 5, "--num-steps", 2]
    assert featviz.main([*map(str, flags)]) == featviz.main([*map(str, flags), "--trace", "1"]) == 0
    (trace,), (page,) = tmp_path.rglob("trace.html"), tmp_path.rglob("index.html")
    look(browser, trace, "trace")
    before = browser.run("scrollY")
    browser.key("ArrowRight")
    assert browser.run("scrollY") > before and browser.errors == []
    look(browser, page, "sound")
    length = ("Promise.all([...document.querySelectorAll('audio')].map(a => new Promise(done => {"
              " a.onloadedmetadata = a.onerror = () => done(a.duration); a.load(); })))")
    assert browser.run(length) == pytest.approx([31 * 441 / 44_100] * 3, abs=0.01) and browser.errors == []
