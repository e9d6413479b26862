"""Measure the time-step analysis on the toy, whose features' concepts are known (concepts.json, toyworld.evaluate).

    python -m toyworld.evaluate_activity [--features N]     writes weights/toy/activity.json and profiles.png

examples    of how many concept features do the dataset examples at the highest peak show the concept, by their prompts
prior       final activation of the ascent at the highest peak: steered prior over noise, equal steps, same seeds
peak        the same from a steered prior: at the highest peak over at t = 0
priors      do steered priors alone show the concept, at several steering strengths
probe       how well the peaks of a probe, and for comparison of a second full capture, serve the first one's profiles
details     how many features' peaks depend on the end values, on float32, and on the halves of the guided batch (where
            the folder --both holds a capture that counted both: python -m activity capture --halves both)

Gains are ratios of mean final activations over features, with a 95% interval from resampling the features.
"""
import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from activity import capture, profile
from activity.times import full, probe
from ascent import start, visualize
from config import PEAKS, Job, configure
from pages.sheet import write_profiles
from schedule import T
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.evaluate import PICTURES, SHARE, right, share, tell
from toyworld.judge import load_judge
from toyworld.train import write_json
from weights.load import load

SEED, NEAR = 1024, 50       # of the first ascent; time steps within which two peaks count as the same
PAIR = {drawings.caption(o, s): (i, j) for i, o in enumerate(OBJECTS) for j, s in enumerate(STYLES)}


def evaluate_examples(folder, tables, concepts):
    """Features whose examples at the highest peak show the concept in SHARE of the cases, and the mean share of such
    examples."""
    prompts = json.loads((folder / "capture.json").read_text())["recipe"]["settings"]["prompts"]
    shares, without = [], 0
    for c in concepts:
        t = profile.highest_peak(tables, "feature", c["feature"])
        found = profile.examples(folder, "feature", c["feature"], t) if t is not None else []
        if not found:
            without += 1
            continue
        pairs = [PAIR[prompts[i % len(prompts)]] for i, _ in found]
        shares.append(right([c] * len(pairs), *zip(*pairs)).float().mean().item())
    shares = torch.tensor(shares)
    return {
        "features": share(shares >= SHARE),
        "mean_share_of_examples": round(shares.mean().item(), 4),
        "without_examples": without,
        "chance": round(chance(concepts), 4),
    }


def chance(concepts):
    """Mean probability that a random prompt shows the concept."""
    p = {"object": 1 / len(OBJECTS), "style": 1 / len(STYLES), "pair": 1 / len(OBJECTS) / len(STYLES)}
    return sum(p[c["kind"]] for c in concepts) / max(len(concepts), 1)


