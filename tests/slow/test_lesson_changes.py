"""The lesson's numbers: its commands and its changes of the code, run whole, give what it prints.

A change is made in a copy of the project, as the text says it, and run as a process of its own; meanwhile the commands
run here, on a model that is loaded once. Numbers are activations at the end, of three seeds.
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import featviz
from tests.slow.test_lesson import CHAPTERS, COMMANDS, ROOT, TEXT, change, edits

pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")
CLOSE = 0.03                # other threads and versions round differently, a hundred times in a row
SEEDS = (1024, 1111, 4359)
N = r"[\d.]+\d"
THREE = rf"(?P<a>{N}),? (?P<b>{N}),?(?: and)? (?P<c>{N})"
OWN = {chapter[3]: next(line for line in COMMANDS if line in chapter) for chapter in CHAPTERS}     # a chapter's first
FIRST, LAST = COMMANDS[0], OWN["7"]
at = lambda t, more: FIRST.replace("--timestep 600 --prior noise", f"--timestep {t} {more}")
CASES = {   # name -> (command, the chapter whose change is made or "", where its numbers stand)
    "1, changed": (FIRST, "1", rf"same flowers \((?P<b>{N}) and (?P<c>{N}) by .*? ended at (?P<a>{N}), where"),
    "2": (OWN["2"], "", rf"did at theirs: {THREE}"),
    "2, changed": (OWN["2"], "2", rf"We got {THREE}: much higher"),
    "3": (OWN["3"], "", rf"three times, at {THREE}\."),
    "3, changed": (OWN["3"], "3", rf"scores are measured, it was {THREE};"),
    "4, changed": (OWN["4"], "4", rf"We got {THREE}: seed 4359"),
    "5, at the peak": (at(201, "--prior noise"), "", rf"--prior noise`: {THREE}\)"),
    "5, steered": (at(600, "--prior steer"), "", rf"is pushed up\. We got {THREE} and three"),
    "5, at 361": (at(361, "--prior noise"), "", rf"all three seeds \({THREE}\), at 41"),
    "6": (FIRST, "", rf"instead of {THREE}, and"),
    "6, the channel": (OWN["6"], "", rf"is excited well \({THREE}, from"),
    "6, changed": (FIRST, "6", rf"the lesson then gave {THREE} instead"),
    "7, changed": (LAST, "7", rf"a flower at (?P<a>{N}), .*?, at (?P<b>{N}) and (?P<c>{N}), where"),
}


def table(number):
    """The cells of each line of a chapter's table that holds numbers."""
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")]
             for line in CHAPTERS[int(number) - 1].splitlines() if line.startswith("|")]
    return [cells for cells in lines if any(re.fullmatch(THREE, cell) for cell in cells)]


CASES |= {f"4, {name}": (f"{OWN['4']} {typed}", "", numbers) for name, typed, numbers, _ in table("4")}
CASES |= {f"7, {scale}": (LAST if scale == "auto" else f"{LAST} --finish-scale {scale}", "", numbers)
          for scale, numbers, _ in table("7") if not scale.startswith("(")}


def make(copy, chapter):
    """The project with the change of a chapter, without results and tests; the toy's weights are a link."""
    kept = shutil.ignore_patterns(".*", "out", "tests", "docs", "toy", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=kept)
    (copy / "weights/toy").symlink_to(ROOT / "weights/toy")
    where, old, new = edits()[int(chapter) - 1]
    module, _, name = where.rpartition(".")
    path = copy / f"{module.replace('.', '/')}.py"
    path.write_text(change(path.read_text(encoding="utf-8"), name, old, new), encoding="utf-8")


def typed(command, out):
    """A command's words after `python`, on the toy, its seeds as one batch without copies beside them."""
    words = shlex.split(command)[1:]
    more = ["--batch-size", len(SEEDS)] if words[0] == "featviz.py" else []
    return [*words, *map(str, [*more, "--weights", ROOT / "weights/toy", "--device", "cpu", "--out", out])]


def run_changed(copy, chapter, command):
    """The folder of results of a command in a copy that has the chapter's change."""
    make(copy, chapter)
    subprocess.run([sys.executable, *typed(command, copy / "out")], cwd=copy, capture_output=True, check=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    return copy / "out"


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """{chapter: the results of its change, to wait for}; one after another, beside the commands that run here."""
    commands = {chapter: command for command, chapter, _ in CASES.values() if chapter} | {"5": OWN["5"]}
    folder = tmp_path_factory.mktemp("changed")
    with ThreadPoolExecutor(1) as pool:
        yield {chapter: pool.submit(run_changed, folder / chapter, chapter, command)
               for chapter, command in commands.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_the_lesson(name, changed, tmp_path):
    command, chapter, pattern = CASES[name]
    text = " ".join(TEXT.split())
    printed = re.search(THREE, pattern) if not pattern.count("(?P") else re.search(pattern, text)
    if chapter:
        out = changed[chapter].result()
    else:
        out, (_, *words) = tmp_path, typed(command, tmp_path)
        assert featviz.main(words) == 0
    found = []
    for seed in SEEDS:
        path, = out.glob(f"toy/*/t*/seed_{seed}.json")
        record = json.loads(path.read_text())
        found.append((record["finished"] or record)["scores"]["activation"])
    assert found == pytest.approx([float(printed[k]) for k in "abc"], abs=CLOSE)


def test_the_change_of_chapter_5_moves_the_peaks(changed):
    peaks = json.loads((changed["5"].result() / "toy/feature_00169/activity.json").read_text())["peaks"]
    printed = re.search(r"finds peaks at (\d+), (\d+) and (\d+)", " ".join(TEXT.split()))
    assert peaks == [int(t) for t in printed.groups()]


def test_the_change_of_chapter_3_learns_the_noise(changed):
    """What the ascent believes at its last steps, and how many verdicts are fragile."""
    text = " ".join(TEXT.split())
    records = [json.loads(path.read_text()) for path in sorted(changed["3"].result().glob("toy/*/t*/seed_*.json"))]
    believed = re.search(rf"over its last ten steps the activation was {THREE}", text)
    assert [sum(r["history"]["activation"][-10:]) / 10 for r in records] == pytest.approx(
        [float(believed[k]) for k in "abc"], abs=CLOSE)
    assert "two of three verdicts were `fragile`" in text
    assert sum(r["verdict"] == "fragile" for r in records) == 2
