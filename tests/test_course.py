"""The course: stubs fail with a sentence, solutions pass, known wrong answers are named, work is never overwritten."""
import json
from pathlib import Path

import pytest
import torch

from course import __main__ as command
from course.cases import CASES
from course.marking import CHECKS, EXERCISES, call, edited, mark, ours, run_text, same, source, stub
from course.__main__ import write_notebook

KNOWN = [(e, name, *known) for e in EXERCISES for name in e.wrong for known in e.wrong[name]]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.title)
def test_a_stub_is_not_written_and_the_project_passes_its_own_exercise(exercise):
    assert mark(exercise, run_text(stub(exercise), "stub.py")).endswith("is not written yet")
    assert len(exercise.hints) >= 2 and 1 <= exercise.difficulty <= 5 and exercise.minutes
    if exercise.names[-1] not in CHECKS:
        assert mark(exercise, run_text(stub(exercise, solved=True), "solved.py")) == ""
        for name in exercise.names:
            by_hand = [case for case in CASES.get(name, ()) if case.gives is not None]
            assert all(same(call(ours(exercise, name), case)[0], case.gives) for case in by_hand)


@pytest.mark.parametrize("known", KNOWN, ids=[known[2][:40] for known in KNOWN])
def test_a_known_wrong_answer_is_named(known):
    exercise, name, sentence, *pieces = known
    assert all(old in source(exercise, name) for old in pieces[::2])     # the function may have changed
    written = {n: ours(exercise, n) for n in exercise.names} | {name: edited(exercise, name, pieces)}
    assert mark(exercise, written) == f"{name}: {sentence}"


@pytest.mark.parametrize("body, says", [
    ("1 / 0", "add_noise raised ZeroDivisionError in line 2"), ("0 * z", "abar 0.25 and 0.64, z 2, eps 10: got"),
    ("z[0, 0, 0]", "got (1,) float32 [2.0], expected (2, 1, 1, 1) float32"), ("'x'", "got 'x', expected"),
    ("Schedule.add_noise(self, z, eps, t).detach() + 0 * eps", "its gradient is not")])
def test_other_mistakes_end_in_one_sentence(body, says):
    text = f"from schedule import *\ndef add_noise(self, z, eps, t): return {body}"
    assert says in mark(EXERCISES[1], run_text(text, "x.py"))


def test_what_cannot_be_marked():
    assert mark(EXERCISES[1], {}) == "add_noise is missing: the function must keep its name"
    with pytest.raises(ValueError, match="x.py raised SyntaxError"):
        run_text("def f(:", "x.py")
    assert not same(torch.zeros(2), torch.zeros(2).double()) and not same([1], None) and same((1, None), (1, None))


def run(work, capsys, *flags):
    code = command.main([*map(str, flags), "--work", str(work)])
    return code, "".join(capsys.readouterr())


def test_the_command_from_task_to_passed(tmp_path, capsys):
    assert "Write into" in run(tmp_path, capsys, 2)[1]
    (path,) = tmp_path.glob("02_*.py")
    code, text = run(tmp_path, capsys, 2)
    assert code == 1 and "add_noise is not written yet" in text
    path.write_text(stub(EXERCISES[1], solved=True))
    assert run(tmp_path, capsys, 2) == (0, "exercise 2 passed, 13 of 14 to go\n")
    assert [run(tmp_path, capsys, 2, "--hint")[1].count("hint: ") for _ in range(4)] == [1, 2, 3, 3]
    assert "abar.sqrt() * z" in run(tmp_path, capsys, 2, "--solution")[1]
    marks = json.loads(run(tmp_path, capsys, "--all")[1])
    assert marks["passed"] == 1 and marks["of"] == 14 and marks["exercises"]["3"] == "new"
    assert "passed" in run(tmp_path, capsys)[1]
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, capsys, 15)
    assert path.read_text() == stub(EXERCISES[1], solved=True)


def test_the_whole_step_runs_with_the_students_functions(tmp_path, capsys):
    for exercise in EXERCISES[11:13]:
        command.write(command.path_of(exercise, tmp_path), stub(exercise, solved=True).encode())
    assert run(tmp_path, capsys, 13)[0] == 0
    functions = command.state_of(EXERCISES[12], tmp_path)[1]
    assert functions["ascend"].__globals__["adamw"].__globals__["__file__"].endswith("12_adamw.py")
    path = command.path_of(EXERCISES[12], tmp_path)
    path.write_text(path.read_text().replace("loss = -climb", "loss = climb"))
    assert "the sign of the loss" in run(tmp_path, capsys, 13)[1]


def test_the_notebook_in_the_project_is_what_the_command_writes(tmp_path):
    made = write_notebook(tmp_path / "course.ipynb").read_bytes()
    assert Path("course/course.ipynb").read_bytes() == made, "python -m course --notebook course/course.ipynb"
