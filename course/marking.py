"""Cut a function out of the project's code, and say what is wrong with what a student wrote in its place.

    stub(exercise)              the file that a student fills in: the function's docstring, and no body
    solution(exercise)          the function as the project has it
    mark(exercise, functions)   "" where they are right, else one sentence that helps

A check runs an exercise's cases on ours, on theirs and on known wrong answers: a value worked out by hand, random
input, the gradient, then one property. A wrong answer that theirs equals is named.
"""
import ast
import importlib
import textwrap
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """Arguments of a call; what it must give, where that was worked out by hand; which argument has a gradient."""
    args: tuple
    expected: object = None
    gradient: int | None = None
    says: str = ""                              # what a student who fails here is told


@dataclass(frozen=True)
class Exercise:
    """One exercise: functions of one file of the project, or, without a file, open questions."""
    number: int
    part: str
    title: str
    objective: str
    difficulty: int                             # 1 to 5
    minutes: int
    prerequisite: str
    names: tuple                                # functions that the student writes
    file: str = ""                              # of the project, "ascent.py"
    owner: str = ""                             # the class that the functions are methods of
    cases: object = None                        # () -> {name: [Case]}
    wrong: dict = field(default_factory=dict)   # name -> [(sentence, function)]
    check: object = None                        # (functions) -> sentence, on top of the cases or in their place
    task: str = ""                              # what to do, where no docstring says it
    hints: tuple = ()

    @property
    def module(self):
        return importlib.import_module(self.file.removesuffix(".py").replace("/", "."))

    def ours(self, name):
        """Return the project's function."""
        return getattr(getattr(self.module, self.owner) if self.owner else self.module, name)


# --- cutting ----------------------------------------------------------------------------------------------------------

def source(exercise, name):
    """Return (the function up to the end of its docstring, its body), as text."""
    text = (ROOT / exercise.file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    scope = tree.body
    if exercise.owner:
        scope = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == exercise.owner)
    node = next(n for n in scope if isinstance(n, ast.FunctionDef) and n.name == name)
    lines, docstring = text.splitlines(), node.body[0]
    head, body = lines[node.lineno - 1:docstring.end_lineno], lines[docstring.end_lineno:node.end_lineno]
    whole = textwrap.dedent("\n".join([*head, *body])).splitlines()
    return "\n".join(whole[:len(head)]), "\n".join(whole[len(head):])


def header(exercise):
    """Return the first lines of a work file: what it is, and the names that it may use."""
    place = f", there a method of {exercise.owner}" if exercise.owner else ""
    text = [f'"""Exercise {exercise.number}: {exercise.title}. {exercise.objective}"""']
    if exercise.file:
        module = exercise.file.removesuffix(".py").replace("/", ".")
        text += [f"from {module} import *  # noqa: F403   every name of {exercise.file}{place}; yours replace these"]
    return "\n".join(text)


def stub(exercise):
    """Return the text of the file that a student fills in."""
    if not exercise.file:
        return header(exercise) + "\n\n\n" + exercise.task
    parts = [f"{source(exercise, name)[0]}\n    raise NotImplementedError\n" for name in exercise.names]
    return header(exercise) + "\n\n\n" + "\n\n".join(parts)


def solution(exercise):
    """Return the functions as the project has them; of open questions the hints."""
    if not exercise.file:
        return "\n".join(exercise.hints)
    return "\n\n\n".join("\n".join(source(exercise, name)) for name in exercise.names) + "\n"


def run_text(text, path):
    """Run a work file's text: its names. ValueError with one sentence where it cannot be run."""
    space = {"__name__": "work", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), space)
    except Exception as e:  # noqa: BLE001  whatever a student's file raises is theirs to read
        raise ValueError(f"{path} cannot be run: {told(e, path)}") from e
    return space


def told(error, path="<work>"):
    """Name a student's error and its line, without the frames of ours."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    at = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())}"


# --- marking ----------------------------------------------------------------------------------------------------------

def same(a, b, tolerance=1e-5):
    """Compare two results: tensors with shape and type, numbers, lists, tuples, None."""
    if isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.allclose(
            a.float(), b.float(), rtol=1e-4, atol=tolerance, equal_nan=True)
    if isinstance(b, (tuple, list)):
        return isinstance(a, (tuple, list)) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, float):
        return isinstance(a, (int, float)) and abs(a - b) <= tolerance + 1e-4 * abs(b)
    return a == b


def shape_of(x):
    """Describe a result in a word: a tensor by shape and type."""
    if isinstance(x, torch.Tensor):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    if isinstance(x, (tuple, list)):
        return f"({', '.join(map(shape_of, x))})"
    return type(x).__name__


def call(function, case):
    """Return (the result, the gradient of its sum by the argument that has one)."""
    if case.gradient is None:
        with torch.no_grad():
            return function(*case.args), None
    args = list(case.args)
    leaf = args[case.gradient] = args[case.gradient].clone().requires_grad_(True)
    result = function(*args)
    total = sum(r.sum() for r in (result if isinstance(result, (tuple, list)) else [result])
                if isinstance(r, torch.Tensor) and r.requires_grad)
    return result, torch.autograd.grad(total, leaf)[0] if isinstance(total, torch.Tensor) else torch.zeros_like(leaf)


def mark_case(exercise, name, theirs, case):
    """Return "" where one case is right, else a sentence."""
    expected = call(exercise.ours(name), case)
    try:
        got = call(theirs, case)
    except NotImplementedError:
        return f"{name} is not written yet"
    except Exception as e:  # noqa: BLE001  whatever a student's function raises is theirs to read
        return f"{name} raised {told(e, getattr(theirs, '__code__', theirs).co_filename)}"
    if case.expected is not None:
        expected = case.expected, expected[1]
    if same(got, expected):
        return ""
    for sentence, wrong in exercise.wrong.get(name, ()):
        known = call(wrong, case)
        if same(got, known) and not same(known, expected):
            return f"{name}: {sentence}"
    if shape_of(got[0]) != shape_of(expected[0]):
        return f"{name} returned {shape_of(got[0])}, expected {shape_of(expected[0])}"
    if case.expected is not None:
        example = case.says or "an example worked out by hand"
        return f"{name}: {example}: got {flat(got[0])}, expected {flat(expected[0])}"
    if same(got[0], expected[0]):
        return f"{name}: the value is right and its gradient is not: is something detached, or changed in place?"
    return f"{name}: on random input it differs from ours; {case.says or 'read the formula once more'}"


def flat(x):
    """Write a small result as text."""
    return str(x.tolist() if isinstance(x, torch.Tensor) else [flat(r) for r in x] if isinstance(x, tuple) else x)[:120]


def mark(exercise, functions):
    """Return "" where all that an exercise asks for is right, else one sentence that helps."""
    if missing := [name for name in exercise.names if not callable(functions.get(name))]:
        return f"{missing[0]} is missing: the function must keep its name"
    for name, cases in (exercise.cases() if exercise.cases else {}).items():
        for case in cases:
            if sentence := mark_case(exercise, name, functions[name], case):
                return sentence
    try:
        return exercise.check(functions) if exercise.check else ""
    except NotImplementedError:
        return f"{exercise.names[0]} is not written yet"
    except Exception as e:  # noqa: BLE001  whatever a student's function raises is theirs to read
        return f"it raised {told(e)}"
