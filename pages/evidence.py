"""What a feature responds to and how strong the evidence is: read from its results, activity.json, legibility.json.

Pages show a sentence, and below it the checks that the sentence counts. Nothing here runs a model. A broken file counts
as missing.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

from results import BROKEN, read_results

PROJECT = Path(__file__).resolve().parent.parent
AGREES = 0.9                # agreement from which pictures count as resembling the dataset images
WORDS = 2                   # words read by CLIP that a page shows


@dataclass
class Example:
    """One dataset image."""
    file: Path
    prompt: str
    activation: float


@dataclass
class Activity:
    """What a capture knows of a feature: activity.json."""
    profile: list               # share of images, at t = 0..1000, in which it is among the `top` strongest
    strength: list              # largest mean activation in any image, at t = 0..1000
    peaks: list                 # time steps
    examples: dict              # time step -> [Example], the strongest first
    images: int
    top: int
    concept: list = field(default_factory=list)     # words that the strongest images' prompts share
    label: str = ""                                 # a name that comes with the SAE
    card: dict = field(default_factory=dict)

    @property
    def active(self):
        """Whether it is ever among the strongest."""
        return any(self.profile)

    @property
    def peak(self):
        """The time step of its highest peak, or None."""
        return max(self.peaks, key=lambda t: self.profile[t], default=None)

    def shown(self, t):
        """The examples at t, or where it has none those at its peaks."""
        order = [t, *sorted(self.peaks, key=lambda peak: -self.profile[peak])]
        return next((self.examples[time] for time in order if self.examples.get(time)), [])


def read_activity(folder):
    """Read a feature's activity.json; None where there is none, or a broken one."""
    try:
        record = json.loads((folder / "activity.json").read_text(encoding="utf-8"))
        examples = {}
        for t, found in record["examples"].items():
            seen = [Example(find_image(folder, e["file"]), e["prompt"], e["activation"]) for e in found]
            examples[int(t)] = [example for example in seen if example.file]
        return Activity(record["profile"], record["strength"], record["peaks"], examples, record["images"],
                        record["top"], record["concept"], record.get("label", ""), record.get("card", {}))
    except (*BROKEN, TypeError, AttributeError):                # JSON of another shape
        return None


def find_image(folder, file):
    """Find a dataset image: as written down, or beside the folder when all was moved; None outside those places."""
    results = Path(folder).resolve().parent
    allowed = (results, PROJECT / "weights")
    for path in (Path(file), *results.glob(f"activity*/images/{Path(file).name}")):
        if path.is_file() and any(path.resolve().is_relative_to(room) for room in allowed):
            return path
    return None


def read_legibility(folder):
    """Read {folder of time step and settings: {"words", "agreement"}} of legibility.json; empty where unknown."""
    try:
        return json.loads((folder / "legibility.json").read_text(encoding="utf-8"))["groups"]
    except BROKEN:
        return {}


# --- which picture comes first ----------------------------------------------------------------------------------------

def gain(r, name="activation"):
    """A picture's activation in units of the strongest dataset image's, under the same prompt; None where unknown."""
    value, most = r.scores.get(name), r.scores.get("dataset_largest")
    return value / most if most and most > 0 and value is not None else None


def reencoded(r):
    """The activation of the picture to look at, decoded and encoded again."""
    value = r.last.scores.get("activation_reencoded")
    return float("-inf") if value is None else value


def best(found):
    """Choose the result to show first (words.RULE explains it): usual settings, excited, strong, then much noise."""
    def order(r):
        strength = gain(r.last, "activation_reencoded") or 0
        return not r.recipe["differs"], r.last.verdict == "excited", min(strength, 1), r.t, reencoded(r), -r.seed
    return max(found, key=order)


def groups(found):
    """Results by folder of time step and settings, each group's strongest seed first; the best comes first of all."""
    chosen, first = {}, best(found)
    order = sorted(found, key=lambda r: (bool(r.recipe["differs"]), r.t, r.folder, -reencoded(r), r.seed))
    for r in (first, *(r for r in order if r is not first)):
        chosen.setdefault(r.folder, []).append(r)
    return list(chosen.values())


# --- the sentence and its checks --------------------------------------------------------------------------------------

@dataclass
class Evidence:
    """What a feature responds to, and the checks for it."""
    words: str                  # "" where there is none
    source: str                 # where the words come from
    checks: list                # [(sentence, whether it holds)]

    @property
    def held(self):
        return sum(holds for _, holds in self.checks)

    @property
    def strength(self):
        if not self.words or self.held == 0:
            return "missing"
        return "strong" if self.held == len(self.checks) else "fair" if 2 * self.held > len(self.checks) else "weak"

    @property
    def count(self):
        return f"{self.held} of {len(self.checks)} checks hold"

    def sentence(self, name, words=""):
        """Say what the feature responds to and how strong the evidence is, without a full stop."""
        if not self.words:
            return f"No word is known for {name[0].lower() + name[1:]}"
        verb = "may respond" if self.strength in ("weak", "missing") else "responds"
        return f"{name} {verb} to {words or self.words}; the evidence is {self.strength}"


def conclusion(folder):
    """Say in one line what a feature's results and capture suggest, and how surely."""
    (first, *_), _, evidence = study(folder)
    return f"{evidence.sentence(f'{first.kind.capitalize()} {first.target}')}: {evidence.count}"


def study(folder, found=None):
    """Read a feature's folder -> (results of the group to show first, Activity or None, Evidence)."""
    group, activity = groups(found or read_results(folder))[0], read_activity(folder)
    return group, activity, weigh(group, activity, read_legibility(folder).get(group[0].folder, {}))


def weigh(group, activity, seen):
    """Judge a group of results -> Evidence; `seen`: the group's entry of legibility.json."""
    concept = " ".join(activity.concept) if activity else ""
    read = [word for word, _ in seen.get("words", [])[:WORDS]]
    known = ((activity.label if activity else "", "its label"), (concept, "the prompts of its dataset images"),
             (", ".join(read), "words that CLIP finds in its pictures"))
    words, source = next((pair for pair in known if pair[0]), ("", ""))
    checks = [("Its strongest dataset images share a word.", bool(concept))] if activity else []
    for name, pictures in (("finished", [r.finished for r in group if r.finished]), ("ascent", group)):
        good = sum(r.verdict == "excited" for r in pictures)
        if pictures:
            checks.append((f"{good} of {len(pictures)} {name} pictures excite it.", 2 * good > len(pictures)))
    if agreement := seen.get("agreement"):
        auc = agreement["auc"]
        checks.append((f"Pictures resemble its dataset images: agreement {auc:.2f}, chance 0.5.", auc >= AGREES))
    if read and concept:
        same = bool({word.lower() for word in read} & set(concept.lower().split()))
        checks.append((f"CLIP reads in the pictures: {', '.join(read)}.", same))
    return Evidence(words, source, checks)
