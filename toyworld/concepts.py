"""The meaning of a feature: what the artworks that excite it most have in common, by rule and without anyone's eye.

Every artwork counts once: its score is the mean of the direction's activation over places, backgrounds, shifts and
noises, seen with the empty prompt, at the time step where the direction is strongest. Of the K strongest artworks, n
share a content (a name, a subgroup, a group, a house, a colour, or two of these) that a share p of all artworks has.

    surprise = -log10( C P(Binomial(K, p) >= n) ),   C = number of contents of that kind

The content of the largest surprise is the direction's meaning if at least half of the K have it and the surprise is
above a bound: that which 2% of random directions pass. A direction whose scores differ by background more than those of
98% of random directions means its background.
"""
import itertools
import math
from collections import Counter
from functools import cache

import torch

from toyworld import drawings

K = 8                                                       # strongest artworks that are compared
CHANCE = 0.02                                               # share of random directions that may have a meaning
TIMES = (100, 300, 500, 700, 900)
NOISES = 2                                                  # of each artwork on each background, at each time step
NULL = 4_096                                                # random directions: half set the bound, half are reported
PAIRED = {("subgroup", "colour"), ("house", "subgroup"), ("house", "group"), ("house", "colour"), ("group", "colour")}


@torch.no_grad()
def activity(model, hook, artworks, encoders, batch=108, seed=0):
    """Scores of directions: {name: (times, A, 3, directions)} for each of `encoders`, {name: h (..., D) -> (..., n)}.

    A score is the mean over the hook's places and over NOISES drawings with random shifts.
    """
    A, G, device = len(artworks), len(drawings.BACKGROUNDS), model.device
    rows = torch.arange(A).repeat_interleave(G * NOISES)
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(len(drawings.SHIFTS), rows.shape, generator=generator)
    backgrounds = torch.arange(G).repeat_interleave(NOISES).repeat(A)
    out = {name: [[] for _ in TIMES] for name in encoders}
    per = G * NOISES * max(1, batch // (G * NOISES))        # whole artworks in a batch
    for part in torch.arange(len(rows)).split(per):
        images = drawings.compose(artworks[rows[part]], backgrounds[part], shifts[part]).to(device)
        z = model.encode(images)
        context = model.embed([""]).expand(len(z), -1, -1)
        for i, t in enumerate(TIMES):
            eps = torch.randn(z.shape, generator=generator).to(device)
            t = torch.full((len(z),), t, device=device)
            h = model.unet(model.schedule.add_noise(z, eps, t), t, context, until=hook).flatten(2).mT       # (B, S, D)
            for name, encode in encoders.items():
                score = encode(h.float()).mean(1)                                                       # (B, n)
                out[name][i].append(score.view(-1, G, NOISES, score.shape[-1]).mean(2).cpu())
    return {name: torch.stack([torch.cat(parts) for parts in times]) for name, times in out.items()}


def contents_of(known):
    """{content: indices of its artworks} with single contents and pairs, a pair only where it is rarer than its parts.

    A content is ("name", "fox face") or ("house+colour", "Noto, red").
    """
    having = {}
    for a, contents in enumerate(known):
        pairs = [x for x in itertools.permutations(sorted(contents), 2) if (x[0][0], x[1][0]) in PAIRED]
        pairs = [(f"{kind}+{other}", f"{value}, {second}") for (kind, value), (other, second) in pairs]
        for content in {*contents, *pairs}:
            having.setdefault(content, set()).add(a)
    return {content: rows for content, rows in having.items() if len(rows) >= 3}


@cache
def tail(n, k, p):
    """P(Binomial(k, p) >= n)."""
    return sum(math.comb(k, i) * p ** i * (1 - p) ** (k - i) for i in range(n, k + 1))


class Meanings:
    """Looks up what the K strongest of A artworks share."""

    def __init__(self, known):
        self.having, self.A = contents_of(known), len(known)
        self.of_artwork = [[] for _ in known]
        for content, rows in self.having.items():
            for a in rows:
                self.of_artwork[a].append(content)
        self.kinds = Counter(kind for kind, _ in self.having)

    def best(self, strongest):
        """The most surprising content of artworks `strongest`, and its surprise. A name has only 4 artworks: of a name,
        3 of the K are enough; of anything else, half.
        """
        shared = Counter(content for a in strongest for content in self.of_artwork[a])
        found = (None, 0.0)
        for content, n in sorted(shared.items()):
            if n < (3 if content[0] == "name" else len(strongest) / 2):
                continue
            p = len(self.having[content]) / self.A
            surprise = -math.log10(max(1e-300, self.kinds[content[0]] * tail(n, len(strongest), p)))
            if surprise > found[1]:
                found = (content, surprise)
        return found


def peaks(scores):
    """Scores (times, A, 3, n) -> each direction's time step index of the highest mean of its K strongest artworks (n,),
    its scores there (A, 3, n).
    """
    strongest = scores.mean(2).topk(min(K, scores.shape[1]), dim=1).values.mean(1)          # (times, n)
    peak = strongest.argmax(0)
    return peak, scores.permute(3, 0, 1, 2)[torch.arange(len(peak)), peak].permute(1, 2, 0)


def background_share(scores):
    """Scores (A, 3, n) -> share of their variance that the background's mean explains (n,)."""
    return scores.mean(0).var(0, correction=0) / scores.flatten(0, 1).var(0, correction=0).clamp(min=1e-12)


def read_off(scores, meanings):
    """Rows for directions: peak, strongest artworks, their common content and its surprise, background's share."""
    peak, at_peak = peaks(scores)
    order = at_peak.mean(1).topk(min(K, len(at_peak)), dim=0).indices.T.tolist()            # (n, K)
    share, ground = background_share(at_peak), at_peak.mean(0).argmax(0)
    live = at_peak.flatten(0, 1).amax(0) > 0
    rows = []
    for i, strongest in enumerate(order):
        content, surprise = meanings.best(strongest) if live[i] else (None, 0.0)
        rows.append({"t": TIMES[int(peak[i])], "strongest": strongest, "content": content, "surprise": surprise,
                     "background": (list(drawings.BACKGROUNDS)[int(ground[i])], share[i].item())})
    return rows


def bounds(null):
    """Surprise and background's share that CHANCE / 2 of the random directions' rows pass."""
    at = lambda values: sorted(values)[min(len(values) - 1, math.ceil(len(values) * (1 - CHANCE / 2)))]
    return at([row["surprise"] for row in null]), at([row["background"][1] for row in null])


def meaning(row, bound):
    """[kind, value] of a direction, or None."""
    if row["background"][1] > bound[1]:
        return ["background", row["background"][0]]
    return list(row["content"]) if row["content"] and row["surprise"] > bound[0] else None


def summary(rows, bound):
    """How many directions have a meaning, how many different ones, and how many of each kind."""
    found = [tuple(m) for row in rows if (m := meaning(row, bound))]
    return {"directions": len(rows), "with_meaning": len(found), "different": len(set(found)),
            "kinds": dict(sorted(Counter(kind for kind, _ in set(found)).items()))}


def find(model, hook, artworks, chosen):
    """Everything concepts.json holds: a row for every live feature; counts for features, channels, random directions.
    """
    D = model.unet.width(hook)
    directions = torch.randn(NULL, D, generator=torch.Generator().manual_seed(0)).to(model.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    encoders = {"features": model.sae.encode, "channels": lambda h: torch.cat([h, -h], dim=-1),
                "random": lambda h: h @ directions.T}
    scores = activity(model, hook, artworks, encoders)
    meanings = Meanings(drawings.contents(artworks, chosen))
    rows = {name: read_off(of_kind, meanings) for name, of_kind in scores.items()}
    bound = bounds(rows["random"][::2])
    live = [i for i, alive in enumerate((scores["features"] > 0).flatten(0, 2).any(0)) if alive]
    rows["random"], rows["features"] = rows["random"][1::2], [{"feature": i} | rows["features"][i] for i in live]
    label = lambda a: f"{chosen[a // 4].name}, {list(drawings.HOUSES)[a % 4]}"
    return {"k": K, "times": TIMES, "surprise": round(bound[0], 3), "background_share": round(bound[1], 3),
            "channels": D, "features": len(scores["features"][0, 0, 0]),
            "counts": {name: summary(of_kind, bound) for name, of_kind in rows.items()},
            "rows": [{"feature": row["feature"], "t": row["t"], "meaning": meaning(row, bound),
                      "surprise": round(row["surprise"], 2), "strongest": [label(a) for a in row["strongest"]]}
                     for row in rows["features"]]}
