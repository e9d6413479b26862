"""Every link in a document leads to a file, and to a heading where it names one; every command exists, and featviz.py
takes its flags."""
import re
import shlex
from pathlib import Path

import pytest

from command.flags import parse

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)#\"]*)#?([^)\"]*)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])
STUDIES = "results.md"                          # of commands at an older commit, which it names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    for link, anchor in LINK.findall(page.read_text("utf-8")):
        target = page.parent / link if link else page
        heads = re.findall(r"^#+ (.*)", target.read_text("utf-8").lower(), re.MULTILINE) if anchor else []
        assert target.exists() and anchor in ["", *(re.sub(r"[^\w -]", "", h).replace(" ", "-") for h in heads)], link


def test_every_command_is_there():
    """What follows `python` in blocks and in the text; without comments and what is optional."""
    count = 0
    for path in (page for page in PAGES if page.name != STUDIES):
        text = re.sub(r"\s+\n?#[^\n]*", "", path.read_text("utf-8"))
        for words in map(shlex.split, re.findall(r"(?:^|`)python ([^`\n]+)", text, re.MULTILINE)):
            count += 1
            place = ROOT / (words[1].replace(".", "/") if words[0] == "-m" else words[0])
            assert words[1:2] == ["pytest"] or any(
                p.exists() for p in (place, place / "__main__.py", place.with_suffix(".py"))), (path, words)
            if words[0] == "featviz.py" and "--help" not in words:
                parse(words[1:])                                # SystemExit or ValueError for a wrong flag
    assert count > 40
