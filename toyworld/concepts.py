"""Find the meaning of a feature: what the artworks that excite it most have in common, by rule.

Every artwork counts once: its score is the mean of the direction's activation over places, backgrounds, shifts and
noises, seen with the empty prompt, at the time step where the direction is strongest. A direction means a content (a
name, a subgroup, a group, a house, a colour, or two of these) if

    of its K strongest artworks half share it, or three where it is a name, which four artworks have, and
    more of them share it than of any of NULL random directions: in a world full of faces, a face needs more artworks.

Where several contents pass, the one of the largest surprise is the meaning:

    surprise = -log10( C P(Binomial(K, p) >= n) ),   C contents of that kind, n of K artworks share this one, p of all

A direction whose scores differ by background more than those of 99% of random directions means its background. What
chance gives is counted on HELD random directions that set no bound.
"""
import itertools
import math
from collections import Counter

import torch
import torch.nn.functional as F

from steering import read_hook
from toyworld import drawings

K = 16                                                      # strongest artworks that are compared
TIMES = (100, 300, 500, 700, 900)
NOISES = 2                                                  # of each artwork on each background, at each time step
TOGETHER = 18                                               # artworks of a batch
NULL, HELD = 8_192, 4_096                                   # random directions
PAIRED = {("subgroup", "colour"), ("house", "subgroup"), ("house", "group"), ("house", "colour"), ("group", "colour")}


