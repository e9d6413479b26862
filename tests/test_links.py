"""Every link in a document leads to a file, and to a heading where it names one."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)#\"]*)#?([^)\"]*)")


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")]), ids=lambda page: page.stem)
def test_links_resolve(page):
    for link, anchor in LINK.findall(page.read_text("utf-8")):
        target = page.parent / link if link else page
        heads = re.findall(r"^#+ (.*)", target.read_text("utf-8").lower(), re.MULTILINE) if anchor else []
        assert target.exists() and anchor in ["", *(re.sub(r"[^\w -]", "", h).replace(" ", "-") for h in heads)], link
