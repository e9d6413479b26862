"""Do the measures of legibility.py predict what the judge says? On the toy, where the truth of some features is known.

    python -m toyworld.evaluate_legibility          about ten minutes on a core, which it first estimates; it goes on
                                                    where it was ended; writes weights/toy/legibility.json and the
                                                    tables of docs/measured.md

Of --features concept features by lot it makes the pictures of five seeds, quickly (FAST), as the ascent leaves them and
as the model finishes them. The judge's verdict of a feature: whether it finds its concept in most of the five. The eyes
that measure (toyworld/eyes.py) know nothing of the judge. The feature's own examples are those of the capture.

    agreement, rank     the pictures with the feature's own examples and those of 99 others by lot
    seeds               sameness of the five pictures
    alike               how many of them count as showing one thing, as pages say it (pages/measure.py)
    margin              of the best of the 18 words that name an object or a style
    examples            sameness of the feature's own examples

How well a measure predicts is its AUC: the probability that it ranks a feature that is named right above one that is
not. 0.5 is chance. Its 95% interval is from resampling the features. A threshold is chosen on one half of the features
and tried on the other.
"""
import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import legibility
from ascent import ascend
from activity import profile
from activity.album import Album
from activity.times import full
from config import SEEDS, Job, configure
from finish import run_batch, start
from pages.measure import alike
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.evaluate import SHARE, UNSEEN, right, share, tell
from toyworld.evaluate_activity import PAIR
from toyworld.finishing import halves, insert, shuffled
from toyworld.fit import atomic_save
from toyworld.judge import load_judge
from toyworld.train import write_json
from vae import to_uint8
from weights.eyes import find_eyes, load_eyes
from weights.load import load

FAST = dict(num_steps=40, learning_rate=0.15, finish_from=800, finish_scale=0.5, finish_steps=15)
TOGETHER = 6                # features whose pictures are computed together
OTHERS = 99                 # features by lot with which one is compared
DRAWS = 2_000               # of an interval
SHOWN = 5                   # failures of each kind that are told
LIVE = "it is a concept feature"                   # two truths that the sameness of examples may predict
ALIKE = "its examples' prompts share an object or a style"
PICTURES = ("ascent", "finished")
PLACES = ("first", "second", "first on pages", "second on pages")          # of the concept among the names
MEASURES = {"agreement": "agreement with the own examples, AUC", "rank": "agreement with the own examples, rank of 100",
            "seeds": "sameness of five seeds", "alike": "one thing in k of five seeds", "margin": "margin of the name",
            "examples": "sameness of the own examples"}


# --- pictures ---------------------------------------------------------------------------------------------------------

def home_of(model, t, out):
    """Where the pictures of these very weights and settings lie."""
    made = json.dumps([profile.fingerprints(model), FAST, SEEDS, t], sort_keys=True)
    return out / "legibility" / hashlib.sha256(made.encode()).hexdigest()[:12]


def estimate(model, jobs, n):
    """Minutes for n batches like these jobs, by three steps of the ascent after a first one. A step of the finish,
    which goes through the whole UNet, counts as two; all scores together count as ten."""
    config = configure(model.settings, **FAST | dict(num_steps=4))
    steps = iter(ascend(model, jobs, config, begin=start(model, jobs, config)))
    next(steps)
    began, taken = time.time(), len([*steps])
    return n * (FAST["num_steps"] + 2 * FAST["finish_steps"] + 10) * (time.time() - began) / taken / 60


