"""Which features fit a text or a picture: by the eyes (weights/eyes.py), on the dataset examples of a capture.

    python -m activity match "a photo of a tree"
    python -m activity match tree.png

    s(f) = mean over the dataset examples x of feature f, at its highest peak, of x . q         q: the text or picture
    score(f) = s(f) - mean over features of s

Every picture fits a text a little; what is left says how much better the examples of f fit it than any feature's do. A
feature without a peak, or without an example there, has no score. Beside it: the largest mean activation among those
examples, and the words that their prompts share. Nothing is optimised and no picture is made: the ascent may still find
something else, and a feature may respond to other things as well.

Axes: F features, m examples, E numbers of an embedding.
"""
import os
from dataclasses import dataclass

import torch

from activity import profile
from activity.album import read_image
from weights.configs import read_json
from weights.disk import WeightsError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Match:
    number: int                 # of the feature or channel
    score: float
    activation: float           # the largest mean activation among its examples
    words: list                 # that the prompts of its examples share
    t: int                      # its highest peak


def embed(eyes, query):
    """A text, or the path of a picture, as a unit vector (E,)."""
    if os.path.isfile(query):
        try:
            return eyes.images([read_image(query)])[0]
        except WeightsError as e:
            raise ValueError(f"match: {query} is no picture that can be read; give a PNG or JPEG, or a text") from e
    if query.lower().endswith(PICTURES):
        raise ValueError(f"match: {query}: there is no such picture; give the path of one, or a text")
    if not query.strip():
        raise ValueError("match: the text is empty; give a few words, such as \"a photo of a tree\", or a picture")
    return eyes.texts([query])[0]


def matches(album, tables, kind, query, most=10):
    """The `most` features (or channels) whose examples fit the query (E,) best, the best first: [Match]."""
    folder = album.folder
    peaks = {n: t for n in range(tables[f"share_{kind}"].shape[1])
             if (t := profile.highest_peak(tables, kind, n)) is not None}
    images, activations = profile.stored_examples(folder, kind)                                 # (N, F, m)
    rows = {t: profile.row_at(folder, t) for t in set(peaks.values())}
    found = {n: [i for i in images[rows[t], n].tolist() if i >= 0] for n, t in peaks.items()}
    found = {n: numbers for n, numbers in found.items() if numbers}
    if not found:
        raise WeightsError(f"{folder}: has no dataset examples; make the capture again")
    similar = similarities(album, found, query)
    mean = [torch.stack([similar[i] for i in numbers]).mean() for numbers in found.values()]
    score = torch.stack(mean) - torch.stack(mean).mean()                                        # (features,)
    best, known, prompts = score.topk(min(most, len(found))).indices.tolist(), [*found], prompts_of(folder)
    said = lambda n: profile.shared_words([prompts[i % len(prompts)] for i in found[n]], prompts)
    return [Match(n := known[k], score[k].item(), activations[rows[peaks[n]], n, 0].item(), said(n), peaks[n])
            for k in best]


def similarities(album, found, query):
    """{image number: how well it fits the query} of all examples."""
    numbers = sorted({i for some in found.values() for i in some})
    return dict(zip(numbers, album.vectors(numbers) @ query))


def prompts_of(folder):
    return read_json(folder / "capture.json")["recipe"]["settings"]["prompts"]


def table(found, kind):
    """Rows to print."""
    lines = [f"{kind:>8} {'score':>7} {'activation':>11}  words of its examples"]
    return lines + [f"{m.number:8d} {m.score:+7.3f} {m.activation:11.4g}  {' '.join(m.words) or '-'}" for m in found]
