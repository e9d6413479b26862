"""The pages in a real Chromium: no console error, no request, usable by keyboard, readable in light and dark, on a
phone and on paper.

    python -m pytest tests/browser                  not among the fast tests; fails where no Chromium is installed
    SHOTS=shots python -m pytest -s tests/browser   keeps the screenshots, shows the times measured
"""
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pages.atlas import page as render
from pages.atlas import ASCENT, thumbnail_name
from tests import made
from tests.browser.chromium import Chromium

ROOT = Path(__file__).parents[2]
PHONE = 380
FOCUSED = "document.activeElement.matches({!r})"

# every element with text of its own -> those whose contrast with what is behind is below WCAG's 4.5 (3 for large text)
PALE = r"""(() => {
  const parts = text => (text.match(/[\d.]+/g) ?? []).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const measure = e => {
    const style = getComputedStyle(e), colour = e.closest("svg") ? style.fill : style.color;
    const pair = [parts(colour), behind(e)].map(light), least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    return [(Math.max(...pair) + .05) / (Math.min(...pair) + .05), least, e.outerHTML.slice(0, 120)];
  };
  const written = e => e.checkVisibility() && !e.closest("noscript, script, option")
    && [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
  const all = [...document.body.querySelectorAll("*")].filter(written);
  return all.map(measure).filter(([ratio, least]) => ratio < least);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(autouse=True)
def desk(browser):
    browser.window(1280)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def command(*flags):
    done = subprocess.run([sys.executable, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """out/toy with two features, each at two time steps from two seeds, one with other settings as well, and a trace,
    all in a few steps."""
    out = tmp_path_factory.mktemp("out")
    few = ["featviz.py", "--weights", "weights/toy", "--device", "cpu", "--num-steps", 6, "--prior", "noise",
           "--finish-steps", 3, "--finish-scale", 0.4, "--out", out]
    command(*few, "--feature", 22, 37, "--seed", 1024, 1111, "--timestep", 0, 600, "--frames", 4)
    command(*few, "--feature", 37, "--seed", 1024, "--timestep", 600, "--no-spectral-filter", "--no-finish")
    command(*few, "--feature", 22, "--seed", 1024, "--timestep", 600, "--trace", 0, 5)
    command("-m", "pages", out / "toy", "--atlas", out / "toy")
    return out / "toy"


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    """An atlas of 2,000 features."""
    folder = made.features(tmp_path_factory.mktemp("wall") / "toy", 2000)
    command("-m", "pages", "--atlas", folder)
    return folder / "index.html"


def look(browser, page, shots, name):
    """What must hold for every page, with a picture of each way to see it."""
    browser.open(page)
    browser.screenshot(shots / f"{name}.png")
    bad = "[...document.images].filter(i => !i.naturalWidth || !i.hasAttribute('alt')).map(i => i.outerHTML)"
    assert browser.run(bad) == []
    assert browser.run(PALE) == []
    browser.window(1280, dark=True)
    browser.screenshot(shots / f"{name}_dark.png")
    assert browser.run(PALE) == []
    assert browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c < 64)")
    browser.window(PHONE)
    browser.screenshot(shots / f"{name}_phone.png")
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    browser.window(1280, dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    browser.pdf(shots / f"{name}.pdf")
    assert (shots / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert browser.errors == []


def tab_to(browser, selector):
    """Press Tab until the focus is there."""
    for _ in range(200):
        browser.key("Tab")
        if browser.run(FOCUSED.format(selector)):
            return
    pytest.fail(f"the Tab key never reaches {selector}")


def wait_for(browser, script):
    """The value of an expression once it is true, or after 10 seconds."""
    until = time.time() + 10
    while not (value := browser.run(script)) and time.time() < until:
        time.sleep(0.05)
    return value


def test_a_feature_s_page(browser, toy, shots):
    look(browser, toy / "feature_00022" / "index.html", shots, "feature")
    browser.window(1280)
    look(browser, toy / "feature_00037" / "index.html", shots, "feature_settings")


def test_the_slider_of_a_feature_s_page(browser, toy, shots):
    """Without a mouse: open a result, go back through its steps, close it."""
    browser.open(toy / "feature_00022" / "index.html")
    tab_to(browser, "[data-view]")
    browser.key("Enter")
    tab_to(browser, "input[type=range]")
    state = ("[...document.querySelectorAll('dialog[open] :is(output, .strip)')]"
             ".map(e => e.textContent + e.getAttribute('style')).join()")
    states = [browser.run(state)]
    for key in ("ArrowLeft", "ArrowLeft", "Home"):
        browser.key(key)
        states.append(browser.run(state))
    assert len(set(states)) == 4 and "after 6 of 6 steps" in states[0] and "after 0 of 6 steps" in states[-1]
    browser.screenshot(shots / "feature_steps.png")
    browser.key("Escape")
    assert not browser.run("document.querySelector('dialog[open]')") and browser.errors == []


def test_without_scripts_the_viewers_of_a_page_lie_open(browser, toy):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(toy / "feature_00022" / "index.html")
    visible = "[...document.querySelectorAll('{}')].map(e => e.checkVisibility())"
    pictures, controls = visible.format("dialog .strip, dialog .all"), visible.format("dialog :is(input, form)")
    shown = browser.run(pictures), browser.run(controls)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert shown == ([True] * 8, [False] * 8)
    browser.open(toy / "feature_00022" / "index.html")
    assert browser.run(pictures) == [False] * 8


def test_a_trace(browser, toy, shots):
    page, = (toy / "feature_00022").glob("t0600-*/seed_1024_trace/trace.html")
    look(browser, page, shots, "trace")
    browser.window(1280)
    browser.open(page)
    before = browser.run("scrollY")
    browser.key("ArrowRight")
    assert browser.run("scrollY") > before and browser.errors == []


def test_the_atlas(browser, wall, toy, shots):
    look(browser, wall, shots, "atlas_2000")
    browser.window(1280)
    look(browser, toy / "index.html", shots, "atlas_toy")


COUNT, TILES = "document.getElementById('count').textContent", "[...document.querySelectorAll('.tile')]"
SORTS = {"concept": "t.querySelector('b').textContent", "activation": "-shown[t.dataset.index].activation",
         "number": "parseInt(t.querySelector('i').textContent)", "peak": "shown[t.dataset.index].peak"}
FILTERS = (("least", "2", "x.strength >= 2"), ("from", "300", "x.peak >= 300"), ("to", "600", "x.peak <= 600"),
           ("verdict", "e", "x.verdict === 'excited'"))


def test_the_atlas_is_searched_filtered_and_sorted_by_keyboard(browser, wall):
    browser.open(wall)
    assert browser.run(COUNT) == "2,000 of 2,000"
    strengths = browser.run(f"{TILES}.map(t => parseFloat(t.querySelectorAll('i')[1].textContent))")
    assert len(strengths) >= 40 and strengths == sorted(strengths, reverse=True)

    tab_to(browser, "[name=search]")
    for letter in "1234":
        browser.key(letter)
    assert browser.run(COUNT) == "1 of 2,000" and browser.run(f"{TILES}[0].querySelector('i').textContent") == "1234"
    browser.run("document.activeElement.select()")
    for letter in "tree":
        browser.key(letter)
    trees = browser.run("shown.length")
    assert 1 < trees < 2000 and browser.run(f"{TILES}.every(t => t.textContent.includes('Tree'))")

    tab_to(browser, "[name=concept]")
    browser.key("ArrowDown")                                    # the most frequent word
    both = browser.run("shown.length")
    has_both = "shown.every(x => x.words.includes(form.concept.value) && x.words.includes('Tree'))"
    assert 1 < both < trees and browser.run(has_both)
    assert "concept=" in browser.run("location.hash") and "search=tree" in browser.run("location.hash")
    tab_to(browser, "[name=sort]")
    for by, values in SORTS.items():
        browser.key("ArrowDown")
        order = browser.run(f"{TILES}.filter(t => !t.querySelector('.off')).map(t => {values})")
        assert browser.run("form.sort.value") == by and len(order) > 10 and order == sorted(order)
    for name, value, holds in FILTERS:
        tab_to(browser, f"[name={name}]")
        for letter in value:
            browser.key(letter)
        assert browser.run(f"shown.every(x => {holds})"), name
    assert 0 < browser.run("shown.length") < both
    fragment = browser.run("location.hash")
    tab_to(browser, "button[type=reset]")
    browser.key("Enter")
    assert wait_for(browser, f"{COUNT} === '2,000 of 2,000'") and browser.run("location.hash") == "#sort=strength"
    browser.open(wall, fragment)                                # as after a look at a feature's page
    assert browser.run("form.search.value") == "tree" and browser.run("shown.length") < both and browser.errors == []


def test_the_switch_shows_the_ascent_s_pictures(browser, tmp_path):
    """With their numbers and verdicts, by keyboard; the address keeps it."""
    folder = made.features(tmp_path / "toy", 12, finished=True)
    command("-m", "pages", "--atlas", folder)
    browser.open(folder / "index.html", "#sort=number")
    state = ("[shown.map(x => x.activation), shown.map(x => x.verdict), [...form.verdict.options].map(o => o.value),"
             f"{TILES}.map(t => t.querySelector('img').src.endsWith('{ASCENT}.jpg'))]")
    finished = browser.run(state)
    assert finished[1:] == [["raised"] * 12, ["", "raised"], [False] * 12]
    tab_to(browser, "[name=ascent]")
    browser.key(" ")
    ascent = browser.run(state)
    assert ascent[3] == [True] * 12 and set(ascent[2]) == {"", *ascent[1]} and "excited" in ascent[1]
    assert np.allclose(ascent[0], 2 * np.array(finished[0]), rtol=1e-3)
    browser.settled()
    assert browser.run("[...document.images].every(i => i.naturalWidth)")
    browser.open(folder / "index.html", browser.run("location.hash"))
    assert browser.run(state) == ascent
    tab_to(browser, "button[type=reset]")
    browser.key("Enter")
    assert wait_for(browser, "!form.ascent.checked") and wait_for(browser, "shown[0].verdict === 'raised'")
    assert browser.errors == []


def test_agreement_and_words_of_the_eyes(browser, tmp_path, shots):
    """Sorted and filtered by agreement, found by a word that only the eyes say; nine of twelve were measured."""
    folder, concepts = made.features(tmp_path / "toy", 12, finished=True), [("Tree",), ()]
    for i, name in enumerate(sorted(p.name for p in folder.glob("feature_*"))):
        made.activity(folder / name, concept=concepts[i % 2])
        if i < 9:
            words = ("rose", "petal", "car") if i % 3 else ("ink",)
            made.measured(folder / name, (5 * i % 9 + 1) / 10, words)
    command("-m", "pages", "--atlas", folder)
    look(browser, folder / "index.html", shots, "atlas_measured")
    browser.window(1280)
    browser.open(folder / "index.html")
    tab_to(browser, "[name=sort]")
    browser.key("End")
    order = browser.run("shown.map(x => x.agreement)")
    assert browser.run("form.sort.value") == "agreement" and order[9:] == [None] * 3
    assert order[:9] == [round(0.9 - k / 10, 1) for k in range(9)]
    tab_to(browser, "[name=agreement]")
    for letter in "0.5":
        browser.key(letter)
    assert browser.run("shown.map(x => x.agreement)") == order[:5]
    browser.key("Tab")                                          # what was typed goes into the address
    browser.open(folder / "index.html", browser.run("location.hash"))
    assert browser.run("shown.map(x => x.agreement)") == order[:5]
    browser.open(folder / "index.html")
    tab_to(browser, "[name=search]")
    for letter in "petal":
        browser.key(letter)
    assert browser.run("shown.map(x => x.number).sort()") == [1, 2, 4, 5, 7, 8]
    said = browser.run(f"{TILES}.map(t => t.querySelector('b').textContent)")
    assert sorted(said) == ["Tree"] * 3 + ["rose? petal?"] * 3        # a concept comes before a suggestion
    assert browser.run(f"{TILES}.every(t => t.title.includes('reads as rose? petal?, agreement 0.'))")
    assert browser.errors == []


def test_the_line_of_the_eyes_on_a_feature_s_page(browser, toy, shots):
    """Measured by the toy's own eyes at the end of the run; not wider than a phone."""
    page = toy / "feature_00022" / "index.html"
    for width in (1400, 390):
        browser.window(width)
        browser.open(page)
        browser.screenshot(shots / f"feature_{width}.png")
        line = browser.run("document.querySelector('h1 + .reads b').innerText")
        assert line.startswith("Reads as: ") and "agreement 0." in line and "in " in line and "of 2 seeds" in line
        assert "suggestion" in browser.run("document.querySelector('h1 + .reads').innerText")
        assert browser.run("document.documentElement.scrollWidth") <= width and browser.errors == []


