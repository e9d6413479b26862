"""The notebook runs from top to bottom: with stubs each check says what is missing, solved each check passes.

Cells run as they stand, but with two steps of one seed, and with the results of commands in a temporary folder.
"""
import os
import sys
from pathlib import Path

import pytest

from course.marking import EXERCISES
from course.__main__ import write_notebook

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parent.parent.parent
SLOW, FAST = "STEPS, SEEDS = 40, [1024, 1111, 4359]", "STEPS, SEEDS = 2, [1024]"
LAST = '''
from ascent import ascend as climb_alone
from config import NONE, Config
from course.cases import asked, fits, known
from visualize import start

def find_feature():
    return next(n for n, row in known()[1].items() if fits(row, asked()[0]))

def say(number):
    return known()[1][number]["meaning"][1]

def fool(model, job):
    config = Config(**NONE, num_steps=60, total_variation_weight=-5.0)
    *_, last = climb_alone(model, [job], config, start(model, [job], config))
    return last.after[0]

why = "The score asks the network alone, and the network was trained on pictures only."
'''


def prepared(cell, out, solved):
    """Return a code cell's text: few steps, an error where a command fails, and an answer to the last exercise."""
    if cell.startswith("!"):
        return "\n".join(f"{line} --out {out}\nassert _exit_code == 0" for line in cell.splitlines())
    return LAST if solved and cell.startswith('"""Exercise 14') else cell.replace(SLOW, FAST)


@pytest.mark.parametrize("solved", [False, True], ids=["stubs", "solved"])
def test_the_notebook_runs_from_top_to_bottom(solved, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(write_notebook(tmp_path / "course.ipynb", solved), as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum(SLOW in cell.source for cell in cells) == 1
    asked = [cell.source for cell in cells]
    for cell in cells:
        cell.source = prepared(cell.source, tmp_path / "out", solved)
    nbclient.NotebookClient(book, timeout=3600, resources={"metadata": {"path": ROOT / "course"}}).execute()

    said = {source: "".join(output.get("text", "") for output in cell.outputs) for source, cell in zip(asked, cells)}
    for e in EXERCISES:
        (text,) = (text for source, text in said.items() if source.startswith(f"check({e.number}, "))
        assert text == f"exercise {e.number}: passed\n" if solved else text.endswith(" is not written yet\n"), text
    for source, cell in zip(asked, cells):
        if source.splitlines()[-1].startswith("show(") and (solved or " if " not in source.splitlines()[-1]):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), source
