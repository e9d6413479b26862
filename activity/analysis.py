"""Say what a capture knows of a feature: its card, activity.json for its page, and the feature of a word.

For a word w, over the images whose prompts name it and all sampling steps:

    share_w(f) = mean activation of f / the sum of that over all features
    score_w(f) = share_w(f) - share of f over the images that name another of the words, and not w

Source: EIDOSLAB/SAEmnesia, which scores an object's features so at a time step.

Axes: F features, D channels, width = F or D, W words, P prompts.
"""
import re
from collections import Counter

import torch
from torch.nn.functional import normalize

from activity.profile import image_path
from results import to_json, write
from weights.load import open_tensors

SHARED, LEAST = 0.8, 3      # of the examples, and at least three, share a word where it names the feature (ours)
NEAREST, BAR = 5, 40        # features listed on a card; characters of the longest bar


def shared_words(prompts, everything):
    """List the words that SHARED of the examples' prompts hold and fewer than half of all; may be none (ours)."""
    held, common = (Counter(word for prompt in group for word in dict.fromkeys(re.findall(r"[^\W\d_]+", prompt)))
                    for group in (prompts, everything))
    needed = max(SHARED * len(prompts), LEAST)
    return [w for w, n in held.items() if n >= needed and common[w] < 0.5 * len(everything)]


def highest(values, n):
    """List the NEAREST largest of values (F,) but the n-th: [(number, value)], of equals the earlier first."""
    order = values.argsort(descending=True, stable=True)[:NEAREST + 1].tolist()
    return [(i, values[i].item()) for i in order if i != n][:NEAREST]


def card(model, kind, n):
    """Collect what is known of a feature or channel before any ascent, as JSON values.

    histogram  [(from, to, images)] by an image's largest mean activation, 0 first; `active`: images above 0
    largest    mean activation in any image, at the sampling step `timestep`; `gated`: what the SAE's gate leaves of it
    nearest    [(feature, cosine of the decoder rows)]
    together   [(number, how many of its `examples` strongest images at `timestep` are also among that one's)]
    """
    capture, tables, gated, nearest = model.capture, model.capture.tables, None, []
    most = tables[f"max_{kind}"][:, n]                                                          # (N,)
    row, counts = int(most.argmax()), tables[f"histogram_{kind}"][n].int().tolist()
    t, filled = int(tables["timesteps"][row]), [i for i, count in enumerate(counts) if count and i] or [0]
    histogram = [(0.0, 0.0, counts[0])] + [(2.0 ** (i - 13) * (i > 1), 2.0 ** (i - 12), counts[i])
                                           for i in range(max(filled[0], 1), filled[-1] + 1)]
    if kind == "feature":
        rows = normalize(model.sae.W_dec.float(), dim=1)                    # (F, D)
        gated, nearest = tables["max_gated"][row, n].item(), highest(rows @ rows[n], n)
    image, _ = capture.stored_examples(kind, t)                                                 # (width, EXAMPLES)
    mine = image[n][image[n] >= 0]
    together = [(i, count) for i, count in highest(torch.isin(image, mine).sum(dim=1), n) if count]
    return {"images": capture.images, "active": capture.images - counts[0], "histogram": histogram,
            "alive": bool(most.max() > 0), "timestep": t, "largest": most[row].item(), "gated": gated,
            "nearest": nearest, "examples": len(mine), "together": together}


def dead_line(capture, kind, numbers):
    """Return one line that names the features which are never active in the capture, "" without one."""
    dead = sorted(set(numbers) - set(capture.live(kind))) if kind == "feature" else []
    named = ", ".join(map(str, dead[:10])) + f" and {len(dead) - 10} more" * (len(dead) > 10)
    return f"dead: feature {named}, active in none of the capture's {capture.images} images" if dead else ""


