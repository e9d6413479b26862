"""Measure the time-step analysis on the toy, whose features' concepts are known (concepts.json, `python -m toyworld.evaluate`).

    python -m toyworld.evaluate_activity [--features N]     writes activity.json and profiles.png into weights/toy

examples    of how many concept features do the dataset examples at the highest peak show the concept, by their prompts
prior       final activation of the ascent at the highest peak: from a steered prior over from noise, equal steps, same seeds
peak        the same from a steered prior: at the highest peak over at t = 0
probe       how near the peaks of a probe lie to those of the full capture, and what either costs

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

import activity
import activity_cli
import checkpoint
import cli
from featviz import Job, configure, visualize
from report import write_profiles
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.evaluate import SHARE, right, share, tell
from toyworld.judge import load_judge
from toyworld.train import write_json

SEED, NEAR = 1024, 50       # of every ascent; time steps within which two peaks count as the same
PAIR = {drawings.caption(o, s): (i, j) for i, o in enumerate(OBJECTS) for j, s in enumerate(STYLES)}


def highest_peak(tables, feature):
    """The time step of the highest peak, or None for a feature without one."""
    curve = activity.profile(tables, "feature", feature)
    found = activity.peaks(curve)
    return max(found, key=lambda t: curve[t]) if found else None


def evaluate_examples(folder, tables, concepts):
    """Features whose examples at the highest peak show the concept in SHARE of the cases, and the mean share of such examples."""
    prompts = json.loads((folder / "capture.json").read_text())["recipe"]["settings"]["prompts"]
    shares, without = [], 0
    for c in concepts:
        t = highest_peak(tables, c["feature"])
        found = activity.examples(folder, "feature", c["feature"], t) if t is not None else []
        if not found:
            without += 1
            continue
        pairs = [PAIR[prompts[i % len(prompts)]] for i, _ in found]
        shares.append(right([c] * len(pairs), *zip(*pairs)).float().mean().item())
    shares = torch.tensor(shares)
    return {"features": share(shares >= SHARE), "mean_share_of_examples": round(shares.mean().item(), 4), "without_examples": without,
            "chance": round(chance(concepts), 4)}


def chance(concepts):
    """Mean probability that a random prompt shows the concept."""
    p = {"object": 1 / len(OBJECTS), "style": 1 / len(STYLES), "pair": 1 / len(OBJECTS) / len(STYLES)}
    return sum(p[c["kind"]] for c in concepts) / max(len(concepts), 1)


def ascents(model, judge, concepts, times, config, batch_size, name):
    """Final activations (n,) of one ascent for each concept feature, and whether the judge finds its concept in the picture (n,)."""
    jobs, results, began = [Job(feature=c["feature"], timestep=t, seed=SEED) for c, t in zip(concepts, times)], [], time.time()
    for i in range(0, len(jobs), batch_size):
        results += visualize(model, jobs[i:i + batch_size], config, batch_size)
        done = len(results)
        print(f"\r{name}: {done}/{len(jobs)} features, {(time.time() - began) / done * (len(jobs) - done):.0f} s left  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    images = torch.stack([r.image for r in results]).to(model.device)
    objects, styles, *_ = judge.verdict(F.interpolate(images, (drawings.SIZE, drawings.SIZE)))
    return np.array([r.activation for r in results]), right(concepts, objects.tolist(), styles.tolist())


def gain(ours, theirs, draws=10_000):
    """Ratio of means and its 95% interval over features, resampled in pairs; share of features with the higher activation."""
    rows = np.random.default_rng(0).integers(0, len(ours), (draws, len(ours)))
    ratios = ours[rows].mean(1) / np.maximum(theirs[rows].mean(1), 1e-12)
    return {"ratio": round(float(ours.mean() / theirs.mean()), 3), "interval": [round(float(v), 3) for v in np.quantile(ratios, (0.025, 0.975))],
            "higher": share(torch.from_numpy(ours > theirs)), "means": [round(float(ours.mean()), 4), round(float(theirs.mean()), 4)]}


def evaluate_ascents(model, judge, concepts, config, batch_size):
    """The gains of the steered prior and of the peak over what they replace, and legibility by the judge in all three cases."""
    times = [highest_peak(model.activity, c["feature"]) for c in concepts]
    concepts, times = zip(*((c, t) for c, t in zip(concepts, times) if t is not None))
    config = dataclasses.replace(config, prior="steer")
    steered, seen = ascents(model, judge, concepts, times, config, batch_size, "steered prior, peak")
    noise, seen_noise = ascents(model, judge, concepts, times, dataclasses.replace(config, prior="noise"), batch_size, "noise, peak")
    zero, seen_zero = ascents(model, judge, concepts, [0] * len(concepts), config, batch_size, "steered prior, t = 0")
    return {"n": len(concepts), "steps": config.num_steps, "steer_scale": config.steer_scale, "steered_over_noise": gain(steered, noise), "peak_over_0": gain(steered, zero),
            "named_right": {"steered, peak": share(seen), "noise, peak": share(seen_noise), "steered, t = 0": share(seen_zero)},
            "at_peak_0": sum(t < NEAR for t in times)}


def evaluate_probe(model, concepts, out):
    """Peaks of a probe next to those of the capture: share of features whose highest peak is the same, of peaks that are found."""
    began = time.time()
    folder = out / model.name / "probe"
    there = (folder / "capture.json").exists()
    if not there:
        folder = cli.probe(model, out, 8)
    seconds, probed = None if there else round(time.time() - began), activity.attach(model, folder).activity
    same, found, correlations = [], [], []
    for c in concepts:
        full, small = (activity.profile(tables, "feature", c["feature"]) for tables in (model.activity, probed))
        ours, theirs = activity.peaks(small), activity.peaks(full)
        if not theirs:
            continue
        found += [any(abs(t - u) <= NEAR for u in ours) for t in theirs]
        best = max(theirs, key=lambda t: full[t])
        same.append(any(abs(best - u) <= NEAR for u in ours))
        if full.std() > 0 and small.std() > 0:                  # a constant profile correlates with nothing
            correlations.append(np.corrcoef(full, small)[0, 1])
    made = json.loads((folder / "capture.json").read_text())
    return {"images": made["images"], "steps": made["recipe"]["settings"]["steps"], "seconds": seconds, "highest_peak_found": share(torch.tensor(same)),
            "peaks_found": share(torch.tensor(found)), "correlation_of_profiles": round(float(np.mean(correlations)), 3)}


def draw_profiles(model, folder, concepts, out):
    """profiles.png: the strongest concept feature of an object, of a style and of a pair."""
    made, paths = json.loads((folder / "capture.json").read_text()), []
    for kind in ("object", "style", "pair"):
        c = next((c for c in concepts if c["kind"] == kind and highest_peak(model.activity, c["feature"]) is not None), None)
        if c:
            record = activity_cli.analysis(model, folder, made, "feature", c["feature"])
            record["note"] = f"; {' '.join(filter(None, (c['object'], c['style'])))}"
            paths.append(Path("runs") / f"profile_{kind}.json")
            write_json(paths[-1], record)
    return write_profiles(paths, out / "profiles.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, help="of the ascents: so many concept features, drawn at random with seed 0 (default: all)")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, judge = checkpoint.load(args.weights, args.device), load_judge(args.weights, args.device)
    folder = activity.find(model, args.out)
    if folder is None:
        raise SystemExit(f"evaluate_activity: {args.weights} has no capture; run {cli.FULL.format(args.weights)}")
    model = activity.attach(model, folder)
    concepts = json.loads((args.weights / "concepts.json").read_text())["features"]
    chosen = sorted(np.random.default_rng(0).permutation(len(concepts))[:args.features])
    numbers = {"images": json.loads((folder / "capture.json").read_text())["images"], "concept_features": len(concepts),
               "examples": tell("examples at the highest peak", evaluate_examples(folder, model.activity, concepts))}
    print(f"look at {draw_profiles(model, folder, concepts, args.weights)}")
    numbers["probe"] = tell("probe", evaluate_probe(model, concepts, args.out))
    write_json(args.weights / "activity.json", numbers)
    numbers["ascents"] = tell("ascents", evaluate_ascents(model, judge, [concepts[i] for i in chosen], configure(model), args.batch_size))
    write_json(args.weights / "activity.json", numbers)


if __name__ == "__main__":
    main()
