"""What the finish does to legibility on the toy: tried on one half of the concept features, reported on the other.

    python -m toyworld.finishing --explore      the settings in EXPLORED, on half A
    python -m toyworld.finishing --report       the setting CHOSEN: half B, half A, one of five seeds after the other;
                                                then the same at each feature's highest peak
    python -m toyworld.finishing --table        the tables of both: weights/toy/finishing.json and docs/finish.md

The halves are drawn by a fixed lot. What the judge says of a picture is appended to out/finishing/ as soon as it is
made, so that a command that was ended goes on where it was. The judge names each picture. The rule that picks one of a
feature's five seeds does not ask the judge: it takes the largest activation after decoding and encoding.
"""
import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import finish
from activity import profile
from ascent import Result, run_batch
from config import SEEDS, Job, configure
from toyworld.evaluate import right, share
from toyworld.judge import load_judge
from toyworld.paired import by_feature, interval, resampled
from toyworld.train import write_json
from weights.load import load

LOT = 15                    # seed of the halves and of the order in which the report takes features
BATCH = 32                  # pictures that are computed together
FAST = dict(num_steps=40, learning_rate=0.15)
AT_PEAK = "steer, 100 at 0.05, at its peak"        # at the feature's highest; without one where all others are
ASCENTS = {
    "noise, 40 at 0.15": dict(prior="noise", **FAST),
    "noise, 100 at 0.05": dict(prior="noise"),
    "steer, 40 at 0.15": dict(prior="steer", **FAST),
    "steer, 100 at 0.05": dict(prior="steer"),
    "guided, 40 at 0.15": dict(prior="guided", **FAST),
    AT_PEAK: dict(prior="steer"),
}
PLAIN = dict(spectral_filter=False)
FINISHES = {f"{t0}, {s}" + ", no filter" * bool(more): dict(finish_from=t0, finish_scale=s, **more) for t0, s, more in (
    (600, 0.0, {}), (600, 0.4, {}), (600, 0.8, {}), (800, 0.3, {}), (800, 0.5, {}), (800, 0.8, {}), (900, 0.3, {}),
    (900, 0.5, {}), (900, 0.8, {}), (800, 0.5, PLAIN), (900, 0.3, PLAIN))}
FINISHES |= {f"{t0}, 0.5, {n} steps": dict(finish_from=t0, finish_scale=0.5, finish_steps=n) for t0, n in (
    ("auto", 15), ("auto", 10))}
FEW = {name: FINISHES[name] for name in ("600, 0.4", "800, 0.5", "900, 0.5", "auto, 0.5, 10 steps")}
EXPLORED = {name: FINISHES if name == "steer, 40 at 0.15" else FEW for name in ASCENTS}
CHOSEN = "steer, 100 at 0.05", "auto, 0.5, 15 steps"       # the toy's default


def halves(concepts):
    """Two halves of the concept features by a fixed lot."""
    order = torch.randperm(len(concepts), generator=torch.Generator().manual_seed(LOT)).tolist()
    middle = len(order) // 2
    return [[concepts[i] for i in sorted(half)] for half in (order[:middle], order[middle:])]


def shuffled(concepts):
    """In an order by lot, so that a report that was ended early speaks of a fair sample."""
    order = torch.randperm(len(concepts), generator=torch.Generator().manual_seed(LOT + 1)).tolist()
    return [concepts[i] for i in order]


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def add(path, finished, batch, results, judge):
    """Append what is kept of each picture."""
    o, s, *_ = judge.verdict(torch.stack([r.image for r in results]))
    agree = right([c for c, _ in batch], o.tolist(), s.tolist()).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for (c, seed), r, ok in zip(batch, results, agree):
            scores = {k: round(float(r.scores[k]), 5) for k in ("activation", "activation_reencoded", "rank")}
            entry = {"finish": finished, "feature": c["feature"], "kind": c["kind"], "seed": seed, "right": ok}
            file.write(json.dumps(entry | {"verdict": r.verdict, **scores}) + "\n")


