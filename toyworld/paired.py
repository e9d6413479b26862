"""Numbers with their uncertainty and a rule, for toyworld/claims.py: everything is paired by feature and seed.

Intervals are from resampling features [1]; shares of the same pictures under two settings also get McNemar's test [2].

Sources
 [1] Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979: percentiles of 10,000 draws
 [2] McNemar, "Note on the sampling error of the difference between correlated proportions", 1947: the exact test
"""
import math
from itertools import combinations, product

import numpy as np

from toyworld.drawings import OBJECTS

DRAWS = 10_000              # of an interval
SMALL = 0.05                # of a share: what is less would not be seen
NEAR = math.log(1.25)       # activations that count as equal
FEWEST = 20                 # features: fewer decide nothing, as resampling cannot show what none of them shows


def rounded(x):
    return float(f"{x:.4g}")


def interval(draws, miss=0.05):
    """Within which all but this share of the resampled values lie: [low, high]."""
    return [float(v) for v in np.quantile(draws, (miss / 2, 1 - miss / 2))]


def pooled(rows):
    """Several settings' rows as one: {label: {(target, seed): row}} -> {(target, seed, label): row}."""
    return {(*key, label): row for label, some in rows.items() for key, row in some.items()}


def by_feature(rows, measure):
    """{feature: mean of the measure over its pictures}, rows {(feature, ...): row}; pictures that lack it left out."""
    found = {}
    for key, row in rows.items():
        if row.get(measure) is not None:
            found.setdefault(key[0], []).append(float(row[measure]))
    return {feature: sum(values) / len(values) for feature, values in found.items()}


def pairs(ours, theirs, measure):
    """The measure of two settings by feature, over the pictures that both have: (n,), (n,), number of pictures."""
    keys = [k for k in ours if k in theirs and None not in (ours[k].get(measure), theirs[k].get(measure))]
    a, b = (by_feature({k: rows[k] for k in keys}, measure) for rows in (ours, theirs))
    return np.array([*a.values()]), np.array([b[f] for f in a]), len(keys)


def mcnemar(ours, theirs, measure="right"):
    """Exact two-sided p that both are right equally often: of n pictures that differ, k are ours.

        p = min(1, 2 sum over i <= min(k, n - k) of C(n, i) / 2^n)
    """
    differ = [ours[k][measure] for k in ours if k in theirs and ours[k][measure] != theirs[k][measure]]
    n, k = len(differ), min(sum(differ), len(differ) - sum(differ))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n)


def decide(low, high, above=0.0, least=0.0):
    """The rule: holds above the line, does not where even the upper end is less than would count."""
    return "holds" if low > above else "does not" if high < least else "not decided here"


class Part:
    """One number of a claim, signed so that more is for the claim, its resampled values and its rule.

    what      in words; unit: share, ratio, ...; deciding: whether the claim's verdict depends on it
    n         features; None: a number that is computed, and not of a sample
    above     the line: the claim says that the number is above it; None: there is none, the number is only told
    least     what would count; where even the interval's upper end is below, the claim does not hold
    """

    def __init__(self, what, number, draws, n, pictures=None, unit="share", above=0.0, least=None, deciding=False,
                 p=None):
        self.what, self.number, self.draws, self.n, self.pictures, self.unit = what, number, draws, n, pictures, unit
        self.above, self.least, self.deciding, self.p = above, above if least is None else least, deciding, p

    def told(self, deciding):
        """As JSON values; of `deciding` parts all intervals together miss with 5%: each is wider [Bonferroni]."""
        out = {"what": self.what, "unit": self.unit, "n": self.n, "pictures": self.pictures, "above": self.above,
               "least": self.least, "deciding": self.deciding, "number": None, "interval": None, "wider": None,
               "verdict": "not decided here"} | ({} if self.p is None else {"p": float(f"{self.p:.2g}")})
        if self.draws is not None:
            usual, wider = interval(self.draws), interval(self.draws, 0.05 / max(1, deciding if self.deciding else 1))
            spans = {"interval": [*map(rounded, usual)], "wider": [*map(rounded, wider)]}
            out |= {"number": rounded(self.number), **spans}
            if self.above is None:
                out["verdict"] = None
            elif self.n is None or self.n >= FEWEST:
                out["verdict"] = decide(*wider, self.above, self.least)
        return out


def resampled(*columns, of=np.mean, seed=0):
    """of(column, axis=1) of rows drawn with replacement, the same rows of each column (n,): an array (DRAWS,) each."""
    rows = np.random.default_rng(seed).integers(0, len(columns[0]), (DRAWS, len(columns[0])))
    return [of(column[rows], axis=1) for column in columns]


def mean(what, values, of=np.mean, **more):
    """A part: the mean (or median) of numbers (n,), one a feature."""
    values = np.asarray(values, dtype=float)
    number, draws = (of(values), resampled(values, of=of)[0]) if len(values) else (math.nan, None)
    return Part(what, float(number), draws, len(values), **more)


