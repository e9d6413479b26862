"""The claims: statistics against cases worked by hand, a killed run, every claim on tiny settings, its page."""
import functools
import json
import xml.etree.ElementTree as xml
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ascent
from config import PRESETS, SEEDS
from schedule import Schedule
from toyworld import claim_list, claims, claims_page, drawings, paired, trials
from toyworld.claim_list import CLAIMS
from toyworld.claims import settings_of, verdict
from toyworld.judge import Judge
from toyworld.paired import Part, apart, decide, difference, mcnemar, mean, ratio
from toyworld.trials import BASE, Lab, Setting
from tests.tiny import edit_json, write_examples, write_model

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = 80                    # drawings of the survey


# --- by hand ----------------------------------------------------------------------------------------------------------

def rows(table, name="right"):
    """{(feature, seed): {name: value}} of {feature: [value of each seed]}."""
    return {(f, seed): {name: v} for f, values in table.items() for seed, v in enumerate(values)}


def test_mcnemar_by_hand():
    """Four pictures differ, one against three: p = 2 (C(4, 0) + C(4, 1)) / 16 = 0.625; of none that differ 1."""
    ours = rows({1: [True, True], 2: [True, False], 3: [True, True]})
    theirs = rows({1: [False, False], 2: [False, True], 3: [True, True]})
    assert mcnemar(ours, theirs) == 0.625 == mcnemar(theirs, ours) and mcnemar(ours, ours) == 1
    six = rows({f: [True] for f in range(6)}), rows({f: [False] for f in range(6)})
    assert mcnemar(*six) == pytest.approx(2 / 64)


def test_a_difference_is_paired_by_feature_and_seed():
    """Feature 1: 1 - 1/2; 2: 0 - 1, as its second seed has no pair; 3 has none at all. Features count alike."""
    part = difference("x", rows({1: [True, True], 2: [False, True], 3: [True]}), rows({1: [True, False], 2: [True]}))
    assert (part.number, part.n, part.pictures, part.p) == (-0.25, 2, 3, 1)
    assert sorted({*part.draws}) == [-1, -0.25, 0.5]                # both features drawn, or one of them twice
    assert np.mean(part.draws == -0.25) == pytest.approx(0.5, abs=0.03)
    told = part.told(1)
    assert told["interval"] == [-1, 0.5] and told["verdict"] == "not decided here" and (told["n"], told["p"]) == (2, 1)
    high = [rows({1: [value]}, "high") for value in (0.4, 0.1)]
    assert difference("x", *high, "high", sign=-1).number == pytest.approx(-0.3)


def test_a_picture_that_lacks_a_measure_is_left_out():
    part = ratio("x", rows({1: [4.0, None], 2: [2.0]}, "activation"), rows({1: [1.0, 9.0], 2: [2.0]}, "activation"))
    assert (part.number, part.n, part.pictures) == (2, 2, 2) and sorted({*part.draws}) == [1, 2, 4]


def test_sets_that_are_not_the_same_are_drawn_apart():
    part = apart("x", [1.0, 1.0], [0.0, 0.5])
    assert (part.number, part.n) == (0.75, 2) and sorted({*part.draws}) == [0.5, 0.75, 1.0]
    assert apart("x", [], [1.0]).told(1)["number"] is None


def test_the_interval_of_a_mean_is_as_wide_as_the_textbook_has_it():
    """50 of 100: 0.5 +- 1.96 sqrt(0.25 / 100)."""
    told = mean("x", [0.0, 1.0] * 50).told(1)
    assert told["interval"] == pytest.approx([0.402, 0.598], abs=0.011)
    assert mean("x", [1.0, 5.0, 6.0], of=np.median).number == 5


def test_the_rule():
    assert decide(0.01, 0.2) == "holds" and decide(0.0, 0.2) == "not decided here" and decide(-0.2, -0.01) == "does not"
    assert decide(-0.2, 0.04, least=0.05) == "does not" and decide(-0.2, 0.06, least=0.05) == "not decided here"
    assert decide(-0.04, 0.1, above=-0.05) == "holds" and decide(11, 12, above=10) == "holds"