def work(model, judge, pairs, t, name, finishes, home, ascents=ASCENTS):
    """The ascent of (concept, seed) pairs by the settings of that name, and each of the finishes after it."""
    path, kept = home / f"{name}.jsonl", home / f"latents {name}"
    time_step = lambda c: name == AT_PEAK and profile.highest_peak(model.activity, "feature", c["feature"]) or t
    done = {(e["finish"], e["feature"], e["seed"]) for e in read(path)}
    for i in range(0, len(pairs), BATCH):
        batch = pairs[i:i + BATCH]
        file = kept / f"{batch[0][0]['feature']:05d}_{batch[0][1]}.safetensors"
        wanted = [f for f in ("", *finishes) if any((f, c["feature"], seed) not in done for c, seed in batch)]
        jobs = [Job(feature=c["feature"], timestep=time_step(c), seed=seed) for c, seed in batch]
        for f in wanted:
            config, began = configure(model.settings, **ascents[name] | finishes.get(f, {})), time.time()
            if not f:
                results = run_batch(model, jobs, config, begin=finish.start(model, jobs, config))
                kept.mkdir(parents=True, exist_ok=True)
                scores = {k: torch.tensor([float(r.scores[k]) for r in results]) for k in results[0].scores}
                save_file({"latent": torch.stack([r.latent for r in results])} | scores, file)
            else:
                stored = load_file(file)
                latents = stored.pop("latent")
                scores = [{k: v[n].item() for k, v in stored.items()} for n in range(len(jobs))]
                results = [Result(job, z, None, s["activation"], "", s, {}, [], None, [], [], None)
                           for job, z, s in zip(jobs, latents, scores)]
                finish.finish_results(model, results, config)
                results = [r.finished for r in results]
            add(path, f, batch, results, judge)
            print(f"{name}, {i} of {len(pairs)}, {f or 'ascent'}: {(time.time() - began) / len(batch):.2f} s a picture",
                  flush=True)


# --- tables -----------------------------------------------------------------------------------------------------

def mean(entries, name):
    return round(sum(e[name] for e in entries) / max(len(entries), 1), 3)


def row(entries):
    """Shares named right with n and 95% intervals, and mean activations, of one setting's pictures; where a feature has
    several, the interval is from resampling features."""
    kinds = {"all": ("object", "style", "pair")} | {f"{kind}s": (kind,) for kind in ("object", "style", "pair")}

    def of(kinds):
        some = {(e["feature"], e["seed"]): e for e in entries if e["kind"] in kinds}
        out = share(torch.tensor([e["right"] for e in some.values()], dtype=torch.bool))
        each = np.array([*by_feature(some, "right").values()])
        if 1 < len(each) < len(some):
            out["interval"] = [round(v, 3) for v in interval(resampled(each)[0])]
        return out

    return {name: of(some) for name, some in kinds.items()} | {
        "activation": mean(entries, "activation"), "reencoded": mean(entries, "activation_reencoded")}


def by_rule(entries):
    """Of each feature's pictures the one with the largest re-encoded activation."""
    best = {}
    for e in entries:
        if e["feature"] not in best or e["activation_reencoded"] > best[e["feature"]]["activation_reencoded"]:
            best[e["feature"]] = e
    return list(best.values())


def explored(home):
    """A row for each setting that was tried."""
    out = []
    for name in EXPLORED:
        entries = read(home / f"{name}.jsonl")
        out += [{"ascent": name, "finish": f or None} | row([e for e in entries if e["finish"] == f])
                for f in dict.fromkeys(e["finish"] for e in entries)]
    return out


