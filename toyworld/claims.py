"""Every claim about the method, with a number: measured on the toy's concept features, in pairs, and judged.

    python -m toyworld.claims                       all claims that are not there yet; says first how long it will take
    python -m toyworld.claims --only noise prior    some; --check: only how long
    python -m toyworld.claims --docs other --compare docs/claims.json       what a second run has otherwise
    python -m toyworld.claims --plan sd14           commands and GPU hours of the same on Stable Diffusion

It writes docs/claims.json and, from that alone but for the pictures, docs/claims.md and docs/pictures/claims/. What is
drawn lies in out/claims: a run that was ended goes on where it was, and claims share what has the same setting.

The claims are in claim_list.py, what they are tried with in trials.py, how numbers are compared in paired.py. Features
are drawn by one lot for all claims. How many was chosen before, from the interval that is wanted: 100 leave a share
within about 0.10, and a difference between two settings, which is paired, within about 0.07. Where a lot of fewer was
measured first, as for a second run on other threads, a greater one goes on from it.
"""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from activity import profile
from activity.times import full
from command.flags import Parser, folder, guarded
from config import SEEDS
from toyworld import claims_page as page
from toyworld.claim_list import CLAIMS
from toyworld.judge import load_judge
from toyworld.paired import FEWEST, by_feature, mean
from toyworld.train import write_json
from toyworld.trials import Lab, full_size_ratio
from weights.disk import WeightsError
from weights.load import load

FEATURES = 100
RULE = ("A number holds where its whole interval is above the line that the claim names. It does not where even the "
        "upper end is below what would count at least, which stands beside the line. All else is not decided here, "
        f"and so is what fewer than {FEWEST} features say. Where k numbers decide a claim, the interval that decides "
        "is that of 100 - 5 / k percent; the claim holds where all do, and does not where one does not.")


# --- from claim to row ------------------------------------------------------------------------------------------------

def summary(label, rows):
    """A setting's line: pictures, share named right, means of the measures; each with a 95% interval over features."""
    out = {"setting": label, "pictures": len(rows)}
    for measure in ("right", "activation", "lost", "high", "odd"):
        told = mean("", [*by_feature(rows, measure).values()]).told(1)
        out[measure] = {"number": told["number"], "interval": told["interval"]}
    return out


def verdict(parts):
    """A claim's, from its deciding parts' as JSON values."""
    said = [p["verdict"] for p in parts if p["deciding"]]
    return "does not" if "does not" in said else "holds" if said and {*said} == {"holds"} else "not decided here"


def row_of(claim, parts, figure, rows):
    """A claim's row as JSON values."""
    deciding = sum(p.deciding for p in parts)
    told = [p.told(deciding) for p in parts]
    first = next((p for p in told if p["deciding"]), {})
    return {"claim": claim.sentence, "source": claim.source, "experiment": claim.experiment,
            "n": first.get("n", 0), "number": first.get("number"), "interval": first.get("interval"),
            "what": first.get("what"), "verdict": verdict(told), "parts": told, "figure": figure,
            "settings": [summary(label, some) for label, some in rows.items()], "not_said": claim.not_said,
            "elsewhere": claim.elsewhere}


def try_claim(lab, claim, say=lambda done: None):
    """(the claim's row, {label: rows})"""
    trial = claim.trial(lab)
    rows = {label: lab.rows(s, say) for label, s in next(trial).items()}
    try:
        trial.send(rows)
    except StopIteration as end:
        return row_of(claim, *end.value, rows), rows
    raise RuntimeError(f"{claim.name} yields twice")


def settings_of(lab, claim):
    return next(claim.trial(lab))


def compare(ours, theirs):
    """Lines that say which numbers of two runs lie outside each other's 95% intervals."""
    numbers = lambda run: {(name, p["what"]): p for name, row in run["claims"].items() for p in row["parts"] if p["n"]}
    a, b = numbers(ours), numbers(theirs)
    inside = lambda p, q: q["interval"][0] <= p["number"] <= q["interval"][1]
    both = [k for k in a if k in b and None not in (a[k]["number"], b[k]["number"])]
    out = [k for k in both if not (inside(a[k], b[k]) and inside(b[k], a[k]))]
    return [f"{len(both) - len(out)} of {len(both)} numbers lie within each other's intervals"] + [
        f"{name}, {what}: {a[name, what]['number']} and {b[name, what]['number']}" for name, what in out]


