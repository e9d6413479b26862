"""Measure the method's claims on the toy, for docs/results.md: `python -m toyworld.evaluate --art FOLDER --claims`.

FEATURES live features are drawn at random once, whether or not they have a meaning, and as many channels. Every arm is
the default settings but for one change, and makes a picture of each from both SEEDS; nothing is left out. A picture is

    legible     if one of the judge's five likeliest things is a thing of the target's EXAMPLES strongest artworks
    meant       if it shows the target's meaning (toyworld/concepts.py); only for targets that have one

and chance is the same picture held against the next target of the list. What is compared is the share minus chance's,
target by target; intervals are of 95% and resample targets. The default settings were chosen on CHOICE other features.
"""
import json
import re
from collections import defaultdict

import torch

from activity.profile import Capture
from command.progress import Count, warn
from config import SEEDS as USUAL_SEEDS
from results import write
from toyworld import concepts
from toyworld.judge import see, shows
from visualize import visualize

FEATURES, CHOICE, SEEDS, EXAMPLES = 100, 40, USUAL_SEEDS[:2], 4
RESAMPLED, MINUTES = 4_000, 2.2         # draws of an interval; minutes an arm, on one core
PICTURES = ("start", "ascent", "finished")
MEASURES = {"legible": lambda shown, things: bool(shown["name"] & things), "meant": shows}

OFF = {"weight_decay": 0.0, "range_weight": 0.0, "moment_weight": 0.0, "jitter_max": 0, "rotate_max": 0.0,
       "scale_max": 1.0, "spectral_filter": False}
ASCENT, NOISE = {"finish": False}, {"prior": "noise"}
COMMON = "steered by a common curve"    # the start is steered by the mean curve of all features, not the feature's own
ARMS = {                                # what differs from the default settings
    "default": {},
    "channels": {},
    "from noise": NOISE,
    "from noise, no regularizer": ASCENT | NOISE | OFF,
    "finish without the feature": {"finish_scale": 0.0},
    "UNet sees no noise": ASCENT | {"noise": False},
    COMMON: ASCENT,
    **{f"t = {t}": ASCENT | {"timesteps": [t]} for t in concepts.TIMES},
    "no regularizer": ASCENT | OFF,
    **{f"without {name}": ASCENT | {name: off} for name, off in OFF.items()},
    "penalties halved": ASCENT | {"weight_decay": 0.005, "range_weight": 0.25, "moment_weight": 0.25},
    "penalties doubled": ASCENT | {"weight_decay": 0.02, "range_weight": 1.0, "moment_weight": 1.0},
}
CHOICES = {                             # the same, on the features of the choice
    f"choice: steer {steer}, t = {t}, finish from {begin} at {scale}":
        {"steer_scale": steer, "timesteps": [t], "finish_from": begin, "finish_scale": scale}
    for steer, t, begin, scale in ((5.0, 500, 900, 0.1), (2.5, 500, 900, 0.1), (10.0, 500, 900, 0.1),
                                   (5.0, 300, 900, 0.1), (5.0, 100, 900, 0.1), (5.0, 500, 600, 0.1),
                                   (5.0, 500, 900, 0.3))}

DEFAULT, FINISHED = ("default", "ascent"), ("default", "finished")
CLAIMS = [      # text; (arm, picture) that is legible more often; than which, None is chance; what decides it on SD
    ("SAE features are clearer than raw channels", FINISHED, ("channels", "finished"),
     "SAeUron's features and 1,280 channels, judged by CLIP"),
    ("regularizers turn noise into things: more than chance", ("from noise", "ascent"), None,
     "ascents from noise, judged by CLIP"),
    ("regularizers turn noise into things: more than without them", ("from noise", "ascent"),
     ("from noise, no regularizer", "ascent"), "presets sae and none from noise"),
    ("all regularizers together help from a steered start", DEFAULT, ("no regularizer", "ascent"),
     "presets sae and none from a steered start"),
    *((f"{name} helps", DEFAULT, (f"without {name}", "ascent"), "ascents without it") for name in OFF),
    ("penalties of this strength are better than half", DEFAULT, ("penalties halved", "ascent"), "the same"),
    ("penalties of this strength are better than twice", DEFAULT, ("penalties doubled", "ascent"), "the same"),
    ("the UNet must see its noise", DEFAULT, ("UNet sees no noise", "ascent"), "--no-noise"),
    ("steering works: the steered sample shows the feature", ("default", "start"), None, "steered samples"),
    ("the steered start helps the ascent", DEFAULT, ("from noise", "ascent"), "--prior noise"),
    ("the ascent adds to its start", DEFAULT, ("default", "start"), "starts and ends"),
    ("pictures agree with the dataset examples", FINISHED, None, "python -m legibility"),
    ("no dataset is needed: noise and finish alone", ("from noise", "finished"), None, "the same from noise"),
    ("the feature's own activity curve helps", DEFAULT, (COMMON, "ascent"), "one curve for all features"),
    ("the finish adds", FINISHED, DEFAULT, "both pictures"),
    ("the finish keeps what the feature means: the pull helps", FINISHED, ("finish without the feature", "finished"),
     "--finish-scale 0"),
]


