"""The pages in a real Chromium: no console error, no request, usable by keyboard and by tap, on a phone and on paper.

    python -m pytest tests/browser                  not among the fast tests; fails where no Chromium is installed
    SHOTS=shots python -m pytest tests/browser      keeps the screenshots
"""
import os
from pathlib import Path

import pytest

import featviz
from pages.atlas import write_atlas
from pages.feature import write_page
from tests import made
from tests.browser.chromium import Chromium
from tests.tiny import write_model

HOOK = "down_blocks.2.resnets.1.conv_shortcut"
FOCUSED = "document.activeElement.matches({!r})"
TILES = "[...document.querySelectorAll('.tile')]"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(autouse=True)
def desk(browser):
    browser.window(1400)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of three features, one of them at another hook point, with their pages and the atlas."""
    out = tmp_path_factory.mktemp("out") / "toy"
    png = made.picture(3, 64)
    for name in ("feature_00012", "feature_00037", f"{HOOK}_feature_00003"):
        made.feature(out / name, finished="fragile", png=png)
    names = {path.name for path in out.glob("*feature_*")}
    for name in names:
        write_page(out / name, names)
    write_atlas(out)
    return out


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    """An atlas of 600 features."""
    return write_atlas(made.features(tmp_path_factory.mktemp("wall") / "toy", 600))


def look(browser, page, shots, name):
    """What must hold of every page, with a picture of each way to see it."""
    for width, dark in ((1400, False), (1400, True), (390, False)):
        browser.window(width, dark=dark)
        browser.open(page)
        browser.screenshot(shots / f"{name}_{width}{'_dark' * dark}.png", whole=True)
        assert browser.run("document.documentElement.scrollWidth") <= width
        background = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert all((value < 64) == dark for value in background)
        assert browser.run("[...document.images].filter(i => i.checkVisibility() && (!i.naturalWidth || !i.alt))"
                           ".map(i => i.outerHTML)") == []
    browser.window(1400, dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    browser.pdf(shots / f"{name}.pdf")
    assert (shots / f"{name}.pdf").read_bytes().startswith(b"%PDF") and browser.errors == []


def tab_to(browser, selector):
    """Press Tab until the focus is there."""
    for _ in range(300):
        browser.key("Tab")
        if browser.run(FOCUSED.format(selector)):
            return
    pytest.fail(f"the Tab key never reaches {selector}")


@pytest.mark.parametrize("name", ["feature_00012", f"{HOOK}_feature_00003"])
def test_a_feature_s_page(browser, toy, shots, name):
    look(browser, toy / name / "index.html", shots, name)


@pytest.mark.parametrize("width, heights", [(1400, 2000), (390, 4000)])
def test_the_sentence_and_the_best_pictures_come_first(browser, toy, width, heights):
    browser.window(width, 900)
    browser.open(toy / "feature_00012" / "index.html")
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert browser.run(top.format("h1")) < 150 and browser.run(top.format("#best img")) < 600
    assert browser.run("parseFloat(getComputedStyle(document.querySelector('h1')).fontSize)") >= 24
    assert browser.run("document.documentElement.scrollHeight") < heights
    assert browser.run("[...document.querySelectorAll('details')].every(d => !d.open)")


@pytest.mark.parametrize("width", [1400, 390])
def test_pictures_are_sharp(browser, toy, width):
    """Every picture of 64 pixels is shown at a whole multiple of its size, each pixel a square."""
    browser.window(width)
    browser.open(toy / "feature_00012" / "index.html")
    found = browser.run("[...document.querySelectorAll('img.small')].filter(i => i.checkVisibility()).map(i => "
                        "[i.getBoundingClientRect().width, i.naturalWidth, getComputedStyle(i).imageRendering])")
    assert len(found) == 6 and all(shown % own == 0 and shown for shown, own, _ in found)
    assert {rendering for _, _, rendering in found} == {"pixelated"}


def test_each_picture_leads_to_its_own_course(browser, toy):
    """Without a script: the section opens and the picture stands in view."""
    for name in ("finished", "ascent"):
        browser.open(toy / "feature_00012" / "index.html")
        tab_to(browser, f"#best a[href^='#{name}']")
        target = browser.run("document.activeElement.getAttribute('href')")
        browser.key("Enter")
        browser.settled()
        box = browser.run(f"(b => [b.top, b.bottom])(document.querySelector('{target}').getBoundingClientRect())")
        assert browser.run("document.getElementById('how').open") and -5 <= box[0] < 800
        assert browser.run("document.querySelector(':target img').width") == 384


def test_terms_are_explained_on_hover_focus_and_tap(browser, toy):
    for width in (1400, 390):
        browser.window(width)
        browser.open(toy / "feature_00012" / "index.html")
        tab_to(browser, ".pair abbr")
        said = browser.run("getComputedStyle(document.activeElement, '::after').content")
        assert len(said) > 20 and said != "none"
        wide = ("[...document.querySelectorAll('abbr')].filter(a => a.checkVisibility()).map(a => { a.focus(); "
                "return document.documentElement.scrollWidth; })")
        assert max(browser.run(wide)) <= width


def test_the_way_to_the_atlas_and_back(browser, toy):
    browser.open(toy / "feature_00012" / "index.html")
    tab_to(browser, "nav a")
    browser.key("Enter")
    browser.settled()
    assert browser.run("document.querySelector('h1').textContent") == "3 features of toy"
    tab_to(browser, ".tile")
    browser.key("Enter")
    browser.settled()
    assert browser.run("document.querySelector('h1').textContent").startswith("Feature 3 ") and browser.errors == []


@pytest.mark.parametrize("width", [1400, 390])
def test_a_long_hook_point_leaves_the_atlas_in_order(browser, toy, shots, width):
    """Its tile is as wide as the others, shows its picture, and no word stands one letter a line."""
    look(browser, toy / "index.html", shots, "atlas")
    browser.window(width)
    browser.open(toy / "index.html")
    browser.settled()
    boxes = browser.run(f"{TILES}.map(t => (b => [b.left, b.right])(t.getBoundingClientRect()))")
    assert all(0 <= left < right <= width for left, right in boxes)
    assert len({round(right - left) for left, right in boxes}) == 1
    assert browser.run(f"{TILES}.every(t => t.querySelector('img').naturalWidth)")
    assert browser.run(f"{TILES}.some(t => t.textContent.includes('at {HOOK}'))")
    narrow = f"{TILES}.flatMap(t => [...t.children]).filter(e => e.textContent && e.getBoundingClientRect().width < 60)"
    assert browser.run(f"{narrow}.map(e => e.textContent)") == []


def test_the_atlas_is_searched_sorted_and_turned_by_keyboard(browser, wall):
    browser.open(wall)
    assert browser.run(COUNT) == "600 of 600"
    tab_to(browser, "[name=search]")
    for letter in "tree":
        browser.key(letter)
    trees = browser.run("shown.length")
    assert 1 < trees < 600 and browser.run(f"{TILES}.every(t => t.textContent.includes('Tree'))")
    tab_to(browser, "[name=sort]")
    browser.run("form.sort.value = 'number'; form.dispatchEvent(new Event('input')); remember()")
    numbers = browser.run("shown.map(x => x.number)")
    assert numbers == sorted(numbers)
    tab_to(browser, "[name=ascent]")
    browser.key(" ")
    browser.settled()
    assert browser.run(f"{TILES}.every(t => t.querySelector('img').src.endsWith('_ascent.jpg'))")
    fragment = browser.run("location.hash")
    assert "search=tree" in fragment and "ascent=on" in fragment
    browser.open(wall, fragment)                                # as after a look at a feature's page
    assert browser.run("shown.length") == trees and browser.run("form.ascent.checked")
    tab_to(browser, ".tile")
    places = []
    for key in ("ArrowRight", "ArrowDown", "Home", "End"):
        browser.key(key)
        places.append(browser.run(f"{TILES}.indexOf(document.activeElement)"))
    columns = browser.run("getComputedStyle(wall).gridTemplateColumns.split(' ').length")
    assert places == [1, min(1 + columns, trees - 1), 0, trees - 1] and browser.errors == []


def test_a_trace(browser, tmp_path, shots):
    """Every stage of a step by the arrow keys, on the smallest model."""
    flags = ["--weights", write_model(tmp_path / "tiny"), "--device", "cpu", "--out", tmp_path, "--seed", 5]
    assert featviz.main([str(flag) for flag in [*flags, "--num-steps", 2, "--trace", 1]]) == 0
    page, = tmp_path.rglob("trace.html")
    look(browser, page, shots, "trace")
    browser.window(1400)
    browser.open(page)
    before = browser.run("scrollY")
    browser.key("ArrowRight")
    assert browser.run("scrollY") > before and browser.errors == []


def test_a_sound_is_played_under_its_picture(browser, tmp_path, shots):
    """From Riffusion's flag in featviz.json to a player whose file the browser reads."""
    weights = write_model(tmp_path / "tiny", featviz={"sound": True})
    flags = ["--weights", weights, "--device", "cpu", "--out", tmp_path, "--seed", 5, "--num-steps", 2]
    assert featviz.main([str(flag) for flag in flags]) == 0
    page, = tmp_path.rglob("index.html")
    look(browser, page, shots, "sound")
    browser.open(page)
    length = ("Promise.all([...document.querySelectorAll('audio')].map(a => new Promise(done => {"
              " a.onloadedmetadata = a.onerror = () => done(a.duration); a.load(); })))")
    assert browser.run(length) == pytest.approx([31 * 441 / 44_100] * 3, abs=0.01) and browser.errors == []


def test_words_with_markup_stay_words(browser, wall):
    browser.open(wall, "#search=bear&sort=none&submit=none")
    assert browser.run(f"{TILES}.length") > 10
    assert browser.run(f"{TILES}.every(t => t.textContent.includes('<b>Bear</b>'))")


def test_without_scripts_the_atlas_is_a_list_of_links(browser, wall):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(wall)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.querySelectorAll('noscript li a').length") == 600
    assert browser.run("[...document.querySelectorAll('form')].every(e => !e.checkVisibility())")