def make_pictures(model, concepts, t, home):
    """{feature: {"ascent", "finished": (5, 3, 64, 64) uint8}}, a file a feature; what lies there is not made again."""
    file = lambda c: home / f"{c['feature']:05d}.safetensors"
    jobs = lambda some: [Job(feature=c["feature"], timestep=t, seed=seed) for c in some for seed in SEEDS]
    missing = [c for c in concepts if not file(c).exists()]
    home.mkdir(parents=True, exist_ok=True)
    if missing:
        minutes = estimate(model, jobs(missing[:TOGETHER]), len(missing) / TOGETHER)
        print(f"pictures of {len(missing)} features, about {minutes:.0f} min; a command that was ended goes on where "
              "it was", flush=True)
    began = time.time()
    for i in range(0, len(missing), TOGETHER):
        some = missing[i:i + TOGETHER]
        results = run_batch(model, jobs(some), configure(model.settings, **FAST))
        for k, c in enumerate(some):
            mine = results[k * len(SEEDS):(k + 1) * len(SEEDS)]
            stack = lambda images: torch.stack([torch.from_numpy(to_uint8(x)).permute(2, 0, 1) for x in images])
            atomic_save({"ascent": stack(r.image for r in mine), "finished": stack(r.finished.image for r in mine)},
                        file(c))
        done = i + len(some)
        left = (time.time() - began) / done * (len(missing) - done)
        print(f"\rpictures: {done}/{len(missing)} features, {left / 60:.1f} min left  ", end="", file=sys.stderr)
    return {c["feature"]: load_file(file(c)) for c in concepts}


# --- eyes -------------------------------------------------------------------------------------------------------------

def evaluate_eyes(eyes, words, n=400):
    """Of unseen drawings, the shares whose nearest object's and style's words are right."""
    images = [Image.fromarray(drawings.drawing(i, UNSEEN)) for i in range(n)]
    truth, seen, out = torch.tensor([drawings.labels(i) for i in range(n)]), eyes.images(images), {}
    for kind, (name, names) in enumerate((("object", OBJECTS), ("style", STYLES))):
        said = (seen @ eyes.texts([words[word] for word in names]).T).argmax(1)
        out[name] = share(said == truth[:, kind])
    return out


# --- measures ---------------------------------------------------------------------------------------------------------

def live_examples(model, folder, t, eyes):
    """{feature: (embeddings (m, E), activations (m,))} of all features that have two examples, at t or else at the
    highest of their peaks where there are two; {feature: whether an object or a style is in SHARE of their prompts}."""
    made, album = json.loads((folder / "capture.json").read_text()), Album(folder, eyes)
    prompts = made["recipe"]["settings"]["prompts"]
    most = lambda words: Counter(words).most_common(1)[0][1] / len(words)
    live, shared = {}, {}
    for f in range(model.sae.features):
        curve = profile.profile(model.activity, "feature", f)
        times = (t, *profile.by_height(curve, profile.peaks(curve)))
        if found := profile.own_examples(folder, "feature", f, times)[1]:
            numbers, activations = zip(*found)
            live[f] = album.vectors(numbers), torch.tensor(activations)
            shared[f] = max(map(most, zip(*(PAIR[prompts[i % len(prompts)]] for i in numbers)))) >= SHARE
    return live, shared


def measure(feature, pictures, live, mean, words, texts):
    """Of one feature's pictures (5, E): {measure: number, the larger the better}, what it misses left out; and its two
    best names, by the mean picture `mean` and by that of the others' examples, as pages have it."""
    found, margin = legibility.name(pictures, mean, words, texts)
    others = [f for f in live if f != feature]
    lot = torch.randperm(len(others), generator=torch.Generator().manual_seed(feature))[:OTHERS].tolist()
    others = [live[others[i]][0] for i in lot]
    said, _ = legibility.name(pictures, torch.cat(others).mean(0), words, texts)
    out = {"seeds": legibility.sameness(pictures), "alike": alike(pictures, others), "margin": margin}
    if feature in live:
        agrees = legibility.agreement(pictures, live[feature][0], others)
        out |= {"agreement": agrees["auc"], "rank": -agrees["rank"], "examples": legibility.sameness(*live[feature])}
    return out, *([word for word, _ in best[:2]] for best in (found, said))


