"""Inputs on which an exercise is checked, by the name of the function: worked out by hand, or random, where the
project's function says what is right. Then checks of what is more than a function: the whole ascent, the questions."""
import math
import re
from functools import cache
from types import SimpleNamespace

import torch
from torch import tensor

import ascent
from config import Config, Job
from regularizers import total_variation
from sae import SAE
from schedule import Schedule
from visualize import assess, measure, start
from weights.load import load, read_json

NOISE = 1.8                 # total variation per deviation; white noise has 2.26, pictures of the model about 1


def case(*args, gives=None, gradient=None, says="on random input it differs from ours; read the formula once more"):
    """Describe a call: the result, where it was worked out by hand; which argument has a gradient; what a student who
    fails here reads."""
    return SimpleNamespace(args=args, gives=gives, gradient=gradient, says=says)


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
    sae = SAE(encoder.shape[1], len(encoder), k=k).requires_grad_(False)
    sae.load_state_dict({"encoder.weight": encoder, "encoder.bias": bias, "W_dec": decoder, "b_dec": b_dec})
    return sae


AXES = tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
FOUR = AXES, tensor([0.0, 0, 5, 0]), AXES, tensor([1.0, 0])                     # features along x, y, -x, -y
RANDOM_SAE = make_sae(3, randn(24, 8), randn(24, seed=1), randn(24, 8, seed=2), randn(8, seed=3))
SMALL = Schedule(set_alpha_to_one=True)
SMALL.alphas_cumprod = tensor([0.25, 0.64])
H = tensor([[4.0, 2.5], [2.0, 0.5]])
VALUES, MEANS, SILENT = tensor([[1.0, -1, 2, -2], [-1, -3, -2, -2]]), tensor([0.75, 0.0]), tensor([False, True])
Z, Z1, Z2, Z3 = (randn(2, 4, 8, 8, seed=seed) for seed in range(4))
TWO = tensor([[[[0.0, 1], [2, 5]]]])
WAVE = (2 * math.pi * torch.arange(8) / 8).cos().expand(1, 1, 8, 8)