def test_arrow_keys_walk_through_the_atlas(browser, wall):
    browser.open(wall)
    tab_to(browser, ".tile")
    at = "+document.activeElement.dataset.index"
    places = [browser.run(at)]
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "End", "ArrowUp", "Home"):
        browser.key(key)
        places.append(browser.run(at))
    columns = browser.run("columns")
    assert columns >= 4 and places == [0, 1, columns + 1, columns, 1999, 1999 - columns, 0]
    browser.key("End")
    inside = browser.run("(box => [box.top, innerHeight - box.bottom])(document.activeElement.getBoundingClientRect())")
    assert min(inside) >= 0 and browser.run(f"{TILES}.length") < 200 and browser.errors == []


def test_the_print_button_lays_out_the_first_240(browser, wall):
    browser.open(wall)
    browser.run("window.print = () => "
                "window.printed = [...document.images].filter(i => i.complete && i.naturalWidth).length")
    tab_to(browser, "#print")
    browser.key("Enter")
    assert wait_for(browser, "window.printed") == 240 and browser.run(f"{TILES}.length") < 200 and browser.errors == []


def test_a_tile_leads_to_the_feature_s_page(browser, toy):
    browser.open(toy / "index.html")
    tab_to(browser, ".tile")
    target = browser.run("document.activeElement.href")
    browser.key("Enter")
    there = f"location.href === {target!r} && document.readyState === 'complete'"       # the address changes first
    assert wait_for(browser, there) and target.endswith("/index.html")
    assert browser.run("document.querySelector('h1').textContent").startswith("Feature") and browser.errors == []


