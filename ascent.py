"""Latent visualization by optimization: see what one feature inside a latent diffusion model responds to.

Gradient ascent on the clean latent z until the feature lights up at the hook point, for one time step t:

    x_t = sqrt(abar_t) transform(z) + sqrt(1 - abar_t) eps,  eps fresh at every step
    a   = mean over the hook's positions of relu(W_enc[f] . (h - b_dec) + b_enc[f]),  h = UNet(x_t, t, "") at the hook
    loss = -a + w_tv TV(z) + w_range R(z) + w_moment M(z);  the gradient is filtered and blurred;  AdamW moves z

With --space pixel z is encoder(p), and AdamW moves the picture p instead, for comparison [1].

Read from top to bottom it is one run: the start, a step's random draws, the objective, AdamW, `ascend` (the loop: begin
there), then what a result is worth: scores, verdict.

Sources
 [1] Szokalski & Modrzejewski, "Deep Dreams Are Made of This: Visualizing Monosemantic Features in Diffusion Models",
     arXiv 2605.08218, and its implementation: the method and every default that is not marked as ours
 [2] Cywinski & Deja, "SAeUron", arXiv 2501.18052: the sparse autoencoder
Deliberate differences from [1] are listed in docs/method.md.

Axes: B jobs, 4 x H x W latents, S positions at the hook point, D its width, F features.
"""
import math
from dataclasses import dataclass

import torch

import regularizers as reg
from config import REFERENCE_WIDTH, Config, Job, configure  # noqa: F401  # doors of this file
from steering import directions, steered_prior

SCORE_DRAWS = 4                                 # fresh noises that a score is averaged over (ours)
OTHERS = 10                                     # features named beside the target (ours)
TOP_RANKS = 10                                  # an excited target is among so many of the most active (ours)
SCORE_SEED = 0x3C91B7E5                         # a job's seed XOR this: scores have a generator of their own (ours)


def steer(model, jobs, noise, config):
    """The sample that is steered towards each job's target: noise (B, 4, H, W) -> the same."""
    if config.prior != "steer":
        raise ValueError(f"a start by --prior {config.prior} is not made here: take finish.start, or finish.stream")
    curves = [model.strength(job.kind, job.target, config.steer_steps) for job in jobs]
    curves = config.steer_scale * torch.stack(curves).to(noise)                                 # (B, 1001)
    return steered_prior(model, noise, directions(model, jobs), curves, config.prior_sampler, config.prior_steps)


def encoded(model, leaf, config):
    """The latent z (B, 4, H, W) of what the ascent moves: of a latent itself, of pixels (B, 3, 8H, 8W) the encoder's.

    Pixels are p = 2 image - 1 in [-1, 1], as the encoder takes them: about as large as latents are, so that a learning
    rate means the same, and 0 is grey, to which weight decay pulls.
    """
    return leaf if config.space == "latent" else model.encode(leaf / 2 + 0.5)


def shown(model, leaf, config):
    """The images (B, 3, 8H, 8W) in [0, 1] of what the ascent moves: of a latent the decoder's, of pixels themselves."""
    return model.decode(leaf) if config.space == "latent" else leaf / 2 + 0.5


def start(model, jobs, config, priors=None, sample=steer):
    """Each job's generator and starting latent (B, 4, H, W): noise from its seed, or what `sample` makes of that noise.
    With --space pixel what is decoded from it, (B, 3, 8H, 8W).

    A sample depends on target and seed alone. `priors` {(target, seed): (4, H, W)} holds those that earlier batches
    made; it is brought up to date, and loses the targets that these jobs no longer have.
    """
    generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
    z = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators]).to(model.device)
    if config.prior != "noise":
        known, keys = {} if priors is None else priors, [(job.target, job.seed) for job in jobs]
        if not known.keys() >= set(keys):       # a whole batch or none: kernels of another shape round differently
            z = sample(model, jobs, z, config)
            kept = {key: latent for key, latent in known.items() if key[0] in {job.target for job in jobs}}
            known.clear()
            known.update(kept | dict(zip(keys, z)))
        z = torch.stack([known[key] for key in keys])
    return generators, z if config.space == "latent" else 2 * model.decode(z) - 1