CASES = {
    "time_embedding": (
        case(tensor([0]), 4, gives=tensor([[1.0, 1, 0, 0]]), says="t = 0 has cos 1, sin 0"),
        case(tensor([3, 81]), 320)),
    "add_noise": (
        case(SMALL, full(2.0, 2, 1, 1, 1), full(10.0, 2, 1, 1, 1), tensor([0, 1]),
             gives=tensor([1 + 10 * 0.75 ** 0.5, 1.6 + 6]).reshape(2, 1, 1, 1), says="abar 0.25 and 0.64, z 2, eps 10"),
        case(Schedule(), Z, Z1, tensor([0, 500]), gradient=1)),
    "step": (
        case(SMALL, full(1.0), full(0.0), 0, 1, gives=full(1.6), says="no noise: x0 = 1 / 0.5, times 0.8"),
        case(Schedule(), Z, Z1, 981, 961),
        case(Schedule(set_alpha_to_one=True), Z, Z1, 1, -19, says="the step below 0 ends at self.last")),
    "read_hook": tuple(
        case(hooked(reads), Z, tensor([5, 7]), randn(2, 77, 8), gradient=1, says=says) for reads, says in (
            ("output", "the output of the module at model.hook_point"), ("", "without an SAE the output is read"),
            ("update", "an SAE that reads the update wants the output minus the output before it"))),
    "encode": (
        case(make_sae(2, *FOUR), H, gives=tensor([[3.0, 2.5, 0, 0], [1.0, 0, 4, 0]]), says="k 2, b_dec (1, 0)"),
        case(make_sae(4, *FOUR), H, gives=tensor([[3.0, 2.5, 2, 0], [1, 0.5, 4, 0]]),
             says="the relu comes first: no feature is negative"),
        case(RANDOM_SAE, randn(2, 5, 8), gradient=1)),
    "batch_topk": (
        case(tensor([[3.0, 2.5, 0, 0], [1, 0.5, 0, 0]]), 1, says="the two largest of the two rows together",
             gives=(tensor([[3.0, 2.5, 0, 0], [0, 0, 0, 0]]), tensor(2.5))),
        case(tensor([[0.5, 0], [0, 0]]), 2, says="a 0 is no activation: the least that is kept is 0.5",
             gives=(tensor([[0.5, 0], [0, 0]]), tensor(0.5))),
        case(randn(6, 9).relu(), 2, gradient=0)),
    "training_loss": (
        case(make_sae(1, *FOUR), H, torch.arange(4) < 0, says="no dead feature: the loss is the FVU"),
        case(make_sae(1, *FOUR), H, torch.arange(4) == 2, says="one dead feature explains the residual"),
        case(RANDOM_SAE, randn(16, 8), torch.arange(24) % 3 == 0, gradient=1)),
    "live": (
        case(SimpleNamespace(tables={"max_feature": tensor([[0.0, 0, 2, 0.1], [0, 3, 1, 0]])}), gives=[1, 2, 3],
             says="feature 0 is never above 0"),),
    "activation": (
        case(VALUES, "feature", gives=MEANS, says="relu first, then the mean over positions"),
        case(VALUES, "channel", gives=tensor([0.0, -2.0]), says="a channel has no relu"),
        case(randn(4, 16), "feature", gradient=0)),
    "objective": (
        case(VALUES, "feature", gives=(MEANS, SILENT, tensor([0.75, -2.0])),
             says="the second feature is silent: climb its mean"),
        case(VALUES, "feature", False, gives=(MEANS, SILENT, MEANS), says="silent_gradient is off"),
        case(randn(4, 16) - 2, "feature", gradient=0)),
    "total_variation": (
        case(TWO, gives=full(5.0, 1), says="rows differ by 2 and 4, columns by 1 and 3"), case(3 * Z, gradient=0)),
    "range_penalty": (
        case(TWO, 3.0, gives=full(1.0, 1), says="5 is 2 beyond 3: 2^2 over 4 values"), case(3 * Z, 3.0, gradient=0)),
    "moment_penalty": (
        case(TWO, gives=full(2 + (14 / 3) ** 0.5 - 1, 1), says="|mean| + |std - 1|, the unbiased deviation"),
        case(3 * Z, gradient=0)),
    "spectral_filter": (
        case(WAVE, gives=WAVE.clone(), says="one frequency alone keeps its shape and deviation"), case(Z, gradient=0)),
    "adamw": (
        case(full(1.0), full(1.0), full(0.0), full(0.0), 1, Config(learning_rate=0.1, weight_decay=0.5),
             gives=(full(0.95 - 0.1), full(0.1), full(0.001)), says="the first step is lr, after the decay"),
        case(Z, Z1, Z2, Z3.square(), 7, Config(epsilon=0.1))),
}


def check_ascent(functions):
    """Yield a sentence for each thing in which five steps of the toy's ascent differ from ours; one alone is shown."""
    model, config = load(), Config(num_steps=5, prior="noise")
    jobs = [Job("feature", model.settings["feature"], 500, seed) for seed in (1, 2)]
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
    return model, {row["feature"]: row for row in read_json(model.folder / "concepts.json")["rows"]}


def asked():
    """Return (the thing to find a feature of, the feature to name): two that are not the same."""
    named = sorted((row["meaning"][1], n) for n, row in known()[1].items()
                   if row["meaning"] and row["meaning"][0] in ("name", "subgroup"))
    return named[len(named) // 3][0], named[2 * len(named) // 3][1]


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
    job, config = Job("feature", model.settings["feature"], 500, 7), Config(prior="noise")
    z = torch.as_tensor(functions["fool"](model, job)).float()
    if z.shape != model.latent_shape:
        yield f"fool returned {tuple(z.shape)}, expected a latent {model.latent_shape}"
    first = measure(model, start(model, [job], config)[1], [job], config)[0]
    history = {"alive": torch.ones(1, 1, dtype=torch.bool), "repeats": torch.zeros(1, 1)}
    (result,) = assess(model, z[None], [job], first, config, history)
    if result.verdict != "excited":
        yield f"fool: the verdict is {result.verdict}, not excited"
    if (total_variation(z[None]) / z.std()).item() < NOISE:
        yield "fool: that may show something: neighbours in the latent are alike, as in pictures"
    if len(str(functions.get("why", "")).split()) < 5:
        yield "fool: it is excited and shows nothing; now say why"
