"""The claims of toyworld/claims.py, each a generator: it yields its settings by name, is handed their rows, and returns
its parts (numbers with their rules, see paired.Part) and its figure.

A claim's parts are signed so that more is for the claim. Nothing is chosen by its result, but where a claim says so,
and then it is chosen on some features and measured on the others.
"""
import json
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from activity import profile
from activity.album import read_image
from config import PRESETS, ROBUSTNESS
from legibility import agreement
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.paired import (
    SMALL, Part, agreeing, apart, begun, by_feature, curve, difference, equally_active, mean, pooled, ranks, ratio,
    rule, steps_to, whose)
from toyworld.trials import BASE, Setting

PAPER = "arXiv 2605.08218"
CLAIMS = {}


@dataclass
class Claim:
    """One row: what is claimed and by whom, what is done, what the result will not say, what would decide it on Stable
    Diffusion; trial: the generator."""
    name: str
    sentence: str
    source: str
    experiment: str
    not_said: str
    elsewhere: str
    trial: object


def claim(sentence, source, experiment, not_said, elsewhere):
    def add(trial):
        CLAIMS[trial.__name__] = Claim(trial.__name__, sentence, source, experiment, not_said, elsewhere, trial)
        return trial
    return add


# --- the claims -------------------------------------------------------------------------------------------------------

NOISE_TIMES = (100, 300, 600, 900)


@claim("The UNet must see its noise: without the noise of the time step the ascent finds nothing to recognise.", PAPER,
       "The ascent with and without fresh noise at every step (--no-noise), at several time steps. From a start that "
       "is noise, where nothing is there yet to recognise, which decides; and from the weights' own start.",
       "Not that the ascent finds nothing at all without noise: what it does find stands beside. Not whether other "
       "noise than that of the time step would do, nor what it costs.",
       "The toy's latents are small, 16 x 16, and the judge knows ten objects. On Stable Diffusion: agreement with the "
       "feature's own dataset examples in CLIP, at t = 0 and the peaks.")
def noise(lab):
    times, starts = sorted({*NOISE_TIMES, lab.t}), {"from noise, ": BASE.but(prior="noise"), "": BASE}
    rows = yield {f"{begin}{'noise' if on else 'none'}, t {t}": base.but(t=t, noise=on)
                  for begin, base in starts.items() for t in times for on in (True, False)}
    of = lambda begin, name: {t: rows[f"{begin}{name}, t {t}"] for t in times}
    parts, series = [], {}
    for begin in starts:
        on, off = of(begin, "noise"), of(begin, "none")
        start, all_on, all_off = begin or "own start, ", pooled(on), pooled(off)
        parts += [difference(f"{start}all time steps: with noise - without", all_on, all_off, least=SMALL,
                             deciding=bool(begin)),
                  mean(f"{start}without noise, named right", [*by_feature(all_off, "right").values()], above=None)]
        parts += [difference(f"{start}at t = {t}", on[t], off[t], least=SMALL) for t in times]
        parts += [ratio(f"{start}prediction error, without / with", all_off, all_on, "odd", unit="error ratio"),
                  difference(f"{start}high frequencies, without - with", all_off, all_on, "high", unit="power")]
        series |= {f"{start}with noise": curve(on), f"{start}without": curve(off)}
    return parts, {"kind": "curves", "x": "time step", "series": series}


FIELDS = {"prior": ("prior",), "total variation": ("total_variation_weight",), "range": ("range_weight",),
          "moment": ("moment_weight",), "gradient smoothing": ("gradient_smoothing_sigma_start",),
          "transformations": ("jitter_max", "rotate_max", "scale_max"), "spectral filter": ("spectral_filter",),
          "weight decay": ("weight_decay",), "finish": ("finish",)}
SEVEN = [*FIELDS][:7]
values = lambda preset, name: {field: getattr(PRESETS[preset], field) for field in FIELDS[name]}
OFF = {name: values("none", name) for name in FIELDS}
ON = {name: values("sae" if values("sae", name) != OFF[name] else "raw", name) for name in FIELDS}
BARE = {field: value for off in OFF.values() for field, value in off.items()}


