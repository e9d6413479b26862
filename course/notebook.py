"""Write the notebook of the course, Jupyter's nbformat 4.5, from docs/lesson.md.

A line `<!-- exercise 3 -->` becomes a cell for exercise 3 and its check, a ```python or ```sh block a cell that runs.
"""
import json
import re
from pathlib import Path

from course.marking import EXERCISES, mark, stub
from results import write

LESSON = Path(__file__).resolve().parent.parent / "docs/lesson.md"
SETUP = '''# Colab, or a Jupyter without the project: fetch it, install what it needs. OWNER/REPO is where you found it.
import os, pathlib, subprocess, sys
if not pathlib.Path("featviz.py").exists() and pathlib.Path("../featviz.py").exists():
    os.chdir("..")
if not pathlib.Path("featviz.py").exists():
    subprocess.run(["git", "clone", "https://github.com/OWNER/REPO", "featviz"], check=True)
    os.chdir("featviz")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", "requirements.txt"], check=True)
sys.path.insert(0, os.getcwd())
import featviz
from course.notebook import check
model = featviz.load()   # a CPU is enough; with a GPU the same line takes it, and device="cpu" leaves it'''


def check(number, *functions):
    """Check a student's functions and print a sentence: check(3, step)."""
    written = functions[0].__globals__ | {"__file__": functions[0].__code__.co_filename}            # also `why`
    sentence = mark(EXERCISES[number - 1], written | {function.__name__: function for function in functions})
    print(f"exercise {number}: {sentence or 'passed'}")


def cells(solved):
    """Yield ("markdown" or "code", text) for every cell."""
    yield "code", SETUP
    text = LESSON.read_text(encoding="utf-8")
    for piece in re.split(r"(^```(?:python|sh)\n.*?^```$|^<!-- exercise \d+ -->$)", text, flags=re.M | re.S):
        if found := re.fullmatch(r"<!-- exercise (\d+) -->", piece):
            e = EXERCISES[int(found[1]) - 1]
            hints = [f"<details><summary>hint {n}</summary>{hint}</details>\n" for n, hint in enumerate(e.hints, 1)]
            yield "markdown", (f"### Exercise {e.number}: {e.title}\n{e.objective} Difficulty {e.difficulty} of 5, "
                               f"about {e.minutes} minutes; before it: {e.prerequisite}.\n\n{''.join(hints)}")
            yield "code", stub(e, solved)
            yield "code", f"check({e.number}, {', '.join(e.names)})"
        elif piece.startswith("```python"):
            yield "code", piece[10:-4]
        elif piece.startswith("```sh"):
            yield "code", "\n".join("!" + line for line in piece[6:-4].splitlines())
        elif piece.strip():
            yield "markdown", piece.strip()


def write_notebook(path, solved=False):
    """Write the notebook and return its path; with `solved` the project's functions are filled in."""
    more = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}
    made = [{"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.splitlines(True)} | more[kind]
            for i, (kind, text) in enumerate(cells(solved))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    write(path, json.dumps(book, indent=1, ensure_ascii=False).encode() + b"\n")
    return path
