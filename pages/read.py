"""Results on disk, read and checked: what the sheet, the page and the atlas show of them.

Reads what files.py wrote and nothing else. A file that is broken, or no result, is left out; so is a picture that lies
neither among the results nor among the weights, whatever a record says of it.
"""
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open

from pages.files import CURVES, entry, read_without

PROJECT = Path(__file__).resolve().parent.parent
BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError,
          SyntaxError, SafetensorError)         # SyntaxError is Pillow's
NUMBERS_ALONE = CURVES + entry("others", "[]", 1, 2) + entry("config", "{}", 2) + entry("fingerprints", "{}", 2)
SCORES = {"activation_start": "at the start", "activation": "at the end", "activation_no_noise": "without noise",
          "activation_reencoded": "decoded and encoded", "rank": "rank"}

# the measures of legibility.json that pages show, of either kind of pictures: those that tell something of what the
# toy's judge says (docs/measured.md, "Legibility"); sameness of the own examples and the margin of the name do not
PROVEN = {"finished": ("agreement", "seeds", "name"), "ascent": ()}


@dataclass
class Found:
    """A result on disk; what a record of an older version does not hold is empty."""
    path: Path                  # of the ascent's picture
    t: int
    seed: int
    recipe: dict
    verdict: str
    scores: dict                # name -> number, None where it was not finite
    history: dict               # name -> one number a step
    others: list                # [[index, activation]] of what the picture excites most beside the target
    heat: list                  # h x w activation of the target at each hook position
    steps: list                 # after how many steps a picture was kept
    strip: Path | None          # of these pictures, side by side
    nearest_channel: int | None
    finished: "Found | None" = None     # what the model made of it: picture, verdict, scores, history, others, heat
    sha256: str = ""            # of the picture, as the record says

    @property
    def last(self):
        """What is shown first: the finished picture and its numbers, or the ascent's where there is none."""
        return self.finished or self

    @property
    def folder(self):
        """Of its time step and settings: t0600, or t0600-1a2b3c4d."""
        return self.path.parent.name

    @property
    def kind(self):
        return "channel" if self.recipe["job"]["feature"] is None else "feature"

    @property
    def target(self):
        return self.recipe["job"][self.kind]

    @property
    def sampled(self):
        """Whether the first of the kept pictures is a sample that was pulled towards the target: steered, guided."""
        return self.strip is not None and self.recipe["config"].get("prior") in ("steer", "guided")

    def frame(self, k):
        """The k-th of the kept pictures."""
        with Image.open(self.strip) as strip:
            width = strip.width // len(self.steps)
            return strip.crop((k * width, 0, (k + 1) * width, strip.height)).convert("RGB")

    def trace(self):
        """The page of the trace that lies beside it, or None; one of other settings is none of this result."""
        page = self.path.with_name(f"{self.path.stem}_trace") / "trace.html"
        made = [attempt(traced_recipe, path) for path in page.parent.glob("step_*.safetensors")]
        return page if page.exists() and made and all(recipe == self.recipe for recipe in made) else None


def attempt(read, path, broken=None):
    """What `read` makes of a file; None where it cannot, and then the file is among the broken."""
    try:
        return read(path)
    except BROKEN:
        if broken is not None:
            broken.append(path)
        return None


def traced_recipe(path):
    """The recipe that a step's file of a trace names (trace.py)."""
    with safe_open(path, framework="numpy") as file:
        recipe = json.loads(file.metadata()["featviz"])
    del recipe["step"]
    return recipe


def number(value):
    return None if value is None else float(value)


def numbers(values):
    return [None if v is None else float(v) for v in values]


def read_record(path, without=()):
    """One record, checked, its pictures not yet; raises one of BROKEN for what is no result. `without`: what of it need
    not be read, as NUMBERS_ALONE."""
    record = read_without(path, without)
    job, nearest = record["recipe"]["job"], record.get("nearest_channel")
    if job["feature"] is None and job["channel"] is None:
        raise ValueError("no result")
    if path.parent.name.partition("-")[0] != f"t{int(job['timestep']):04d}" or path.stem != f"seed_{int(job['seed'])}":
        raise ValueError("not the result of this time step and seed")
    found = read_picture(path.with_suffix(".png"), record["recipe"], record)
    found.steps = [int(n) for n in record.get("stored_steps", [])]
    found.strip = path.with_suffix(".steps.jpg") if found.steps else None
    found.nearest_channel = None if nearest is None else int(nearest)
    hashes = record.get("sha256", {})
    found.sha256 = str(hashes.get(".png", ""))
    if record.get("finished"):
        found.finished = read_picture(path.with_suffix(".finished.png"), record["recipe"], record["finished"])
        found.finished.sha256 = str(hashes.get(".finished.png", ""))
    return found


def read_picture(path, recipe, said):
    """What a record says of one of its pictures."""
    if not isinstance(said["verdict"], str):
        raise ValueError("no verdict")
    return Found(path, int(recipe["job"]["timestep"]), int(recipe["job"]["seed"]),
                 {"config": {}, "fingerprints": {}} | recipe, said["verdict"],
                 dict.fromkeys(SCORES) | {name: number(value) for name, value in said["scores"].items()},
                 {name: numbers(values) for name, values in said.get("history", {}).items()},
                 [(int(i), number(a)) for i, a in said.get("others", [])],
                 [numbers(row) for row in said.get("heat", [])], [], None, None)