def draw(generator, shape, config):
    """One step's random numbers of one job: shift (2,), angle (), zoom (), noise (4, H, W). Always drawn, used or not,
    so that settings can be compared at equal noise."""
    whole = torch.randint(-config.jitter_max, config.jitter_max + 1, (2,), generator=generator)
    turn = torch.rand(2, generator=generator)
    return (whole * shape[-1] / REFERENCE_WIDTH, config.rotate_max * (2 * turn[0] - 1),
            1 + (config.scale_max - 1) * turn[1], torch.randn(shape, generator=generator))


def readout(model, h, jobs):
    """What the jobs' relu is applied to, at each position: h (B, D, h, w) -> (B, S). A raw channel's is the channel
    itself.

    Only the jobs' own rows of W_enc are used.
    """
    h = h.float().flatten(2)                                                                    # (B, D, S)
    targets = [job.target for job in jobs]
    if jobs[0].kind == "channel":
        return h[torch.arange(len(jobs)), targets]
    return model.sae.linear(h.transpose(1, 2), targets)


def activation(values, kind):
    """Mean over positions, behind a relu for a feature: (B, S) -> (B,)."""
    return (values.relu() if kind == "feature" else values).mean(dim=1)


def objective(values, kind, silent_gradient=True):
    """(activation (B,), silent (B,) bool, what is climbed (B,)): of the readout `values` (B, S).

    Climbed is the activation or, where a feature is 0 at every position, its mean before the relu, whose gradient is
    not 0 (ours).
    """
    a = activation(values, kind)
    silent = (values <= 0).all(dim=1) & (kind == "feature")
    return a, silent, torch.where(silent, values.mean(dim=1), a) if silent_gradient else a


def adamw(z, g, mean, square, n, config):
    """AdamW's n-th step, n = 1, 2, ...: the new z, mean and square, all (B, 4, H, W) [Loshchilov & Hutter, arXiv
    1711.05101].

        mean   <- beta1 mean + (1 - beta1) g                    square <- beta2 square + (1 - beta2) g^2
        z      <- (1 - lr decay) z - lr mean / (1 - beta1^n) / (sqrt(square / (1 - beta2^n)) + epsilon)

    By hand, in the order of torch.optim.AdamW, whose results it gives to the bit: importing that one takes a second and
    80 MB.
    """
    mean = mean.lerp(g, 1 - config.beta1)
    square = (config.beta2 * square).addcmul(g, g, value=1 - config.beta2)
    size = square.sqrt() / math.sqrt(1 - config.beta2 ** n) + config.epsilon
    z = z * (1 - config.learning_rate * config.weight_decay)
    z = z.addcdiv(mean, size, value=-config.learning_rate / (1 - config.beta1 ** n))
    return z, mean, square


@dataclass
class Step:
    """One step of the ascent as data; tensors have a row a job and are never written to again. With --space pixel all
    but `transformed` and `noised` is of the pixels: (B, 3, 8H, 8W) where (B, 4, H, W) stands."""
    index: int
    before: torch.Tensor            # (B, 4, H, W) the latent that this step started from
    transformed: torch.Tensor       # (B, 4, H, W) after roll, turn and zoom
    noised: torch.Tensor            # (B, 4, H, W) what the UNet saw
    hook: torch.Tensor              # (B, D, h, w) what it made of it
    activation: torch.Tensor        # (B,)
    silent: torch.Tensor            # (B,) bool: the feature was 0 at every position
    penalties: dict                 # name -> (B,) weighted
    gradient: torch.Tensor          # (B, 4, H, W) of the loss
    filtered: torch.Tensor          # (B, 4, H, W) after the spectral filter
    smoothed: torch.Tensor          # (B, 4, H, W) after the blur: what AdamW got
    mean: torch.Tensor              # (B, 4, H, W) AdamW's running mean of the gradient before this step
    square: torch.Tensor            # (B, 4, H, W) and of its square
    after: torch.Tensor             # (B, 4, H, W) the updated latent
    alive: torch.Tensor             # (B,) bool: finite so far; a row that is not stays as it was


