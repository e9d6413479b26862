"""Numbers in the documents are those that their commands keep beside the weights."""
import json
import re
import shutil
from pathlib import Path

from activity import profile
from bench import tables
from toyworld import claims, claims_page, evaluate_legibility, finishing, quick
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
                "With both halves {through_the_other_half_alone} features are among the 4"):
        assert row.format(**stored) in text


def test_the_tables_of_the_finish_are_those_of_its_numbers():
    stored, text = toy("finishing"), (ROOT / "docs/finish.md").read_text()
    words = " ".join(text.split())
    assert finishing.markdown(stored["explored"], ("ascent", "finish")) in text
    share = lambda row: f"{row['all']['share']:.2f}"
    for mark, say in (("report", "Over all five seeds the finish raises what is named right from {} to {}, and keeps "
                                 "{:.2f} of the ascent's activation. The rule's first of five is right in {}."),
                      ("peaks", "At the peaks it raises what is named right from {} to {}, keeps {:.2f} of the "
                                "activation, and the rule's first of five is right in {}.")):
        assert finishing.markdown(finishing.report_rows(stored[mark]), ("features", "pictures")) in text
        ascent, every, first = (stored[mark]["all"][name] for name in (
            "ascent, all seeds", "finish, all seeds", "finish, first of five by rule"))
        assert ascent["all"]["n"] == every["all"]["n"] == 5 * first["all"]["n"] == 5 * 109
        assert say.format(share(ascent), share(every), every["activation"] / ascent["activation"],
                          share(first)) in words
    named, left = (stored["report"]["all"][f"{name}, all seeds"]["all"]["share"] for name in ("finish", "ascent"))
    lesson = " ".join((ROOT / "docs/lesson.md").read_text().split())
    assert (f"all 109 features with a known concept it is right in {left:.0%} of the cases, and by chance it would be "
            f"in {toy('activity')['priors']['chance']:.0%}") in lesson
    unseen = stored["report"]["half B"]["finish, all seeds"]["all"]["share"]
    assert (f"whose pictures chose no setting, a judge names {unseen:.0%} of such"
            in " ".join((ROOT / "README.md").read_text().split()))


def test_the_tables_of_quick_and_of_legibility_are_those_of_their_numbers():
    numbers, text = toy("quick"), (ROOT / "docs/measured.md").read_text()
    assert quick.markdown(numbers) in text and evaluate_legibility.markdown(toy("legibility")) in text
    tried = {row["setting"]: row["activation"] for row in numbers["explored"]}
    words, own = " ".join(text.split()), tried[quick.OWN]
    assert (f"Here it reaches {tried[quick.CHOSEN] / own:.2f} of the activation of 100 at 0.05, decoded and encoded "
            f"again as well, and half as many steps reach {tried['20 at 0.25'] / own:.2f}.") in words
    less = [numbers["report"][name]["named_right"]["difference"] for name in ("ascent", "finished")]
    assert f"the ascent leaves them, by {-less[0]:.2f}; finished they are named as often" in words and less[1] == 0


def test_precision_and_the_toy_s_seconds_are_those_of_their_numbers():
    text = (ROOT / "docs/measured.md").read_text()
    precision = json.loads((ROOT / "bench/precision.json").read_text())
    for name in ("float32", "bfloat16"):
        named = precision[name]["named right"]
        assert "| {} | {:.1f} | {:.1%} ({:.1f} to {:.1f}) |".format(
            name, precision[name]["activation"], named["share"], *(100 * v for v in named["interval"])) in text
    assert f"The judge says the same of {precision['same verdict of the judge'].replace('of', 'of the')}." in text
    speed = json.loads((ROOT / "bench/speed_cpu.json").read_text())
    seconds = {name: {way: f"{s['seconds']:.1f} s" for way, s in speed["toy"][name].items() if s}
               for name in ("seconds_of_100_steps_5_seeds", "seconds_to_goal")}
    whole, goal = seconds.values()
    assert f"| 100 steps of 5 seeds | {whole['original']} | {whole['ours']} |" in text
    assert (f"in 100 steps ({speed['toy']['activation_goal']:.1f}) | {goal['original']} | {goal['ours']} |\n"
            f"| the same with `--preset quick` | | {goal['quick']} |") in text
    one, five = (f"{speed['toy'][f'seconds_from_command_to_{n}']['seconds']:.1f} s" for n in ("picture", "5_pictures"))
    assert f"from command to picture | | {one} |\n| the same with five seeds | | {five} |" in text
    for batch, ms in ((row, 1000 * s) for row, s in speed["growth"]["toy"]["batch"] if row != 2):
        assert re.search(rf"\b{ms:.{int(ms < 10)}f}\s+at\s+{batch}\b", text), (batch, ms)


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


