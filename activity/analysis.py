"""What a capture says of one feature, as a record for its page: activity.json."""
import json
import re
from collections import Counter
from dataclasses import asdict

from activity.card import card
from activity.profile import DISTANCE, PEAKS, image_path
from results import write

SHARED = 0.8                # of the examples must have a word in common for it to name the feature (ours)


def words_of(prompt):
    """List the words of a prompt, each once."""
    return dict.fromkeys(re.findall(r"[^\W\d_]+", prompt))


def shared_words(prompts, everything):
    """List the words that SHARED of the examples' prompts hold and fewer than half of all; may be none (ours)."""
    held, common = (Counter(w for prompt in group for w in words_of(prompt)) for group in (prompts, everything))
    return [w for w, n in held.items() if n >= SHARED * len(prompts) and common[w] < 0.5 * len(everything)]


def rounded(curve):
    """A curve as a list of JSON numbers; None stays None."""
    return None if curve is None else [round(v, 6) for v in curve.tolist()]


def analysis(model, kind, n, also=()):
    """Collect what the model's capture says of a feature or channel, as JSON values: curves at t = 0..1000, peaks,
    dataset examples at each peak and at the time steps in `also`.

    largest    under the empty prompt, with which results are compared; None where the capture lacks it
    strength   under the images' prompts, in all of the sampled range
    card       see card.py
    """
    capture, known = model.capture, card(model, kind, n)
    curve, peaks = capture.profile(kind, n), capture.peaks(kind, n)
    examples = {t: [{"image": i, "activation": a, "prompt": capture.prompt(i),
                     "file": str(image_path(capture.folder, i))} for i, a in capture.examples(kind, n, t)]
                for t in sorted({*peaks, *also})}
    strongest = examples[max(peaks, key=lambda t: curve[t])] if peaks else []
    concept = shared_words([e["prompt"] for e in strongest], capture.prompts) if strongest else []
    return {kind: n, "weights": model.name, "images": capture.images, "concept": concept, "top": capture.top,
            "halves": capture.settings.get("halves", "conditional"), "distance": DISTANCE, "most_peaks": PEAKS,
            "ever_among_the_top": bool(curve.any()), "active": int((curve > 0).sum()), "peaks": peaks,
            "examples": examples, "profile": rounded(curve), "largest": rounded(capture.largest(kind, n)),
            "strength": rounded(capture.strength(kind, n, "all")), "label": known.label, "card": asdict(known)}


def save_activity(folder, record):
    """Write the record to activity.json in a feature's folder; returns its path."""
    write(folder / "activity.json", json.dumps(record, indent=1).encode() + b"\n")
    return folder / "activity.json"