def test_more_deciding_numbers_have_wider_intervals():
    """Of 1000 draws 0, 1, ..., 999 5% are left out, of five deciding parts 1%; only what decides is judged by it. Few
    features decide nothing."""
    draws = np.arange(1000.0)
    one, five = (Part("x", 500.0, draws, 20, above=20, deciding=True).told(k) for k in (1, 5))
    assert Part("x", 500.0, draws, 19).told(1)["verdict"] == "not decided here"
    assert Part("x", 500.0, draws, None).told(1)["verdict"] == "holds"
    assert one["wider"] == one["interval"] == pytest.approx([24.98, 974.0], abs=0.1) and one["verdict"] == "holds"
    assert five["wider"] == pytest.approx([4.995, 994.0], abs=0.1) and five["verdict"] == "not decided here"
    assert five["interval"] == one["interval"] and Part("x", 500.0, draws, 20, above=20).told(5)["verdict"] == "holds"


def test_the_verdict_of_a_claim():
    said = lambda *parts: verdict([{"verdict": v, "deciding": d} for v, d in parts])
    assert said(("holds", True), ("does not", False)) == "holds"
    assert said(("holds", True), ("not decided here", True)) == "not decided here" == said(("holds", False))
    assert said(("holds", True), ("does not", True), ("not decided here", True)) == "does not"


def test_two_runs_are_compared():
    run = lambda **parts: {"claims": {"noise": {"parts": [
        {"what": what, "n": n, "number": at, "interval": at and [at - 1, at + 1]} for what, (n, at) in parts.items()]}}}
    ours, theirs = run(a=(9, 1.0), b=(9, 1.0), c=(0, None), d=(None, 4.0)), run(a=(9, 1.5), b=(9, 2.5), c=(9, 1.0))
    assert claims.compare(ours, theirs) == ["1 of 2 numbers lie within each other's intervals", "noise, b: 1.0 and 2.5"]


def test_what_cannot_differ_and_what_has_no_line():
    """Neither decides: settings that made the same of all that both have; a share that is only told."""
    ours, theirs = rows({1: [2.0, 3.0], 2: [4.0]}, "activation"), rows({1: [2.0, 3.0]}, "activation")
    assert paired.rule(ours, theirs, least=0.05, deciding=True) == {"above": None}
    other = rows({1: [2.0, 3.5]}, "activation")
    assert paired.rule(ours, other, least=0.05, deciding=True) == {"least": 0.05, "deciding": True}
    told = mean("", [0.5] * 30, above=None).told(1)
    assert (told["number"], told["above"], told["least"], told["verdict"]) == (0.5, None, None, None)


def test_high_frequencies_by_hand():
    """Along 16 pixels a wave of 2 cycles (1/8 a pixel) lies below a quarter, one of 6 above, their sum of amplitudes 1
    and 3 has 9 of 10 parts above; a flat picture has no power at all."""
    wave = lambda n: torch.cos(2 * torch.pi * n * torch.arange(16) / 16).expand(3, 16, 16)
    found = trials.high_frequencies(torch.stack([wave(2), wave(6), wave(2) + 3 * wave(6), torch.ones(3, 16, 16)]))
    assert found.tolist() == pytest.approx([0, 1, 0.9, 0], abs=1e-5)
    assert trials.high_frequencies(wave(6).transpose(1, 2)[None]).item() == pytest.approx(1, abs=1e-5)


def test_the_prediction_error_by_hand():
    """Of a model that predicts no noise it is the noise's own power; of one that undoes the schedule on a latent of
    zeros, nothing. No start knows the answer: the noise is unlike that of any seed."""
    z, schedule, names = torch.zeros(2, 4, 64, 64), Schedule(), []
    none = SimpleNamespace(embed=lambda texts: names.append(texts) or torch.zeros(1, 77, 8), schedule=schedule,
                           dtype=torch.float32, unet=lambda x, t, c: torch.zeros_like(x))
    assert trials.prediction_error(none, z).tolist() == pytest.approx([1, 1], abs=0.02) and names == [[""]]
    share = schedule.alphas_cumprod
    seen = []
    none.unet = lambda x, t, c: seen.append(x / (1 - share[t][:, None, None, None]).sqrt()) or seen[-1]
    assert trials.prediction_error(none, z).tolist() == pytest.approx([0, 0], abs=1e-6)
    starts = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    alike = torch.corrcoef(torch.stack([x.flatten() for x in (*(s[0] for s in seen), *starts)]))
    assert len(seen) == 4 and (alike - torch.eye(len(alike))).abs().max() < 0.05