def told(mark):
    """The cells of a table of docs/measured.md between two marks, row by row, without the heads."""
    text = (ROOT / "docs/measured.md").read_text().replace("**", "")
    rows = text[text.index(f"<!-- {mark} -->"):text.index(f"<!-- end of {mark} -->")].splitlines()[3:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


def toy(name):
    return json.loads((ROOT / f"weights/toy/{name}.json").read_text())


def test_the_toy_is_told_as_it_was_measured():
    numbers, cells = toy("evaluation"), {row[0]: row[-1] for row in told("bars")}
    sae, concepts, samples = numbers["sae"], numbers["concepts"]["empty prompt"], numbers["samples"]
    shift, scales = numbers["hook"]["empty prompt"], numbers["steering"]["by scale"]
    best, others = max(scales.values(), key=lambda s: s["share"]), numbers["steering"]["all others, at the best"]
    peaks = toy("activity")["probe"]["second_capture"]["highest_peak_found"]
    peaks_shown = toy("finishing")["peaks"]["all"]
    files = [f for f in (ROOT / "weights/toy").rglob("*") if f.is_file() and "activity" not in f.parts]
    size = sum(f.stat().st_size for f in files)
    span = lambda s: "{:.1f} to {:.1f}".format(*(100 * v for v in s["interval"]))
    assert numbers["vae"]["psnr_db"] == 29.87
    assert cells == {
        "autoencoder on 1,600 unseen drawings, PSNR": "the same",
        "400 samples from captions: object, style right": ", ".join(
            f"{samples[kind]['share']:.1%}" for kind in ("object", "style")),
        "SAE: features, FVU at k, that fire": f"{sae['features']}, {sae['fvu']:.3f}, {sae['alive']:.1%}",
        "concept features, empty prompt: object, style, pair": ", ".join(
            str(concepts[kind]) for kind in ("object", "style", "pair")),
        "these cover objects, styles": f"{concepts['objects covered']}, {concepts['styles covered']}",
        "concept features when the model sees the captions": str(numbers["concepts"]["captions"]["all"]),
        "steered samples named right, best of five scales": f"{best['share']:.1%} of {best['n']} ({span(best)})",
        "the same of half the features, by the scale that the other half chose":
            f"{others['share']:.1%} of {others['n']} ({span(others)})",
        "shift without the hook, t 600, empty prompt": f"{shift['600']:.2f}",
        "the same at t 100, 300, 900": ", ".join(f"{shift[t]:.2f}" for t in ("100", "300", "900")),
        "highest peak found again, to 50 steps, by a second capture": f"{peaks['share']:.1%} of {peaks['n']}",
        "named right, steered starts, at the peaks: ascent; finished": "; ".join(
            f"{peaks_shown[name]['all']['share']:.0%}" for name in ("ascent, all seeds", "finish, all seeds")
            ) + f" of {peaks_shown['finish, all seeds']['all']['n']}",
        "the rule's first of five, finished": "{share:.0%} of {n}".format(
            **peaks_shown["finish, first of five by rule"]["all"]),
        "size of `weights/toy` without its capture": f"{size / 2 ** 20:.0f} MiB"}
    words = " ".join((ROOT / "docs/measured.md").read_text().split())
    kinds = {kind: f"{numbers['steering'][kind]['share']:.0%}" for kind in ("style", "object")}
    assert f"the scale that is best for every other feature ({numbers['steering']['best scale']}) does" in words
    assert "styles are named right in {style} then, objects in {object}.".format(**kinds) in words


def test_the_eighteen_by_rule_are_told_as_they_were_named():
    numbers, words = toy("evaluation"), " ".join((ROOT / "docs/measured.md").read_text().split())
    named = numbers["figure"]
    assert len(named) == 18 and f"names {sum(named.values())} of the 54 pictures right" in words
    assert (named["39 Tree"], named["26 Sun"]) == (0, 1) and "the tree is never seen, the sun once" in words
    stripes = numbers["default_settings"]["4"]
    assert stripes["share"] == 1 and stripes["n"] == 9 and "All nine of feature 4, stripes, are named right" in words
    assert stripes["interval"][0] == max(s["interval"][0] for s in numbers["default_settings"].values())


def test_what_the_hook_says_is_told_as_it_was_measured():
    said = toy("evaluation")["said"]
    objects, styles, variance = (row[1:] for row in told("said"))
    assert objects == [f"{s['object']['share']:.0%}" for s in said.values()]
    assert styles == [f"{s['style']['share']:.0%}" for s in said.values()]
    assert variance == [f"{s['variance']:.3f}" for s in said.values()]


def test_pushes_are_told_as_they_were_measured():
    pushes = toy("evaluation")["pushes"]
    assert [[float(cell) for cell in row[1:]] for row in told("pushes")] == [
        [round(pushes[kind]["980"][name], 3) for kind in ("object", "style")]
        for name in ("caption", "pushed", "alike", "wrong")]


def test_peaks_and_starts_are_told_as_they_were_measured():
    numbers, percent = toy("activity"), lambda s: "{:.0f} to {:.0f}".format(*(100 * v for v in s["interval"]))
    span = lambda s: f"{s['share']:.1%} of {s['n']} ({{:.1f}} to {{:.1f}})".format(*(100 * v for v in s["interval"]))
    examples, ascents, probe = numbers["examples"], numbers["ascents"], numbers["probe"]
    assert [row[1] for row in told("examples")] == [
        span(examples["features"]), f"{examples['mean_share_of_examples']:.1%}, by chance {examples['chance']:.1%}",
        f"{examples['without_examples']} of {numbers['concept_features']}"]
    assert [row[1] for row in told("ascents")] == [
        "{} ({} to {})".format(ascents[name]["ratio"], *ascents[name]["interval"])
        for name in ("steered_over_noise", "peak_over_0")]
    assert [row[1] for row in told("named")] == [f"{s['share']:.0%} ({percent(s)})"
                                                 for s in ascents["named_right"].values()]
    caught = [f"{probe[who]['catch']:.2f} on average, median {probe[who]['catch_median']:.2f}"
              for who in ("probe", "second_capture")]
    assert [row[1] for row in told("probe")] == [
        *(span(probe[who]["highest_peak_found"]) for who in ("probe", "second_capture")), *caught,
        f"{probe['catch_by_chance']:.2f}"]


def test_priors_are_told_as_they_were_measured():
    priors = toy("activity")["priors"]
    assert told("priors") == [[f"of {priors['20']['n']}",
                               *(f"{priors[scale]['share']:.0%}" for scale in ("1", "5", "20", "50"))]]


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
    settings = {name: {s["setting"]: f"{s['right']['number']:.0%}" for s in claim["settings"]
                       if s["right"] and s["right"]["number"] is not None}
                for name, claim in stored["claims"].items()}
    part = lambda claim, what: next(p for p in stored["claims"][claim]["parts"] if p["what"] == what)
    number = lambda *of: f"{abs(part(*of)['number']):.2f}"
    share = lambda *of: f"{part(*of)['number']:.0%}"
    spanned = lambda *of: "{:.2f} to {:.2f}".format(*part(*of)["interval"])
    page, readme = (" ".join((ROOT / name).read_text().split()) for name in ("docs/claims.md", "README.md"))
    own, bare = settings["together"]["all"], settings["together"]["none"]
    clearer, presets, held = settings["clearer"], settings["presets"], settings["heldout"]
    among, alone = ", among the others: with - without", ", alone: with - none"
    of = lambda name, way: ("regularizers", name + way)
    end, others = ("prior", "steer: the end - its start"), ("together", "named right, from noise: all others - none")
    moves, filtered = of("transformations", among), of("spectral filter", among)
    fewer = "cleaner", "named right at equal activation, latent - pixels"
    elsewhere = "{} start of another object: the end is {}"
    steered, guided = ({who: share("prior", elsewhere.format(start, who)) for who in ("feature's", "start's")}
                       for start in ("steer", "guided"))
    best = next(p for p in stored["claims"]["timestep"]["parts"] if p["what"].startswith("best of the grid"))
    assert best["what"] == "best of the grid, t = 500, - worst, t = 900"
    for said in (
            f"named right in {own}, with all regularizers off and from noise in {bare}",
            f"start alone is named right in {share('prior', 'steer start alone, named right')}; the ascent adds "
            f"{number(*end)} ({spanned(*end)})",
            f"the start adds {number(*of('prior', among))}, alone {number(*of('prior', alone))}",
            f"do little from noise ({number(*others)}, from {spanned(*others)})",
            f"transformations help (by {number(*moves)}, from {spanned(*moves)})",
            f"spectral filter (by {number(*filtered)}, from {spanned(*filtered)})",
            f"({number(*of('moment', alone))} and {number(*of('weight decay', alone))})",
            f"adds {number(*of('finish', among))} among the others and {number(*of('finish', alone))} alone",
            "with {} features, {} of the pictures ended as the feature's and {} as the start's".format(
                part("prior", elsewhere.format("steer", "start's"))["n"], steered["feature's"], steered["start's"]),
            "{} of those that looked like another object stayed it".format(guided["start's"]),
            f"by {number('noise', 'from noise, at t = 100')} at t 100 and by "
            f"{number('noise', 'from noise, at t = 900')} at t 900",
            f"something, too: {share('noise', 'from noise, without noise, named right')}",
            f"transformations cost {number('strengths', 'chosen - transformations level 3')}",
            f"better than t 900 on the others by {best['number']:.2f}",
            f"worse than t 500 by {number('timestep', 'peak - t = 500')}",
            f"{presets['concepts, preset sae'][:-1]} against {presets['concepts, preset raw']} on features, "
            f"{presets['channels, preset sae'][:-1]} against {presets['channels, preset raw']} on channels",
            f"preset raw, too, has {clearer['channels, preset raw']} on channels",
            f"{own} against {clearer['channels, preset raw']}. Yet",
            f"{held['capture without']} of 37 features' pictures", f"no capture at all, {held['noise']}",
            f"With the images it is {held['capture']}",
            f"named right less often (by {number(*fewer)}, from {spanned(*fewer)})"):
        assert said in page, said
    assert f"{own} of the ascent's pictures are named right, without {bare}" in readme
    verdicts = {name: claim["verdict"] for name, claim in stored["claims"].items()}
    assert "must see its noise, and a concept need not be in the capture" in readme
    assert verdicts["noise"] == verdicts["heldout"] == verdicts["strengths"] == verdicts["together"] == "holds"
    assert part("timestep", "peak - mean of the grid")["number"] <= 0 > part("timestep", "peak - t = 500")["number"]
    assert "the noise is seen at t 500 and 600 alone" in page
    assert [p["what"] for p in stored["claims"]["noise"]["parts"] if "own start, at" in p["what"]
            and p["verdict"] == "holds"] == ["own start, at t = 500", "own start, at t = 600"]
    ratios = {of: part(*of)["number"] for of in (
        ("prior", "prediction error, noise / steered"), ("cleaner", "prediction error, pixels / latent"),
        *(("cheaper", f"{way}, operations at the size of SD") for way in ("a step", "to equal activation")))}
    assert [f"{v:.1f}" for v in ratios.values()] == ["2.0", "1.5", "3.9", "5.8"]
    for said in ("it halves the model's error", "less natural, though, by half in the model's error",
                 "four times a step and nearly six times to equal activation",
                 "are twelve, too few to decide. Of the eight", "half of the pictures are named right",
                 f"better pictures to begin with ({share('prior', 'guided start alone, named right')})"):
        assert said in page, said
    known = part("silent", "named right, of those that have a concept")
    assert (stored["claims"]["silent"]["n"], known["n"], known["number"]) == (12, 8, 0.5)
    assert f"{stored['claims']['cheaper']['number']:.0f}" == "6" and "costs six times as much" in readme


def test_the_second_run_is_told_as_it_was():
    """The claims on two threads against the same on one; what is said of it on their page."""
    again, once = (json.loads((ROOT / f"docs/second_run/{name}.json").read_text()) for name in ("claims", "one_thread"))
    stored = json.loads((ROOT / "docs/claims.json").read_text())
    assert again["fingerprint"] == once["fingerprint"] == stored["fingerprint"]
    assert {name: row["verdict"] for name, row in again["claims"].items()} == {
        name: row["verdict"] for name, row in once["claims"].items()}
    lines, page = claims.compare(again, once), " ".join((ROOT / "docs/claims.md").read_text().split())
    assert f"all {len(again['claims'])} verdicts are the same, and {lines[0]}." in page and len(lines) == 2
    two, one = (float(v) for v in lines[1].split(": ")[1].split(" and "))
    assert f"took {one:.1f} times as long, and {two:.1f} times" in page