def ascend(model, jobs, config, begin=None):
    """The ascent of all jobs side by side, each on its own; yields every step as data, see `Step`. `begin`: what
    start() gave.
    """
    generators, leaf = begin or start(model, jobs, config)
    mean = square = torch.zeros_like(leaf)                                                      # (B, 4, H, W) AdamW's
    context = model.embed([""]).expand(len(jobs), -1, -1)                                       # (B, 77, Dc)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)                       # (B,)
    alive = torch.ones(len(jobs), dtype=torch.bool, device=model.device)

    for index in range(config.num_steps):
        before = leaf
        leaf = before.clone().requires_grad_(True)                  # the only one: weights are frozen
        z = encoded(model, leaf, config)                            # the leaf itself, unless pixels are moved
        drawn = zip(*(draw(g, z.shape[1:], config) for g in generators))
        shift, angle, zoom, eps = (torch.stack(numbers).to(z) for numbers in drawn)

        # the feature must survive small moves and fresh noise, so it cannot be a trick of single latent pixels
        transformed = reg.transform(z, shift, angle, zoom)
        noised = model.schedule.add_noise(transformed, eps, t) if config.noise else transformed
        hook = model.unet(noised.to(model.dtype), t, context, until=model.hook_point)           # (B, D, h, w)

        values = readout(model, hook, jobs)                                                     # (B, S)
        a, silent, climb = objective(values, jobs[0].kind, config.silent_gradient)              # (B,) each

        # penalties act on the latent itself, not on its moved copy
        penalties = {"total_variation": config.total_variation_weight * reg.pitch(z) * reg.total_variation(z),
                     "range": config.range_weight * reg.range_penalty(z, config.range_threshold),
                     "moment": config.moment_weight * reg.moment_penalty(z)}
        loss = -climb + sum(penalties.values())                                                 # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)                                     # rows do not mix

        filtered = reg.spectral_filter(gradient) if config.spectral_filter else gradient
        sigma = reg.pitch(leaf) * reg.smoothing_sigma(index, config.num_steps, config.gradient_smoothing_sigma_start,
                                                      config.gradient_smoothing_sigma_end)
        smoothed = reg.blur(filtered, sigma, config.gradient_smoothing_kernel_size)

        alive = alive & loss.isfinite() & smoothed.flatten(1).isfinite().all(dim=1)
        g = torch.where(alive[:, None, None, None], smoothed, 0)
        moved, *moments = adamw(before, g, mean, square, index + 1, config)
        alive = alive & moved.flatten(1).isfinite().all(dim=1)
        if config.space == "pixel":             # after the step: a sigmoid or a clamp inside it would lose the gradient
            moved = moved.clamp(-1, 1)
        leaf = torch.where(alive[:, None, None, None], moved, before)
        yield Step(index, before, transformed.detach(), noised.detach(), hook.detach(), a.detach(), silent,
                   {k: v.detach() for k, v in penalties.items()}, gradient, filtered, smoothed, mean, square, leaf,
                   alive)
        mean, square = moments


@dataclass
class Result:
    """What one job gave."""
    job: Job
    latent: torch.Tensor            # (4, H, W) float32, scaled
    image: torch.Tensor             # (3, 8H, 8W) in [0, 1]
    activation: float               # at the end, mean over SCORE_DRAWS fresh noises
    verdict: str                    # see `judge_result`
    scores: dict                    # name -> number
    history: dict                   # name -> one number a step
    others: list                    # [[index, activation], ...]: the OTHERS that it excites most beside its target
    heat: torch.Tensor              # (h, w) activation of the target at each hook position, under the same noises
    stored_steps: list              # after how many steps a picture was kept; 0 is the start
    frames: list                    # these pictures, as `image`
    nearest_channel: int | None     # the raw channel that the feature's decoder row raises most; None for a channel
    finished: "Result | None" = None    # what the model made of it, see finish.py


