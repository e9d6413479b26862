"""What a feature responds to and how strong the evidence is: read from its results, activity.json, legibility.json.

Pages show a sentence, and below it the checks that the sentence counts. A broken file counts as missing.
"""
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from results import BROKEN, read_results

AGREES = 0.9                # agreement from which pictures count as resembling the dataset images


def read_activity(folder):
    """Read a feature's activity.json (activity/analysis.py, `analysis`), without images that are gone and with
    `highest`, the peaks, the highest first; None where there is no file, or a broken one."""
    with suppress(*BROKEN):
        record = json.loads((folder / "activity.json").read_text(encoding="utf-8"))
        record["examples"] = {int(t): [e for e in found if Path(e["file"]).is_file()]
                              for t, found in record["examples"].items()}
        return SimpleNamespace(**record, highest=sorted(record["peaks"], key=lambda t: -record["profile"][t]))


def examples_at(activity, t):
    """List the dataset images at t, or where there are none those at the peaks; [] without an activity."""
    times = (t, *activity.highest) if activity else ()
    return next((activity.examples[time] for time in times if activity.examples.get(time)), [])


def gain(r, name="activation"):
    """Divide a picture's activation by the strongest dataset image's, under the same prompt; None where unknown."""
    value, most = r.scores.get(name), r.scores.get("dataset_largest")
    return value / most if most and most > 0 and value is not None else None


def ends(r):
    """{"ascent": a result, "finished": what the model made of it, where it did}, each with verdict and scores."""
    return {"ascent": r} | ({"finished": r.finished} if r.finished else {})


def groups(found):
    """Group results by time step and settings, the strongest seed first; the best (rule in words.toml) before all."""
    def reencoded(r):
        value = r.last.scores["activation_reencoded"]
        return float("-inf") if value is None else value

    def worth(r):
        strength = gain(r.last, "activation_reencoded") or 0
        return not r.recipe["differs"], r.last.verdict == "excited", min(strength, 1), r.t, reencoded(r), -r.seed

    best = max(found, key=worth)
    grouped = {best.folder: [best]}
    found = [r for r in found if r is not best]
    for r in sorted(found, key=lambda r: (bool(r.recipe["differs"]), r.t, r.folder, -reencoded(r), r.seed)):
        grouped.setdefault(r.folder, []).append(r)
    return list(grouped.values())


def study(folder):
    """Weigh a feature's results and files; None where there is no finished result.

    groups, first, activity     see `groups`; the best result, which the rest is about; see `read_activity`
    words, source               what the feature responds to, "" where nothing says so; where the words come from
    checks, count, strength     [(sentence, whether it holds)]; how many do; how strong the evidence is
    """
    found = read_results(folder)
    if not found:
        return None
    grouped, activity, seen = groups(found), read_activity(folder), {}
    concept, named = (" ".join(activity.concept), activity.label) if activity else ("", "")
    with suppress(*BROKEN):
        seen = json.loads((folder / "legibility.json").read_text(encoding="utf-8"))["groups"][grouped[0][0].folder]
    read = [word for word, _ in seen.get("words", [])[:2]]
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
    sources = {"its label": named, "the prompts of its dataset images": concept,
               "words that CLIP finds in its pictures": ", ".join(read)}
    words, source = next(((words, source) for source, words in sources.items() if words), ("", ""))
    held, most = sum(holds for _, holds in checks), len(checks)
    strength = "missing" if not words or held == 0 else "strong" if held == most else \
        "fair" if 2 * held > most else "weak"
    return SimpleNamespace(folder=folder, groups=grouped, first=grouped[0][0], activity=activity, words=words,
                           source=source, checks=checks, count=f"{held} of {most} checks hold", strength=strength)


def sentence(known, name, words):
    """Say what the feature of a study responds to and how strong the evidence is, without a full stop."""
    if not words:
        return f"No word is known for {name[0].lower() + name[1:]}"
    verb = "may respond" if known.strength in ("weak", "missing") else "responds"
    return f"{name} {verb} to {words}; the evidence is {known.strength}"


def conclusion(folder):
    known = study(folder)
    return f"{sentence(known, f'{known.first.kind.capitalize()} {known.first.target}', known.words)}: {known.count}"
