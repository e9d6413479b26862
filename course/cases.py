"""Inputs on which an exercise is checked, by the name of the function: worked out by hand, or random, where the
project's function says what is right. Then checks of what is more than a function: the whole ascent, the questions."""
import json
import math
import re
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import torch

import ascent
from config import Config, Job
from regularizers import total_variation
from sae import SAE
from schedule import Schedule
from visualize import assess, measure, start
from weights.load import load

NOISE = 1.8                 # total variation per deviation; white noise has 2.26, pictures of the model about 1


class Case(NamedTuple):
    """Arguments of a call, the result where it was worked out by hand, and which argument has a gradient."""
    args: tuple
    expected: object = None
    gradient: int | None = None
    says: str = ""                              # what a student who fails here reads


def randn(*shape, seed=0):
    """Draw random numbers that are the same for every student."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full(value, *shape):
    return torch.full(shape or (1, 1, 1, 1), value)


def run(x, t, context):
    """Stand in for the run of a UNet of two modules, for the exercise with the hook; it refuses to go to its end."""
    h = yield "before", x[:, :3]
    yield "hook", 2 * h + t.reshape(-1, 1, 1, 1)
    raise ValueError("stop at model.hook_point: what comes after it is not needed")


def hooked(reads):
    """Make a model of that UNet and an SAE that reads "output" or "update", or of none."""
    sae = SimpleNamespace(reads=reads) if reads else None
    return SimpleNamespace(unet=SimpleNamespace(run=run), hook_point="hook", dtype=torch.float32, sae=sae)


def make_sae(k, encoder, bias, decoder, b_dec):
    """Make an SAE of these weights."""
    sae = SAE(encoder.shape[1], len(encoder), k=k).requires_grad_(False)
    sae.load_state_dict({"encoder.weight": encoder, "encoder.bias": bias, "W_dec": decoder, "b_dec": b_dec})
    return sae


AXES = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
FOUR = AXES, torch.tensor([0.0, 0, 5, 0]), AXES, torch.tensor([1.0, 0])         # features along x, y, -x, -y
RANDOM_SAE = make_sae(3, randn(24, 8), randn(24, seed=1), randn(24, 8, seed=2), randn(8, seed=3))
SMALL = SimpleNamespace(alphas_cumprod=torch.tensor([0.25, 0.64]), last=torch.tensor(1.0))
SMALL.abar = lambda t: SMALL.alphas_cumprod[t].reshape(-1, 1, 1, 1)
H = torch.tensor([[4.0, 2.5], [2.0, 0.5]])
THIRD = torch.tensor([False, False, True, False])
VALUES = torch.tensor([[1.0, -1, 2, -2], [-1, -3, -2, -2]])
MEANS, SILENT = torch.tensor([0.75, 0.0]), torch.tensor([False, True])
Z, Z1, Z2 = (randn(2, 4, 8, 8, seed=seed) for seed in range(3))
TWO = torch.tensor([[[[0.0, 1], [2, 5]]]])
WAVE = (2 * math.pi * torch.arange(8) / 8).cos().expand(1, 1, 8, 8)

CASES = {
    "time_embedding": (
        Case((torch.tensor([0]), 4), torch.tensor([[1.0, 1, 0, 0]]), says="t = 0 has cos 1, sin 0"),
        Case((torch.tensor([3, 81]), 320))),
    "add_noise": (
        Case((SMALL, full(2.0, 2, 1, 1, 1), full(10.0, 2, 1, 1, 1), torch.tensor([0, 1])),
             torch.tensor([1 + 10 * 0.75 ** 0.5, 1.6 + 6]).reshape(2, 1, 1, 1), says="abar 0.25 and 0.64, z 2, eps 10"),
        Case((Schedule(), Z, Z1, torch.tensor([0, 500])), gradient=1)),
    "step": (
        Case((SMALL, full(1.0), full(0.0), 0, 1), full(1.6), says="no noise: x0 = 1 / 0.5, times 0.8"),
        Case((Schedule(), Z, Z1, 981, 961)),
        Case((Schedule(set_alpha_to_one=True), Z, Z1, 1, -19), says="the step below 0 ends at self.last")),
    "read_hook": tuple(
        Case((hooked(reads), Z, torch.tensor([5, 7]), randn(2, 77, 8)), gradient=1, says=says) for reads, says in (
            ("output", "the output of the module at model.hook_point"), ("", "without an SAE the output is read"),
            ("update", "an SAE that reads the update wants the output minus the output before it"))),
    "encode": (
        Case((make_sae(2, *FOUR), H), torch.tensor([[3.0, 2.5, 0, 0], [1.0, 0, 4, 0]]), says="k 2, b_dec (1, 0)"),
        Case((make_sae(4, *FOUR), H), torch.tensor([[3.0, 2.5, 2, 0], [1, 0.5, 4, 0]]),
             says="the relu comes first: no feature is negative"),
        Case((RANDOM_SAE, randn(2, 5, 8)), gradient=1)),
    "batch_topk": (
        Case((torch.tensor([[3.0, 2.5, 0, 0], [1, 0.5, 0, 0]]), 1),
             (torch.tensor([[3.0, 2.5, 0, 0], [0, 0, 0, 0]]), torch.tensor(2.5)),
             says="the two largest of the two rows together"),
        Case((torch.tensor([[0.5, 0], [0, 0]]), 2), (torch.tensor([[0.5, 0], [0, 0]]), torch.tensor(0.5)),
             says="a 0 is no activation: the least that is kept is 0.5"),
        Case((randn(6, 9).relu(), 2), gradient=0)),
    "training_loss": (
        Case((make_sae(1, *FOUR), H, THIRD & False), says="no dead feature: the loss is the FVU"),
        Case((make_sae(1, *FOUR), H, THIRD), says="one dead feature explains the residual"),
        Case((RANDOM_SAE, randn(16, 8), torch.arange(24) % 3 == 0), gradient=1)),
    "live": (
        Case((SimpleNamespace(tables={"max_feature": torch.tensor([[0.0, 0, 2, 0.1], [0, 3, 1, 0]])}),), [1, 2, 3],
             says="feature 0 is never above 0"),),
    "activation": (
        Case((VALUES, "feature"), MEANS, says="relu first, then the mean over positions"),
        Case((VALUES, "channel"), torch.tensor([0.0, -2.0]), says="a channel has no relu"),
        Case((randn(4, 16), "feature"), gradient=0)),
    "objective": (
        Case((VALUES, "feature"), (MEANS, SILENT, torch.tensor([0.75, -2.0])),
             says="the second feature is silent: climb its mean"),
        Case((VALUES, "feature", False), (MEANS, SILENT, MEANS), says="silent_gradient is off"),
        Case((randn(4, 16) - 2, "feature"), gradient=0)),
    "total_variation": (
        Case((TWO,), full(5.0, 1), says="rows differ by 2 and 4, columns by 1 and 3"), Case((3 * Z,), gradient=0)),
    "range_penalty": (
        Case((TWO, 3.0), full(1.0, 1), says="5 is 2 beyond 3: 2^2 over 4 values"), Case((3 * Z, 3.0), gradient=0)),
    "moment_penalty": (
        Case((TWO,), full(2 + (14 / 3) ** 0.5 - 1, 1), says="|mean| + |std - 1|, the unbiased deviation"),
        Case((3 * Z,), gradient=0)),
    "spectral_filter": (
        Case((WAVE,), WAVE.clone(), says="one frequency alone keeps its shape and deviation"), Case((Z,), gradient=0)),
    "adamw": (
        Case((full(1.0), full(1.0), full(0.0), full(0.0), 1, Config(learning_rate=0.1, weight_decay=0.5)),
             (full(0.95 - 0.1), full(0.1), full(0.001)), says="the first step is lr, after the decay"),
        Case((Z, Z1, Z2, randn(2, 4, 8, 8, seed=3).square(), 7, Config(epsilon=0.1)))),
}


# --- more than a function: of what is yielded only the first is asked for, so what comes later may rely on it ---------

def check_ascent(functions):
    """Yield a sentence for each thing in which five steps of the toy's ascent differ from ours."""
    model, config = load(), Config(num_steps=5, prior="noise", finish=False)
    jobs = [Job("feature", model.settings.get("feature", 0), 500, seed) for seed in (1, 2)]
    theirs, ours = (list(ascend(model, jobs, config, start(model, jobs, config)))
                    for ascend in (functions["ascend"], ascent.ascend))
    if len(theirs) != 5:
        yield f"ascend yields {len(theirs)} steps, expected config.num_steps = 5"
    for a, b in zip(theirs, ours):
        if not torch.allclose(a.noised, b.noised, atol=1e-4):
            yield f"step {a.index}: what the UNet saw differs: draw, transform, add_noise, in this order" + (
                "; is one noise used for all steps?" if torch.equal(a.noised, theirs[0].noised) else "")
        if (a.gradient * b.gradient).sum() < 0:
            yield "the sign of the loss: it is -climb + the penalties, and AdamW goes down"
        if not torch.allclose(a.gradient, b.gradient, atol=1e-4):
            yield f"step {a.index}: the gradient differs: penalties act on z itself, the activation on its moved copy"
        if not torch.allclose(a.after, b.after, atol=1e-4):
            yield f"step {a.index}: the new latent differs: filter, blur, then AdamW from `before`"


