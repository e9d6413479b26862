"""The course: stubs fail with a sentence, solutions pass, known wrong answers are named, work is never overwritten."""
import json

import pytest
import torch

from course import __main__ as command
from course.exercises import EXERCISES
from course.marking import call, mark, run_text, same, solution, stub
from course.notebook import cells, write_notebook

pytestmark = pytest.mark.usefixtures("one_thread")
WRITTEN = [e for e in EXERCISES if e.file and e.number != 13]
WRONG = [(e, name, sentence, wrong) for e in WRITTEN for name, known in e.wrong.items() for sentence, wrong in known]


def solved(exercise):
    text = stub(exercise)
    return text[:text.index("\n\n\ndef ")] + "\n\n\n" + solution(exercise)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.title)
def test_a_stub_says_that_it_is_not_written(exercise):
    sentence = mark(exercise, run_text(stub(exercise), "stub.py")) if exercise.file else "is not written yet"
    assert sentence.endswith("is not written yet")
    assert len(exercise.hints) >= 2 and 1 <= exercise.difficulty <= 5 and exercise.minutes


@pytest.mark.parametrize("exercise", WRITTEN, ids=lambda e: e.title)
def test_the_project_passes_its_own_exercise(exercise):
    assert mark(exercise, run_text(solved(exercise), "solved.py")) == ""


@pytest.mark.parametrize("exercise, name, sentence, wrong", WRONG, ids=[w[2][:40] for w in WRONG])
def test_a_known_wrong_answer_is_named(exercise, name, sentence, wrong):
    theirs = {n: exercise.ours(n) for n in exercise.names} | {name: wrong}
    said = mark(exercise, theirs)
    assert said == f"{name}: {sentence}" or said.startswith("training_loss: the residual is not detached"), said


def test_other_mistakes_end_in_one_sentence():
    e = EXERCISES[1]
    assert "raised ZeroDivisionError" in mark(e,
                                              run_text("def add_noise(self, z, eps, t):\n    return 1 / 0\n", "x.py"))
    assert "in line 2" in mark(e, run_text("def add_noise(self, z, eps, t):\n    return 1 / 0\n", "x.py"))
    assert "returned (1,) float32, expected (2, 1, 1, 1) float32" in mark(e, {"add_noise": lambda *a: torch.zeros(1)})
    assert "got" in mark(e, {"add_noise": lambda s, z, eps, t: 0 * z})
    assert "its gradient is not" in mark(e,
                                         {"add_noise": lambda s, z, eps, t: e.ours("add_noise")(s, z, eps, t).detach()
                                             + 0 * z.sum()})
    assert mark(e, {}) == "add_noise is missing: the function must keep its name"
    with pytest.raises(ValueError, match="cannot be run: SyntaxError"):
        run_text("def f(:", "x.py")


def test_a_case_worked_out_by_hand_is_what_ours_gives():
    for e in WRITTEN:
        for name, cases in e.cases().items():
            for case in cases:
                assert case.expected is None or same(call(e.ours(name), case)[0], case.expected), (e.title, case.says)


def run(tmp_path, *flags):
    return command.main([*map(str, flags), "--work", str(tmp_path)])


def test_the_command_from_task_to_passed(tmp_path, capsys):
    assert run(tmp_path, 2) == 0 and "Write into" in capsys.readouterr().out
    (path,) = tmp_path.glob("02_*.py")
    assert run(tmp_path, 2) == 1 and "add_noise is not written yet" in capsys.readouterr().out
    path.write_text(solved(EXERCISES[1]))
    assert run(tmp_path, 2) == 0 and "exercise 2 passed, 13 of 14 to go" in capsys.readouterr().out
    assert run(tmp_path, 2, "--hint") == 0 and capsys.readouterr().out.count("hint:") == 1
    assert run(tmp_path, 2, "--hint") == 0 and capsys.readouterr().out.count("hint:") == 2
    assert run(tmp_path, 2, "--solution") == 0 and "abar.sqrt() * z" in capsys.readouterr().out
    assert run(tmp_path, "--all") == 0
    marks = json.loads(capsys.readouterr().out)
    assert marks["passed"] == 1 and marks["of"] == 14 and marks["exercises"]["3"] == "new"
    assert run(tmp_path) == 0 and "passed" in capsys.readouterr().out
    assert run(tmp_path, 15) == 2 and "out of range" in capsys.readouterr().err
    assert path.read_text() == solved(EXERCISES[1])


def test_the_whole_step_runs_with_the_students_own_functions(tmp_path, capsys):
    for number in (12, 13):
        command.write(command.path_of(EXERCISES[number - 1], tmp_path), solved(EXERCISES[number - 1]).encode())
    assert run(tmp_path, 13) == 0, capsys.readouterr().out
    path = command.path_of(EXERCISES[12], tmp_path)
    path.write_text(path.read_text().replace("loss = -climb", "loss = climb"))
    assert run(tmp_path, 13) == 1 and "the sign of the loss" in capsys.readouterr().out


def test_the_notebook_holds_the_lesson_and_every_exercise_once(tmp_path):
    book = json.loads(write_notebook(tmp_path / "course.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    for e in EXERCISES:
        assert sum(text.startswith(f"check({e.number}, ") for text in code) == 1
        assert sum(text.startswith(f'"""Exercise {e.number}: ') for text in code) == 1
    assert book["nbformat"] == 4 and any(kind == "markdown" for kind, _ in cells(False))