@claim("The seven regularizers turn noise into concepts.", PAPER,
       "The weights' own preset against one with all regularizers, weight decay and finish off, from noise.",
       "Not which of them does it: see the next.",
       "Where the weights' own preset starts from noise, the first regularizer is off in both. On the toy and on "
       "Stable Diffusion it is on.")
def together(lab):
    rows = yield {"all": BASE, "none": BASE.but(**BARE), "from noise, all others": BASE.but(prior="noise")}
    all_, none, others = rows.values()
    return [difference("named right, all - none", all_, none, least=SMALL, deciding=True),
            difference("named right, from noise: all others - none", others, none, least=SMALL),
            difference("lost by re-encoding, none - all", none, all_, "lost"),
            difference("high frequencies, none - all", none, all_, "high", unit="power"),
            ratio("prediction error, none / all", none, all_, "odd", unit="error ratio"),
            ratio("activation, all / none", all_, none)], None


def effects(ours, theirs):
    """Cells of the heat map: what a regularizer does to each measure, more is better."""
    found = (difference("", ours, theirs), ratio("", ours, theirs), difference("", ours, theirs, "lost", sign=-1),
             difference("", ours, theirs, "high", sign=-1))
    told = [part.told(1) for part in found]
    return [{"value": None if p["number"] is None else p["number"] - p["above"],
             "clear": bool(p["interval"]) and not p["interval"][0] <= p["above"] <= p["interval"][1]} for p in told]


@claim("Each of the seven regularizers helps.", PAPER,
       "Each one left out of the preset, or put in where the preset has it off; and each one alone. Strengths are "
       "those of the preset that has it on. Preset sae on features, preset raw on raw channels; weight decay and "
       "finish stand beside.",
       "Not whether two of them help where one does not. What is left out alone may be made up for by another.",
       "On 16 x 16 latents one latent pixel is four of Stable Diffusion's, so moves are coarse, and the blur's sigma "
       "is so small that it changes nothing: such a one does not decide. Total variation and blur are off for features "
       "in the method itself. On Stable Diffusion the same, told by CLIP.")
def regularizers(lab):
    settings, pairs = {}, {}
    for preset, group in (("sae", "concepts"), ("raw", "channels")):
        base = Setting(preset, group=group)
        bare, config = base.but(**BARE), base.config(lab.model.settings)
        settings |= {preset: base, f"{preset}, none": bare}
        for name in FIELDS:
            has = any(getattr(config, field) != value for field, value in OFF[name].items())
            other, alone = f"{preset}, {'without' if has else 'with'} {name}", f"{preset}, only {name}"
            settings |= {other: base.but(**(OFF if has else ON)[name]), alone: bare.but(**ON[name])}
            pairs[preset, name] = (preset, other) if has else (other, preset), (alone, f"{preset}, none")
    rows = yield settings
    cells = [[cell for preset in ("sae", "raw") for pair in pairs[preset, name]
              for cell in effects(*(rows[label] for label in pair))] for name in FIELDS]
    parts = []
    for way, words in enumerate(("among the others: with - without", "alone: with - none")):
        for name in FIELDS:
            both = [rows[label] for label in pairs["sae", name][way]]
            deciding = not way and name in SEVEN
            parts.append(difference(f"{name}, {words}", *both, **rule(*both, least=SMALL, deciding=deciding)))
    columns = [(f"{preset}, {way}", measure) for preset in ("sae", "raw") for way in ("among others", "alone")
               for measure in ("named", "activ.", "kept", "calm")]
    return parts, {"kind": "heat", "rows": [*FIELDS], "columns": columns, "cells": cells}


FACTORS = {"0": 0.0, "half": 0.5, "once": 1.0, "twice": 2.0}


@claim("The strengths that were chosen by eye are good: no other is better by as much as would be seen.", PAPER,
       "Transformation robustness at its four levels; total variation, range, moment and blur at 0, half, once and "
       "twice their strength, one at a time, against the weights' own preset. What changes no picture does not decide.",
       "Not whether two strengths changed together would be better, nor anything between or beyond these.",
       "On Stable Diffusion the levels mean what they were chosen for; one sweep of featviz.py (--sweep) a strength.")