def test_how_many_labels_a_unit_mixes(monkeypatch):
    """Of the four strongest images unit 0 has one label, unit 1 two alike, unit 2 one thrice and another once."""
    monkeypatch.setattr(trials, "TOP", 4)
    labels, none = torch.tensor([0, 0, 0, 0, 1, 1, 2]), [0.0] * 3
    acts = torch.tensor([[4.0, 4, 4, 4, *none], [5.0, 5, 0, 0, 5, 5, 0], [6.0, 6, 6, 0, 0, 0, 6]]).T
    three_to_one = np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    assert trials.mixture(acts, labels).tolist() == pytest.approx([1, 2, three_to_one])


def test_the_rank_of_a_peak():
    """Feature 1 is beaten once, equal once and better twice: 2.5 of 4; feature 2 is equal to all."""
    grid = [{1: a, 2: 0.5} for a in (0.0, 0.0, 0.5, 1.0)]
    assert paired.ranks({1: 0.5, 2: 0.5}, grid) == [2.5 / 4, 0.5]


def test_whose_picture_it_is():
    """A tree (1) that began as a tree does not count; one that began as a fish (3) ends as a tree or stays a fish."""
    row = lambda began, ended: {"began": [began, 0], "said": [ended, 0]}
    seen = {(7, 0): row(1, 1), (7, 1): row(3, 1), (8, 0): row(3, 3), (8, 1): row(3, 5), (9, 0): row(2, 2)}
    found = paired.whose(seen, [{"target": 7, "object": "Tree"}, {"target": 8, "object": "Tree"},
                                {"target": 9, "object": None}])
    assert found == {"feature's": {7: 1, 8: 0}, "start's": {7: 0, 8: 0.5}}


def test_two_seeds_agree_above_chance():
    """Feature 7 is a thing in all three seeds, feature 8 another in each; of the six pairs of two features and two
    seeds the two with feature 8's first picture agree. What two features show by one seed's start is no chance."""
    said = {(7, s): {"said": [o, 0]} for s, o in enumerate((1, 1, 1))}
    said |= {(8, s): {"said": [o, 0]} for s, o in enumerate((1, 2, 3))}
    assert paired.agreeing(said) == ({7: 1, 8: 0}, pytest.approx(2 / 6))
    assert paired.agreeing({k: row for k, row in said.items() if k[0] == 7}) == ({7: 1}, 0)


def test_pictures_that_are_equally_active():
    """Of feature 1 the nearest of 2 x 2, of feature 2 none within a quarter, feature 3 is silent in one space."""
    row = lambda *a: {(f + 1, 0): {"activation": v} for f, v in enumerate(a)}
    latent, pixel = paired.equally_active([row(1.0, 1.0, 1.0), row(2.0, 2.0, 1.0)],
                                          [row(1.8, 3.0, 0.0), row(2.3, 9.0, -1.0)])
    assert (latent, pixel) == ({(1, 0): {"activation": 2.0}}, {(1, 0): {"activation": 1.8}})
    assert paired.steps_to({"course": [0.1, 0.4, 0.3, 0.9]}, 0.35, 100) == 50
    assert paired.steps_to({"course": [0.1]}, 0.35, 100) is None


def test_every_regularizer_is_on_in_one_preset_and_off_in_none():
    assert claim_list.ON["total variation"] == {"total_variation_weight": 0.5} and len(claim_list.SEVEN) == 7
    assert claim_list.ON["transformations"] == {"jitter_max": 1, "rotate_max": 5.0, "scale_max": 1.1}
    assert claim_list.ON["prior"] == {"prior": "steer"} and claim_list.OFF["prior"] == {"prior": "noise"}
    assert all(claim_list.ON[name] != claim_list.OFF[name] for name in claim_list.FIELDS)
    bare = BASE.but(**claim_list.BARE).config({"presets": {"sae": {"prior": "steer"}}})
    assert bare == PRESETS["none"]


