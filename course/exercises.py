"""The fourteen exercises: what each asks for, its cases, the wrong answers that are known by their numbers, and hints.

Part 1 is the model, part 2 the dictionary, part 3 the method; each takes about 40 minutes. The functions are the
project's own: the file that an exercise names is its solution.
"""
import math
from types import SimpleNamespace

import torch

import ascent
from config import Config, Job
from course.marking import Case, Exercise
from course.questions import check_answers
from dictionary.loss import batch_topk
from sae import SAE, fvu
from schedule import Schedule
from visualize import start
from weights.load import load

G = torch.Generator


def randn(*shape, seed=0):
    """Draw random numbers that are the same for every student."""
    return torch.randn(*shape, generator=G().manual_seed(seed))


# --- part 1: the model ------------------------------------------------------------------------------------------------

def embedding_cases():
    return {"time_embedding": [Case((torch.tensor([0]), 4), torch.tensor([[1.0, 1, 0, 0]]),
                                    says="t = 0 has cos 1, sin 0"),
                               Case((torch.tensor([3, 81]), 320))]}


def embedding(t, width, base=10_000, sine_first=False, half=None):
    half = half or width // 2
    angles = t.float()[:, None] * base ** (-torch.arange(width // 2) / half)
    parts = [angles.cos(), angles.sin()]
    return torch.cat(parts[::-1] if sine_first else parts, dim=1)


def noise_cases():
    abar = torch.tensor([0.25, 0.64])
    small = SimpleNamespace(alphas_cumprod=abar, abar=lambda t: abar[t].reshape(-1, 1, 1, 1))
    z, eps = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), 10.0)
    by_hand = torch.tensor([1 + 10 * 0.75 ** 0.5, 1.6 + 6]).reshape(2, 1, 1, 1)
    return {"add_noise": [Case((small, z, eps, torch.tensor([0, 1])), by_hand, says="abar 0.25 and 0.64, z 2, eps 10"),
                          Case((Schedule(), randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([0, 500, 999])),
                               gradient=1)]}


def step_cases():
    flat = SimpleNamespace(alphas_cumprod=torch.tensor([0.81, 0.25]), last=torch.tensor(1.0))
    x, eps = torch.full((1, 1, 1, 1), 1.0), torch.zeros(1, 1, 1, 1)
    return {"step": [Case((flat, x, eps, 1, 0), torch.full((1, 1, 1, 1), 1.8),
                          says="no noise: x0 = 1 / 0.5, times 0.9"),
                     Case((Schedule(), randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), 981, 961)),
                     Case((Schedule(set_alpha_to_one=True), randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), 1, -19),
                          says="the step below 0 ends at self.last")]}


class Net(torch.nn.Module):
    """A UNet of one line for the exercise with the hook: it remembers how far it was run."""

    def forward(self, x, t, context, until=None, update=False):
        if until != "hook":
            raise ValueError(f"stop at model.hook_point: the UNet's argument is until, here {until!r}")
        return 2 * x[:, :3] + t.reshape(-1, 1, 1, 1) - (x[:, :3] if update else 0)


def hook_cases():
    plain = SimpleNamespace(unet=Net(), hook_point="hook", dtype=torch.float32, sae=SimpleNamespace(reads="output"))
    update = SimpleNamespace(**vars(plain) | {"sae": SimpleNamespace(reads="update")})
    none = SimpleNamespace(**vars(plain) | {"sae": None})
    args = randn(2, 4, 2, 2), torch.tensor([5, 7]), randn(2, 77, 8)
    return {"read_hook": [Case((model, *args), gradient=1 if model is plain else None, says=said) for model, said in (
        (plain, "h is what unet(..., until=model.hook_point) returns"), (none, "without an SAE the output is read"),
        (update, "an SAE that reads the update wants update=True"))]}


# --- part 2: the dictionary -------------------------------------------------------------------------------------------

