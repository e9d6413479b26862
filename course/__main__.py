"""The course: `python -m course` lists the exercises, `python -m course 3` opens one, and checks it when it is written.

Work files are in course/work/ and are never overwritten. `--hint` gives one more hint each time, `--solution` ours,
`--all` marks for a lecturer's script, `--notebook FILE` writes the notebook.
"""
import argparse
import json
import sys
from pathlib import Path

from command.flags import Parser, guarded
from command.progress import say
from course.exercises import EXERCISES
from course.marking import mark, run_text, solution, stub
from course.notebook import write_notebook
from course.questions import asked
from results import write

WORK = Path(__file__).resolve().parent / "work"


def path_of(exercise, work):
    """Return the work file of an exercise."""
    return work / f"{exercise.number:02d}_{exercise.title.lower().replace(' ', '_')}.py"


def state_of(exercise, work):
    """Return "new", "passed", or the sentence that says what is wrong."""
    path = path_of(exercise, work)
    if not path.exists():
        return "new"
    try:
        functions = run_text(path.read_text(encoding="utf-8-sig"), path)
        if exercise.number == 13:
            functions = use_own(functions, work)
    except ValueError as e:
        return str(e)
    return mark(exercise, functions) or "passed"


def use_own(functions, work):
    """Let the student's ascent call the student's functions of the exercises that passed."""
    ascend = functions["ascend"]
    for exercise in EXERCISES[8:12]:
        if state_of(exercise, work) == "passed":
            own = run_text(path_of(exercise, work).read_text(encoding="utf-8-sig"), path_of(exercise, work))
            for name in exercise.names:
                if name in ascend.__globals__:
                    ascend.__globals__[name] = own[name]
                elif hasattr(ascend.__globals__.get("reg"), name):
                    ascend.__globals__["reg"] = type("reg", (), vars(ascend.__globals__["reg"]) | {name: own[name]})
    return functions


def listing(work):
    """Return the lines of the list of exercises."""
    lines, part = [], None
    for e in EXERCISES:
        if e.part != part:
            part = e.part
            lines.append(f"\n{part}")
        state = state_of(e, work)
        word = state if state in ("new", "passed") else "begun"
        lines.append(f"{e.number:3d}  {e.title:22} {'*' * e.difficulty:5} {e.minutes:3d} min  {word:6}  {e.objective}")
    return lines


def ask(exercise):
    """Print the two questions of the last exercise."""
    if not exercise.file:
        say("Find a feature that responds to {!r}; say what feature {} responds to.".format(*asked()))


def show(exercise, work):
    """Make the work file where there is none, else check it; return the exit code."""
    path = path_of(exercise, work)
    if not path.exists():
        write(path, stub(exercise).encode())
        say(f"Exercise {exercise.number}: {exercise.title}. {exercise.objective}\nAbout {exercise.minutes} minutes, "
            f"difficulty {exercise.difficulty} of 5; before it: {exercise.prerequisite}.\nWrite into {path}, then run "
            "the same command again; --hint helps.")
        ask(exercise)
        return 0
    state = state_of(exercise, work)
    if state != "passed":
        say(f"exercise {exercise.number}: {state}")
        ask(exercise)
        return 1
    left = sum(state_of(e, work) != "passed" for e in EXERCISES)
    say(f"exercise {exercise.number} passed, {left} of {len(EXERCISES)} to go")
    return 0


def hint(exercise, work):
    """Print one more hint than before."""
    path = work / "hints.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    n = given.get(str(exercise.number), 0)
    for text in exercise.hints[:n + 1]:
        say(f"hint: {text}")
    if n + 1 >= len(exercise.hints):
        say("that was the last hint; --solution shows ours")
    write(path, json.dumps(given | {str(exercise.number): min(n + 1, len(exercise.hints) - 1)}).encode())
    return 0


def run(number, hint_too, solution_too, marks, notebook, solved, work):
    """Do what the flags ask for; return the exit code."""
    if notebook:
        say(f"look at {write_notebook(notebook, solved)}")
        return 0
    if marks:
        states = {str(e.number): state_of(e, work) for e in EXERCISES}
        say(json.dumps({"passed": sum(s == "passed" for s in states.values()), "of": len(states), "exercises": states}))
        return 0
    if number is None:
        for line in listing(work):
            say(line)
        say("\nopen one: python -m course 1")
        return 0
    if not 1 <= number <= len(EXERCISES):
        raise ValueError(f"exercise {number} is out of range: there are {len(EXERCISES)}, 1..{len(EXERCISES)}")
    exercise = EXERCISES[number - 1]
    if solution_too:
        say(f"# {exercise.file}\n{solution(exercise)}")
        return 0
    return hint(exercise, work) if hint_too else show(exercise, work)


def main(argv=None):
    parser = Parser(prog="course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", metavar="N", help="the exercise (default: list them)")
    parser.add_argument("--hint", action="store_true", help="one more hint")
    parser.add_argument("--solution", action="store_true", help="the project's own function")
    parser.add_argument("--all", action="store_true", help="marks of all exercises as JSON")
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write the notebook, such as course/course.ipynb")
    parser.add_argument("--solved", action="store_true", help="with solutions filled in, for whoever teaches")
    parser.add_argument("--work", type=Path, default=WORK, metavar="FOLDER",
                        help="of work files (default: course/work)")
    args = parser.parse_args(argv)
    return guarded("course", run, args.number, args.hint, args.solution, args.all, args.notebook, args.solved,
                   args.work)


if __name__ == "__main__":
    sys.exit(main())
