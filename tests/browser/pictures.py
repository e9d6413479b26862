"""The README's pictures of pages: python -m tests.browser.pictures

Needs `python featviz.py --out out/first`, and what docs/method.md's commands for a trace and for an atlas of 48
features by lot leave in out/toy and out/lot.
"""
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium

ROOT = Path(__file__).parents[2]
SHOTS = (   # name, page (a pattern below out), fragment, height of the window
    ("feature", "first/toy/feature_00004/index.html", "", 1000),
    ("atlas", "lot/toy/index.html", "", 800),
    ("trace", "toy/feature_00022/t0500/seed_1024_trace/trace.html", "#s50-activation", 720),
)


def main():
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(profile)
        for name, page, fragment, height in SHOTS:
            browser.window(1280, height)
            browser.open(next((ROOT / "out").glob(page)), fragment)
            browser.screenshot(ROOT / f"docs/pictures/{name}.png")
            assert not browser.errors, browser.errors
        browser.close()


if __name__ == "__main__":
    main()