def read_result(path):
    """One record with its pictures, checked; raises one of BROKEN for what is no result."""
    found = read_record(path)
    for file in filter(None, (found.path, found.finished and found.finished.path, found.strip)):
        with Image.open(file) as image:
            image.load()
    if image.width < len(found.steps):
        raise ValueError("fewer pixels than pictures")
    return found


def read_results(folder):
    """The results below a feature's folder, by time step, settings (the usual ones first) and seed."""
    found = (attempt(read_result, path) for path in Path(folder).glob("t*/seed_*.json"))
    return sorted(filter(None, found), key=lambda r: (r.t, r.folder, r.seed))


def read_activity(folder, examples=True, broken=None):
    """activity.json, checked: what is known of the feature's activity in a dataset; None where nothing is. Without
    `examples` no picture is opened."""
    def read(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        curves = {name: list(map(float, record[name])) for name in ("profile", "largest")}
        peaks = [int(t) for t in record["peaks"]]
        if not all(0 <= t < len(curve) > 1 for curve in curves.values() for t in [0, *peaks]):
            raise ValueError("no curve over the time steps")
        shown = {int(t): [{"activation": float(e["activation"]), "prompt": str(e["prompt"]),
                           "file": find_image(folder, e["file"])} for e in found]
                 for t, found in (record["examples"] if examples else {}).items()}
        return curves | {"examples": shown, "peaks": peaks, "images": int(record["images"]),
                         "concept": [str(word) for word in record.get("concept", [])],
                         "ever_among_the_top": bool(record["ever_among_the_top"])}
    path = Path(folder) / "activity.json"
    return attempt(read, path, broken) if path.exists() else None


def shown(found):
    """{name: hash} of the pictures that a page shows of these results, by which measures of them are known to fit."""
    return {f"{r.folder}/{r.last.path.name}": r.last.sha256 for r in found}


def read_legibility(folder, found, broken=None):
    """{folder of time step and settings: its measures} of legibility.json (measure.py), checked; without those that
    speak of other pictures than are shown of these results, and without measures that predict nothing (PROVEN)."""
    def read(path):
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        fits = lambda name, group: group["pictures"] == shown(r for r in found if r.folder == name)
        return {str(name): proven(group) for name, group in groups.items() if fits(name, group)}
    path = Path(folder) / "legibility.json"
    return attempt(read, path, broken) or {} if path.exists() else {}


def proven(group):
    """Of one group's measures those to show, as plain numbers and words."""
    kind = "finished" if all(name.endswith(".finished.png") for name in group["pictures"]) else "ascent"
    plain = {"agreement": {"auc": float, "rank": int, "of": int}, "seeds": {"alike": int, "of": int},
             "name": {"words": lambda words: [(str(word), float(score)) for word, score in words]}}
    return {name: {key: read(group[name][key]) for key, read in plain[name].items()} for name in PROVEN[kind]
            if name in group}


def find_image(folder, file):
    """Where a dataset image lies now: as written down, or beside the folder when all was moved; None if it cannot be
    opened, or lies neither among the results, nor in the capture beside them, nor in the project's weights."""
    results = Path(folder).resolve().parent
    rooms = [room.resolve() for room in (results, results / "activity", PROJECT / "weights")]
    for path in (Path(file), results / "activity" / "images" / Path(file).name):
        if any(path.resolve().is_relative_to(room) for room in rooms) and attempt(load, path):
            return path
    return None


def load(path):
    with Image.open(path) as image:
        return image.load()


def in_units(value, t, activity):
    """An activation in units of the strongest dataset image's at this time step; None where one is not known or 0."""
    most = activity["largest"][t] if activity and t < len(activity["largest"]) else 0
    return value / most if most > 0 and value is not None else None


def gain(result, activity):
    """What a picture reached, in these units."""
    return in_units(result.scores["activation"], result.t, activity)


def reencoded(r):
    """What the rule goes by: the activation of the picture to look at, decoded and encoded again."""
    value = r.last.scores["activation_reencoded"]
    return float("-inf") if value is None else value


def by_rule(found):
    """Results of one time step in the order in which they are shown: first the seed whose picture excites most."""
    return sorted(found, key=lambda r: (-reencoded(r), r.seed))


def rows_of(found):
    """Results of one time step as rows side by side: one for each settings, the usual ones first. The rule orders the
    seeds of the first row, and the others keep that order, so that equal starts compare."""
    rows = {}
    for r in found:
        rows.setdefault(r.folder, []).append(r)
    place = {r.seed: i for i, r in enumerate(by_rule(next(iter(rows.values()), [])))}
    return [sorted(row, key=lambda r: place.get(r.seed, len(place))) for row in rows.values()]


def best(found, activity):
    """The result to show first (words.RULE says it on the page): of those with usual settings, where there are any, the
    one whose picture, decoded and encoded again, excites the feature most, in units of the strongest dataset image at
    its time step. Where several time steps have a picture that reaches 1, the one with the most noise counts: it leaves
    no fine texture to lean on."""
    def order(r):
        strength = in_units(reencoded(r), r.t, activity)
        strength = float("-inf") if strength is None else strength
        return not r.recipe.get("differs"), r.t if strength >= 1 else -1, strength, reencoded(r)
    return max(found, key=order)


def short(value):
    """A number to read."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