# --- command ----------------------------------------------------------------------------------------------------------

def parse(argv=None):
    parser = Parser(prog="toyworld.claims", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CLAIMS, metavar="NAME", help="of " + ", ".join(CLAIMS))
    parser.add_argument("--features", type=int, default=FEATURES, help="of each group, by lot (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help=f"pictures of each, 2 to {len(SEEDS)} (default: 2)")
    parser.add_argument("--weights", type=folder, default=Path("weights/toy"))
    parser.add_argument("--home", type=folder, default=Path("out/claims"), help="of pictures and rows")
    parser.add_argument("--docs", type=folder, default=Path("docs"), help="of claims.json, claims.md and figures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--check", action="store_true", help="say how long it would take, and stop")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="claims.json of another run: say which numbers "
                        "differ by more than their intervals, and stop")
    parser.add_argument("--plan", choices=("sd14",), help="commands and hours on a GPU for Stable Diffusion, and stop")
    parser.add_argument("--step-seconds", type=float, default=page.STEP_SECONDS, help="of --plan: one step of one "
                        "picture (default: %(default)s, computed for an H200, not measured)")
    return parser.parse_args(argv)


def open_lab(args):
    """The lab of the flags; ValueError or WeightsError for a folder that lacks something."""
    if args.features < 2 or not 2 <= args.seeds <= len(SEEDS):
        raise ValueError(f"--features must be at least 2 and --seeds between 2 and {len(SEEDS)}")
    for name in ("concepts.json", "judge/model.safetensors"):
        if not (args.weights / name).exists():
            raise WeightsError(f"--weights {args.weights}: has no {name}, which these claims need; give the folder of "
                               "a toy that toyworld.train and toyworld.evaluate made")
    model = load(args.weights, args.device)
    if not (found := profile.find(model, "out")):
        raise WeightsError(f"--weights {args.weights}: has no capture; run {full(model)}")
    stored = json.loads((args.weights / "concepts.json").read_text())
    judge = load_judge(args.weights, args.device)
    return Lab(profile.attach(model, found), judge, stored, args.features, SEEDS[:args.seeds], args.home)


def run(args):
    chosen = [CLAIMS[name] for name in args.only or CLAIMS]
    if args.plan:
        stand_in = SimpleNamespace(t=page.PLAN_TIME, model=SimpleNamespace(settings={}))
        wanted = [(c, settings_of(stand_in, c)) for c in chosen]
        pixels = any(dict(s.changes).get("space") == "pixel" for _, some in wanted for s in some.values())
        print(page.plan(wanted, args, full_size_ratio() if pixels else 1.0))
        return 0
    if args.compare:
        print(*compare(*(json.loads(path.read_text()) for path in (args.docs / "claims.json", args.compare))), sep="\n")
        return 0
    lab = open_lab(args)
    settings = [s for c in chosen for s in settings_of(lab, c).values()]
    left, done = sum(lab.count(s) for s in dict.fromkeys(settings)), [0]
    print(f"{len(chosen)} claims, {left} pictures to make, about {lab.seconds(settings) / 60:.0f} min on "
          f"{lab.model.device}; a run that was ended goes on where it was", flush=True)
    if args.check:
        return 0

    def say(n):
        done[0] += n
        print(f"\r{done[0]} of {left} pictures  ", end="", file=sys.stderr, flush=True)

    path = args.docs / "claims.json"
    made = {"weights": lab.model.name, "fingerprint": lab.fingerprint, "features": args.features,
            "seeds": [*lab.seeds], "rule": RULE}
    numbers = json.loads(path.read_text()) if path.exists() else {}
    claims = numbers.pop("claims", {}) if numbers and made.items() <= numbers.items() else {}
    for c in chosen:
        row, rows = try_claim(lab, c, say)
        claims = {name: row if name == c.name else claims[name] for name in CLAIMS if name in {*claims, c.name}}
        write_json(path, made | {"claims": claims})
        page.write_pictures(lab, c.name, rows, args.docs)
        page.write_page(json.loads(path.read_text()), args.docs)
        print(f"\r{c.name}: {row['verdict']}; {row['what']}: {row['number']} {row['interval']}, n {row['n']}")
    return 0


def main(argv=None):
    return guarded("claims", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