def test_the_work_of_a_course():
    """100 steps, a prior of 50 sampling steps, a finish of at most four strengths of 30 steps, 10 for what is measured.
    """
    assert trials.work_of(BASE.but(prior="noise").config({})) == 110 and trials.work_of(BASE.config({})) == 160
    assert trials.work_of(BASE.but(prior="guided", finish=True).config({})) == 100 + 1.5 * 120 + 75 + 10


# --- on a tiny model --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model with concepts, a judge that learned nothing, and a capture of three objects in two styles in which
    two features never fire and three are never among the most active."""
    quickly = dict(capture=dict(steps=2, images_per_prompt=1))
    folder = write_model(tmp_path_factory.mktemp("claims") / "tiny", featviz=quickly)
    torch.manual_seed(0)
    (folder / "judge").mkdir()
    save_file(Judge().state_dict(), folder / "judge/model.safetensors")
    concept = lambda f, o, s: {"feature": f, "kind": "object" if o else "style", "object": o, "style": s}
    concepts = [concept(f, ("Tree", "Fish", None)[f % 3], None if f % 3 < 2 else "Neon") for f in range(9)]
    (folder / "concepts.json").write_text(json.dumps({"timestep": 300, "features": concepts}))
    home = folder / "activity"
    write_examples(home, 64)
    tables = trials.load_file(home / "activity.safetensors")
    tables["share_feature"][:, 50:55] = 0
    tables["max_feature"][:, 53:55] = 0
    save_file({k: v.contiguous() for k, v in tables.items()}, home / "activity.safetensors")
    made = json.loads((home / "capture.json").read_text())
    pairs = [(o, s) for o in ("Tree", "Fish", "Sun") for s in ("Neon", "Winter")]
    made["recipe"]["settings"]["prompts"] = [drawings.caption(*pair) for pair in pairs]
    edit_json(home / "capture.json", images=12, recipe=made["recipe"])
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once_here():
    """Loading is most of what a lab of this size costs, and nothing changes the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "load", functools.cache(claims.load))
        yield


