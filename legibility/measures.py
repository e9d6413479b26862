"""How well a feature's pictures can be read, where nobody knows what they should show: three measures on embeddings.

    agreement   do the pictures look like the feature's own dataset examples rather than like other features'?
    sameness    do the images that excite the feature, or its pictures from several seeds, show one thing?
    name        which words fit the pictures best, and by how much better than the next?

An embedding is what a model that compares images and texts makes of either: a vector of length 1. Such a model, the
eyes, is not known here (weights/eyes.py loads it). What each measure is worth was tested where the truth is known, on
the toy: `python -m toyworld.evaluate_legibility`, and docs/measured.md, "Legibility".

Sources
 [1] Pach et al., "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models", arXiv 2504.02821: the
     monosemanticity score, compared with what people say in a large study
 [2] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020: words
     for pictures by cosine similarity (CLIP)
 [3] Mann & Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other", 1947
Agreement, the mean picture that is taken away and the margin are ours.

Axes: n pictures, m examples, E numbers of an embedding, W words.
"""
from pathlib import Path

import torch

WORDS = Path(__file__).parent / "weights/clip/words.txt"


def auc(above, below):
    """P(a > b) + P(a = b) / 2 for a drawn from `above` (n,) and b from `below` (m,): 0.5 is chance, 1 is perfect [3].
    """
    order = torch.as_tensor(below, dtype=torch.float64).sort().values
    values = torch.as_tensor(above, dtype=torch.float64)
    if not len(order) or not len(values):
        raise ValueError("auc: expected at least one number on each side")
    smaller, not_larger = (torch.searchsorted(order, values, right=right) for right in (False, True))
    return ((smaller + not_larger).double().mean() / (2 * len(order))).item()


def agreement(pictures, own, others):
    """Pictures (n, E), the feature's own examples (m, E), those of other features [(m_i, E), ...] -> auc, rank, of.

        s(x) = mean over pictures p of p . x            how much example x looks like the pictures
        auc  = P(s(own example) > s(another feature's example)), equals count half
        rank = 1 + the number of others whose mean s is above the own mean s; `of` counts the own among them

    Chance is an auc of 0.5 and a rank in the middle. Several features may show one thing: then neither can be perfect.
    """
    mean = pictures.mean(0)                                                                     # (E,)
    mine, theirs = own @ mean, [examples @ mean for examples in others]
    rank = 1 + sum(bool(s.mean() > mine.mean()) for s in theirs)
    return {"auc": auc(mine, torch.cat(theirs)), "rank": rank, "of": 1 + len(others)}


def sameness(embeddings, weights=None):
    """Monosemanticity score [1]: mean similarity of pairs of images (n, E), weighted by the activations `weights` (n,).

        sum over i != j of a_i a_j e_i . e_j            |sum of a_i e_i|^2 - sum of a_i^2
        ------------------------------------     =      ---------------------------------         as |e_i| = 1
        sum over i != j of a_i a_j                      (sum of a_i)^2     - sum of a_i^2

    1: all alike. What differing images have depends on the eyes, so compare within one model and its eyes. [1] maps
    the activations of a whole data set to [0, 1] first; where the smallest is 0, as a feature's is, nothing changes:
    a factor cancels. Without weights all count alike. [1] takes all images; with a feature's strongest alone the score
    is higher than over all.
    """
    e = torch.as_tensor(embeddings).double()                                                    # (n, E)
    a = torch.ones(len(e), dtype=torch.float64) if weights is None else torch.as_tensor(weights).double()
    if (a < 0).any() or (a > 0).sum() < 2:
        raise ValueError("sameness: expected at least two images with a weight above 0, and none below")
    squares = a.square().sum()
    return (((a @ e).square().sum() - squares) / (a.sum().square() - squares)).item()


def name(pictures, mean, words, embeddings, top=3):
    """The `top` words for pictures (n, E): ([(word, score), ...], margin), the best first.

        d = mean of the pictures - `mean`               what sets them apart from the mean picture (E,) of many features
        score(w) = d . e_w / |d|                        e_w: the embedding of word w, a row of `embeddings` (W, E)
        margin = score of the first - score of the second

    What all pictures have in common, "a picture", would otherwise be the nearest word of all. What all words have in
    common adds the same to every score, and changes neither their order nor the margin. A suggestion, not the truth:
    the nearest of bad words is a word, too.
    """
    d = pictures.mean(0) - mean
    scores = embeddings @ (d / d.norm().clamp(min=1e-12))                                       # (W,)
    best = scores.topk(min(max(top, 2), len(words)))
    found = [(words[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist())]
    return found[:top], found[0][1] - found[1][1]


def vocabulary(path=WORDS):
    """{word: the text that stands for it} of a list of words: one a line, below headings `# group: text with {}`."""
    found, template = {}, "{}"
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            template = line.partition(": ")[2] or "{}"
        elif line.strip():
            found[line.strip()] = template.format(line.strip())
    return found
