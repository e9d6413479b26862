"""Numbers in the documents are those that their commands keep beside the weights."""
import json
from pathlib import Path

from activity import profile
from toyworld.evaluate_activity import evaluate_details
from weights.load import load

ROOT = Path(__file__).parent.parent.parent


def test_how_much_the_peaks_depend_on_details():
    stored = json.loads((ROOT / "weights/toy/activity.json").read_text())["details"]
    model = load(ROOT / "weights/toy")
    again = evaluate_details(profile.attach(model, model.folder / "activity").activity)
    assert again.items() <= stored.items() and len(again) == 4
    text = (ROOT / "docs/measured.md").read_text()
    for row in ("| {end_values_held} of {features:,}; the highest by > 100 in {highest_moves_by_more_than_100} |",
                "| {float64} |", "| {both_halves} of {features_of_both_halves:,} |",
                "With both halves {through_the_other_half_alone} features"):
        assert row.format(**stored) in text


def test_the_tables_of_the_finish_are_those_of_its_numbers():
    stored = json.loads((ROOT / "weights/toy/finishing.json").read_text())["report"]
    text = (ROOT / "docs/finish.md").read_text()
    for which, rows in stored.items():
        for name, row in rows.items() if which != "setting" else ():
            line, = (line for line in text.splitlines() if line.startswith(f"| {which} | {name} |"))
            assert f"| {row['activation']:.3f} |" in line, line


def test_the_second_toy_is_told_as_it_was_measured():
    stored = json.loads((ROOT / "weights/narrow/evaluation.json").read_text())
    text = (ROOT / "docs/measured.md").read_text().replace("**", "")
    lines = text[text.index("| measured | first toy | second toy |"):].splitlines()
    cell = lambda start: next(line for line in lines if line.startswith(f"| {start}")).split("|")[3].strip()
    shift = lambda text: ", ".join(f"{v:.2f}" for v in stored["hook"][text].values())
    sae, concepts = stored["sae"], stored["concepts"]["empty prompt"]
    steered = stored["steering"]["all others, at the best"]
    assert cell("shift without the hook") == shift("empty prompt")
    assert cell("the same with captions") == shift("captions")
    assert cell("SAE:") == f"{sae['features']:,}, {sae['fvu']:.3f}, {sae['alive']:.1%}"
    assert cell("concept features, empty") == ", ".join(str(concepts[kind]) for kind in ("object", "style", "pair"))
    assert (concepts["objects covered"], concepts["styles covered"]) == (10, 8)
    assert cell("concept features when") == str(stored["concepts"]["captions"]["all"])
    assert cell("400 samples").startswith(f"{stored['samples']['object']['share']:.1%}")
    assert cell("steered samples").startswith(f"{steered['share']:.1%} of {steered['n']} (")
