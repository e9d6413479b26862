"""Numbers in the documents are those that their commands keep beside the weights."""
import json
import shutil
from pathlib import Path

from activity import profile
from bench import tables
from toyworld import claims_page, finishing
from toyworld.claim_list import CLAIMS
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
    stored, text = json.loads((ROOT / "weights/toy/finishing.json").read_text()), (ROOT / "docs/finish.md").read_text()
    report = {which: rows for which, rows in stored["report"].items() if which != "setting"}
    assert finishing.markdown(stored["explored"], ("ascent", "finish")) in text
    rows = [{"features": which, "pictures": name, **row}
            for which, some in report.items() for name, row in some.items()]
    assert finishing.markdown(rows, ("features", "pictures")) in text
    every, words = report["all"], " ".join(text.split())
    ascent, one, first = (every[name] for name in (
        "ascent, one seed", "finish, one seed", "finish, first of five by rule"))
    share = lambda row, kind="all": f"{row[kind]['share']:.2f}"
    assert every["finish, all seeds"]["all"]["n"] == 5 * first["all"]["n"] == 5 * 371
    assert (f"from {share(ascent)} to {share(one)}, most of it styles ({share(ascent, 'styles')} to "
            f"{share(one, 'styles')}), and keeps {one['activation'] / ascent['activation']:.2f} of the ascent's"
            ) in words
    assert f"The rule's first of five is right in {share(first)}." in words
    tried = {(r["ascent"], r["finish"]): r for r in stored["explored"]}
    plain, four = "noise, 40 at 0.15", "noise, 40 at 0.15, mean of 4 noises"
    assert f"{share(tried[four, None], 'objects')} against {share(tried[plain, None], 'objects')}" in words
    assert max(r["all"]["share"] for r in tried.values() if r["all"]["n"] == 62) == tried[
        four, "auto, 0.5, 10 steps"]["all"]["share"]


def test_what_quick_takes_of_the_original_is_what_the_bench_prints():
    """The tables of bench/speed_cpu.json against the words."""
    rows = [line.split(" | ") for line in tables.markdown(json.loads((ROOT / "bench/speed_cpu.json").read_text()))
            .splitlines() if " | ours | " in line]
    toy, full = ([row for row in rows if row[-2].strip() and (float(row[3]) > 1) == large] for large in (False, True))
    took = {(row[0].lstrip("| "), row[2]): row[-2] for row in full}
    (five,) = (row[-2] for row in toy if row[0] == "| 5" and row[2] == "float32")
    words = " ".join((ROOT / "docs/measured.md").read_text().split())
    assert (f"quick's 40 steps take {took['1', 'float32']} of the original's 100 at full size in float32 and "
            f"{took['1', 'bfloat16']} in bfloat16") in words
    assert f"On the toy they take {five} (5 jobs)" in words


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
    assert (concepts["objects covered"], concepts["styles covered"]) == (5, 8)
    assert cell("these cover") == "five objects, all eight styles"
    assert cell("concept features when") == str(stored["concepts"]["captions"]["all"])
    assert cell("400 samples").startswith(f"{stored['samples']['object']['share']:.1%}")
    assert cell("steered samples").startswith(f"{steered['share']:.1%} of {steered['n']} (")
    assert cell("of an object; of a style") == "; ".join(f"{stored['steering'][kind]['share']:.0%}"
                                                         for kind in ("object", "style"))


def test_pushes_are_told_as_they_were_measured():
    """The table of docs/measured.md against the evaluation.json of both toys."""
    text = (ROOT / "docs/measured.md").read_text()
    rows = text[text.index("<!-- pushes -->"):text.index("<!-- end of pushes -->")].splitlines()[3:]
    told = [[float(cell) for cell in row.split("|")[2:-1]] for row in rows]
    found = [json.loads((ROOT / f"weights/{toy}/evaluation.json").read_text())["pushes"] for toy in ("toy", "narrow")]
    assert told == [[round(toy[kind]["980"][name], 3) + 0.0 for toy in found for kind in ("object", "style")]
                    for name in ("caption", "pushed", "alike", "wrong")]


def test_the_claims_page_is_what_its_numbers_give(tmp_path):
    """docs/claims.md and its figures, made again from claims.json, and what is said of them in words."""
    shutil.copytree(ROOT / "docs/pictures/claims", tmp_path / "pictures/claims")
    shutil.copy(ROOT / "docs/claims.md", tmp_path)
    stored = json.loads((ROOT / "docs/claims.json").read_text())
    assert [*stored["claims"]] == [*CLAIMS]
    claims_page.write_page(stored, tmp_path)
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs/claims.md").read_text()
    for figure in (tmp_path / "pictures/claims").glob("*.svg"):
        assert figure.read_text() == (ROOT / "docs/pictures/claims" / figure.name).read_text()
    settings = {name: {s["setting"]: f"{s['right']['number']:.0%}" for s in claim["settings"] if s["pictures"]}
                for name, claim in stored["claims"].items()}
    own, bare = settings["together"]["all"], settings["together"]["none"]
    page, readme = (" ".join((ROOT / name).read_text().split()) for name in ("docs/claims.md", "README.md"))
    assert f"named right in {own}, with all regularizers off and from noise in {bare}" in page
    assert f"{own} against {settings['clearer']['channels, preset raw']} named right" in page
    assert f"{own} of the ascent's pictures are named right, without {bare}" in readme
    assert f"{stored['claims']['cheaper']['number']:.0f}" == "6" and "costs six times as much" in readme
    measured = " ".join((ROOT / "docs/measured.md").read_text().split())
    assert f"by its command: {own} and {settings['examples']['finished']} of 44" in measured
