"""What a feature responds to and how strong the evidence is: read from its results, activity.json, legibility.json.

Pages show a sentence, and below it the checks that the sentence counts. A broken file counts as missing.
"""
import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from results import BROKEN, read_results

AGREES = 0.9                # agreement from which pictures count as resembling the dataset images
WORDS = 2                   # words read by CLIP that a page shows


@dataclass
class Activity:
    """What a capture knows of a feature: activity.json."""
    profile: list               # share of images, at t = 0..1000, in which it is among the `top` strongest
    strength: list              # largest mean activation in any image, at t = 0..1000
    peaks: list                 # time steps
    examples: dict              # time step -> [{"file": path, "prompt", "activation"}], the strongest first
    images: int
    top: int
    concept: list               # words that the strongest images' prompts share
    label: str                  # a name that comes with the SAE, or ""
    card: dict                  # activity.analysis.card

    def highest(self):
        """List the peaks, the highest first."""
        return sorted(self.peaks, key=lambda t: -self.profile[t])

    def shown(self, t):
        """The examples at t, or where it has none those at its peaks."""
        return next(filter(None, (self.examples.get(time) for time in (t, *self.highest()))), [])


def read_activity(folder):
    """Read a feature's activity.json, without images that are gone; None where there is none, or a broken one."""
    try:
        record = json.loads((folder / "activity.json").read_text(encoding="utf-8"))
        activity = Activity(**{one.name: record[one.name] for one in fields(Activity)})
        activity.examples = {int(t): [e | {"file": Path(e["file"])} for e in found if Path(e["file"]).is_file()]
                             for t, found in activity.examples.items()}
        return activity
    except BROKEN:
        return None


def gain(r, name="activation"):
    """A picture's activation in units of the strongest dataset image's, under the same prompt; None where unknown."""
    value, most = r.scores.get(name), r.scores.get("dataset_largest")
    return value / most if most and most > 0 and value is not None else None


def groups(found):
    """Group results by time step and settings, the strongest seed first; the best (rule in words.toml) before all."""
    def reencoded(r):
        value = r.last.scores["activation_reencoded"]
        return float("-inf") if value is None else value

    def worth(r):
        strength = gain(r.last, "activation_reencoded") or 0
        return not r.recipe["differs"], r.last.verdict == "excited", min(strength, 1), r.t, reencoded(r), -r.seed

    def order(r):
        return r is not best, bool(r.recipe["differs"]), r.t, r.folder, -reencoded(r), r.seed

    best, grouped = max(found, key=worth), {}
    for r in sorted(found, key=order):
        grouped.setdefault(r.folder, []).append(r)
    return list(grouped.values())


@dataclass
class Evidence:
    """What a feature responds to, and the checks for it."""
    words: str                  # "" where there is none
    source: str                 # where the words come from
    checks: list                # [(sentence, whether it holds)]

    def __post_init__(self):
        held, most = sum(holds for _, holds in self.checks), len(self.checks)
        self.count = f"{held} of {most} checks hold"
        self.strength = "missing" if not self.words or held == 0 else "strong" if held == most else \
            "fair" if 2 * held > most else "weak"

    def sentence(self, name, words):
        """Say what the feature responds to and how strong the evidence is, without a full stop."""
        if not words:
            return f"No word is known for {name[0].lower() + name[1:]}"
        verb = "may respond" if self.strength in ("weak", "missing") else "responds"
        return f"{name} {verb} to {words}; the evidence is {self.strength}"


def study(folder, found):
    """Weigh a feature's results and files -> (groups of results, Activity or None, Evidence for the first group)."""
    grouped, activity = groups(found), read_activity(folder)
    concept, named = (" ".join(activity.concept), activity.label) if activity else ("", "")
    seen = {}
    with suppress(*BROKEN):
        seen = json.loads((folder / "legibility.json").read_text(encoding="utf-8"))["groups"][grouped[0][0].folder]
    read = [word for word, _ in seen.get("words", [])[:WORDS]]
    checks = [("Its strongest dataset images share a word.", bool(concept))] if activity else []
    for name, pictures in (("finished", [r.finished for r in grouped[0] if r.finished]), ("ascent", grouped[0])):
        good = sum(r.verdict == "excited" for r in pictures)
        if pictures:
            checks.append((f"{good} of {len(pictures)} {name} pictures excite it.", 2 * good > len(pictures)))
    if agreement := seen.get("agreement"):
        auc = agreement["auc"]
        checks.append((f"Pictures resemble its dataset images: agreement {auc:.2f}, chance 0.5.", auc >= AGREES))
    if read and concept:
        same = bool({word.lower() for word in read} & set(concept.lower().split()))
        checks.append((f"CLIP reads in the pictures: {', '.join(read)}.", same))
    known = ((named, "its label"), (concept, "the prompts of its dataset images"),
             (", ".join(read), "words that CLIP finds in its pictures"))
    return grouped, activity, Evidence(*next((pair for pair in known if pair[0]), ("", "")), checks)


def conclusion(folder):
    """Say in one line what a feature's results and capture suggest, and how surely."""
    ((first, *_), *_), _, evidence = study(folder, read_results(folder))
    return f"{evidence.sentence(f'{first.kind.capitalize()} {first.target}', evidence.words)}: {evidence.count}"
