"""Eyes at work: a run measures its pictures, and the toy's own find the features of a word and of a picture."""
import json
from pathlib import Path

import pytest
from PIL import Image

import featviz
from activity import __main__ as activity
from activity import profile
from pages.measure import own_eyes
from tests.tiny import write_examples, write_eyes, write_model
from toyworld.drawings import OBJECTS, drawing
from toyworld.evaluate import UNSEEN
from weights.load import load

TOY = Path(__file__).parents[2] / "weights/toy"
pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_measures_where_the_weights_bring_eyes(tmp_path, capsys):
    """And does not where they bring none, wherever CLIP is; what stands in the way of it stops nothing else."""
    bare, out = write_model(tmp_path / "tiny"), tmp_path / "out"
    write_examples(bare / "activity", 64)
    short = ["--weights", str(bare), "--out", str(out), "--device", "cpu", "--num-steps", "1", "--prior", "noise",
             "--seed", "1", "2", "--timestep", "300", "--frames", "0"]
    made = out / "tiny/feature_00003/legibility.json"
    assert featviz.main(short) == 0 and not made.exists() and not own_eyes(bare)
    write_eyes(bare / "clip")
    (bare / "clip/words.txt").write_text("rose\nfoam\n")
    assert featviz.main(short) == 0
    group, = json.loads(made.read_text())["groups"].values()
    assert all(len(value) == 64 for value in group["pictures"].values()) and "agreement" in group
    page = made.with_name("index.html")
    assert 'class="reads"' in page.read_text() and "not measured" not in capsys.readouterr().err
    (bare / "activity/images/00000.jpg").write_bytes(b"no picture")
    made.unlink()
    page.unlink()
    assert featviz.main(short) == 0 and page.exists() and not made.exists()
    assert "the pictures are not measured: " in capsys.readouterr().err


def test_of_the_toy_a_tree_finds_trees(tmp_path, capsys):
    """By words, and by a drawing that nobody learned from."""
    Image.fromarray(drawing(OBJECTS.index("Tree"), UNSEEN)).save(tmp_path / "tree.png")
    model = profile.attach(load(TOY), TOY / "activity")
    trees = {f for f in range(model.sae.features) if "Tree" in profile.analysis(model, "feature", f)["concept"]}
    known = {c["feature"]: (c["object"], c["style"]) for c in json.loads(
        (TOY / "concepts.json").read_text())["features"]}
    for query in ("a tree", str(tmp_path / "tree.png")):
        call = ["match", query, "--weights", str(TOY), "--out", str(tmp_path), "--device", "cpu"]
        assert activity.main(call) == 0
        head, *rows, last = capsys.readouterr().out.splitlines()
        assert len(rows) == 10
        if query == "a tree":                                   # first all with Tree among their words
            first = [int(row.split()[0]) for row in rows[:len(trees)]]
            assert len(trees) == 6 and {*first} == trees
        else:                                                   # of a cartoon
            assert known[int(rows[0].split()[0])] == ("Tree", "Cartoon")
        assert last.endswith(f"--weights {TOY} --feature {rows[0].split()[0]}")
