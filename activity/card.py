"""A feature's card: what is known of it before any ascent, from a capture and from the SAE's weights.

Which features are active together is read from the dataset examples, since a count for every pair would take F x F
numbers: at the sampling step of the card, those whose strongest images are most often also among this one's.
"""
from dataclasses import dataclass

import torch

NEAREST, BAR = 5, 40                            # features listed; characters of the longest bar


@dataclass(frozen=True)
class Card:
    kind: str
    n: int
    label: str                  # the word of the SAE's labels.json, or ""
    images: int                 # of the capture
    active: int | None          # images whose largest mean activation is above 0; None: the capture did not count them
    histogram: list             # [(from, to, images)] by the largest mean activation of an image; the first is 0
    alive: bool                 # whether the mean activation is above 0 in some image
    timestep: int               # sampling step of the largest mean activation
    largest: float              # this activation
    gated: float | None         # the largest mean of what top-k or the threshold leaves there; None: not counted
    nearest: list               # [(feature, cosine of the decoder rows)]
    examples: int               # strongest images at `timestep`
    together: list              # [(feature, how many of these images are among its own strongest)]


def card(model, kind, n):
    """Collect the card of a feature or channel from the model's capture and weights."""
    capture = model.capture
    tables, most = capture.tables, capture.tables[f"max_{kind}"][:, n]                          # (N,)
    row = int(most.argmax())
    counts = tables[f"histogram_{kind}"][n].int().tolist() if f"histogram_{kind}" in tables else None
    gated = tables["max_gated"][row, n].item() if kind == "feature" and "max_gated" in tables else None
    together, examples = active_together(capture, kind, n, row)
    return Card(kind, n, model.labels.get(n, "") if kind == "feature" else "", capture.images,
                capture.images - counts[0] if counts else None, filled(counts) if counts else [],
                bool(most.max() > 0), int(tables["timesteps"][row]), most[row].item(), gated,
                nearest_rows(model.sae.W_dec, n) if kind == "feature" else [], examples, together)


def filled(counts):
    """List bin 0 of a histogram, and the others from the first to the last that holds an image: [(from, to, images)].
    """
    held = [i for i, count in enumerate(counts) if count and i]
    edges = [0.0, *(2.0 ** (i - 13) for i in range(2, len(counts) + 1))]                        # of bins 1, 2, ...
    shown = range(held[0], held[-1] + 1) if held else ()
    return [(0.0, 0.0, counts[0])] + [(edges[i - 1], edges[i], counts[i]) for i in shown]


def nearest_rows(W_dec, n):
    """Find the features whose decoder rows point most nearly where row n does: [(feature, cosine)]."""
    rows = torch.nn.functional.normalize(W_dec.float(), dim=1)                                  # (F, D)
    cosine = rows @ rows[n]
    cosine[n] = -torch.inf
    best = cosine.topk(min(NEAREST, len(cosine) - 1))
    return [(i, c) for i, c in zip(best.indices.tolist(), best.values.tolist())]


def active_together(capture, kind, n, row):
    """Find those that share most strongest images with n at a sampling step: ([(number, images)], images of n)."""
    image, _ = capture.stored_examples(kind, row)                                               # (F, EXAMPLES)
    mine = image[n][image[n] >= 0]
    shared = torch.isin(image, mine).sum(dim=1)
    shared[n] = 0
    best = shared.argsort(descending=True, stable=True)[:NEAREST].tolist()
    return [(i, int(shared[i])) for i in best if shared[i]], len(mine)


def dead_line(capture, kind, numbers):
    """One line to print before a run that names the features which are never active in the capture; else ""."""
    dead = sorted(set(numbers) - set(capture.live(kind))) if kind == "feature" else []
    if not dead:
        return ""
    named = ", ".join(map(str, dead[:10])) + (f" and {len(dead) - 10} more" if len(dead) > 10 else "")
    return (f"dead: feature {named}, active in none of the capture's {capture.images} images; the picture may "
            "show nothing that this model draws")


def lines(card):
    """The card as lines for a terminal."""
    yield f"{card.kind} {card.n}" + f", {card.label}" * bool(card.label)
    yield f"  {'alive' if card.alive else 'dead'}; largest mean activation {card.largest:.4g}, at t {card.timestep}"
    if card.gated is not None:
        yield f"  largest after the SAE's gate: {card.gated:.4g}"
    if card.active is not None:
        yield f"  active in {card.active} of {card.images} images; images by their largest mean activation:"
    tallest = max([count for _, _, count in card.histogram], default=0)
    for low, high, count in card.histogram:
        bar = "#" * round(BAR * count / tallest)
        yield f"  {f'{low:.3g} to {high:.3g}' if high else '0':>18} {count:6d} {bar}".rstrip()
    if card.nearest:
        yield "  nearest decoder rows: " + ", ".join(f"{i} (cosine {c:.2f})" for i, c in card.nearest)
    others = ", ".join(f"{i} (in {count})" for i, count in card.together) or "none"
    yield f"  active together in its {card.examples} strongest images at t {card.timestep}: {others}"