def small_sae(k=1):
    """Four features along x, y, -x, -y about b_dec = (1, 0)."""
    sae = SAE(2, 4, k=k).requires_grad_(False)
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for p, value in ((sae.encoder.weight, rows), (sae.W_dec, rows), (sae.b_dec, torch.tensor([1.0, 0])),
                     (sae.encoder.bias, torch.tensor([0.0, 0, 5, 0]))):
        p.copy_(value)
    return sae


def random_sae(D=8, F=24, k=3):
    sae = SAE(D, F, k=k).requires_grad_(False)
    for i, p in enumerate(sae.parameters()):
        p.copy_(randn(*p.shape, seed=i))
    return sae


def encode_cases():
    h = torch.tensor([[4.0, 2.5], [2.0, 0.5]])
    return {"encode": [Case((small_sae(2), h), torch.tensor([[3.0, 2.5, 0, 0], [1.0, 0, 4, 0]]),
                            says="k 2, b_dec (1, 0)"),
                       Case((small_sae(4), h), torch.tensor([[3.0, 2.5, 2, 0], [1, 0.5, 4, 0]]),
                            says="the relu comes first: no feature is negative"),
                       Case((random_sae(), randn(2, 5, 8)), gradient=1)]}


def topk_cases():
    pre = torch.tensor([[3.0, 2.5, 0, 0], [1, 0.5, 0, 0]])
    kept = torch.tensor([[3.0, 2.5, 0, 0], [0, 0, 0, 0]])
    return {"batch_topk": [Case((pre, 1), (kept, torch.tensor(2.5)), says="the two largest of the two rows together"),
                           Case((torch.tensor([[0.5, 0], [0, 0]]), 2), (torch.tensor([[0.5, 0], [0, 0]]),
                                torch.tensor(0.5)), says="a 0 is no activation: the least that is kept is 0.5"),
                           Case((randn(6, 9).relu(), 2), gradient=0)]}


def per_position(pre, k):
    top = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values), top.values.masked_fill(top.values <= 0,
                                                                                              9e9).min()


def loss_cases():
    h, dead = torch.tensor([[4.0, 2.5], [2.0, 0.5]]), torch.tensor([False, False, True, False])
    return {"training_loss": [Case((small_sae(), h, dead & False), says="no dead feature: the loss is the FVU"),
                              Case((small_sae(), h, dead), says="one dead feature explains the residual"),
                              Case((random_sae(), randn(16, 8), torch.arange(24) % 3 == 0), gradient=1)]}