def difference(what, ours, theirs, measure="right", sign=1, **more):
    """A part: the mean difference of a measure under two settings, paired by feature and seed."""
    a, b, pictures = pairs(ours, theirs, measure)
    p = mcnemar(ours, theirs) if measure == "right" and pictures else None
    return mean(what, sign * (a - b), pictures=pictures, p=p, **more)


def ratio(what, ours, theirs, measure="activation", scale=1.0, **more):
    """A part: the ratio of a measure's means under two settings, times `scale`; paired by feature and seed; 1 is the
    line."""
    a, b, pictures = pairs(ours, theirs, measure)
    number, draws, usual = math.nan, None, {"unit": "ratio", "above": 1.0, "least": 1 + SMALL}
    if len(a) and b.mean() > 0:
        over, under = resampled(a, b)
        number, draws = scale * a.mean() / b.mean(), scale * over / np.maximum(under, 1e-12)
    return Part(what, float(number), draws, len(a), pictures, **usual | more)


def apart(what, ours, theirs, **more):
    """A part: the difference of the means of two sets of features that are not the same, (n,) and (m,)."""
    if not len(ours) or not len(theirs):
        return Part(what, math.nan, None, 0, **more)
    a, b = (resampled(np.asarray(values, float), seed=i)[0] for i, values in enumerate((ours, theirs)))
    return Part(what, float(np.mean(ours) - np.mean(theirs)), a - b, min(len(ours), len(theirs)), **more)


def curve(rows):
    """[[x, share named right, low, high], ...] of {x: rows}."""
    out = []
    for x, some in sorted(rows.items()):
        values = np.array([*by_feature(some, "right").values()])
        if len(values):
            out.append([x, *map(rounded, (values.mean(), *interval(resampled(values)[0])))])
    return out


def equally_active(*sides):
    """Of each feature and seed the two pictures, one of either side, whose activations are nearest: {key: row} each;
    left out where they differ by more than NEAR. A side: [{key: row}, ...]."""
    found = {}, {}
    for key in {key for side in sides for some in side for key in some}:
        excited = [[some[key] for some in side if some[key]["activation"] > 0] for side in sides]
        far = lambda pair: abs(math.log(pair[0]["activation"] / pair[1]["activation"]))
        if all(excited) and far(best := min(product(*excited), key=far)) <= NEAR:
            found[0][key], found[1][key] = best
    return found


def steps_to(row, level, steps):
    """After how many steps the mean activation of a part of the course reaches the level; None: never."""
    return next((steps * (i + 1) / len(row["course"]) for i, a in enumerate(row["course"]) if a >= level), None)


def begun(rows):
    """The rows with their start's name in place of the end's, of those whose concept is known."""
    return {key: row | {"right": row["right_start"]} for key, row in rows.items() if "right_start" in row}


def rule(ours, theirs, **usual):
    """The rule for the difference of two settings: the usual one, and none where both made the same of everything, for
    then there is nothing to tell apart."""
    alike = all(row["activation"] == theirs[key]["activation"] for key, row in ours.items() if key in theirs)
    return {"above": None} if alike else usual


def ranks(at_peak, grid):
    """Of each feature the share of time steps at which fewer of its pictures are named right than at its peak, equals
    count half: [feature's], grid [{feature: share}, ...]."""
    beats = lambda peak, other: (peak > other) + 0.5 * (peak == other)
    return [float(np.mean([beats(peak, some[f]) for some in grid])) for f, peak in at_peak.items()]


def whose(rows, targets):
    """Of pictures whose start was named as another object than the feature's: {"feature's", "start's": {feature: share
    of its pictures whose end is named so}}, the same features in both."""
    wanted, out = {c["target"]: c["object"] for c in targets}, {"feature's": {}, "start's": {}}
    for (f, seed), row in rows.items():
        began, ended = (OBJECTS[row[k][0]] for k in ("began", "said"))
        if wanted[f] and began != wanted[f]:
            out["feature's"][f, seed] = {"is": ended == wanted[f]}
            out["start's"][f, seed] = {"is": ended == began}
    return {name: by_feature(some, "is") for name, some in out.items()}


def agreeing(rows):
    """{target: share of its pairs of seeds in which the judge names the same object}, and what chance gives: the share
    of all pairs of two features and two seeds."""
    said, others = {}, []
    for (f, _), row in rows.items():
        said.setdefault(f, []).append(row["said"][0])
    for (a, one), (b, two) in combinations(rows, 2):
        if a != b and one != two:
            others.append(rows[a, one]["said"][0] == rows[b, two]["said"][0])
    return {f: float(np.mean([a == b for a, b in combinations(some, 2)])) for f, some in said.items()}, (
        float(np.mean(others)) if others else 0.0)