def strengths(lab):
    levels = {"transformations": {f"level {i}": changes for i, changes in enumerate(ROBUSTNESS)}}
    levels |= {name: {factor: {FIELDS[name][0]: k * ON[name][FIELDS[name][0]]} for factor, k in FACTORS.items()}
               for name in ("total variation", "range", "moment", "gradient smoothing")}
    rows = yield {"chosen": BASE} | {f"{name} {level}": BASE.but(**changes)
                                     for name, some in levels.items() for level, changes in some.items()}
    own, parts, cells = BASE.config(lab.model.settings), [], []
    for name, some in levels.items():
        cells.append([])
        for level, changes in some.items():
            both = rows["chosen"], rows[f"{name} {level}"]
            part = difference(f"chosen - {name} {level}", *both, **rule(*both, above=-SMALL, least=0.0, deciding=True))
            parts += [part] * (BASE.but(**changes).config(lab.model.settings) != own)
            told = part.told(1)
            inside = not told["interval"] or told["interval"][0] <= 0 <= told["interval"][1]
            cells[-1].append({"value": told["number"] and -told["number"], "clear": not inside})
    columns = [("named right, other - chosen", level) for level in FACTORS]
    return parts, {"kind": "heat", "rows": ["transformations, 0 to 3", *[*levels][1:]], "columns": columns,
                   "cells": cells}


GRID = range(0, 1000, 100)


@claim("The time step matters, and the peaks of a feature's activity find a good one.", PAPER,
       "The ascent over a grid of time steps, and at the highest peak of the feature's profile in the capture (t = 0 "
       "where it has none). The best and the worst of the grid are chosen on every other feature of the lot and "
       "compared on the rest.",
       "Not whether a peak is good on a model whose profiles have clearer peaks: where they are flat, as the toy's, "
       "a third of them are not found again by another capture (docs/measured.md).",
       "On Stable Diffusion the same; and a second capture, which would show whether its peaks are found again.")
def timestep(lab):
    grid = sorted({*GRID, lab.t})
    rows = yield {f"t {t}": BASE.but(t=t) for t in grid} | {"peak": BASE.but(t="peak")}
    at, peak = {t: rows[f"t {t}"] for t in grid}, rows["peak"]
    choosing = {c["target"] for c in lab.group("concepts")[::2]}
    part = lambda t, first: {k: row for k, row in at[t].items() if (k[0] in choosing) == first}
    by_t = {t: np.mean([row["right"] for row in part(t, True).values()]) for t in grid}
    best, worst = max(grid, key=by_t.get), min(grid, key=by_t.get)
    mine, grids = by_feature(peak, "right"), [by_feature(some, "right") for some in at.values()]
    parts = [difference(f"best of the grid, t = {best}, - worst, t = {worst}", part(best, False), part(worst, False),
                        least=SMALL, deciding=True),
             mean("peak - mean of the grid", [v - np.mean([some[f] for some in grids]) for f, v in mine.items()],
                  least=SMALL, deciding=True),
             mean("rank of the peak among the grid, 1: best", ranks(mine, grids), unit="rank", above=0.5),
             difference("peak - t = 0", peak, at[0], least=SMALL),
             difference(f"peak - t = {lab.t}", peak, at[lab.t], least=SMALL)]
    level = curve({grid[0]: peak, grid[-1]: peak})
    return parts, {"kind": "curves", "x": "time step", "series": {"at t": curve(at), "at its own peak": level}}


@claim("A start at a sample that is steered towards the feature helps.", PAPER,
       "The ascent from a steered sample, from noise, and from a sample guided by the feature (ours), at the time step "
       "where the concepts were found; and whose picture it is in the end, where the judge names the start otherwise "
       "than the feature.",
       "Not whether more or less steering would do better, nor what it does at other time steps.",
       "The toy was trained so that what is added at its hook point shows in its samples (docs/measured.md). On "
       "Stable Diffusion: whether steered samples agree with the feature's examples before any ascent.")
