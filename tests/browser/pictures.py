"""The README's pictures of pages: python -m tests.browser.pictures

Needs what these leave in out/:

    python featviz.py --out out/first
    python featviz.py --feature 0-47 --out out/wall
    python featviz.py --out out/first --seed 1024 --trace 0 50

The pictures of random features need no browser: python -m pages out/wall/toy --rows docs/pictures/rows.png --wall
docs/pictures/wall.png
"""
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium

ROOT = Path(__file__).parents[2]
SHOTS = (   # name, page (a pattern below out), fragment, height of the window
    ("feature", "first/toy/feature_*/index.html", "", 1000),
    ("atlas", "wall/toy/index.html", "", 800),
    ("trace", "first/toy/feature_*/t*/seed_1024_trace/trace.html", "#s50-activation", 720))

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(profile)
        for name, page, fragment, height in SHOTS:
            browser.window(1280, height)
            browser.open(next((ROOT / "out").glob(page)), fragment)
            browser.screenshot(ROOT / f"docs/pictures/{name}.png")
        browser.close()
