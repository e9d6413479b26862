"""Cut functions out of the project's code for exercises.toml, and say what is wrong with what a student wrote instead.

The cases run on ours, theirs and known wrong answers, result and gradient; a wrong answer that theirs equals is named.
"""
import ast
import inspect
import pkgutil
import textwrap
import tomllib
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from course.cases import CASES, check_answers, check_ascent

CHECKS = {"ascend": check_ascent, "fool": check_answers}        # on top of the cases: (functions) -> sentences
ENTRIES = tomllib.loads(Path(__file__).with_name("exercises.toml").read_text(encoding="utf-8"))["exercise"]
EXERCISES = [SimpleNamespace(**{"home": "", "wrong": {}} | entry) for entry in ENTRIES]


def ours(exercise, name):
    """Return the project's function or method."""
    return pkgutil.resolve_name(f"{exercise.home}.{name}")


def source(exercise, name, empty=False):
    """Return the text of the project's function; without its body where it is to be `empty`."""
    text = textwrap.dedent(inspect.getsource(ours(exercise, name))).rstrip()
    end = ast.parse(text).body[0].body[0].end_lineno            # of the docstring
    return "\n".join([*text.splitlines()[:end], "    raise NotImplementedError"]) if empty else text


def solution(exercise, empty=False):
    """Return the functions as the project has them, or without their bodies; of open questions the hints."""
    if not exercise.home:
        return "\n".join(exercise.hints)
    return "\n\n\n".join(source(exercise, name, empty) for name in exercise.names) + "\n"


def stub(exercise, solved=False):
    """Return the text of the file that a student fills in, or, solved, with the project's functions in it."""
    title = f'"""Exercise {exercise.number}: {exercise.title}. {exercise.objective}"""'
    if not exercise.home:
        return f"{title}\n\n\n{exercise.task}"
    module = ours(exercise, exercise.names[0]).__module__
    names = f"from {module} import *  # noqa: F403   every name of {exercise.home}'s file; yours replace these"
    return f"{title}\n{names}\n\n\n{solution(exercise, empty=not solved)}"


def edited(exercise, name, pieces):
    """Return the project's function with pieces [old, new, ...] of its text replaced."""
    text, names = source(exercise, name), dict(ours(exercise, name).__globals__)
    for old, new in zip(pieces[::2], pieces[1::2]):
        text = text.replace(old, new)
    exec(text, names)
    return names[name]


@contextmanager
def theirs(what, path):
    """Make one sentence, a ValueError, of whatever a student's code in the file `path` raises."""
    try:
        yield
    except NotImplementedError:
        raise ValueError(f"{what} is not written yet") from None
    except Exception as e:  # noqa: BLE001  a student's code may raise anything, and no traceback of ours may follow
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
        at = f" in line {lines[-1]}" if lines else ""
        raise ValueError(f"{what} raised {type(e).__name__}{at}: {' '.join(str(e).split())}") from e


def run_text(text, path):
    """Run a work file's text and return its names; ValueError with one sentence where it cannot be run."""
    names = {"__name__": "work", "__file__": str(path)}
    with theirs(path, path):
        exec(compile(text, str(path), "exec"), names)
    return names


def same(a, b):
    """Compare two results: tensors with shape and type, numbers, lists, tuples, None."""
    try:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    except (AssertionError, TypeError, ValueError):
        return False
    return True


def show(x):
    """Describe a result: a tensor by shape, type and, where they are few, its numbers."""
    if isinstance(x, torch.Tensor):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" + (f" {x.tolist()}" if x.numel() < 10 else "")
    return f"({', '.join(map(show, x))})" if isinstance(x, (tuple, list)) else repr(x)[:80]


def call(function, case):
    """Return (the result, the gradient of its sum by the argument that has one)."""
    args = list(case.args)
    if case.gradient is None:
        return function(*args), None
    leaf = args[case.gradient] = args[case.gradient].clone().requires_grad_(True)
    result = function(*args)
    parts = result if isinstance(result, (tuple, list)) else [result]
    sums = [part.sum() for part in parts if isinstance(part, torch.Tensor) and part.requires_grad]
    return result, torch.autograd.grad([0 * leaf.sum(), *sums], leaf)[0]                        # 0 where there is none


def faults(exercise, name, functions):
    """Yield a sentence for each thing in which a function is wrong."""
    for case in CASES.get(name, ()):
        expected, got = call(ours(exercise, name), case), call(functions[name], case)
        if case.gives is not None:
            expected = case.gives, expected[1]
        if same(got, expected):
            continue
        for sentence, *pieces in exercise.wrong.get(name, ()):
            known = call(edited(exercise, name, pieces), case)
            if same(got, known) and not same(known, expected):
                yield f"{name}: {sentence}"
        if same(got[0], expected[0]):
            yield f"{name}: the value is right and its gradient is not: is something detached, or changed in place?"
        yield f"{name}: {case.says}: got {show(got[0])}, expected {show(expected[0])}"
    if name in CHECKS:
        yield from CHECKS[name](functions)


def mark(exercise, functions):
    """Return the first thing that is wrong in one sentence that helps; "" where all is right."""
    try:
        for name in exercise.names:
            if not callable(functions.get(name)):
                return f"{name} is missing: the function must keep its name"
            with theirs(name, functions.get("__file__")):
                for sentence in faults(exercise, name, functions):
                    return sentence
    except ValueError as e:
        return str(e)
    return ""


def check(number, *functions):
    """Check a student's functions and print a sentence: check(3, step)."""
    written = functions[0].__globals__ | {"__file__": functions[0].__code__.co_filename}            # also `why`
    sentence = mark(EXERCISES[number - 1], written | {function.__name__: function for function in functions})
    print(f"exercise {number}: {sentence or 'passed'}")