def bad_loss(sign=1, detach=True, bias=False, weight=1 / 32):
    """training_loss with one of the errors that widely copied code has, or had."""
    def loss(sae, h, dead):
        pre = sae.pre_acts(h)
        acts, least = batch_topk(pre, sae.k)
        residual = sign * (h - sae.decode(acts))
        total = main = fvu(h, sae.decode(acts))
        k = min(int(dead.sum()), h.shape[-1] // 2)
        if k:
            top = pre.masked_fill(~dead, 0.0).topk(k, dim=-1)
            guess = torch.zeros_like(pre).scatter(-1, top.indices, top.values) @ sae.W_dec + (sae.b_dec if bias else 0)
            total = total + weight * fvu(residual.detach() if detach else residual, guess)
        return total, (acts > 0).any(dim=0), least.detach(), main.detach()
    return loss


def detached(functions):
    """The residual is data for the dead features: no gradient of their part may reach the others."""
    sae, dead = small_sae(), torch.tensor([False, False, True, False])
    h = torch.tensor([[4.0, 2.5], [2.0, 0.5]])
    sae.requires_grad_(True)
    with_dead, without = (torch.autograd.grad(functions["training_loss"](sae, h, mask)[0], sae.W_dec)[0][:2]
                          for mask in (dead, dead & False))
    return "" if torch.allclose(with_dead, without) else \
        "training_loss: the residual is not detached, so the living features learn to please the dead ones"


def live_cases():
    tables = {"max_feature": torch.tensor([[0.0, 0, 2, 0.1], [0, 3, 1, 0]])}
    return {"live": [Case((SimpleNamespace(tables=tables),), [1, 2, 3], says="feature 0 is never above 0")]}


# --- part 3: the method -----------------------------------------------------------------------------------------------

def objective_cases():
    values = torch.tensor([[1.0, -1, 2, -2], [-1, -3, -2, -2]])
    said = torch.tensor([0.75, 0.0]), torch.tensor([False, True]), torch.tensor([0.75, -2.0])
    return {"activation": [Case((values, "feature"), said[0], says="relu first, then the mean over positions"),
                           Case((values, "channel"), torch.tensor([0.0, -2.0]), says="a channel has no relu"),
                           Case((randn(4, 16), "feature"), gradient=0)],
            "objective": [Case((values, "feature"), said, says="the second feature is silent: climb its mean"),
                          Case((values, "feature", False), (said[0], said[1], said[0]), says="silent_gradient is off"),
                          Case((randn(4, 16) - 2, "feature"), gradient=0)]}


def penalty_cases():
    z, two = randn(3, 4, 8, 8) * 3, torch.zeros(1, 1, 2, 2)
    two[0, 0] = torch.tensor([[0.0, 1], [2, 5]])
    unbiased = abs(two.mean()) + abs(two.std() - 1)
    return {"total_variation": [Case((two,), torch.tensor([3.0 + 2.0]),
                                     says="rows differ by 2 and 4, columns by 1 and 3"),
                                Case((z,), gradient=0)],
            "range_penalty": [Case((two, 3.0), torch.tensor([1.0]), says="5 is 2 beyond 3: 2^2 over 4 values"),
                              Case((z, 3.0), gradient=0)],
            "moment_penalty": [Case((two,), unbiased[None], says="|mean| + |std - 1|, the unbiased deviation"),
                               Case((z,), gradient=0)]}


def filter_cases():
    wave = (2 * math.pi * torch.arange(8) / 8).cos().expand(1, 1, 8, 8)
    return {"spectral_filter": [Case((wave,), wave.clone(), says="one frequency alone keeps its shape and deviation"),
                                Case((randn(2, 4, 16, 16),), gradient=0)]}


def filtered(g, d=None, own=True, offset=1):
    f = torch.fft.fftfreq(g.shape[-1], d=1 / g.shape[-1] if d is None else d)
    low = torch.fft.ifft2(torch.fft.fft2(g) / ((f[:, None] ** 2 + f[None] ** 2).sqrt() + offset)).real
    gain = g.flatten(1).std(dim=1)[:, None, None, None] / low.flatten(1).std(dim=1)[:, None, None, None]
    return low * (gain if own is True else g.std() / low.std() if own == "batch" else 1)


def adamw_cases():
    one, config = torch.ones(1, 1, 1, 1), Config(learning_rate=0.1, weight_decay=0.5)
    first = (0.95 * one - 0.1, 0.1 * one, 0.001 * one)
    return {"adamw": [Case((one, one, 0 * one, 0 * one, 1, config), first,
                           says="the first step is lr, after the decay"),
                      Case((randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), randn(2, 4, 8, 8, seed=2),
                            randn(2, 4, 8, 8, seed=3).square(), 7, Config(epsilon=0.1)))]}


def decayed(how):
    def adamw(z, g, mean, square, n, config):
        if how == "l2":
            g = g + config.weight_decay * z
        mean = config.beta1 * mean + (1 - config.beta1) * g
        square = config.beta2 * square + (1 - config.beta2) * g * g
        m, s = (mean, square) if how == "bias" else (mean / (1 - config.beta1 ** n), square / (1 - config.beta2 ** n))
        size = (s + config.epsilon).sqrt() if how == "epsilon" else s.sqrt() + config.epsilon
        decay = 1 if how in ("l2", "none") else 1 - config.learning_rate * config.weight_decay
        return decay * z - (-1 if how == "sign" else 1) * config.learning_rate * m / size, mean, square
    return adamw