@cache
def known():
    """Return (the model, {feature: its row of concepts.json}) of the toy."""
    model = load()
    rows = json.loads((model.folder / "concepts.json").read_text(encoding="utf-8"))["rows"]
    return model, {row["feature"]: row for row in rows}


def asked():
    """Return (the thing to find a feature of, the feature to name): two that are not the same."""
    meanings = {n: row["meaning"][1] for n, row in known()[1].items()
                if row["meaning"] and row["meaning"][0] in ("name", "subgroup")}
    features = sorted(meanings, key=lambda n: (meanings[n], n))
    return meanings[features[len(features) // 3]], features[2 * len(features) // 3]


def fits(row, text):
    """Check whether all words of a text are in a feature's meaning, or in three names of its strongest artworks."""
    words = set(re.findall(r"\w+", text.lower()))
    within = [words <= set(re.findall(r"\w+", said.lower())) for said in
              [row["meaning"][1] if row["meaning"] else "", *(label.rsplit(", ", 1)[0] for label in row["strongest"])]]
    return bool(words) and (within[0] or sum(within[1:]) >= 3)


def check_answers(functions):
    """Yield a sentence for each of the three answers that is not right."""
    model, rows = known()
    thing, number = asked()
    found = functions["find_feature"]()
    if found not in rows:
        yield f"find_feature: {found!r} is no feature that is active on an artwork"
    if not fits(rows[found], thing):
        yield f"find_feature: not {thing!r} excites {found} most but {'; '.join(rows[found]['strongest'][:3])}"
    word = str(functions["say"](number)).strip()
    if not fits(rows[number], word):
        yield f"say: {word!r} is not what feature {number} responds to; look at what its pictures have in common"
    job, config = Job("feature", model.settings.get("feature", 0), 500, 7), Config(prior="noise")
    z = functions["fool"](model, job)
    if not isinstance(z, torch.Tensor) or z.shape != model.latent_shape:
        yield f"fool returned {tuple(getattr(z, 'shape', ()))}, expected a latent {model.latent_shape}"
    z = z[None].float()
    first = measure(model, start(model, [job], config)[1], [job], config)[0]
    history = {"alive": torch.ones(1, 1, dtype=torch.bool), "repeats": torch.zeros(1, 1)}
    (result,) = assess(model, z, [job], first, config, history)
    if result.verdict != "excited":
        yield f"fool: the verdict is {result.verdict}, not excited"
    if (total_variation(z) / z.std()).item() < NOISE:
        yield "fool: that may show something: neighbours in the latent are alike, as in pictures"
    if len(str(functions.get("why", "")).split()) < 5:
        yield "fool: it is excited and shows nothing; now say why"
