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
import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch

from config import SEEDS as USUAL_SEEDS
from results import write
from toyworld import concepts, denoiser
from toyworld.seen import resembles, see, shows
from visualize import visualize

FEATURES, CHOICE, SEEDS, EXAMPLES = 100, 40, USUAL_SEEDS[:2], 4
RESAMPLED, MINUTES = 4_000, 2.2         # draws of an interval; minutes an arm, on one core
MEASURES = ("legible", "meant")


@dataclass(frozen=True)
class Arm:
    """Default settings but for `settings`, on the features or channels that are reported, or on those of the choice."""
    settings: dict = field(default_factory=dict)
    kind: str = "feature"
    timestep: int = None
    choice: bool = False
    common_curve: bool = False      # the start is steered by the mean curve of all features, not by the feature's own


OFF = {"weight_decay": 0.0, "range_weight": 0.0, "moment_weight": 0.0, "jitter_max": 0, "rotate_max": 0.0,
       "scale_max": 1.0, "spectral_filter": False}
ASCENT, NOISE = {"finish": False}, {"prior": "noise"}
ARMS = {
    "default": Arm(),
    "channels": Arm(kind="channel"),
    "from noise": Arm(NOISE),
    "from noise, no regularizer": Arm(ASCENT | NOISE | OFF),
    "finish without the feature": Arm({"finish_scale": 0.0}),
    "UNet sees no noise": Arm(ASCENT | {"noise": False}),
    "steered by a common curve": Arm(ASCENT, common_curve=True),
    **{f"t = {t}": Arm(ASCENT, timestep=t) for t in concepts.TIMES},
    "no regularizer": Arm(ASCENT | OFF),
    **{f"without {name}": Arm(ASCENT | {name: off}) for name, off in OFF.items()},
    "penalties halved": Arm(ASCENT | {"weight_decay": 0.005, "range_weight": 0.25, "moment_weight": 0.25}),
    "penalties doubled": Arm(ASCENT | {"weight_decay": 0.02, "range_weight": 1.0, "moment_weight": 1.0}),
    **{f"choice: steer {steer}, t = {t}, finish from {begin} at {scale}": Arm(
        {"steer_scale": steer, "finish_from": begin, "finish_scale": scale}, timestep=t, choice=True)
       for steer, t, begin, scale in ((5.0, 500, 900, 0.1), (2.5, 500, 900, 0.1), (10.0, 500, 900, 0.1),
                                      (5.0, 300, 900, 0.1), (5.0, 100, 900, 0.1), (5.0, 500, 600, 0.1),
                                      (5.0, 500, 900, 0.3))},
}


@dataclass(frozen=True)
class Claim:
    """`better` is legible more often than `worse`, each (arm, picture); None is chance."""
    text: str
    better: tuple
    worse: tuple | None
    decides: str                    # what would decide it on Stable Diffusion


DEFAULT = ("default", "ascent")
CLAIMS = [
    Claim("SAE features are clearer than raw channels", ("default", "finished"), ("channels", "finished"),
          "SAeUron's features and 1,280 channels, judged by CLIP"),
    Claim("regularizers turn noise into things: more than chance", ("from noise", "ascent"), None,
          "ascents from noise, judged by CLIP"),
    Claim("regularizers turn noise into things: more than without them", ("from noise", "ascent"),
          ("from noise, no regularizer", "ascent"), "presets sae and none from noise"),
    Claim("all regularizers together help from a steered start", DEFAULT, ("no regularizer", "ascent"),
          "presets sae and none from a steered start"),
    *(Claim(f"{name} helps", DEFAULT, (f"without {name}", "ascent"), "ascents without it")
      for name in OFF),
    Claim("penalties of this strength are better than half", DEFAULT, ("penalties halved", "ascent"), "the same"),
    Claim("penalties of this strength are better than twice", DEFAULT, ("penalties doubled", "ascent"), "the same"),
    Claim("the UNet must see its noise", DEFAULT, ("UNet sees no noise", "ascent"), "--no-noise"),
    Claim("steering works: the steered sample shows the feature", ("default", "start"), None,
          "steered samples"),
    Claim("the steered start helps the ascent", DEFAULT, ("from noise", "ascent"), "--prior noise"),
    Claim("the ascent adds to its start", DEFAULT, ("default", "start"), "starts and ends"),
    Claim("pictures agree with the dataset examples", ("default", "finished"), None,
          "python -m legibility"),
    Claim("no dataset is needed: noise and finish alone", ("from noise", "finished"), None, "the same from noise"),
    Claim("the feature's own activity curve helps", DEFAULT, ("steered by a common curve", "ascent"),
          "one curve for all features"),
    Claim("the finish adds", ("default", "finished"), DEFAULT, "both pictures"),
    Claim("the finish keeps what the feature means: the pull helps", ("default", "finished"),
          ("finish without the feature", "finished"), "--finish-scale 0"),
]