def ascent_check(functions):
    """Five steps of the toy's ascent, with the student's own functions where there are some."""
    model, config = load(), Config(num_steps=5, prior="noise", finish=False)
    jobs = [Job("feature", model.settings.get("feature", 0), 500, seed) for seed in (1, 2)]
    run = lambda ascend: [step for step in ascend(model, jobs, config, start(model, jobs, config))]
    theirs, ours = run(functions["ascend"]), run(ascent.ascend)
    if len(theirs) != 5:
        return f"ascend yields {len(theirs)} steps, expected config.num_steps = 5"
    for a, b in zip(theirs, ours):
        if not torch.allclose(a.noised, b.noised, atol=1e-4):
            return f"step {a.index}: what the UNet saw differs: draw, transform, add_noise, in this order" + (
                "; is one noise used for all steps?" if torch.equal(a.noised, theirs[0].noised) else "")
        if (a.gradient * b.gradient).sum() < 0:
            return "the sign of the loss: it is -climb + the penalties, and AdamW goes down"
        if not torch.allclose(a.gradient, b.gradient, atol=1e-4):
            return f"step {a.index}: the gradient differs: penalties act on z itself, the activation on its moved copy"
        if not torch.allclose(a.after, b.after, atol=1e-4):
            return f"step {a.index}: the new latent differs: filter, blur, then AdamW from `before`"
    return ""


def open_check(functions):
    """The last exercise: a feature by its thing, a thing by its feature, and a latent that fools the measure."""
    return check_answers(functions)


QUESTIONS = '''def find_feature():
    """Return the number of a feature that responds to the thing that `python -m course 14` names, without `match`.

    You have the capture: model = featviz.load(), then model.capture.live(), .examples(kind, n, t), .prompt(image).
    Search here, or return the number that you found.
    """
    raise NotImplementedError


def say(number):
    """Return one word for what feature `number` responds to, which `python -m course 14` gives.

    Make its five pictures (python featviz.py --feature N) and look at them, and only at them.
    """
    raise NotImplementedError


def fool(model, job):
    """Return a latent (4, H, W) whose verdict is `excited` for the job, and which shows nothing.

    Then write into `why`, one sentence: what the measure does not see.
    """
    raise NotImplementedError


why = ""
'''

