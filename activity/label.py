"""Find the feature that stands for each of some words, and write them to the SAE's labels.json.

For a word w, over the images whose prompts name it and all sampling steps:

    share_w(f) = mean activation of f / the sum of that over all features
    score_w(f) = share_w(f) - share of f over the images that name another of the words, and not w

The feature with the largest score is the word's. The runner-up shows how far the word has only one feature.
Source: SAEmnesia's code (EIDOSLAB/SAEmnesia), which scores an object's features so at a time step.

Axes: W words, P prompts, F features.
"""
import json
import re
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from results import write
from weights.load import WeightsError


@dataclass(frozen=True)
class Label:
    """A word, its feature, and the feature that came second."""
    word: str
    feature: int
    score: float
    runner_up: int
    runner_up_score: float
    prompts: int                # that name the word


def naming(prompts, words):
    """Mark which prompts name which words, as whole words in any case: (W, P) bool."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words]
    return torch.tensor([[bool(pattern.search(prompt)) for prompt in prompts] for pattern in patterns])


def shares(mean, named):
    """Sum mean activations (P, F) over the prompts that are `named` (W, P), and divide by the sum: (W, F)."""
    sums = named.to(mean) @ mean
    return sums / sums.sum(dim=1, keepdim=True).clamp_min(torch.finfo(sums.dtype).tiny)


def find_labels(capture, words):
    """Find the Label of each word in a capture, in the order of the words."""
    path, named = capture.folder / "prompts.safetensors", naming(capture.prompts, words)
    if unnamed := [word for word, row in zip(words, named) if not row.any()]:
        raise ValueError(f"no prompt of {capture.folder} names {unnamed[0]!r}; spell it as the prompts do, such as "
                         f"{capture.prompts[0]!r}")
    if len(words) < 2:
        raise ValueError("a word is compared with the others: give at least two")
    try:
        mean = load_file(path)["mean_feature"]
    except (OSError, SafetensorError, KeyError) as e:
        raise WeightsError(f"{path}: cannot be read ({e}); make the capture again, of fewer prompts where it was not "
                           "written") from e
    others = named.any(dim=0) & ~named                          # (W, P): they name another word, and not this one
    best = (shares(mean, named) - shares(mean, others)).topk(2, dim=1)
    return [Label(word, *(x for pair in zip(numbers, values) for x in pair), int(row.sum()))
            for word, numbers, values, row in zip(words, best.indices.tolist(), best.values.tolist(), named)]


def save_labels(path, labels):
    """Write labels.json, {feature: {"word", "score", ...}}; of two words with one feature the higher score is kept."""
    kept = {label.feature: label for label in sorted(labels, key=lambda label: label.score)}
    record = {str(n): {k: v for k, v in asdict(label).items() if k != "feature"} for n, label in sorted(kept.items())}
    write(path, json.dumps(record, indent=1).encode() + b"\n")
    return [label for label in labels if label not in kept.values()]