@pytest.fixture
def small(monkeypatch):
    """Little to compute: few drawings and draws, batches of 8."""
    for name, value in dict(DRAWINGS=FEW, BATCH=8, NATURAL=4, ODD_TIMES=(300,), TOP=8).items():
        monkeypatch.setattr(trials, name, value)
    monkeypatch.setattr(trials, "full_size_ratio", lambda: 4.0)
    monkeypatch.setattr(ascent, "SCORE_DRAWS", 1)
    monkeypatch.setattr(paired, "DRAWS", 200)
    monkeypatch.setattr(claims_page, "EDGE", 16)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What all these claims share; the drawings of the survey are there, so that no processes are started for them."""
    home = tmp_path_factory.mktemp("home")
    np.save(home / f"drawings_1_{FEW}.npy",
            np.stack([drawings.drawing(i, 1) for i in range(FEW)]).transpose(0, 3, 1, 2))
    return home


def arguments(tiny, home, docs, *more):
    return claims.parse(["--weights", str(tiny), "--features", "3", "--home", str(home), "--docs", str(docs / "docs"),
                         "--device", "cpu", *more])


@pytest.fixture
def lab(tiny, home, tmp_path, small):
    return claims.open_lab(arguments(tiny, home, tmp_path))


def plain(rows):
    return {key: {k: v for k, v in row.items() if k != "at"} for key, row in rows.items()}


def test_groups(lab):
    assert [c["target"] for c in lab.group("concepts")] == [c["target"] for c in lab.everything[:3]]
    assert {c["target"] for c in lab.group("dead")} == {53, 54}
    assert {c["target"] for c in lab.group("silent")} == {50, 51, 52}
    assert [c["target"] for c in lab.group("concepts")] != [0, 1, 2]                # by lot


def test_a_row_has_every_measure_and_its_own_picture(lab):
    found = lab.rows(BASE)
    assert {*found} == {(c["target"], seed) for c in lab.group("concepts") for seed in lab.seeds}
    for (target, seed), row in found.items():
        assert (row["target"], row["seed"], row["t"]) == (target, seed, 300) and type(row["right"]) is bool
        assert all(np.isfinite(row[k]) for k in ("activation", "reencoded", "high", "odd", "sure", "rank"))
        if row["activation"] > 0:
            assert row["lost"] == pytest.approx(1 - row["reencoded"] / row["activation"], abs=1e-3)
        else:
            assert row["lost"] is None
        assert len(row["course"]) == 2
    assert any(row["activation"] > 0 for row in found.values())
    shown = lab.pictures(found.values())
    assert shown.shape == (6, 3, 32, 32) and len({x.numpy().tobytes() for x in shown}) == 6
    said, _ = trials.judged(lab.judge, shown)
    assert np.mean([a == row["said"] for a, row in zip(said, found.values())]) > 0.8        # but for 8 bits


def test_t_peak_is_the_targets_own(lab):
    assert {row["t"] for row in lab.rows(BASE.but(t="peak")).values()} == {281}     # see tiny.activity
    assert {row["t"] for row in lab.rows(BASE.but(t="peak", group="dead")).values()} == {0}


def test_a_killed_run_goes_on_to_the_same_rows(small, tiny, tmp_path, monkeypatch):
    settings = [BASE, BASE.but(noise=False)]
    monkeypatch.setattr(trials, "BATCH", 2)
    monkeypatch.setattr(trials, "FEWEST", 2)
    lab = claims.open_lab(arguments(tiny, tmp_path / "whole", tmp_path))
    whole = [plain(lab.rows(s)) for s in settings]
    begun = claims.open_lab(arguments(tiny, tmp_path / "killed", tmp_path))
    made, make = [], Lab.make

    def dies(self, setting, jobs):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(jobs)
        make(self, setting, jobs)
    monkeypatch.setattr(Lab, "make", dies)
    with pytest.raises(KeyboardInterrupt):
        [begun.rows(s) for s in settings]
    made.clear()
    again = claims.open_lab(arguments(tiny, tmp_path / "killed", tmp_path))
    assert [again.count(s) for s in settings] == [0, 4]
    made.extend([[]] * -100)
    monkeypatch.setattr(Lab, "make", make)
    assert [plain(again.rows(s)) for s in settings] == whole
    assert [again.count(s) for s in settings] == [0, 0]


ROW = {"claim", "source", "experiment", "n", "number", "interval", "what", "verdict", "parts", "figure",
       "settings", "not_said", "elsewhere"}
PART = {"what", "unit", "n", "pictures", "above", "least", "deciding", "number", "interval", "wider", "verdict"}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_its_row_page_and_figures(name, lab, tiny, home, tmp_path, capsys):
    assert claims.run(arguments(tiny, home, tmp_path, "--only", name)) == 0
    assert "a run that was ended goes on" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "docs/claims.json").read_text())
    assert [*numbers["claims"]] == [name] and numbers["features"] == 3 and numbers["rule"]
    row = numbers["claims"][name]
    assert row.keys() == ROW and row["verdict"] in claims_page.FILL
    assert all(row[k].endswith((".", "?")) for k in ("claim", "experiment", "not_said", "elsewhere")) and row["source"]
    page = (tmp_path / "docs/claims.md").read_text()
    assert row["claim"] in page and row["not_said"] in page and f"<!-- {name} -->" in page
    assert any(p["deciding"] for p in row["parts"]) and all(PART <= p.keys() for p in row["parts"])
    assert any(p["number"] is not None and p["interval"][0] <= p["number"] <= p["interval"][1] for p in row["parts"])
    assert all(p["interval"] or p["n"] == 0 or p["unit"] == "ratio" for p in row["parts"])
    assert row["settings"] and {s["setting"] for s in row["settings"]} == {*settings_of(lab, CLAIMS[name])}
    figures = [*(tmp_path / "docs/pictures/claims").glob("*.svg")]
    assert {path.name for path in figures} == {f"{name}_parts.svg"} | ({f"{name}.svg"} if row["figure"] else set())
    for path in figures:
        root = xml.parse(path).getroot()
        assert root.tag.endswith("svg") and len(root) > 4 and path.name in page
        assert "nan" not in path.read_text()
    assert (tmp_path / f"docs/pictures/claims/{name}.png").stat().st_size > 100


@pytest.mark.parametrize("name", ("cheaper", "cleaner"))
def test_pixels_are_compared(name, lab, monkeypatch):
    """Another setting stands in for it, so that both spaces give nearly the same."""
    monkeypatch.setattr(claim_list, "PIXEL", {"range_weight": 0.1})
    row, rows = claims.try_claim(lab, CLAIMS[name])
    assert row.keys() == ROW and [*rows] == [
        "latent, 1 steps", "latent, 2 steps", "pixel, 1 steps", "pixel, 2 steps", "pixel, 4 steps"]
    told = {p["what"]: p for p in row["parts"]}
    if name == "cheaper":
        assert told["a step, operations at the size of SD"]["number"] == 4
        assert told["a step, seconds of the toy"]["number"] > 0
        found = told["to equal activation, operations at the size of SD"]
        assert found["deciding"] and found["number"] > 0 and found["above"] == found["least"] == 10
    else:
        assert abs(told["high frequencies at equal activation, pixels - latent"]["number"]) < 0.2


def test_what_was_written_between_the_marks_stays(lab, tiny, home, tmp_path):
    run = lambda: claims.run(arguments(tiny, home, tmp_path, "--only", "noise"))
    run()
    path = tmp_path / "docs/claims.md"
    first, record = path.read_text(), (tmp_path / "docs/claims.json").read_bytes()
    path.write_text(first + "\nA word of ours.\n")
    run()
    assert path.read_text() == first + "\nA word of ours.\n" and (tmp_path / "docs/claims.json").read_bytes() == record


def test_how_long_is_said_and_nothing_made(small, tiny, tmp_path, capsys):
    assert claims.run(arguments(tiny, tmp_path / "none", tmp_path, "--only", "noise", "--check")) == 0
    assert "1 claims, 96 pictures to make, about" in capsys.readouterr().out and not (tmp_path / "docs").exists()


@pytest.mark.parametrize("more, message", {
    ("--features", "1"): "--features must be at least 2", ("--seeds", "1"): "--seeds between 2 and 5",
    ("--weights", "nowhere"): "--weights nowhere: has no concepts.json"}.items())
def test_errors_are_one_line(tiny, tmp_path, capsys, more, message):
    args = ["--weights", str(tiny), "--home", str(tmp_path), *more]
    assert claims.main(args) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_plan_names_every_setting_once(capsys, monkeypatch):
    monkeypatch.setattr(claims, "full_size_ratio", lambda: 4.0)
    args = claims.parse(["--plan", "sd14", "--features", "10", "--step-seconds", "3.6"])
    assert claims.run(args) == 0
    said = capsys.readouterr().out
    commands = [text for text in said.splitlines() if text.startswith("python featviz.py")]
    plain = next(text for text in commands if "--timestep 100 --preset sae --no-noise --no-finish" in text)
    # 10 features, 2 seeds, 100 steps and 10 for measuring, a prior of 50 sampling steps: 3200 steps of 3.6 s
    assert "--no-finish --seed $SEEDS" in plain and plain.endswith("none, t 100: 3.20 h")
    named = [text.split("      # ")[0] for text in commands]
    alone = [text for text in named if f"--prompts without_towers.txt {text[text.index('--out'):]} " not in said]
    assert len({text.split(" --out ")[0] for text in alone}) == len(alone) == len(commands) - 1
    stand_in = SimpleNamespace(t=claims_page.PLAN_TIME, model=SimpleNamespace(settings={}))
    labels = sum(len(settings_of(stand_in, c)) for c in CLAIMS.values())
    assert len(commands) + sum(": as out/claims/" in text for text in said.splitlines()) == labels > 80
    assert all(f"\n# {name}: " in said for name in CLAIMS)


def test_a_setting_changes_what_it_names():
    changed = BASE.but(range_weight=2.0, t=5, group="channels").but(noise=False)
    assert changed == Setting("sae", (("noise", False), ("range_weight", 2.0)), "channels", 5)
    config = changed.config({"presets": {"sae": {"prior": "noise"}}})
    assert (config.noise, config.range_weight, config.prior, config.finish) == (False, 2.0, "noise", False)
