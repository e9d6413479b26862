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
CLOSE = dict(rel=0.03, abs=0.03)    # other threads and versions round differently, a hundred times in a row
SEEDS = (1024, 1111, 4359)
N = r"[\d.]+\d"
THREE = rf"(?P<a>{N}),? (?P<b>{N}),?(?: and)? (?P<c>{N})"
OWN = {chapter[3]: next(line for line in COMMANDS if line in chapter) for chapter in CHAPTERS}     # a chapter's first
FIRST, LAST = COMMANDS[0], OWN["7"]
BLIND, = [line for line in COMMANDS if "--no-noise" in line]
at = lambda t, more="": FIRST.replace("--timestep 500", f"--timestep {t} {more}")
CASES = {   # name -> (command, the chapter whose change is made or "", where its numbers stand)
    "1, changed": (FIRST, "1", rf"which ended at {THREE}, where"),
    "2": (OWN["2"], "", rf"not even much activation: {THREE} \("),
    "2, changed": (OWN["2"], "2", rf"We got {THREE}: the first"),
    "3": (OWN["3"], "", rf"out of the trap, at {THREE}\."),
    "3, blind": (BLIND, "", rf"are hardly lower: {THREE}\."),
    "3, changed": (OWN["3"], "3", rf"scores are measured, it was {THREE}, and"),
    "4, changed": (OWN["4"], "4", rf"We got {THREE}: the two that are stuck"),
    "5, at 900": (at(900), "", rf"`--timestep 900` the first command gives {THREE}, three"),
    "5, from noise": (at(500, "--prior noise"), "", rf"`--prior noise`\) we got {THREE}: a red"),
    "5, at 541": (at(541), "", rf"blossoms much like ours \({THREE}\)"),
    "5, at 141": (at(141), "", rf"more activation \({THREE}\)"),
    "6": (FIRST, "", rf"where it was {THREE}, by the mean"),
    "6, the channel": (OWN["6"], "", rf"is excited \({THREE}, from"),
    "6, changed": (FIRST, "6", rf"the lesson then gave {THREE} at the end"),
    "7, its own settings": (FIRST.replace(" --no-finish", ""), "", rf"most\. That gave {THREE}, and"),
    "7, changed": (LAST, "7", rf"a mushroom at (?P<a>{N}), .*?, at (?P<b>{N}) and (?P<c>{N}), where"),
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
    assert found == pytest.approx([float(printed[k]) for k in "abc"], **CLOSE)


def starts(out):
    """The activations that the three seeds began with."""
    paths = [next(out.glob(f"toy/*/t*/seed_{seed}.json")) for seed in SEEDS]
    return [json.loads(path.read_text())["scores"]["activation_start"] for path in paths]


def test_the_change_of_chapter_6_silences_the_starts(changed):
    """Which the change of chapter 1 leaves as they were."""
    printed = re.search(rf"At the start it gave {THREE}, where it was {THREE.replace('?P<', '?P<was_')}: there",
                        " ".join(TEXT.split()))
    assert starts(changed["6"].result()) == [float(printed[k]) for k in "abc"] == [0, 0, 0]
    assert starts(changed["1"].result()) == pytest.approx([float(printed[f"was_{k}"]) for k in "abc"], **CLOSE)


def test_two_more_seeds_of_chapter_4(tmp_path):
    text, found = " ".join(TEXT.split()), []
    printed = re.search(rf"two more seeds, (\d+) and (\d+), .*?: ({N}) and ({N}) with them, ({N}) and ({N}) without",
                        text)
    _, flags, *_ = next(cells for cells in table("4") if cells[0] == "all but roll, turn and zoom")
    for n, more in enumerate(("", flags)):
        out, command = tmp_path / str(n), OWN["4"].replace("1024 1111 4359", f"{printed[1]} {printed[2]}")
        _, *words = typed(f"{command} {more}", out)
        assert featviz.main(words) == 0
        paths = [next(out.glob(f"toy/*/t*/seed_{seed}.json")) for seed in printed.groups()[:2]]
        found += [json.loads(path.read_text())["scores"]["activation"] for path in paths]
    assert found == pytest.approx([float(number) for number in printed.groups()[2:]], **CLOSE)


def test_the_change_of_chapter_5_moves_the_peaks(changed):
    peaks = json.loads((changed["5"].result() / "toy/feature_00022/activity.json").read_text())["peaks"]
    printed = re.search(r"finds peaks at (\d+), (\d+) and (\d+)", " ".join(TEXT.split()))
    assert peaks == [int(t) for t in printed.groups()]


def test_the_change_of_chapter_3_learns_the_noise(changed):
    """What the ascent believes at its last steps, and what the verdicts are."""
    text = " ".join(TEXT.split())
    records = [json.loads(path.read_text()) for path in sorted(changed["3"].result().glob("toy/*/t*/seed_*.json"))]
    believed = re.search(rf"over its last ten steps the activation was {THREE}", text)
    assert [sum(r["history"]["activation"][-10:]) / 10 for r in records] == pytest.approx(
        [float(believed[k]) for k in "abc"], **CLOSE)
    assert "All three verdicts were `excited`" in text
    assert [r["verdict"] for r in records] == ["excited"] * 3