# --- pictures ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Target:
    """A feature or channel, what its pictures should show, and what the next one's should (chance)."""
    number: int
    meaning: list | None
    examples: frozenset
    other_meaning: list | None
    other_examples: frozenset


def targets(world, arm):
    """The same random features or channels for all arms of a kind."""
    stored = world.concepts()
    rows = stored["rows"] if arm.kind == "feature" else stored["channel_rows"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    picked = [rows[i] for i in (order[FEATURES:FEATURES + CHOICE] if arm.choice else order[:FEATURES])]
    examples = [frozenset(artwork.rpartition(", ")[0] for artwork in row["strongest"][:EXAMPLES]) for row in picked]
    out = []
    for i, row in enumerate(picked):
        others = [other["meaning"] for other in picked[i + 1:] + picked[:i]]
        other = next((m for m in others if m and m != row["meaning"]), None)
        out.append(Target(row[arm.kind], row["meaning"], examples[i], other if row["meaning"] else None,
                          examples[(i + 1) % len(picked)]))
    return out


class CommonCurve:
    """A capture that says of every feature the mean curve of some."""

    def __init__(self, capture, kind, numbers):
        self.capture = capture
        self.curve = torch.stack([torch.as_tensor(capture.strength(kind, n), dtype=torch.float32)
                                  for n in numbers]).mean(0)

    def strength(self, kind, n, when="active"):
        return self.curve

    def __getattr__(self, name):
        return getattr(self.capture, name)


def measure(world, arm, on_step=None):
    """One row for each picture of an arm: what it is of, whether it is legible and meant, and the same by chance."""
    chosen, model = targets(world, arm), world.model
    by_number, capture = {target.number: target for target in chosen}, model.capture
    if arm.common_curve:
        model.capture = CommonCurve(capture, arm.kind, list(by_number))
    results = visualize(model, **{arm.kind + "s": list(by_number)}, seeds=SEEDS, batch_size=50, frames=2,
                        timesteps=None if arm.timestep is None else [arm.timestep], on_step=on_step, **arm.settings)
    model.capture = capture
    rows = []
    for picture, of in (("start", lambda r: r.frames[0]), ("ascent", lambda r: r.image),
                        ("finished", lambda r: r.finished and r.finished.image)):
        made = [result for result in results if of(result) is not None]
        for result, seen in zip(made, see(world, torch.stack([of(r) for r in made])) if made else []):
            target = by_number[result.job.target]
            row = {"target": f"{arm.kind} {target.number}", "seed": result.job.seed, "picture": picture,
                   "legible": resembles(seen, target.examples),
                   "legible_chance": resembles(seen, target.other_examples)}
            if target.meaning and target.other_meaning:
                row |= {"meant": shows(seen, target.meaning), "meant_chance": shows(seen, target.other_meaning)}
            last = result.finished if picture == "finished" else result
            rows.append(row | {"activation": last.scores["activation_start" if picture == "start" else "activation"],
                               "largest": result.scores["dataset_largest"]})
    return rows


# --- numbers ----------------------------------------------------------------------------------------------------------

def by_target(rows, picture, measure, part=lambda row, measure: row[measure] - row[measure + "_chance"]):
    """{target: mean over its seeds} of the share minus chance's, where the measure is known."""
    values = defaultdict(list)
    for row in rows:
        if row["picture"] == picture and measure in row:
            values[row["target"]].append(float(part(row, measure)))
    return {target: sum(v) / len(v) for target, v in values.items()}


def resampled(values):
    """Means of `values` under RESAMPLED draws with replacement, the same draws for as many values."""
    values = torch.tensor(values)
    draws = torch.randint(len(values), (RESAMPLED, len(values)), generator=torch.Generator().manual_seed(len(values)))
    return values[draws].mean(1)


def interval(mean, draws, n):
    low, high = draws.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": round(mean, 3), "low": round(low, 3), "high": round(high, 3), "n": n}


def difference(better, worse):
    """Mean difference of two {target: value}: by target where both have the same ones, else of independent means."""
    if better.keys() == worse.keys():
        values = [better[target] - worse[target] for target in better]
        return interval(sum(values) / len(values), resampled(values), len(values))
    a, b = list(better.values()), list(worse.values())
    draws = resampled(a) - resampled(b)[torch.randperm(RESAMPLED, generator=torch.Generator().manual_seed(0))]
    return interval(sum(a) / len(a) - sum(b) / len(b), draws, len(a) + len(b))


def verdict(number):
    return "holds" if number["low"] > 0 else "the reverse" if number["high"] < 0 else "not decided"


def values_of(arms, of, measure):
    """{target: share minus chance's} of `of`, an (arm, picture); nothing of None."""
    return by_target(arms[of[0]], of[1], measure) if of else {}


def weigh_claims(arms):
    """Rows of the table: a claim, its difference in legible and meant with intervals, a verdict on the first."""
    out = []
    for claim in CLAIMS:
        row = {"claim": claim.text, "decides": claim.decides}
        for measure in MEASURES:
            better, worse = (values_of(arms, of, measure) for of in (claim.better, claim.worse))
            worse = dict.fromkeys(better, 0) if claim.worse is None else worse
            row[measure] = difference(better, worse) if better and worse else None
        out.append(row | {"verdict": verdict(row["legible"])})
    return out + [weigh_peaks(arms)]


def weigh_peaks(arms):
    """Whether a feature is clearer at its peak, by its activity on artworks, than at the grid's other time steps."""
    at = {t: by_target(arms[f"t = {t}"], "ascent", "legible") for t in concepts.TIMES}
    peaks = {f"feature {n}": t for n, t in arms["peaks"].items()}
    rows = {target: (at[peaks[target]][target], sum(at[t][target] for t in at if t != peaks[target]) / (len(at) - 1))
            for target in at[concepts.TIMES[0]]}
    number = difference({k: a for k, (a, _) in rows.items()}, {k: b for k, (_, b) in rows.items()})
    return {"claim": "a feature is clearer at its peak than at other time steps", "legible": number, "meant": None,
            "verdict": verdict(number), "decides": "--timestep auto against a grid"}


def correlate(arms):
    """Correlation, over all pictures of features, of being legible with the activation beside the images' largest."""
    rows = [row for arm in ARMS if ARMS[arm].kind == "feature" and not ARMS[arm].choice for row in arms[arm]]
    rows = [row for row in rows if row["largest"]]
    ratio = torch.tensor([row["activation"] / row["largest"] for row in rows]).clamp(max=10)
    r = torch.corrcoef(torch.stack([ratio, torch.tensor([float(row["legible"]) for row in rows])]))[0, 1].item()
    return {"pictures": len(rows), "correlation": round(r, 3)}


def count_again(world):
    """How many meanings of features and channels are found again on other drawings: other shifts and noises."""
    stored, out = world.concepts(), {}
    again = concepts.find(world.model, denoiser.HOOK_POINT, world.artworks, world.chosen, seed=1)
    for rows in ("rows", "channel_rows"):
        pairs = {next(iter(row.values())): row["meaning"] for row in again[rows]}
        found = [row for row in stored[rows] if row["meaning"]]
        same = [row for row in found if pairs.get(next(iter(row.values()))) == row["meaning"]]
        out["features" if rows == "rows" else "channels"] = {
            "with_meaning": len(found), "same_again": len(same),
            "different_again": len({tuple(row["meaning"]) for row in same})}
    return out


# --- the command ------------------------------------------------------------------------------------------------------

def run(world, folder, names, say):
    """Measure the arms `names`; each is stored in `folder` when it is done, and not measured twice."""
    missing = [name for name in names if not path_of(folder, name).exists()]
    say(f"{len(missing)} of {len(names)} arms to measure, about {MINUTES * len(missing):.0f} minutes on one core")
    for i, name in enumerate(missing):
        began = time.time()
        rows = measure(world, ARMS[name])
        write(path_of(folder, name), json.dumps(rows).encode())
        left = (time.time() - began) * (len(missing) - i - 1) / 60
        say(f"{i + 1} of {len(missing)}: {name}, about {left:.0f} min left")


def path_of(folder, name):
    return folder / (re.sub("[^A-Za-z0-9.]+", "_", name) + ".json")


def report(world, folder):
    """Everything docs/results.json holds: arms, claims, correlation, meanings found again."""
    arms = {name: json.loads(path_of(folder, name).read_text(encoding="utf-8")) for name in ARMS}
    shares = {}
    for name, rows in arms.items():
        for picture in ("start", "ascent", "finished"):
            for measure in MEASURES:
                hit = by_target(rows, picture, measure, lambda row, m: row[m])
                chance = by_target(rows, picture, measure, lambda row, m: row[m + "_chance"])
                if hit:
                    values, by_chance = list(hit.values()), list(chance.values())
                    shares.setdefault(name, {}).setdefault(picture, {})[measure] = interval(
                        sum(values) / len(values), resampled(values), len(values)) | {
                        "chance": round(sum(by_chance) / len(by_chance), 3)}
    again_path = folder / "again.json"
    if not again_path.exists():
        write(again_path, json.dumps(count_again(world)).encode())
    peaks = {row["feature"]: row["t"] for row in world.concepts()["rows"]}
    return {"features": FEATURES, "seeds": SEEDS, "examples": EXAMPLES, "counts": world.concepts()["counts"],
            "found_again": json.loads(again_path.read_text(encoding="utf-8")), "arms": shares,
            "claims": weigh_claims(arms | {"peaks": peaks}), "activation_and_legibility": correlate(arms)}


def tables(results):
    """The two tables of docs/results.md."""
    cell = lambda n: "" if n is None else f"{n['value']:+.2f} ({n['low']:+.2f} to {n['high']:+.2f})"
    yield "| claim | legible: difference | meant: difference | verdict | on Stable Diffusion |\n|---|---|---|---|---|"
    for row in results["claims"]:
        cells = [row["claim"], cell(row["legible"]), cell(row["meant"]), row["verdict"], row["decides"]]
        yield f"| {' | '.join(cells)} |"
    yield "\n| arm | start | ascent | finished |\n|---|---|---|---|"
    for name, pictures in results["arms"].items():
        shares = {picture: of["legible"] for picture, of in pictures.items()}
        cells = [f"{n['value']:.2f} ({n['chance']:.2f})" if (n := shares.get(picture)) else ""
                 for picture in ("start", "ascent", "finished")]
        yield f"| {' | '.join([name.replace(' = ', ' '), *cells])} |"