EXERCISES = (
    Exercise(1, "the model", "Time embedding", "Tell the UNet how much noise there is.", 1, 8, "sine and cosine",
             ("time_embedding",), "unet.py", cases=embedding_cases, wrong={"time_embedding": (
                 ("the sines come first; SD has flip_sin_to_cos, cosines first", lambda t,
                  w: embedding(t, w, 10_000, True)),
                 ("the exponent is -i / (width / 2), not -i / (width / 2 - 1)",
                  lambda t, w: embedding(t, w, half=w // 2 - 1)),
                 ("the longest period is 10,000, not 1,000", lambda t, w: embedding(t, w, 1000)))},
             hints=("half = width // 2 frequencies, w_i = 10000 ** (-i / half)", "angles = t.float()[:, None] * w",
                    "torch.cat([angles.cos(), angles.sin()], dim=1)")),
    Exercise(2, "the model", "Adding noise", "Bring a clean latent to a time step.", 1, 6, "mean and variance",
             ("add_noise",), "schedule.py", "Schedule", noise_cases, {"add_noise": (
                 ("this is abar without the root", lambda s, z, e, t: s.abar(t) * z + (1 - s.abar(t)) * e),
                 ("the roots are swapped", lambda s, z, e, t: (1 - s.abar(t)).sqrt() * z + s.abar(t).sqrt() * e),
                 ("one time step for all rows", lambda s, z, e,
                  t: s.abar(t[:1]).sqrt() * z + (1 - s.abar(t[:1])).sqrt() * e),
                 ("the noise has (1 - root abar), not root (1 - abar)",
                  lambda s, z, e, t: s.abar(t).sqrt() * z + (1 - s.abar(t).sqrt()) * e))},
             hints=("self.abar(t) has the shape (B, 1, 1, 1)", "the variances abar and 1 - abar add up to 1",
                    "abar.sqrt() * z + (1 - abar).sqrt() * eps")),
    Exercise(3, "the model", "One DDIM step", "Take one step from noise towards a picture.", 2, 10, "exercise 2",
             ("step",), "schedule.py", "Schedule", step_cases, {"step": (
                 ("x0 is not divided by root abar", lambda s, x, e, t, n: after(s, n).sqrt() * (
                     x - (1 - s.alphas_cumprod[t]).sqrt() * e) + (1 - after(s, n)).sqrt() * e),
                 ("the noise is put back at t, not at t_next", lambda s, x, e, t, n: after(s, n).sqrt() * x0(s, x, e, t)
                  + (1 - s.alphas_cumprod[t]).sqrt() * e),
                 ("this is x0 itself: it must be noised to t_next", lambda s, x, e, t, n: x0(s, x, e, t)))},
             hints=("solve exercise 2's formula for z: that is x0",
                    "abar is self.alphas_cumprod[t]; abar' that of t_next, or self.last where t_next is below 0",
                    "after.sqrt() * x0 + (1 - after).sqrt() * eps")),
    Exercise(4, "the model", "The hook", "Stop the UNet where the dictionary reads.", 1, 6, "exercise 2",
             ("read_hook",), "steering.py", cases=hook_cases, wrong={"read_hook": (
                 ("an SAE that reads the update was given the output", lambda m, x, t,
                  c: m.unet(x, t, c, until="hook")),)},
             hints=("the UNet stops by itself: model.unet(x, t, context, until=model.hook_point)",
                    "x must have the precision model.dtype",
                    "model.sae may be None; where model.sae.reads is 'update' the UNet also takes update=True")),
    Exercise(5, "the dictionary", "Encoding", "Write a position as a few features.", 2, 10, "dot products",
             ("encode",), "sae.py", "SAE", encode_cases, {"encode": (
                 ("the decoder's bias is counted twice: `linear` subtracts it already",
                  lambda s, h: per_position(s.linear(h - s.b_dec).relu(), s.k)[0]),
                 ("without the k largest: this is pre_acts", lambda s, h: s.pre_acts(h)),
                 ("the k largest over all positions together: that is batch top-k",
                  lambda s, h: together(s.pre_acts(h), s.k)))},
             hints=("pre = self.linear(h).relu(), where self.linear(h) is W_enc (h - b_dec) + b_enc",
                    "the gate of this SAE keeps the self.k largest of each position: pre.topk(self.k, dim=-1)",
                    "torch.zeros_like(pre).scatter(-1, top.indices, top.values)")),
    Exercise(6, "the dictionary", "Batch top-k", "Let each position take as many features as it needs.", 3, 10,
             "exercise 5", ("batch_topk",), "dictionary/loss.py", cases=topk_cases, wrong={"batch_topk": (
                 ("this is top-k a position, not over the batch", per_position),
                 ("k of the whole batch: it must be k times the number of rows",
                  lambda pre, k: batch(pre, k, 1)),)},
             hints=("flatten first: top = pre.flatten().topk(...)",
                    "k * len(pre) values are kept, all others become 0",
                    "values at or below 0 do not count for the least")),
    Exercise(7, "the dictionary", "The auxiliary loss", "Revive dead features with what is left over.", 4, 15,
             "exercise 6", ("training_loss",), "dictionary/loss.py", cases=loss_cases, wrong={"training_loss": (
                 ("the sign: dead features learn minus the residual (sparsify, issue 48)", bad_loss(sign=-1)),
                 ("b_dec is added to the dead features' guess, which counts it twice (sparsify, issue 132)",
                  bad_loss(bias=True)),
                 ("the residual is not detached (sparsify, issue 57)", bad_loss(detach=False)),
                 ("the auxiliary term counts in full, not a 32nd of it", bad_loss(weight=1.0)))}, check=detached,
             hints=("first part: pre_acts, batch_topk, sae.decode, then main = fvu(sae.preprocess(h), h_hat)",
                    "the residual is (sae.preprocess(h) - h_hat).detach()",
                    "dead features alone: pre.masked_fill(~dead, 0); of each position only the k_aux largest are kept",
                    "k_aux is the number of dead features, at most int(AUX_K_SHARE * D); at 0 the loss is main",
                    "guess = what is kept @ sae.W_dec, without b_dec; loss = main + AUX_WEIGHT * fvu(residual, guess)",
                    "fired is (acts > 0).any(dim=0); the last two results are for display only: detach them")),
    Exercise(8, "the dictionary", "Which features are dead", "Read a capture.", 1, 5, "tables", ("live",),
             "activity/profile.py", "Capture", live_cases, {"live": (
                 ("at every time step, not at some", lambda c, kind="feature": (c.tables["max_feature"] > 0).all(
                     dim=0).nonzero().flatten().tolist()),
                 ("these are the dead ones", lambda c, kind="feature": (c.tables["max_feature"] <= 0).all(
                     dim=0).nonzero().flatten().tolist()))},
             hints=("self.tables[f'max_{kind}'] is (time steps, features)",
                    "(table > 0).any(dim=0), then nonzero().flatten().tolist()")),
    Exercise(9, "the method", "The activation", "Say what is climbed.", 2, 10, "exercise 5",
             ("activation", "objective"),
             "ascent.py", cases=objective_cases, wrong={"activation": (
                 ("the mean comes before the relu", lambda v,
                  kind: v.mean(dim=1).relu() if kind == "feature" else v.mean(1)),
                 ("the sum over positions, not the mean", lambda v,
                  kind: (v.relu() if kind == "feature" else v).sum(dim=1)),
                 ("the mean over the jobs, not over the positions", lambda v, kind: v.relu().mean(dim=0)))},
             hints=("kind is 'feature' or 'channel'", "silent: (values <= 0).all(dim=1), of a feature only",
                    "torch.where(silent, values.mean(dim=1), a)")),
    Exercise(10, "the method", "Three penalties", "Keep the latent a latent.", 2, 12, "means",
             ("total_variation", "range_penalty", "moment_penalty"), "regularizers.py", cases=penalty_cases, wrong={
                 "total_variation": (
                     ("squares instead of absolute values", lambda z: z.diff(dim=-2).square().mean((1, 2, 3))
                      + z.diff(dim=-1).square().mean((1, 2, 3))),
                     ("the sum, not the mean", lambda z: z.diff(dim=-2).abs().sum((1, 2, 3)) + z.diff(dim=-1).abs().sum(
                         (1, 2, 3)))),
                 "range_penalty": (
                     ("|z|^2 - limit^2 is not (|z| - limit)^2", lambda z,
                      limit: (z ** 2 - limit ** 2).relu().mean((1, 2, 3))),
                     ("the excess is not squared", lambda z, limit: (z.abs() - limit).relu().mean((1, 2, 3)))),
                 "moment_penalty": (
                     ("the biased deviation: std divides by n - 1 here", lambda z: z.mean((1, 2, 3)).abs()
                      + (z.flatten(1).std(dim=1, unbiased=False) - 1).abs()),
                     ("over the whole batch: rows then influence one another", lambda z: (z.mean().abs() + (
                         z.std() - 1).abs()).expand(len(z)).clone()))},
             hints=("z.diff(dim=-1)", "relu() of |z| - limit, then the square", "z.flatten(1).std(dim=1)")),
    Exercise(11, "the method", "The spectral filter", "Take the speckle out of a gradient.", 3, 12, "Fourier transform",
             ("spectral_filter",), "regularizers.py", cases=filter_cases, wrong={"spectral_filter": (
                 ("frequencies are in whole cycles a picture: fftfreq(n, d=1 / n)", lambda g: filtered(g, d=1.0)),
                 ("the deviation is not restored", lambda g: filtered(g, own=False)),
                 ("the deviation of the whole batch: rows then influence one another",
                  lambda g: filtered(g, own="batch")),
                 ("r + 1, so that frequency 0 is divided by 1", lambda g: filtered(g, offset=2)))},
             hints=("torch.fft.fftfreq(n, d=1 / n)", "r = sqrt(fy^2 + fx^2); divide the spectrum by r + 1",
                    "gain = std of the row before / after")),
    Exercise(12, "the method", "AdamW", "Move the latent.", 3, 12, "running means", ("adamw",), "ascent.py",
             cases=adamw_cases, wrong={"adamw": (
                 ("the decay is in the gradient: that is Adam with L2, not AdamW", decayed("l2")),
                 ("without bias correction", decayed("bias")), ("epsilon is inside the root", decayed("epsilon")),
                 ("the decay is missing", decayed("none")), ("the sign: the loss goes down", decayed("sign")))},
             hints=("three lines of formula, in this order; lr is config.learning_rate, decay is config.weight_decay",
                    "divide by 1 - beta ** n, since both means start at 0", "z * (1 - lr * decay) before the step")),
    Exercise(13, "the method", "One whole step", "Put it together: the ascent.", 5, 20, "exercises 2, 9 to 12",
             ("ascend",), "ascent.py", check=ascent_check,
             hints=("config.num_steps times: z = before.clone().requires_grad_(True) is a new leaf",
                    "draw(g, z.shape[1:], config) gives one job's shift, angle, zoom, eps: stack each over the jobs",
                    "reg.transform(z, shift, angle, zoom); schedule.add_noise(..., eps, t); read_hook(..., t, context)",
                    "t (B,) of the jobs; context = model.embed([config.prompt]).expand(len(jobs), -1, -1)",
                    "values = readout(model, hook, jobs); a, silent, climb = objective(values, jobs[0].kind)",
                    "loss = -climb + range_weight * reg.range_penalty(z) + moment_weight * reg.moment_penalty(z)",
                    "gradient, _, repeats = gradient_of(loss, z); spectral_filter; adamw(before, ..., index + 1, ...)",
                    "yield Step(...), its fields in order; smoothed may be the filtered gradient, alive all True")),
    Exercise(14, "the method", "Without a formula", "Find, name, and fool.", 4, 20, "the lesson, to its end",
             ("find_feature", "say", "fool"), check=open_check, task=QUESTIONS,
             hints=("go through model.capture.live(): which prompts do the strongest examples of a feature share?",
                    "for a group, such as animal-bird, look for captions of several of its things",
                    "without regularizers: featviz.visualize(model, features=[...], preset='none', ...)[0].latent",
                    "if that shows something: ascend takes a negative total_variation_weight, so neighbours differ")))


def after(schedule, t):
    return schedule.alphas_cumprod[t] if t >= 0 else schedule.last


def x0(schedule, x, eps, t):
    now = schedule.alphas_cumprod[t]
    return (x - (1 - now).sqrt() * eps) / now.sqrt()


def batch(pre, k, rows):
    top = pre.flatten().topk(k * rows)
    return (torch.zeros_like(pre.flatten()).scatter(0, top.indices, top.values).reshape(pre.shape),
            top.values.masked_fill(top.values <= 0, torch.inf).min())


def together(pre, k):
    flat = pre.reshape(-1, pre.shape[-1])
    return batch(flat, k, len(flat))[0].reshape(pre.shape)
