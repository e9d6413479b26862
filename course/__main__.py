"""The course: `python -m course` lists the exercises, `python -m course 3` opens one, and checks it when it is written.

Work files are in course/work/ and are never overwritten. `--hint` gives one more hint each time, `--solution` ours,
`--all` marks for a lecturer's script, `--notebook FILE` writes the notebook.
"""
import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

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


def read_work(exercise, work):
    """Return the names of a work file; ValueError with one sentence where it cannot be run."""
    path = path_of(exercise, work)
    return run_text(path.read_text(encoding="utf-8-sig"), path)


def state_of(exercise, work):
    """Return "new", "passed", or the sentence that says what is wrong."""
    if not path_of(exercise, work).exists():
        return "new"
    try:
        functions = read_work(exercise, work)
        if exercise.number == 13:
            use_written(functions, work)
    except ValueError as e:
        return str(e)
    return mark(exercise, functions) or "passed"


def use_written(functions, work):
    """Let the student's ascent call the student's functions of the exercises 9 to 12 that passed."""
    written = {}
    for exercise in EXERCISES[8:12]:
        if state_of(exercise, work) == "passed":
            made = read_work(exercise, work)
            written |= {name: made[name] for name in exercise.names}
    functions.update(written)
    functions["reg"] = SimpleNamespace(**vars(functions["reg"]) | written)


def list_exercises(work):
    for part in dict.fromkeys(e.part for e in EXERCISES):
        say(f"\n{part}")
        for e in (e for e in EXERCISES if e.part == part):
            state = state_of(e, work)
            word = state if state in ("new", "passed") else "begun"
            say(f"{e.number:3d}  {e.title:22} {'*' * e.difficulty:5} {e.minutes:3d} min  {word:6}  {e.objective}")
    say("\nopen one: python -m course 1")


def show(exercise, work):
    """Make the work file where there is none, else check it; return the exit code."""
    path, state, number = path_of(exercise, work), state_of(exercise, work), exercise.number
    if state == "passed":
        left = sum(state_of(e, work) != "passed" for e in EXERCISES)
        say(f"exercise {number} passed, {left} of {len(EXERCISES)} to go")
        return 0
    if state == "new":
        write(path, stub(exercise).encode())
        say(f"Exercise {number}: {exercise.title}. {exercise.objective}\nAbout {exercise.minutes} minutes, difficulty "
            f"{exercise.difficulty} of 5; before it: {exercise.prerequisite}.\nWrite into {path}, then run the same "
            "command again; --hint helps.")
    else:
        say(f"exercise {number}: {state}")
    if not exercise.file:
        say("Find a feature that responds to {!r}; say what feature {} responds to.".format(*asked()))
    return int(state != "new")


def hint(exercise, work):
    """Print one more hint than before."""
    path, number = work / "hints.json", str(exercise.number)
    given = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    n = min(given.get(number, 0) + 1, len(exercise.hints))
    for text in exercise.hints[:n]:
        say(f"hint: {text}")
    if n == len(exercise.hints):
        say("that was the last hint; --solution shows ours")
    write(path, json.dumps(given | {number: n}).encode())


def run(args):
    """Do what the flags ask for; return the exit code."""
    if args.notebook:
        say(f"look at {write_notebook(args.notebook, args.solved)}")
    elif args.all:
        states = {str(e.number): state_of(e, args.work) for e in EXERCISES}
        say(json.dumps({"passed": [*states.values()].count("passed"), "of": len(states), "exercises": states}))
    elif args.number is None:
        list_exercises(args.work)
    elif not 1 <= args.number <= len(EXERCISES):
        raise ValueError(f"exercise {args.number} is out of range: there are 1 to {len(EXERCISES)}")
    elif args.solution:
        say(solution(EXERCISES[args.number - 1]))
    elif args.hint:
        hint(EXERCISES[args.number - 1], args.work)
    else:
        return show(EXERCISES[args.number - 1], args.work)
    return 0


def main(argv=None):
    parser = Parser(prog="course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", metavar="N", help="the exercise (default: list them)")
    parser.add_argument("--hint", action="store_true", help="one more hint")
    parser.add_argument("--solution", action="store_true", help="the project's own function")
    parser.add_argument("--all", action="store_true", help="marks of all exercises as JSON")
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write the notebook (course/course.ipynb)")
    parser.add_argument("--solved", action="store_true", help="with solutions filled in, for whoever teaches")
    parser.add_argument("--work", type=Path, default=WORK, metavar="FOLDER",
                        help="of work files (default: course/work)")
    return guarded("course", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