def reported(home, concepts, ascent=CHOSEN[0]):
    """Of the chosen finish after an ascent: one seed's pictures, and those that the rule puts first, for each half and
    for all."""
    a, b = ({c["feature"] for c in half} for half in halves(concepts))
    entries, out = read(home / f"{ascent}.jsonl"), {"setting": {"ascent": ascent, "finish": CHOSEN[1]}}
    for which, features in (("half B", b), ("half A", a), ("all", a | b)):
        ours = [e for e in entries if e["feature"] in features]
        one = {f: [e for e in ours if e["finish"] == f and e["seed"] == SEEDS[0]] for f in ("", CHOSEN[1])}
        five = [e for e in ours if e["finish"] == CHOSEN[1]]
        whole = {f for f in features if sum(e["feature"] == f for e in five) == len(SEEDS)}
        rows = {"ascent, one seed": one[""], "finish, one seed": one[CHOSEN[1]],
                "ascent, all seeds": [e for e in ours if not e["finish"] and e["feature"] in whole],
                "finish, all seeds": [e for e in five if e["feature"] in whole],
                "ascent, first of five by rule":
                    by_rule([e for e in ours if not e["finish"] and e["feature"] in whole]),
                "finish, first of five by rule": by_rule([e for e in five if e["feature"] in whole])}
        out[which] = {name: row(some) for name, some in rows.items() if some}
    if not out["half A"]:                                       # the report was ended before it came to half A
        del out["half A"], out["all"]
    return out


def markdown(rows, names):
    """A table: names are the keys that a row is told by."""
    cell = lambda s: f"{s['share']:.2f} [{s['interval'][0]:.2f}, {s['interval'][1]:.2f}] ({s['n']})" if s["n"] else ""
    head = [*names, "all", "objects", "styles", "pairs", "activation", "re-encoded"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in rows:
        values = [str(r[n] or "-") for n in names] + [cell(r[k]) for k in ("all", "objects", "styles", "pairs")]
        lines.append("| " + " | ".join([*values, f"{r['activation']:.3f}", f"{r['reencoded']:.3f}"]) + " |")
    return "\n".join(lines)


def insert(text, mark, table):
    """The text with the table between two marks, in place of what stands there, or at the end."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    before, after = text.split(begin)[0], text.split(end)[-1] if end in text else ""
    return f"{before}{begin}{table}\n{end}{after}"


def report_rows(report):
    return [{"features": which, "pictures": name, **r} for which, rows in report.items() if which != "setting"
            for name, r in rows.items()]


def write_tables(out, home, concepts, docs):
    numbers = {"lot": LOT, "explored": explored(home / "explore"), "report": reported(home / "report", concepts),
               "peaks": reported(home / "report", concepts, AT_PEAK)}
    write_json(out / "finishing.json", numbers)
    text = docs.read_text() if docs.exists() else ""
    for mark, table in (("tried", markdown(numbers["explored"], ("ascent", "finish"))),
                        *((mark, markdown(report_rows(numbers[mark]), ("features", "pictures")))
                          for mark in ("report", "peaks"))):
        text = insert(text, mark, table)
    docs.write_text(text)


def flags(description, home):
    """The command line of a study in three commands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--explore", "--report", "--table"):
        what.add_argument(flag, action="store_true")
    parser.add_argument("--weights", type=Path, default=Path("weights/toy"))
    parser.add_argument("--home", type=Path, default=home, help="where the pictures' records lie")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def opened(args):
    """The model with its capture, the judge, the time step at which the concepts were found, both halves of them."""
    stored = json.loads((args.weights / "concepts.json").read_text())
    model = load(args.weights, args.device)
    model = profile.attach(model, profile.find(model, Path("out")))
    return model, load_judge(args.weights), stored["timestep"], *halves(stored["features"])


def main():
    args = flags(__doc__, Path("out/finishing"))
    if args.table:
        stored = json.loads((args.weights / "concepts.json").read_text())
        return write_tables(args.weights, args.home, stored["features"], Path("docs/finish.md"))
    model, judge, t, a, b = opened(args)
    if args.explore:
        for name, finishes in EXPLORED.items():
            work(model, judge, [(c, SEEDS[0]) for c in a], t, name, finishes, args.home / "explore")
    else:
        for name, seed, half in product((CHOSEN[0], AT_PEAK), SEEDS, (b, a)):
            pairs = [(c, seed) for c in shuffled(half)]
            work(model, judge, pairs, t, name, {CHOSEN[1]: FINISHES[CHOSEN[1]]}, args.home / "report")


if __name__ == "__main__":
    main()