def ascents(model, judge, concepts, times, config, batch_size, name):
    """Final activations (n,) of one ascent for each concept feature, and whether the judge finds its concept in the
    picture (n,)."""
    # a seed each: from one seed all would start at steered versions of one and the same sample
    jobs = [Job(feature=c["feature"], timestep=t, seed=SEED + i) for i, (c, t) in enumerate(zip(concepts, times))]
    results, began = [], time.time()
    for i in range(0, len(jobs), batch_size):
        results += visualize(model, jobs[i:i + batch_size], config, batch_size)
        done = len(results)
        left = (time.time() - began) / done * (len(jobs) - done)
        print(f"\r{name}: {done}/{len(jobs)} features, {left:.0f} s left  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    images = torch.stack([r.image for r in results]).to(model.device)
    objects, styles, *_ = judge.verdict(F.interpolate(images, (drawings.SIZE, drawings.SIZE)))
    return np.array([r.activation for r in results]), right(concepts, objects.tolist(), styles.tolist())


def interval(statistic, n, draws=10_000):
    """95% interval of statistic(rows) -> (draws,), rows (draws, n) of n things, resampled with replacement."""
    rows = np.random.default_rng(0).integers(0, n, (draws, n))
    return [round(float(v), 3) for v in np.quantile(statistic(rows), (0.025, 0.975))]


def gain(ours, theirs):
    """Ratio of means and its 95% interval over features, resampled in pairs; share of features with the higher
    activation."""
    return {
        "ratio": round(float(ours.mean() / theirs.mean()), 3),
        "interval": interval(lambda rows: ours[rows].mean(1) / np.maximum(theirs[rows].mean(1), 1e-12), len(ours)),
        "higher": share(torch.from_numpy(ours > theirs)),
        "means": [round(float(ours.mean()), 4), round(float(theirs.mean()), 4)],
    }


def evaluate_ascents(model, judge, concepts, config, batch_size, middle):
    """The gains of the steered prior and of the peak over what they replace, and legibility by the judge in all these
    cases and from noise at t = `middle`, where the concepts were found."""
    times = [profile.highest_peak(model.activity, "feature", c["feature"]) for c in concepts]
    concepts, times = zip(*((c, t) for c, t in zip(concepts, times) if t is not None))
    middles, zeros = [middle] * len(concepts), [0] * len(concepts)
    run = lambda times, prior, name: ascents(model, judge, concepts, times, dataclasses.replace(config, prior=prior),
                                             batch_size, name)
    steered, seen = run(times, "steer", "steered prior, peak")
    noise, seen_noise = run(times, "noise", "noise, peak")
    zero, seen_zero = run(zeros, "steer", "steered prior, t = 0")
    _, seen_middle = run(middles, "noise", f"noise, t = {middle}")
    return {
        "n": len(concepts),
        "steps": config.num_steps,
        "steer_scale": config.steer_scale,
        "steered_over_noise": gain(steered, noise),
        "peak_over_0": gain(steered, zero),
        "named_right": {
            "steered, peak": share(seen),
            "noise, peak": share(seen_noise),
            "steered, t = 0": share(seen_zero),
            f"noise, t = {middle}": share(seen_middle),
        },
        "at_peak_0": sum(t < NEAR for t in times),
    }


def evaluate_priors(model, judge, concepts, config, batch_size, scales=(1.0, 5.0, 20.0, 50.0)):
    """Of steered priors alone, before any ascent and each from a seed of its own, the share that the judge names right,
    by scale."""
    out = {}
    jobs = [Job(feature=c["feature"], seed=SEED + i) for i, c in enumerate(concepts)]
    for scale in scales:
        agree = []
        for i in range(0, len(jobs), batch_size):
            few = jobs[i:i + batch_size]
            _, z = start(model, few, dataclasses.replace(config, prior="steer", steer_scale=scale))
            objects, styles, *_ = judge.verdict(model.decode(z))
            agree.append(right(concepts[i:i + batch_size], objects.tolist(), styles.tolist()))
            print(f"\rpriors, scale {scale:g}: {i + len(few)}/{len(jobs)}  ", end="", file=sys.stderr)
        out[f"{scale:g}"] = share(torch.cat(agree))
    print(file=sys.stderr)
    return out | {"chance": round(chance(concepts), 4)}


def agreement(theirs, ours, concepts):
    """How well time steps found in one set of tables serve another: peaks in common, and how much of the profile they
    catch. Of the features that have a profile in `theirs`; one without peaks in `ours` finds and catches nothing.

    highest_peak_found  features whose highest peak of `theirs` has a peak of `ours` within NEAR
    catch               the profile of `theirs` at the highest peak of `ours`, over its own maximum: mean and median
    """
    found, caught = [], []
    for c in concepts:
        there, small = (profile.profile(tables, "feature", c["feature"]) for tables in (theirs, ours))
        if not there.any():
            continue
        peaks, highest = profile.peaks(small), max(profile.peaks(there), key=lambda t: there[t])
        found.append(any(abs(highest - t) <= NEAR for t in peaks))
        caught.append(there[max(peaks, key=lambda t: small[t])] / there.max() if peaks else 0.0)
    return {"highest_peak_found": share(torch.tensor(found)), "catch": round(float(np.mean(caught)), 3),
            "catch_median": round(float(np.median(caught)), 3)}


def by_chance(theirs, concepts):
    """What a time step drawn at random would catch of the profile, on average."""
    curves = [profile.profile(theirs, "feature", c["feature"]) for c in concepts]
    return round(float(np.mean([curve.mean() / curve.max() for curve in curves if curve.any()])), 3)


def second_capture(model, folder):
    """Tables of a capture like that in `folder` but of other noise: how far would its own repetition agree with it?"""
    made = capture.configure(model, **json.loads((folder / "capture.json").read_text())["recipe"]["settings"])
    stats, began = None, time.time()
    for i in range(made.images, 2 * made.images, made.batch_size):
        numbers = range(i, min(i + made.batch_size, 2 * made.images))
        part = capture.summarize(capture.observe(model, made, numbers)[1], numbers, made.top)
        stats = capture.combine(stats, part) if stats else part
        done = numbers.stop - made.images
        left = (time.time() - began) / done * (made.images - done)
        print(f"\rsecond capture: {done}/{made.images} images, {left:.0f} s left  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {"timesteps": model.activity["timesteps"], "max_feature": stats["max_feature"],
            "share_feature": stats["count_feature"].float() / made.images}


def evaluate_probe(model, folder, concepts, out):
    """The peaks of a probe, and of a second full capture, against those of the capture; what the probe costs."""
    began = time.time()
    small = out / model.name / "probe"
    there = (small / "capture.json").exists()
    if not there:
        small = probe(model, out, 8)
    seconds, made = None if there else round(time.time() - began), json.loads((small / "capture.json").read_text())
    return {"images": made["images"], "steps": made["recipe"]["settings"]["steps"], "seconds": seconds,
            "probe": agreement(model.activity, profile.attach(model, small).activity, concepts),
            "second_capture": agreement(model.activity, second_capture(model, folder), concepts),
            "catch_by_chance": by_chance(model.activity, concepts)}


def evaluate_details(tables, both=None):
    """Of how many features, of those that are ever among the TOP, the set of peaks differs. both: tables, or None.

    end_values_held  where the profile keeps its end values outside the sampled range, and the maximum of one without a
                     peak stands in for it; the highest peak then moves by more than 100 for so many
    float64          where all is reckoned in float64
    both_halves      where the images' unconditional rows count, too
    """
    t, shares = tables["timesteps"].double().numpy()[::-1], tables["share_feature"].double().numpy()[::-1]
    interp = lambda f, **outside: np.interp(np.arange(T + 1), t, shares[:, f], **outside)
    highest = lambda curve, found: max(found, key=lambda t: curve[t])
    active, moved, out = np.flatnonzero(shares.any(axis=0)), 0, {"end_values_held": 0, "float64": 0}
    today = {f: profile.peaks(profile.profile(tables, "feature", f)) for f in active}
    for f in active:
        curve, held = profile.profile(tables, "feature", f), interp(f)
        found = profile.peaks(held) or [min(int(held.argmax()), T - 1)]
        out["end_values_held"] += found != today[f]
        moved += abs(highest(held, found) - highest(curve, today[f])) > 100
        out["float64"] += profile.peaks(interp(f, left=0, right=0)) != today[f]
    out |= {"features": len(active), "highest_moves_by_more_than_100": moved}
    if both:
        seen = np.flatnonzero(both["share_feature"].numpy().any(axis=0))
        other = {f: profile.peaks(profile.profile(both, "feature", f)) for f in seen}
        out |= {"features_of_both_halves": len(seen), "both_halves": sum(other[f] != today.get(f, []) for f in seen),
                "through_the_other_half_alone": len(set(seen) - set(active))}
    return out


def draw_profiles(model, concepts):
    """profiles.png: the strongest concept feature of an object, the strongest of a style, and the strongest other one
    with three peaks."""
    peaks = lambda c: profile.peaks(profile.profile(model.activity, "feature", c["feature"]))
    shown = [next(c for c in concepts if c["kind"] == kind and peaks(c)) for kind in ("object", "style")]
    shown.append(next(c for c in concepts if c not in shown and len(peaks(c)) == PEAKS))
    paths = [Path("runs") / f"profile_{c['feature']}.json" for c in shown]
    for c, path in zip(shown, paths):
        write_json(path, profile.analysis(model, "feature", c["feature"]) | {"note": f"; {c['object'] or c['style']}"})
    return write_profiles(paths, PICTURES / "profiles.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--features",
        type=int,
        help="of the ascents: so many concept features, drawn at random with seed 0 (default: all)",
    )
    parser.add_argument("--only", nargs="+", choices=("examples", "probe", "ascents", "priors", "details"))
    parser.add_argument("--both", type=Path, help="folder of a capture that counted both halves of the guided batch")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, judge = load(args.weights, args.device), load_judge(args.weights, args.device)
    folder = profile.find(model, args.out)
    if folder is None:
        raise SystemExit(f"evaluate_activity: {args.weights} has no capture; run {full(model)}")
    model = profile.attach(model, folder)
    stored = json.loads((args.weights / "concepts.json").read_text())
    concepts = stored["features"]
    chosen = [concepts[i] for i in sorted(np.random.default_rng(0).permutation(len(concepts))[:args.features])]
    config = configure(model.settings)
    work = {
        "examples": lambda: evaluate_examples(folder, model.activity, concepts),
        "probe": lambda: evaluate_probe(model, folder, concepts, args.out),
        "ascents": lambda: evaluate_ascents(model, judge, chosen, config, args.batch_size, stored["timestep"]),
        "priors": lambda: evaluate_priors(model, judge, chosen, config, args.batch_size),
        "details": lambda: evaluate_details(model.activity, args.both and profile.attach(model, args.both).activity),
    }
    path = args.weights / "activity.json"
    numbers = json.loads(path.read_text()) if path.exists() else {}
    numbers |= {
        "images": json.loads((folder / "capture.json").read_text())["images"],
        "concept_features": len(concepts),
    }
    print(f"look at {draw_profiles(model, concepts)}")
    for name in args.only or work:
        numbers[name] = tell(name, work[name]())
        write_json(path, numbers)


if __name__ == "__main__":
    main()
