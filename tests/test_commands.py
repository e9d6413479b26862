"""Every command in the documents exists, and featviz.py takes its flags."""
import re
import shlex
from pathlib import Path

import pytest

from command.parser import check_flags, parse, read_axes

ROOT = Path(__file__).parent.parent
STUDIES = "results.md"                          # of commands at an older commit, which it names
DOCUMENTS = [path for pattern in ("*.md", "docs/*.md", "*/README.md") for path in ROOT.glob(pattern)
             if path.name != STUDIES]


def commands(path):
    """What follows `python` in a document, in blocks and in the text; without comments and what is optional."""
    text = re.sub(r"\s+\n?#[^\n]*", "", path.read_text(encoding="utf-8"))
    found = re.findall(r"(?:^|`)python ([^`\n]+)", text, re.MULTILINE)
    return [shlex.split(command) for command in found]


def test_documents_hold_commands():
    assert sum(len(commands(path)) for path in DOCUMENTS) > 40


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_there(path):
    for words in commands(path):
        if words[0] == "-m":
            place = ROOT / words[1].replace(".", "/")
            assert words[1] == "pytest" or (place / "__main__.py").exists() or place.with_suffix(".py").exists(), words
            assert all((ROOT / word).exists() for word in words[2:] if word.startswith("tests/")), words
        else:
            assert (ROOT / words[0]).exists(), words
        if words[0] == "featviz.py" and "--help" not in words:
            args, settings = parse(words[1:])                   # SystemExit for a wrong flag
            check_flags(args.batch_size, args.frames, settings)
            read_axes(args.sweep)