def prior(lab):
    names = ("noise", "steer", "guided")
    rows = yield {name: BASE.but(prior=name) for name in names}
    noise, steered, guided = (rows[name] for name in names)
    parts = [difference("named right, steered - noise", steered, noise, least=SMALL, deciding=True),
             difference("named right, guided - noise", guided, noise, least=SMALL),
             ratio("activation, steered / noise", steered, noise), ratio("activation, guided / noise", guided, noise),
             ratio("prediction error, noise / steered", noise, steered, "odd", unit="error ratio")]
    for name, some in rows.items():
        parts += [mean(f"{name} start alone, named right", [*by_feature(begun(some), "right").values()], above=None),
                  difference(f"{name}: the end - its start", some, begun(some), least=SMALL)]
    for name in names[1:]:
        found, what = whose(rows[name], lab.group("concepts")), f"{name} start of another object: the end is"
        parts += [mean(f"{what} {who}", [*some.values()], above=None) for who, some in found.items()]
        parts.append(mean(f"{what} feature's - start's", [a - b for a, b in zip(*map(dict.values, found.values()))]))
    return parts, None


@claim("A raw channel needs other settings than a feature.", PAPER,
       "Both presets on concept features and on raw channels that have a concept. Preset raw steers the start by a "
       "tenth of preset sae's scale, as in the method, also where the weights' own settings give both the same.",
       "Not that these are the best settings for either; and channels without a concept cannot be judged.",
       "The toy may be at fault: its settings were chosen on features, and it needs much steering. On Stable "
       "Diffusion, with its 1280 channels: both presets on ten of each, told by how many seeds show one thing.")
def presets(lab):
    scale = BASE.config(lab.model.settings).steer_scale * PRESETS["raw"].steer_scale / PRESETS["sae"].steer_scale
    changes = {"sae": {}, "raw": {"steer_scale": scale}}
    rows = yield {f"{group}, preset {preset}": Setting(preset, group=group).but(**changes[preset])
                  for group in ("concepts", "channels") for preset in changes}
    of = lambda group, preset: rows[f"{group}, preset {preset}"]
    return [difference("features: preset sae - raw", of("concepts", "sae"), of("concepts", "raw"), least=SMALL,
                       deciding=True),
            difference("channels: preset raw - sae", of("channels", "raw"), of("channels", "sae"), least=SMALL,
                       deciding=True)], None


@claim("SAE features are clearer than raw channels.", PAPER,
       "Concept features and concept channels, each by its own preset; how many of all there are, and how many objects "
       "the strongest of unseen drawings mix.",
       "Not what features or channels without a concept show, nor what the negative side of a channel does. The toy's "
       "settings were chosen on features, and channels have the same: see the claim before.",
       "On Stable Diffusion concepts are not known: there, agreement of pictures with dataset examples.")
def clearer(lab):
    rows = yield {"concepts, preset sae": BASE, "channels, preset raw": Setting("raw", group="channels")}
    concepts, channels = ([*by_feature(some, "right").values()] for some in rows.values())
    survey, n = lab.survey, len(lab.survey["channels"])
    all_ = {kind: len(mixed) for kind, mixed in survey["mixed"].items()}
    counted = lambda k, total: [1.0] * k + [0.0] * (total - k)
    return [apart("named right, concept features - concept channels", concepts, channels, least=SMALL, deciding=True),
            apart("share with a concept, features that fire - channels", counted(len(lab.everything), all_["feature"]),
                  counted(n, all_["channel"]), unit="share of all", least=SMALL, deciding=True),
            apart("objects that the strongest drawings mix, channels - features", survey["mixed"]["channel"],
                  survey["mixed"]["feature"], unit="objects")], None