def look(concepts, pictures, judge, live, words, texts, eyes):
    """{"ascent", "finished": [one feature's row, ...]}: concept, verdict, what the judge sees, names, measures. The
    mean picture is that of all these features."""
    rows = {kind: [] for kind in PICTURES}
    for kind in PICTURES:
        seen = {f: eyes.images([Image.fromarray(x.permute(1, 2, 0).numpy()) for x in made[kind]])
                for f, made in pictures.items()}                                                # (5, E) each
        mean = torch.cat([*seen.values()]).mean(0)
        for c in concepts:
            f, wanted = c["feature"], [*filter(None, (c["object"], c["style"]))]
            o, s, *_ = judge.verdict(pictures[f][kind].float() / 255)
            good = right([c] * len(o), o.tolist(), s.tolist())
            asked = lambda a, b: " ".join([*[OBJECTS[a]] * bool(c["object"]), *[STYLES[b]] * bool(c["style"])])
            said = [*map(asked, o.tolist(), s.tolist())]
            numbers, names, on_page = measure(f, seen[f], live, mean, words, texts)
            rows[kind].append({"feature": f, "concept": " ".join(wanted), "judge": max(said, key=said.count),
                               "right": bool(good.float().mean() > 0.5), "name": names[0],
                               "first": names[0] in wanted, "second": bool({*names} & {*wanted}),
                               "first on pages": on_page[0] in wanted, "second on pages": bool({*on_page} & {*wanted}),
                               **numbers})
    return rows


# --- what they are worth ----------------------------------------------------------------------------------------------

def predicts(values, truth):
    """AUC of numbers (n,) for a truth (n,) bool, with its 95% interval over resampled rows; None for one sort alone."""
    values, truth = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=bool)
    out = {"right": int(truth.sum()), "wrong": int((~truth).sum())}
    if not 0 < truth.sum() < len(truth):
        return {"auc": None, "interval": None} | out
    drawn, rng = [], np.random.default_rng(0)
    while len(drawn) < DRAWS:
        rows = rng.integers(0, len(values), len(values))
        if 0 < truth[rows].sum() < len(rows):
            drawn.append(legibility.auc(values[rows][truth[rows]], values[rows][~truth[rows]]))
    return {"auc": round(legibility.auc(values[truth], values[~truth]), 3),
            "interval": [round(float(v), 3) for v in np.quantile(drawn, (0.025, 0.975))]} | out


def cut(values, truth):
    """The threshold with the largest mean of the share of right ones that reach it and of wrong ones that do not."""
    values, truth = np.asarray(values), np.asarray(truth, dtype=bool)
    score = lambda at: (values[truth] >= at).mean() + (values[~truth] < at).mean()
    return float(max(np.unique(values), key=score))


def threshold(rows, name, half):
    """Chosen on the features in `half`, tried on the others: shares named right from it upwards and below it."""
    rows = [r for r in rows if name in r]
    chosen, tried = ([r for r in rows if (r["feature"] in half) == inside] for inside in (True, False))
    if len({r["right"] for r in chosen}) < 2 or not tried:
        return None
    at = cut([r[name] for r in chosen], [r["right"] for r in chosen])
    part = lambda keep: share(torch.tensor([r["right"] for r in tried if keep(r[name])], dtype=torch.bool))
    return {"at": round(at, 4), "from it upwards": part(lambda v: v >= at), "below it": part(lambda v: v < at)}


def failures(rows, name):
    """Features of which the measure is surest though the judge says wrong, and least sure though it says right."""
    known = sorted((r for r in rows if name in r), key=lambda r: -r[name])
    told = lambda r: {k: r[k] for k in ("feature", "concept", "judge", "name")} | {name: round(r[name], 3)}
    return {"high, but wrong": [told(r) for r in known if not r["right"]][:SHOWN],
            "low, but right": [told(r) for r in known[::-1] if r["right"]][:SHOWN]}


def summarize(rows, half):
    """All of one sort of pictures."""
    good = [r["right"] for r in rows]
    named = lambda place, keep: share(torch.tensor([r[place] for r in rows if r["right"] in keep], dtype=torch.bool))
    out = {"named right by the judge": share(torch.tensor(good))}
    out |= {place: {"all": named(place, (True, False)), "judge right": named(place, (True,)),
                    "judge wrong": named(place, (False,))} for place in PLACES}
    for name in MEASURES:
        known = [r for r in rows if name in r]
        out[name] = predicts([r[name] for r in known], [r["right"] for r in known])
        out[name] |= {"threshold": threshold(rows, name, half), "failures": failures(rows, name)}
    return out


# --- tables -----------------------------------------------------------------------------------------------------------

def told(r):
    if r["auc"] is None:
        return "no two sorts"
    return f"{r['auc']:.2f} ({r['interval'][0]:.2f} to {r['interval'][1]:.2f})"


def part(s):
    return f"{100 * s['share']:.0f}% of {s['n']}" if s["n"] else "none"


