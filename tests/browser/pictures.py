"""Record docs/pictures/trace.png and wall.png: python -m tests.browser.pictures TRACE, after docs/record.sh.

TRACE is the trace.html that --trace 0 50 names; the wall is the atlas in docs/example, of 48 features drawn at random.
"""
import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium

DOCS = Path(__file__).parents[2] / "docs"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(profile)
        browser.window(1280, 720)
        browser.open(sys.argv[1], "#s50-activation")
        browser.screenshot(DOCS / "pictures/trace.png")
        browser.window(1280, 4000)                              # all are in view, so none is left unloaded
        browser.open(DOCS / "example/index.html")
        browser.settled()
        browser.window(1280, browser.run("Math.ceil(document.body.getBoundingClientRect().height)"))
        browser.screenshot(DOCS / "pictures/wall.png")
        browser.close()
