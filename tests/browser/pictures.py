"""Record docs/pictures/trace.png: python -m tests.browser.pictures TRACE, the trace.html that --trace 0 50 names."""
import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium

PICTURE = Path(__file__).parents[2] / "docs/pictures/trace.png"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(profile)
        browser.window(1280, 720)
        browser.open(sys.argv[1], "#s50-activation")
        browser.screenshot(PICTURE)
        browser.close()