def markdown(numbers):
    """Tables: of the eyes and the examples, what predicts the verdict, the thresholds, and the names."""
    columns = [numbers[kind] for kind in PICTURES]
    sizes = [f"{c['seeds']['right']} right, {c['seeds']['wrong']} wrong" for c in columns]
    sees, lives = numbers["eyes on unseen drawings"], {name: numbers[name] for name in (LIVE, ALIKE)}
    lines = [f"{numbers['features']} concept features by lot; {numbers['without_examples']} have no examples.", "",
             "| the eyes name unseen drawings right | |", "|---|---|",
             *(f"| {kind} | {part(sees[kind])} |" for kind in sees), "",
             "| sameness of the own examples, over all live features | AUC |", "|---|---|",
             *(f"| {name}: {r['right']} of {r['right'] + r['wrong']} | {told(r)} |" for name, r in lives.items()), "",
             f"| AUC for the judge's verdict | as the ascent left them, {sizes[0]} | finished, {sizes[1]} |",
             "|---|---|---|"]
    lines += [f"| {text} | {' | '.join(told(c[name]) for c in columns)} |" for name, text in MEASURES.items()]
    lines += ["", "| threshold for finished pictures, from one half | other half: right from it upwards | below it |",
              "|---|---|---|"]
    for name, text in MEASURES.items():
        if t := numbers["finished"][name]["threshold"]:
            at = f"{-t['at']:.0f} at most" if name == "rank" else f"{t['at']:.2f}"
            lines.append(f"| {text}: {at} | {part(t['from it upwards'])} | {part(t['below it'])} |")
    lines += ["", "| the concept among the 18 words, first, and first or second | as the ascent left them | finished |",
              "|---|---|---|"]
    both = lambda c, key, on: f"{part(c['first' + on][key])}, {part(c['second' + on][key])}"
    lines += [f"| {text} | {' | '.join(both(c, key, on) for c in columns)} |" for key, on, text in (
        ("all", "", "all features"), ("judge right", "", "of those that the judge names right"),
        ("judge wrong", "", "of those that it does not"),
        ("all", " on pages", "all features, by the mean picture that pages take away"))]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=120, help="concept features, by lot (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the pictures are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs/measured.md"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, judge, found = load(args.weights, args.device), load_judge(args.weights), find_eyes(args.weights)
    folder = profile.find(model, args.out)
    if folder is None:
        raise SystemExit(f"evaluate_legibility: {args.weights} has no capture; run {full(model)}")
    if found != args.weights / "clip":
        raise SystemExit(f"evaluate_legibility: {args.weights} has no eyes of its own; run python -m toyworld.eyes")
    stored = json.loads((args.weights / "concepts.json").read_text())
    concepts, t = shuffled(stored["features"])[:args.features], stored["timestep"]
    model, eyes = profile.attach(model, folder), load_eyes(found)
    pictures = make_pictures(model, concepts, t, home_of(model, t, args.out))
    live, shared = live_examples(model, folder, t, eyes)
    words = legibility.vocabulary(found / "words.txt")
    rows = look(concepts, pictures, judge, live, [*words], eyes.texts([*words.values()]), eyes)
    known, half = {c["feature"] for c in stored["features"]}, {c["feature"] for c in halves(stored["features"])[0]}
    numbers = {"features": len(concepts), "seeds": len(SEEDS), "settings": FAST, "eyes": eyes.fingerprint,
               "eyes on unseen drawings": evaluate_eyes(eyes, words),
               "without_examples": sum(c["feature"] not in live for c in concepts),
               LIVE: predicts([legibility.sameness(*live[f]) for f in live], [f in known for f in live]),
               ALIKE: predicts([legibility.sameness(*live[f]) for f in live], [shared[f] for f in live]),
               "alike, and no concept feature": sum(shared[f] and f not in known for f in live)}
    numbers |= {kind: summarize(rows[kind], half) for kind in PICTURES}
    for kind in PICTURES:
        tell(kind, {name: told(numbers[kind][name]) for name in MEASURES})
    write_json(args.weights / "legibility.json", numbers)
    args.docs.write_text(insert(args.docs.read_text(), "legibility", markdown(numbers)))


if __name__ == "__main__":
    main()
