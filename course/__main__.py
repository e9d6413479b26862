"""The course: `python -m course` lists the exercises, `python -m course 3` opens one, and checks it when it is written.

Work files are never overwritten.
"""
import json
import re
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import regularizers
from command.flags import Parser, guarded
from command.progress import say
from course.cases import asked
from course.marking import EXERCISES, mark, run_text, solution, stub
from results import write

WORK = Path(__file__).resolve().parent / "work"
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
from course.marking import check
model = featviz.load()   # a CPU is enough; with a GPU the same line takes it, and device="cpu" leaves it'''


def path_of(exercise, work):
    """Return the work file of an exercise."""
    return work / f"{exercise.number:02d}_{exercise.title.lower().replace(' ', '_')}.py"


def state_of(exercise, work):
    """Return the state of an exercise, "new", "passed" or the sentence that says what is wrong, and what was written.
    The ascent of exercise 13 calls the student's functions of the exercises 9 to 12 that passed."""
    path, written = path_of(exercise, work), {}
    if not path.exists():
        return "new", written
    try:
        functions = run_text(path.read_text(encoding="utf-8-sig"), path)
    except ValueError as e:
        return str(e), written
    if exercise.number == 13:
        for other in EXERCISES[8:12]:
            state, made = state_of(other, work)
            written |= {name: made[name] for name in other.names if state == "passed"}
        functions |= written | {"reg": SimpleNamespace(**vars(regularizers) | written)}
    return mark(exercise, functions) or "passed", functions


def list_exercises(work):
    for part, exercises in groupby(EXERCISES, lambda e: e.part):
        say(f"\n{part}")
        for e in exercises:
            state, _ = state_of(e, work)
            word = state if state in ("new", "passed") else "begun"
            say(f"{e.number:3d}  {e.title:22} {'*' * e.difficulty:5} {e.minutes:3d} min  {word:6}  {e.objective}")
    say("\nopen one: python -m course 1")


def show(exercise, work):
    """Make the work file where there is none, else check it; return the exit code, 1 for what is not right yet."""
    path, (state, _) = path_of(exercise, work), state_of(exercise, work)
    if state == "passed":
        left = sum(state_of(e, work)[0] != "passed" for e in EXERCISES)
        say(f"exercise {exercise.number} passed, {left} of {len(EXERCISES)} to go")
        return 0
    if state == "new":
        write(path, stub(exercise).encode())
        say(f"exercise {exercise.number}: {exercise.title}. {exercise.objective}\nAbout {exercise.minutes} minutes, "
            f"difficulty {exercise.difficulty} of 5; before it: {exercise.prerequisite}.\nWrite into {path}, then run "
            "the same command again; --hint helps.")
    else:
        say(f"exercise {exercise.number}: {state}")
    if exercise.number == 14:
        say("Find a feature that responds to {!r}; say what feature {} responds to.".format(*asked()))
    return int(state != "new")


def hint(exercise, work):
    """Print one more hint than before; a file holds those that were given."""
    path = path_of(exercise, work).with_suffix(".hints")
    given = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    text = "\n".join(f"hint: {hint}" for hint in exercise.hints[:given + 1])
    write(path, text.encode())
    say(text)
    if given + 1 >= len(exercise.hints):
        say("that was the last hint; --solution shows ours")


def cells(solved):
    """Yield ("markdown" or "code", text) for every cell. A line `<!-- exercise 3 -->` of the lesson becomes a cell for
    exercise 3 and its check, a ```python or ```sh block a cell that runs."""
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
    """Write the notebook, nbformat 4.5, and return its path; with `solved` the project's functions are filled in."""
    more = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}
    made = [{"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.splitlines(True)} | more[kind]
            for i, (kind, text) in enumerate(cells(solved))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    write(path, json.dumps(book, indent=1, ensure_ascii=False).encode() + b"\n")
    return path


def run(args):
    """Do what the flags ask for; return the exit code of a check."""
    exercise = EXERCISES[(args.number or 1) - 1]
    if args.notebook:
        say(f"look at {write_notebook(args.notebook, args.solved)}")
    elif args.all:
        states = {str(e.number): state_of(e, args.work)[0] for e in EXERCISES}
        say(json.dumps({"passed": [*states.values()].count("passed"), "of": len(states), "exercises": states}))
    elif args.number is None:
        list_exercises(args.work)
    elif args.solution:
        say(solution(exercise))
    elif args.hint:
        hint(exercise, args.work)
    else:
        return show(exercise, args.work)


def main(argv=None):
    parser = Parser(prog="course", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", metavar="N", choices=range(1, 15), help="default: list them all")
    parser.add_argument("--hint", action="store_true", help="one more hint")
    parser.add_argument("--solution", action="store_true", help="the project's own function")
    parser.add_argument("--all", action="store_true", help="marks of all exercises as JSON")
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write the notebook (course/course.ipynb)")
    parser.add_argument("--solved", action="store_true", help="with solutions filled in, for whoever teaches")
    parser.add_argument("--work", type=Path, default=WORK, metavar="FOLDER", help="of work files (course/work)")
    return guarded("course", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
