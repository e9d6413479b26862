"""The course: `python -m course` lists the exercises, `python -m course 3` opens one, and checks it when it is written.

Work files are never overwritten.
"""
import json
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import regularizers
from command.flags import Parser, guarded
from command.progress import say
from course.cases import asked
from course.marking import EXERCISES, mark, run_text, solution, stub
from course.notebook import write_notebook
from results import write

WORK = Path(__file__).resolve().parent / "work"


def path_of(exercise, work):
    """Return the work file of an exercise."""
    return work / f"{exercise.number:02d}_{exercise.title.lower().replace(' ', '_')}.py"


def check(exercise, work):
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
            state, made = check(other, work)
            written |= {name: made[name] for name in other.names if state == "passed"}
        functions |= written | {"reg": SimpleNamespace(**vars(regularizers) | written)}
    return mark(exercise, functions) or "passed", functions


def list_exercises(work):
    for part, exercises in groupby(EXERCISES, lambda e: e.part):
        say(f"\n{part}")
        for e in exercises:
            state, _ = check(e, work)
            word = state if state in ("new", "passed") else "begun"
            say(f"{e.number:3d}  {e.title:22} {'*' * e.difficulty:5} {e.minutes:3d} min  {word:6}  {e.objective}")
    say("\nopen one: python -m course 1")


def show(exercise, work):
    """Make the work file where there is none, else check it; return the exit code, 1 for what is not right yet."""
    path, (state, _) = path_of(exercise, work), check(exercise, work)
    if state == "passed":
        left = sum(check(e, work)[0] != "passed" for e in EXERCISES)
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


def run(args):
    """Do what the flags ask for; return the exit code of a check."""
    exercise = EXERCISES[(args.number or 1) - 1]
    if args.notebook:
        say(f"look at {write_notebook(args.notebook, args.solved)}")
    elif args.all:
        states = {str(e.number): check(e, args.work)[0] for e in EXERCISES}
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