def sights(lab):
    """look(images) -> unit vectors (n, 224): the judge's embedding, the mean of the capture's images taken away; and
    {feature: vectors (m, 224) of its own dataset examples}, of the lot's that have two."""
    folder, size = lab.model.captured, (drawings.SIZE, drawings.SIZE)
    embed = lambda images: lab.judge.embed(F.interpolate(images.to(lab.model.device), size)).cpu()

    def stored(number):
        image = read_image(profile.image_path(folder, number)).resize(size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    count = json.loads((folder / "capture.json").read_text())["images"]
    images = torch.cat([embed(torch.stack([stored(n) for n in some])) for some in torch.arange(count).split(100)])
    away = images.mean(0)
    look, own = lambda x: F.normalize(embed(x) - away, dim=1), {}
    for c in lab.group("concepts"):
        y = profile.profile(lab.model.activity, "feature", c["target"])
        times = (lab.t, *profile.by_height(y, profile.peaks(y)))
        if found := profile.own_examples(folder, "feature", c["target"], times)[1]:
            own[c["target"]] = F.normalize(images[[n for n, _ in found]] - away, dim=1)
    return look, own if len(own) > 1 else {}


@claim("Visualisations agree with the dataset examples.", PAPER,
       "Pictures of all seeds and the feature's own dataset examples against those of the other features of the lot, "
       "in the judge's embedding: AUC, and the share of the others that look less alike.",
       "Several features may show one thing, so neither can be perfect: the last line has what one example reaches "
       "with the others of its feature. Features without two examples are left out.",
       "On Stable Diffusion the same in CLIP: python -m pages --measure.")
def examples(lab):
    rows = yield {"as the ascent left them": BASE, "finished": BASE.but(finish=True)}
    (look, own), parts, alike = sights(lab), [], []
    for label, some in rows.items():
        found = []
        for f, mine in own.items():
            seen = look(lab.pictures([row for (g, _), row in some.items() if g == f]))
            found.append(agreement(seen, mine, [v for g, v in own.items() if g != f]))
        above = {"above": 0.5, "least": 0.55}
        places = [1 - (a["rank"] - 1) / (a["of"] - 1) for a in found]
        parts += [mean(f"AUC, {label}", [a["auc"] for a in found], unit="AUC", deciding=label != "finished", **above),
                  mean(f"median rank, 1: nearest of all, {label}", places, of=np.median, unit="rank", **above)]
    for f, mine in own.items():
        others = [v for g, v in own.items() if g != f]
        each = [agreement(mine[i:i + 1], mine[torch.arange(len(mine)) != i], others)["auc"] for i in range(len(mine))]
        alike.append(np.mean(each))
    return [*parts, mean("AUC of one example with the others of its feature", alike, unit="AUC", above=0.5)], None


@claim("The ascent shows something even of a feature that is never among the most active in the capture.", "ours",
       "Features that are never among the most active of any image (silent) or 0 in all (dead), by lot: whether they "
       "end above 0, and whether the judge sees the same object in two seeds more often than by chance; of those that "
       "have a concept on other drawings, whether it is named right.",
       "Not what the others mean: nobody knows their concept. That the judge has favourites is in the chance that is "
       "taken away.",
       "On Stable Diffusion an SAE of 20,480 features has many that never fire; agreement of seeds in CLIP.")
def silent(lab):
    rows = yield {"concepts": BASE, "silent": BASE.but(group="silent"), "dead": BASE.but(group="dead")}
    none = {key: row for group in ("silent", "dead") for key, row in rows[group].items()}
    same, chance = agreeing(none)
    parts = [mean("two seeds show one object, above chance", [share - chance for share in same.values()], least=SMALL,
                  deciding=True),
             mean("named right, of those that have a concept", [*by_feature(none, "right").values()], above=None)]
    for group in ("silent", "dead"):
        awake = by_feature({k: {"awake": row["activation"] > 0} for k, row in rows[group].items()}, "awake")
        parts.append(mean(f"{group}: ends above 0", [*awake.values()], above=None))
    others = {key: row for key, row in rows["concepts"].items() if key not in none}
    sure = [[*by_feature(some, "sure").values()] for some in (none, others)]
    return [*parts, apart("how sure the judge is, less that of other features", *sure, unit="probability")], None


CHANCE = {"object": 1 / len(OBJECTS), "style": 1 / len(STYLES)}


@claim("The method needs no dataset: it shows features whose concept no image of the capture shows.", PAPER,
       "Features of objects and styles that the prompts of the capture leave out, the method's own way: steered start "
       "and peak from that capture. Where the folder's capture lacks none, five objects are drawn by lot, and a "
       "capture without them is made.",
       "The model itself did learn these concepts; only the images by which time steps and strengths are found lack "
       "them. From noise at a fixed time step nothing depends on a capture.",
       "On Stable Diffusion: a capture without the prompts of Towers, and features of towers.")
def heldout(lab):
    way = BASE.but(group="held", t="peak", prior="steer")
    rows = yield {"capture without": way.but(without=True), "capture": way,
                  "noise": BASE.but(group="held", prior="noise")}
    without, names = rows["capture without"], ", ".join(lab.names_held[:2]) + " ..." * (len(lab.names_held) > 2)
    kinds = {c["target"]: [kind for kind in CHANCE if c[kind]] for c in lab.group("held")}
    over = lambda some: [share - math.prod(CHANCE[kind] for kind in kinds[f])
                         for f, share in by_feature(some, "right").items()]
    return [mean(f"{names} left out: named right, above chance", over(without), least=SMALL, deciding=True),
            difference("capture without - with them", without, rows["capture"], above=-SMALL, least=0.0),
            mean("from noise, above chance", over(rows["noise"]), least=SMALL)], None


PIXEL = {"space": "pixel"}
PARTS = {"latent": (0.1, 0.25, 0.5, 1), "pixel": (0.5, 1, 2)}      # of the usual number of steps


def spaces(lab):
    """{label: Setting} of the latent and the pixels as the leaf, with several numbers of steps each."""
    usual = BASE.config(lab.model.settings).num_steps
    return {f"{space}, {n} steps": BASE.but(**(PIXEL if space == "pixel" else {}), num_steps=n)
            for space, parts in PARTS.items() for n in sorted({max(1, round(usual * k)) for k in parts})}


@claim("Optimising the latent is more than 10 times cheaper than optimising pixels in front of the encoder.", PAPER,
       "Both spaces by the same settings: operations of a step, seconds of a step on this machine, and both to equal "
       "activation: the lower of the two ends of the longest courses.",
       "Steps to equal activation are the toy's; at the size of Stable Diffusion only operations are counted. Memory: "
       "python bench/speed.py.",
       "The toy's encoder is small beside its UNet. On Stable Diffusion: bench/speed.py, and ten features' courses.")
def cheaper(lab):
    settings = spaces(lab)
    rows = yield settings
    last = {space: [label for label in rows if label.startswith(space)][-1] for space in PARTS}
    latent, pixel = (rows[label] for label in last.values())
    n = {space: dict(settings[label].changes)["num_steps"] for space, label in last.items()}
    costs, needed = lab.costs(PIXEL), {}
    for key, row in latent.items():
        level = min(max(row["course"]), max(pixel[key]["course"]))
        needed[key] = {"latent": steps_to(row, level, n["latent"]), "pixel": steps_to(pixel[key], level, n["pixel"])}
    steps = [{key: {"steps": row[space]} for key, row in needed.items()} for space in ("pixel", "latent")]
    times = lambda what, cost, **how: ratio(f"to equal activation, {what}", *steps, "steps", unit="times", above=10.0,
                                            least=10.0, scale=cost, **how)
    parts = [times(what, cost, deciding="size of SD" in what) for what, cost in costs.items()]
    return parts + [Part(f"a step, {what}", cost, np.full(2, cost), None, unit="times", above=10.0)
                    for what, cost in costs.items()], None


@claim("Optimising the latent is less prone to high-frequency noise than optimising pixels.", PAPER,
       "Both spaces with several numbers of steps; of each feature and seed the two pictures whose activations are "
       "nearest, left out where these differ by more than a quarter.",
       "The decoder of the latent smooths by itself; what is compared are the pictures that one looks at.",
       "The toy may be at fault: it knows drawings, whose edges and textures are high frequencies, too. On Stable "
       "Diffusion: --space pixel against latent, ten features, the same measures.")
def cleaner(lab):
    rows = yield spaces(lab)
    sides = ([some for label, some in rows.items() if label.startswith(space)] for space in PARTS)
    latent, pixel = equally_active(*sides)
    return [difference("high frequencies at equal activation, pixels - latent", pixel, latent, "high", unit="power",
                       least=0.01, deciding=True),
            difference("named right at equal activation, latent - pixels", latent, pixel, least=SMALL),
            ratio("prediction error, pixels / latent", pixel, latent, "odd", unit="error ratio")], None