@torch.no_grad()
def measure(model, z, jobs, noise=True):
    """Activation at latents z (B, 4, H, W): of the jobs' own targets the mean (B,), of all features or channels (B, F
    or D), and the targets' at each position (B, h, w).

    With noise: the mean over SCORE_DRAWS draws that depend on the job's seed alone, so that two latents of a job
    compare.
    """
    context = model.embed([""]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    generators = [torch.Generator().manual_seed(SCORE_SEED ^ job.seed) for job in jobs]
    everything, heat, rows, targets = 0, 0, torch.arange(len(jobs)), [job.target for job in jobs]
    for _ in range(SCORE_DRAWS if noise else 1):
        eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
        x = model.schedule.add_noise(z, eps, t) if noise else z
        hook = model.unet(x.to(model.dtype), t, context, until=model.hook_point).float()        # (B, D, h, w)
        h = hook.flatten(2).transpose(1, 2)                                                     # (B, S, D)
        per_position = model.sae.pre_acts(h) if jobs[0].kind == "feature" else h                # (B, S, F)
        everything = everything + per_position.mean(dim=1) / (SCORE_DRAWS if noise else 1)
        heat = heat + per_position[rows, :, targets].unflatten(1, hook.shape[2:]) / (SCORE_DRAWS if noise else 1)
    return everything[rows, targets], everything, heat


def judge_result(scores, alive, stopped, dataset=None):
    """One word for a result, and its reason.

    non-finite  the loss, the gradient, the latent or its score was NaN or infinite; the latent is the last finite one
    silent      at the end the feature is 0 under every fresh noise
    weak        it ended no higher than it started
    fragile     it loses more than half of its activation when the picture is decoded and encoded again
    raised      it rose, but it is not among the TOP_RANKS most active at the end, or has less than half of the
                activation of the strongest dataset image at this time step, `dataset`, where that is known
    excited     none of these
    """
    if not alive or not math.isfinite(scores["activation"]):
        return f"non-finite at step {stopped}"
    if scores["activation"] == 0:
        return "silent"
    if scores["activation"] <= scores["activation_start"]:
        return "weak"
    if scores["activation_reencoded"] < 0.5 * scores["activation"]:
        return "fragile"
    if scores["rank"] > TOP_RANKS or dataset is not None and scores["activation"] < 0.5 * max(dataset, 0):
        return "raised"
    return "excited"


def kept_steps(num_steps, frames):
    """After how many steps a picture is kept: evenly, `frames` of them if there are so many, start and end included."""
    return sorted({round(i * num_steps / (frames - 1)) for i in range(frames)}) if frames > 1 else []


def strongest(everything, target):
    """[[index, activation]] of the OTHERS largest of everything (F,), `target` left out."""
    order = everything.argsort(descending=True, stable=True)[:OTHERS + 1].tolist()
    return [[k, everything[k].item()] for k in order if k != target][:OTHERS]


@torch.no_grad()
def assess(model, z, jobs, images, first):
    """For each job (its scores, the others that it excites, its heat): of latents z (B, 4, H, W) that show `images` and
    whose starts had the activations `first` (B,).
    """
    last, everything, heat = measure(model, z, jobs)
    clean = measure(model, z, jobs, noise=False)[0]
    again = measure(model, model.encode(images), jobs)[0]
    out = []
    for i, job in enumerate(jobs):
        scores = {"activation_start": first[i], "activation": last[i], "activation_no_noise": clean[i],
                  "activation_reencoded": again[i], "rank": 1 + (everything[i] > last[i]).sum(),
                  "latent_mean": z[i].mean(), "latent_std": z[i].std(),
                  "latent_share_beyond_3": (z[i].abs() > 3).float().mean()}
        scores = {k: v.item() for k, v in scores.items()}
        dataset = model.largest(job.kind, job.target, job.timestep)
        if dataset is not None:
            scores["dataset_largest"] = dataset
        out.append((scores, strongest(everything[i], job.target), heat[i].cpu()))
    return out


def row(step):
    """What is kept of a step for each job: name -> (B,)."""
    return {"activation": step.activation, "gradient_norm": step.gradient.flatten(1).norm(dim=1),
            "update_norm": (step.after - step.before).flatten(1).norm(dim=1), "alive": step.alive}


def summarize(model, jobs, z, images, assessed, history):
    """A Result for each job, without pictures of the course. history: a `row` a step."""
    results = []
    for i, (job, (scores, others, heat)) in enumerate(zip(jobs, assessed)):
        curves = {k: torch.stack([step[k][i] for step in history]).tolist() for k in history[0] if k != "alive"}
        steps_alive = sum(bool(step["alive"][i]) for step in history)
        verdict = judge_result(scores, steps_alive == len(history), steps_alive, scores.get("dataset_largest"))
        nearest = model.sae.W_dec[job.feature].argmax().item() if job.kind == "feature" else None
        results.append(Result(job, z[i].cpu(), images[i].cpu(), scores["activation"], verdict, scores, curves, others,
                              heat, [], [], nearest))
    return results


def run_batch(model, jobs, config, on_step=None, frames=0, priors=None, begin=None):
    """The course of jobs that are computed together: start, ascent, scores, verdicts. Returns a Result for each.

    begin   what start() gave
    frames  so many pictures of the course are kept with each, see `kept_steps`
    """
    begin = begin or start(model, jobs, config, priors)
    first = measure(model, encoded(model, begin[1], config), jobs)[0]
    history, stored = [], dict.fromkeys(kept_steps(config.num_steps, frames), begin[1])     # steps done -> leaf
    for step in ascend(model, jobs, config, begin):
        history.append(row(step) | step.penalties)
        if on_step:
            on_step(step)
        if step.index + 1 in stored:
            stored[step.index + 1] = step.after
    with torch.no_grad():
        z, images = encoded(model, step.after, config), shown(model, step.after, config)
        course = [(images if at is step.after else shown(model, at, config)).cpu() for at in stored.values()]
    results = summarize(model, jobs, z, images, assess(model, z, jobs, images, first), history)
    for i, result in enumerate(results):
        result.stored_steps, result.frames = list(stored), [c[i] for c in course]
    return results


def stream(model, jobs, config, batch_size=None, on_step=None, frames=0, course=run_batch):
    """A Result a job, in order, as they are finished; at most `batch_size` are computed together, by `course`.

    A batch is filled up with copies to one of a few sizes, see `filled`: kernels of another shape round differently, so
    a job gives the same result alone and among others that fill the same size.
    """
    check_jobs(model, jobs)
    usual, priors = default_batch_size(model.device, model.latent_shape), {}
    most = batch_size or usual
    for i in range(0, len(jobs), most):
        batch = jobs[i:i + most]
        copies = batch[-1:] * (filled(len(batch), most, usual) - len(batch))
        yield from course(model, [*batch, *copies], config, on_step, frames, priors)[:len(batch)]


def filled(n, most, usual):
    """How many rows n jobs are computed in: the least of usual, 2 usual, 4 usual, ... that holds them, or `most`."""
    return min(most, usual * 2 ** max(0, math.ceil(math.log2(n / usual))))


def visualize(model, jobs, config, batch_size=None, on_step=None):
    """All Results of `stream` in a list."""
    return list(stream(model, jobs, config, batch_size, on_step))


def default_batch_size(device, latent_shape):
    """Small latents (the toy's are 16 wide) leave cores idle unless several rows go together; SD's fill them alone. A
    GPU takes 8.
    """
    return 8 if device.type == "cuda" or latent_shape[-1] <= 16 else 1


def check_jobs(model, jobs):
    """ValueError for a feature, channel or time step that the model does not have."""
    if len({job.kind for job in jobs}) != 1:
        raise ValueError("jobs must be all features or all channels, and at least one")
    count = model.sae.features if jobs[0].kind == "feature" else model.unet.width(model.hook_point)
    for job in jobs:
        if not 0 <= job.target < count:
            raise ValueError(f"--{job.kind} {job.target} is out of range: {model.folder} has {count} {job.kind}s, "
                             f"0..{count - 1}")
        if not 0 <= job.timestep < len(model.schedule):
            raise ValueError(f"--timestep {job.timestep} is out of range: time steps are 0..{len(model.schedule) - 1}")
        if not 0 <= job.seed < 2 ** 62:
            raise ValueError(f"--seed {job.seed} is out of range: seeds are 0..2^62 - 1")