# --- pictures ---------------------------------------------------------------------------------------------------------

def targets(world, kind, choice):
    """{number: {measure: (what its pictures should show, what another's should)}} of random features or channels.

    They are the same for all arms. The other is the next; of those with a meaning, the next that means something else.
    """
    rows = world.concepts["rows" if kind == "feature" else "channel_rows"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    picked = [rows[i] for i in (order[FEATURES:FEATURES + CHOICE] if choice else order[:FEATURES])]
    examples = [{artwork.rpartition(", ")[0] for artwork in row["strongest"][:EXAMPLES]} for row in picked]
    out = {}
    for i, row in enumerate(picked):
        others = [other["meaning"] for other in picked[i + 1:] + picked[:i]]
        out[row[kind]] = {
            "legible": (examples[i], examples[(i + 1) % len(picked)]),
            "meant": (row["meaning"], next((m for m in others if m and m != row["meaning"]), None))}
    return out


def measure(world, name):
    """One row for each picture of an arm: what it is of, whether it is legible and meant, and the same by chance."""
    kind, model = "channel" if name == "channels" else "feature", world.model
    chosen, capture = targets(world, kind, name in CHOICES), model.capture
    if name == COMMON:
        curve = torch.stack([capture.strength(kind, n) for n in chosen]).mean(0)

        class CommonCurve(Capture):
            def strength(self, kind, n, when="active"):
                return curve

        model.capture = CommonCurve(**vars(capture))
    results = visualize(model, **{kind + "s": list(chosen)}, seeds=SEEDS, batch_size=50, frames=2,
                        **(ARMS | CHOICES)[name])
    model.capture = capture
    made = {"start": [(result, result.frames[0]) for result in results],
            "ascent": [(result, result.image) for result in results],
            "finished": [(result.finished, result.finished.image) for result in results if result.finished]}
    rows = []
    for picture, pairs in made.items():
        seen = see(world, torch.stack([image for _, image in pairs])) if pairs else []
        for (result, _), shown in zip(pairs, seen):
            row = {"target": f"{kind} {result.job.target}", "seed": result.job.seed, "picture": picture}
            for measure, fits in MEASURES.items():
                own, other = chosen[result.job.target][measure]
                if own is not None and other is not None:
                    row |= {measure: fits(shown, own), measure + "_chance": fits(shown, other)}
            activation = result.scores["activation_start" if picture == "start" else "activation"]
            rows.append(row | {"activation": activation, "largest": result.scores["dataset_largest"]})
    return rows


# --- numbers ----------------------------------------------------------------------------------------------------------

def by_target(rows, picture, measure):
    """{target: share of its seeds' pictures}, where the measure is known."""
    values = defaultdict(list)
    for row in rows:
        if row["picture"] == picture and measure in row:
            values[row["target"]].append(float(row[measure]))
    return {target: sum(v) / len(v) for target, v in values.items()}


def above_chance(rows, picture, measure):
    """{target: share minus chance's}."""
    chance = by_target(rows, picture, measure + "_chance")
    return {target: share - chance[target] for target, share in by_target(rows, picture, measure).items()}


def resampled(values):
    """Means of `values` under RESAMPLED draws with replacement, the same draws for as many values."""
    values = torch.tensor(values)
    draws = torch.randint(len(values), (RESAMPLED, len(values)), generator=torch.Generator().manual_seed(len(values)))
    return values[draws].mean(1)


def interval(values, others=()):
    """Mean of `values`, minus that of the `others`, of other targets; its interval and how many values there are."""
    mean, draws = sum(values) / len(values), resampled(values)
    if others:
        mean -= sum(others) / len(others)
        draws -= resampled(others)[torch.randperm(RESAMPLED, generator=torch.Generator().manual_seed(0))]
    low, high = draws.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": round(mean, 3), "low": round(low, 3), "high": round(high, 3), "n": len(values) + len(others)}


def difference(better, worse):
    """Mean difference of two {target: value}: by target where both have the same ones, else of independent means."""
    if better.keys() == worse.keys():
        return interval([better[target] - worse[target] for target in better])
    return interval(list(better.values()), list(worse.values()))


def verdict(number):
    return "holds" if number["low"] > 0 else "the reverse" if number["high"] < 0 else "not decided"


def weigh_claims(arms, peaks):
    """Rows of the table: a claim, its difference in legible and meant with intervals, a verdict on the first.

    The last is of peaks {target: the time step of its peak, by its activity on artworks}: whether a feature is clearer
    there than at the grid's other time steps.
    """
    out = []
    for text, (arm, picture), worse, decides in CLAIMS:
        row = {"claim": text, "decides": decides}
        for measure in MEASURES:
            share = above_chance(arms[arm], picture, measure)
            other = above_chance(arms[worse[0]], worse[1], measure) if worse else dict.fromkeys(share, 0)
            row[measure] = difference(share, other) if share and other else None
        out.append(row | {"verdict": verdict(row["legible"])})
    at = {t: above_chance(arms[f"t = {t}"], "ascent", "legible") for t in concepts.TIMES}
    beside_peak = []
    for target in at[concepts.TIMES[0]]:
        others = [at[t][target] for t in at if t != peaks[target]]
        beside_peak.append(at[peaks[target]][target] - sum(others) / len(others))
    number = interval(beside_peak)
    return [*out, {"claim": "a feature is clearer at its peak than at other time steps", "legible": number,
                   "meant": None, "verdict": verdict(number), "decides": "--timestep auto against a grid"}]


def correlate(arms):
    """Correlation, over all pictures of features, of being legible with the activation beside the images' largest."""
    rows = [row for name in ARMS if name != "channels" for row in arms[name] if row["largest"]]
    ratio = torch.tensor([row["activation"] / row["largest"] for row in rows]).clamp(max=10)
    r = torch.corrcoef(torch.stack([ratio, torch.tensor([float(row["legible"]) for row in rows])]))[0, 1].item()
    return {"pictures": len(rows), "correlation": round(r, 3)}


def count_again(world):
    """How many meanings of features and channels are found again on other drawings: other shifts and noises."""
    again, out = concepts.find(world.model, world.artworks, world.chosen, seed=1), {}
    for kind, name in (("feature", "rows"), ("channel", "channel_rows")):
        meanings = {row[kind]: row["meaning"] for row in again[name]}
        found = [row for row in world.concepts[name] if row["meaning"]]
        same = [tuple(row["meaning"]) for row in found if meanings.get(row[kind]) == row["meaning"]]
        out[kind + "s"] = {"with_meaning": len(found), "same_again": len(same), "different_again": len(set(same))}
    return out


# --- the command ------------------------------------------------------------------------------------------------------

def run(world, folder, names):
    """Measure the arms `names`; each is stored in `folder` when it is done, and not measured twice."""
    missing = [name for name in names if not path_of(folder, name).exists()]
    warn(f"{len(missing)} of {len(names)} arms to measure, about {MINUTES * len(missing):.0f} minutes on one core")
    progress = Count("arms")
    progress(0, len(missing))
    for i, name in enumerate(missing):
        write(path_of(folder, name), json.dumps(measure(world, name)).encode())
        progress(i + 1, len(missing))


def path_of(folder, name):
    return folder / (re.sub("[^A-Za-z0-9.]+", "_", name) + ".json")


def report(world, folder):
    """Everything docs/results.json holds: arms, claims, correlation, meanings found again."""
    if not path_of(folder, "again").exists():
        write(path_of(folder, "again"), json.dumps(count_again(world)).encode())
    read = lambda name: json.loads(path_of(folder, name).read_text(encoding="utf-8"))
    arms, shares = {name: read(name) for name in ARMS | CHOICES}, defaultdict(lambda: defaultdict(dict))
    for name, rows in arms.items():
        for picture in PICTURES:
            for measure in MEASURES:
                if hits := list(by_target(rows, picture, measure).values()):
                    chance = sum(by_target(rows, picture, measure + "_chance").values()) / len(hits)
                    shares[name][picture][measure] = interval(hits) | {"chance": round(chance, 3)}
    peaks = {f"feature {row['feature']}": row["t"] for row in world.concepts["rows"]}
    return {"features": FEATURES, "seeds": SEEDS, "examples": EXAMPLES, "counts": world.concepts["counts"],
            "found_again": read("again"), "arms": shares, "claims": weigh_claims(arms, peaks),
            "activation_and_legibility": correlate(arms)}


def tables(results):
    """The two tables of docs/results.md."""
    cell = lambda n: "" if n is None else f"{n['value']:+.2f} ({n['low']:+.2f} to {n['high']:+.2f})"
    yield "| claim | legible: difference | meant: difference | verdict | on Stable Diffusion |\n|---|---|---|---|---|"
    for row in results["claims"]:
        cells = [row["claim"], cell(row["legible"]), cell(row["meant"]), row["verdict"], row["decides"]]
        yield f"| {' | '.join(cells)} |"
    yield "\n| arm | start | ascent | finished |\n|---|---|---|---|"
    for name, pictures in results["arms"].items():
        cells = [name.replace(" = ", " ")]
        for picture in PICTURES:
            n = pictures.get(picture, {}).get("legible")
            cells.append(f"{n['value']:.2f} ({n['chance']:.2f})" if n else "")
        yield f"| {' | '.join(cells)} |"