def test_words_with_markup_stay_words(browser, wall):
    browser.open(wall, "#concept=<b>Bear</b>&sort=none&submit=none")
    assert browser.run(f"{TILES}.length") > 10
    assert browser.run(f"{TILES}.every(t => t.textContent.includes('<b>Bear</b>'))")


def test_without_scripts_the_atlas_is_a_list_of_links(browser, wall):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(wall)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.querySelectorAll('noscript li a').length") == 2000
    assert browser.run("[...document.querySelectorAll('form, button')].every(e => !e.checkVisibility())")


SCROLL = """new Promise(done => { const times = []; let before;
  const step = now => { if (before) times.push(now - before); before = now;
  scrollBy(0, 60); times.length < 180 ? requestAnimationFrame(step) : done(times); }; requestAnimationFrame(step); })"""


def test_20480_features_open_at_once_and_scroll(browser, tmp_path):
    """Rows as `atlas.row` gives them and a thumbnail file for each, without the records that they come from."""
    rng, page = np.random.default_rng(0), tmp_path / "sd" / "index.html"
    (page.parent / "atlas").mkdir(parents=True)
    pictures = [page.parent / f"{k}.png" for k in range(48)]
    for k, path in enumerate(pictures):
        path.write_bytes(made.picture(k, 160))
    rows = []
    for i, (strength, peak) in enumerate(zip(rng.gamma(4, 0.5, 20480).round(4).tolist(),
                                             rng.integers(1000, size=20480).tolist())):
        rows.append([f"feature_{i:05d}", "t0600", "1024", strength, strength, "excited", 1, peak,
                     ["Tree", "Winter"][:i % 3], 1, [strength, strength, "raised", 2], None])
        for suffix in ("", ASCENT):
            os.link(pictures[i % len(pictures)], page.parent / "atlas" / thumbnail_name(*rows[-1][:3], suffix))
    page.write_text(render(page.parent, rows, 0), encoding="utf-8")
    loaded = browser.open(page)
    browser.settled()
    paint = browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    frames = np.array(browser.run(SCROLL))
    print(f"\n20,480 features: {page.stat().st_size / 2**20:.1f} MiB; load {loaded:.2f} s, first paint {paint:.2f} s; "
          f"frames while scrolling 60 pixels each: median {np.median(frames):.0f} ms, 95% below "
          f"{np.quantile(frames, 0.95):.0f} ms, longest {frames.max():.0f} ms")
    assert browser.run(COUNT) == "20,480 of 20,480" and loaded < 3 and paint < 3 and np.median(frames) < 100
    assert browser.run("document.querySelectorAll('*').length") < 2000 and browser.errors == []