def analysis(model, kind, n, also=()):
    """Collect card, curves at t = 0..1000, peaks, and examples there and at the time steps `also`, as JSON values."""
    capture, peaks = model.capture, model.capture.peaks(kind, n)
    examples = {t: [{"image": i, "activation": a, "prompt": capture.prompt(i),
                     "file": str(image_path(capture.folder, i))} for i, a in capture.examples(kind, n, t)]
                for t in sorted({*peaks, *also})}
    strongest = [example["prompt"] for example in examples.get(capture.highest_peak(kind, n), ())]
    return {"images": capture.images, "top": capture.top, "concept": shared_words(strongest, capture.prompts),
            "peaks": peaks, "examples": examples, "profile": capture.profile(kind, n).round(6).tolist(),
            "strength": [round(v, 6) for v in capture.strength(kind, n, "all").tolist()],
            "label": model.labels.get(n, "") if kind == "feature" else "", "card": card(model, kind, n)}


def lines(kind, n, record):
    """Yield the lines of what `analysis` returned."""
    known = record["card"]
    yield f"{kind} {n}" + f", {record['label']}" * bool(record["label"])
    yield (f"  largest mean activation {known['largest']:.4g}, at t {known['timestep']}"
           + (f"; {known['gated']:.4g} after the SAE's gate" if known["gated"] is not None else ""))
    yield f"  active in {known['active']} of {known['images']} images; images by their largest mean activation:"
    for low, high, count in known["histogram"]:
        said, bar = f"{low:.3g} to {high:.3g}" if high else "0", "#" * round(BAR * count / known["images"])
        yield f"  {said:>18} {count:6d} {bar}".rstrip()
    yield "  nearest decoder rows: " + ", ".join(f"{i} (cosine {cosine:.2f})" for i, cosine in known["nearest"])
    yield (f"  active together in its {known['examples']} strongest images at t {known['timestep']}: "
           + ", ".join(f"{i} (in {count})" for i, count in known["together"]))
    yield f"  active at {sum(share > 0 for share in record['profile'])} of 1001 time steps, peaks at {record['peaks']}"
    for t, examples in record["examples"].items():
        for one in examples[:3]:
            yield f"  t {t}: activation {one['activation']:.4f}, image {one['image']}: {one['prompt']}"


def save_activity(folder, record):
    """Write what `analysis` returned to activity.json in a feature's folder; return its path."""
    write(folder / "activity.json", to_json(record, indent=1))
    return folder / "activity.json"


def find_labels(capture, words):
    """Find the feature of each word in a capture; ValueError for a word that no prompt names, or that is alone."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words]
    named = torch.tensor([[bool(p.search(prompt)) for prompt in capture.prompts] for p in patterns])        # (W, P)
    missing = [word for word, row in zip(words, named) if not row.any()]
    if len(words) < 2 or missing:
        raise ValueError(f"{', '.join(missing) or words[0]}: a word needs prompts that name it, and other words to "
                         f"compare with; give at least two, spelled as in the capture's {capture.prompts[0]!r}")
    with open_tensors(capture.folder / "prompts.safetensors") as file:
        mean = file.get_tensor("mean_feature")                  # (P, F)
    others = named.any(dim=0) & ~named                          # (W, P): they name another word, and not this one
    sums = torch.stack([named, others]).to(mean) @ mean                                                     # (2, W, F)
    shares = sums / sums.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(sums.dtype).tiny)
    best = (shares[0] - shares[1]).topk(2)
    return [{"word": word, "feature": first, "score": score, "runner_up": second, "runner_up_score": second_score,
             "prompts": prompts} for word, prompts, (first, second), (score, second_score) in zip(
                 words, named.sum(dim=1).tolist(), best.indices.tolist(), best.values.tolist())]


def save_labels(path, labels):
    """Write labels.json, {feature: its label}; of two words with one feature the higher score is kept."""
    record = {label["feature"]: label for label in sorted(labels, key=lambda label: label["score"])}
    write(path, to_json(record, indent=1))
