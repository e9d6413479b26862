"""Fewer steps for the same picture: settings tried on one half of the concept features, the chosen one proved on the
other.

    python -m toyworld.quick --explore      the settings in TRIED, on half A, one seed, the ascent alone
    python -m toyworld.quick --report       the method's own and CHOSEN, on half B, two seeds, both also finished
    python -m toyworld.quick --table        what both gave: weights/toy/quick.json and the tables of docs/measured.md

What the judge says of a picture is appended to out/quick/ as soon as it is made, so that a command that was ended goes
on where it was. Halves, lots and judging are those of toyworld/finishing.py.
"""
import dataclasses
from pathlib import Path

import numpy as np

import ascent
from config import QUICK, SEEDS
from toyworld.evaluate_activity import gain, interval
from toyworld.finishing import CHOSEN as FINISHED
from toyworld.finishing import FINISHES, flags, insert, opened, read, row, shuffled, work
from toyworld.train import write_json

OWN = "100 at 0.05"         # the method's own
FALLING = "40 at 0.15, falling"
TRIED = {f"{n} at {rate}" + more: dict(num_steps=n, learning_rate=rate, prior="steer", **others)
         for n, rate, more, others in (
             (100, 0.05, "", {}), (20, 0.15, "", {}), (20, 0.25, "", {}), (30, 0.15, "", {}), (30, 0.2, "", {}),
             (40, 0.1, "", {}), (40, 0.15, "", {}), (40, 0.15, ", falling", {}), (60, 0.1, "", {}),
             (40, 0.15, ", beta2 0.99", dict(beta2=0.99)))}
CHOSEN = f"{QUICK['num_steps']} at {QUICK['learning_rate']}"


def falling(adamw):
    """AdamW whose rate falls on a line to 0 at the last step."""
    return lambda z, g, mean, square, n, config: adamw(z, g, mean, square, n, dataclasses.replace(
        config, learning_rate=config.learning_rate * (1 - (n - 1) / config.num_steps)))


def explore(model, judge, concepts, t, home):
    own = ascent.adamw
    for name in TRIED:
        ascent.adamw = falling(own) if name == FALLING else own
        work(model, judge, [(c, SEEDS[0]) for c in concepts], t, name, {}, home, TRIED)
        ascent.adamw = own


def report(model, judge, concepts, t, home):
    finished = {FINISHED[1]: FINISHES[FINISHED[1]]}
    for seed in SEEDS[:2]:
        for name in (OWN, CHOSEN):
            work(model, judge, [(c, seed) for c in concepts], t, name, finished, home, TRIED)


def compare(home):
    """CHOSEN against OWN, before and after the finish, feature by feature: each stands with its mean over the seeds
    that both have."""
    both = [{(e["finish"], e["feature"], e["seed"]): e for e in read(home / f"{name}.jsonl")}
            for name in (CHOSEN, OWN)]
    out = {}
    for pictures, f in (("ascent", ""), ("finished", FINISHED[1])):
        if not (keys := sorted(k for k in both[0].keys() & both[1].keys() if k[0] == f)):
            continue                                            # the report was ended before
        features = sorted({feature for _, feature, _ in keys})
        means = lambda entries, name: np.array([np.mean([entries[k][name] for k in keys if k[1] == feature])
                                                for feature in features])                       # (features,)
        ours, theirs = ({name: means(entries, name) for name in ("right", "activation", "activation_reencoded")}
                        for entries in both)
        ratio = lambda name: {k: v for k, v in gain(ours[name], theirs[name]).items() if k != "higher"}
        more = ours["right"] - theirs["right"]
        out[pictures] = {"pictures": len(keys), "features": len(features),
                         **{name: row([entries[k] for k in keys]) for name, entries in zip((CHOSEN, OWN), both)},
                         "named_right": {"difference": round(float(more.mean()), 4),
                                         "interval": interval(lambda rows: more[rows].mean(1), len(more))},
                         "activation": ratio("activation"), "reencoded": ratio("activation_reencoded")}
    return out


def markdown(numbers):
    """Two tables: what was tried, and the chosen setting against the method's own."""
    span = lambda low, high: f"[{low:.2f}, {high:.2f}]"
    lines = ["| steps, rate | named right | activation | re-encoded |", "|---|---|---|---|"]
    for r in numbers["explored"]:
        lines.append(f"| {r['setting']} | {r['all']['share']:.2f} {span(*r['all']['interval'])} | "
                     f"{r['activation']:.3f} | {r['reencoded']:.3f} |")
    lines += ["", f"| pictures | named right, {OWN} | {CHOSEN} | difference | activation, ratio | re-encoded, ratio |",
              "|---|---|---|---|---|---|"]
    for name, r in numbers["report"].items():
        cells = [f"{r[s]['all']['share']:.2f}" for s in (OWN, CHOSEN)]
        cells.append(f"{r['named_right']['difference']:+.3f} {span(*r['named_right']['interval'])}")
        cells += [f"{r[k]['ratio']:.3f} {span(*r[k]['interval'])}" for k in ("activation", "reencoded")]
        lines.append(f"| {name}, {r['pictures']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(out, home, docs):
    explored = [{"setting": name, **row(entries)} for name in TRIED
                if (entries := read(home / "explore" / f"{name}.jsonl"))]
    numbers = {"explored": explored, "report": compare(home / "report")}
    write_json(out / "quick.json", numbers)
    docs.write_text(insert(docs.read_text(encoding="utf-8"), "quick", markdown(numbers)), encoding="utf-8")


def main():
    args = flags(__doc__, Path("out/quick"))
    if args.table:
        return write_tables(args.weights, args.home, Path("docs/measured.md"))
    model, judge, t, a, b = opened(args)
    if args.explore:
        explore(model, judge, a, t, args.home / "explore")
    else:
        report(model, judge, shuffled(b), t, args.home / "report")


if __name__ == "__main__":
    main()