@torch.no_grad()
def activity(model, artworks):
    """Compute scores of features (times, A, G, F) and channels (times, A, G, D): A artworks on G backgrounds."""
    G, generator, out = len(drawings.BACKGROUNDS), torch.Generator().manual_seed(0), [[] for _ in TIMES]
    shifts = torch.randint(len(drawings.SHIFTS), (len(artworks) * G * NOISES,), generator=generator)
    for part in torch.arange(len(shifts)).split(G * NOISES * TOGETHER):                                     # (B,)
        shown = artworks[part // (G * NOISES)]
        z = model.encode(drawings.compose(shown, part // NOISES % G, shifts[part]).to(model.device))
        context = model.embed([""]).expand(len(z), -1, -1)
        for i, t in enumerate(TIMES):
            eps = torch.randn(z.shape, generator=generator).to(model.device)
            t = torch.full((len(z),), t, device=model.device)
            h = read_hook(model, model.schedule.add_noise(z, eps, t), t, context).flatten(2).mT.float()     # (B, S, D)
            score = torch.cat([model.sae.encode(h), h], dim=-1).mean(1)                                     # (B, F + D)
            out[i].append(score.view(-1, G, NOISES, score.shape[-1]).mean(2).cpu())
    scores = torch.stack([torch.cat(parts) for parts in out])
    return scores.split([model.sae.features, h.shape[-1]], dim=-1)


class Meanings:
    """Find what artworks share; `known` has their sets of contents, ("name", "fox face"). Pairs of these are added."""

    def __init__(self, known):
        self.of_artwork = []
        for contents in known:
            pairs = [two for two in itertools.permutations(sorted(contents), 2) if (two[0][0], two[1][0]) in PAIRED]
            pairs = [(f"{kind}+{other}", f"{value}, {second}") for (kind, value), (other, second) in pairs]
            self.of_artwork.append({*contents, *pairs})
        self.having = Counter(itertools.chain.from_iterable(self.of_artwork))      # how many artworks have a content
        self.kinds = Counter(kind for (kind, _), n in self.having.items() if n >= 3)

    def shared(self, strongest):
        """Count how many of the artworks `strongest` have each content."""
        return Counter(content for a in strongest for content in self.of_artwork[a])

    def surprise(self, content, n, k):
        """Compute how unlikely it is that n of k random artworks share a content, in powers of ten."""
        p = self.having[content] / len(self.of_artwork)
        tail = sum(math.comb(k, i) * p ** i * (1 - p) ** (k - i) for i in range(n, k + 1))
        return -math.log10(max(1e-300, self.kinds[content[0]] * tail))

    def best(self, strongest, most):
        """Find the most surprising content that more of `strongest` share than `most` says: (it or None, surprise)."""
        found = (None, 0.0)
        for content, n in sorted(self.shared(strongest).items()):
            if n >= (3 if content[0] == "name" else K / 2) and n > most[content]:
                found = max(found, (content, self.surprise(content, n, len(strongest))), key=lambda pair: pair[1])
        return found


def read_off(scores):
    """Find each direction's peak in scores (times, A, G, n), where the mean of its K strongest artworks is highest, and
    there these artworks, its strongest background, and the share of the variance that the background explains."""
    k = min(K, scores.shape[1])
    peak = scores.mean(2).topk(k, dim=1).values.mean(1).argmax(0)                           # (n,)
    at_peak = scores.permute(3, 0, 1, 2)[torch.arange(len(peak)), peak].permute(1, 2, 0)    # (A, G, n)
    highest, order = at_peak.mean(1).topk(k, dim=0)                                         # (K, n)
    grounds = at_peak.mean(0)                                                               # (G, n)
    share = grounds.var(0, correction=0) / at_peak.flatten(0, 1).var(0, correction=0).clamp(min=1e-12)
    names = [list(drawings.BACKGROUNDS)[i] for i in grounds.argmax(0)]
    return [{"t": TIMES[int(peak[i])], "strongest": order[:, i][highest[:, i] != 0].tolist(),         # 0: silent
             "background": (names[i], share[i].item())} for i in range(len(peak))]


def bounds(rows, meanings):
    """Set what a meaning has to exceed: {content: most artworks of a random direction}, and the background's share."""
    most = Counter()
    for row in rows:
        most |= meanings.shared(row["strongest"])
    shares = sorted(row["background"][1] for row in rows)
    return most, shares[math.ceil(0.99 * len(shares)) - 1]


def explain(rows, meanings, most, ground):
    """Add "meaning", [kind, value] or None, and its "surprise" to the rows of directions."""
    for row in rows:
        content, surprise = meanings.best(row["strongest"], most)
        if row["background"][1] > ground:
            content, surprise = ("background", row["background"][0]), 0.0
        row |= {"meaning": list(content) if content else None, "surprise": surprise}


def summary(rows):
    """Count the directions that have a meaning, the different ones, and those of each kind."""
    found = [tuple(row["meaning"]) for row in rows if row["meaning"]]
    return {"directions": len(rows), "with_meaning": len(found), "different": len(set(found)),
            "kinds": dict(sorted(Counter(kind for kind, _ in set(found)).items()))}


def find(model, artworks, chosen):
    """Find what concepts.json holds: a row for every live feature; counts of features, channels, random directions."""
    of_features, of_channels = activity(model, artworks)
    D = of_channels.shape[-1]
    generator, meanings = torch.Generator().manual_seed(0), Meanings(drawings.contents(artworks, chosen))

    def random(count):
        """Do the same for random directions, whose mean scores follow from the channels'."""
        return read_off(of_channels @ F.normalize(torch.randn(count, D, generator=generator), dim=1).T)

    most, ground = bounds(random(NULL), meanings)
    features, live = read_off(of_features), (of_features > 0).flatten(0, 2).any(0).nonzero()[:, 0].tolist()
    rows = {"features": [{"feature": i} | features[i] for i in live],
            "channels": read_off(torch.cat([of_channels, -of_channels], dim=-1)), "random": random(HELD)}
    for of_kind in rows.values():
        explain(of_kind, meanings, most, ground)
    labels = [f"{thing.name}, {house}" for thing in chosen for house in drawings.HOUSES]
    return {"k": K, "times": TIMES, "background_share": round(ground, 3), "channels": D, "features": len(features),
            "counts": {name: summary(of_kind) for name, of_kind in rows.items()},
            "rows": [{"feature": row["feature"], "t": row["t"], "meaning": row["meaning"],
                      "surprise": round(row["surprise"], 2), "strongest": [labels[a] for a in row["strongest"]]}
                     for row in rows["features"]]}
