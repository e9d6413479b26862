"""One batch from start to verdict, and the door for notebooks: `visualize(model, features=[4])`.

    start -> ascend (ascent.py) -> score -> redraw (finish.py) -> score

Read `run` first. A job gives the same result alone and among others but for rounding (1e-5). The same list of jobs is
always cut into the same batches: the same command gives the same bytes, even where it was stopped half-way before.

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218; scores and verdicts are ours.
Axes: B jobs, 4 x H x W latents, h x w = S positions at the hook point, D its width, F features.
"""
import math
import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from ascent import activation, ascend, readout
from config import SEEDS, Job, T, check_config, configure
from finish import grid, noised, redraw
from steering import read_hook, steered_prior
from vae import fitted, read_picture, to_png

SCORE_DRAWS = 4                                 # fresh noises that a score is averaged over
SCORE_SEED = 0x3C91B7E5                         # a job's seed XOR this: scores have a generator of their own
OTHERS = 10                                     # features named beside the target
TOP_RANKS = 10                                  # an excited target is among so many of the most active


@dataclass
class Result:
    """What one job gave; a notebook shows its picture."""
    job: Job
    latent: torch.Tensor            # (4, H, W) float32, scaled
    image: torch.Tensor             # (3, 8H, 8W) in [0, 1]
    activation: float               # at the end, mean over SCORE_DRAWS fresh noises
    verdict: str                    # see `judge_result`
    scores: dict                    # name -> number or None
    history: dict                   # name -> one number a step
    others: list                    # [[index, activation], ...]: the OTHERS that it excites most beside its target
    frames: dict = field(default_factory=dict)  # steps done -> the picture then, as `image`; 0 is the start
    finished: "Result | None" = None            # what the model made of it

    def _repr_png_(self):
        """Return the finished picture, or the ascent's where there is none, as a notebook shows it."""
        return to_png((self.finished or self).image)


def list_jobs(model, kind, targets, seeds=SEEDS, timesteps=None):
    """List a Job for every target, time step and seed, each once; ValueError for one that the model does not have. Of
    `timesteps` a capture turns "auto" and "active" into numbers; None: the weights' own, or auto."""
    if timesteps is None:
        timesteps = [model.settings.get("timestep", "auto")]
    numbers, words = ([t for t in timesteps if isinstance(t, str) == word] for word in (False, True))
    for name, values in ((kind, targets), ("timestep", numbers), ("seed", seeds)):
        check_numbers(model, name, values)
    if words and model.capture is None:
        raise ValueError(f"--timestep {words[0]}: {model.folder} has no capture, which says when a feature is active; "
                         f"give a number, or run python -m activity capture --weights {model.folder}")
    jobs = {}                                   # for its order, and each once
    for target in targets:
        active = sorted(t for word in words for t in model.capture.timesteps(kind, target, word))
        jobs |= dict.fromkeys(Job(kind, target, t, seed) for t in [*numbers, *active] for seed in seeds)
    if not jobs:
        raise ValueError(f"there is no {kind} to visualise")
    return list(jobs)


def check_numbers(model, name, values):
    """Raise ValueError for a `name` (feature, channel, direction, timestep or seed) that the model does not have."""
    if name == "feature":
        model.require("sae")
    width = model.unet.width(model.hook_point)
    limit = {"feature": model.sae and model.sae.features, "channel": width, "timestep": T, "seed": 2 ** 62}.get(name)
    for value in values:
        if name == "direction":
            if (shape := [*model.directions[value].shape]) != [width]:
                raise ValueError(f"--direction {value} has shape {shape}, expected [{width}], the channels of "
                                 f"{model.hook_point}")
        elif type(value) is not int or not 0 <= value < limit:
            raise ValueError(f"--{name} {value} is out of range: {model.folder} has {limit} {name}s, 0..{limit - 1}")


def start(model, jobs, config, on_step=None):
    """Return (a generator for each job, their starting latents (B, 4, H, W)), by --prior: noise from the job's seed,
    the sample that is steered towards the target or guided by it from that noise, or a picture, cropped and scaled."""
    generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
    z = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators]).to(model.device)
    if config.prior == "steer":
        z = steered_prior(model, jobs, z, config, on_step)
    elif config.prior == "guided":
        times = grid(T - 1, config.prior_steps)
        z, _ = follow("sampling", redraw(model, jobs, z, times, config), on_step)
    elif config.prior != "noise":
        size = [edge * model.vae.factor for edge in model.latent_shape[1:]]
        z = model.encode(fitted(read_picture(config.prior), *size)[None].to(model.device)).expand(len(jobs), -1, -1, -1)
    return generators, z


def share_starts(model, jobs, config, on_step=None):
    """Return a function of some of these jobs and a size that gives their `start`: made once for all time steps of a
    target and seed, in groups of `size` that follow from the whole list."""
    members = {(job.target, job.seed): job for job in jobs}     # whichever its time step
    places, members = {key: i for i, key in enumerate(members)}, list(members.values())

    @lru_cache(64)
    def sample(first, size):
        return start(model, members[first:first + size], config, on_step)[1]                    # (size, 4, H, W)

    def begin(batch, size):
        at = [places[job.target, job.seed] for job in batch]
        generators, _ = start(model, batch, replace(config, prior="noise"))
        return generators, torch.stack([sample(i - i % size, size)[i % size] for i in at])
    return begin


@torch.no_grad()
def measure(model, z, jobs, config, noise=True):
    """Measure mean activations at latents z (B, 4, H, W): of the jobs' targets (B,), of all features or channels
    (B, F or D). With noise: the mean over SCORE_DRAWS draws that depend on the job's seed alone."""
    context = model.embed([config.prompt]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    generators = [torch.Generator().manual_seed(SCORE_SEED ^ job.seed) for job in jobs]
    kind, draws, own, everything = jobs[0].kind, SCORE_DRAWS if noise else 1, 0, 0
    for _ in range(draws):
        eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
        x = model.schedule.add_noise(z, eps, t) if noise else z
        hook = read_hook(model, x, t, context).float()                                          # (B, D, h, w)
        own = own + activation(readout(model, hook, jobs, config.position), kind) / draws
        h = hook.flatten(2).transpose(1, 2)                                                     # (B, S, D)
        everything = everything + (model.sae.pre_acts(h) if kind == "feature" else h).mean(dim=1) / draws
    return own, everything


@torch.no_grad()
def assess(model, z, jobs, first, config, history):
    """Decode and score latents z (B, 4, H, W): a Result for each job. `first`: activations (B,) of the starts,
    `history`: {name: (steps, B)} of the steps that led here."""
    images = model.decode(z)
    own, everything = measure(model, z, jobs, config)
    clean = measure(model, z, jobs, config, noise=False)[0]
    again = measure(model, model.encode(images), jobs, config)[0]
    results = []
    for i, job in enumerate(jobs):
        others, curves = dict(enumerate(everything[i].tolist())), {k: v[:, i].tolist() for k, v in history.items()}
        target, alive, repeats = others.pop(job.target, None), curves.pop("alive"), curves.pop("repeats")
        largest = None                          # of the dataset's images, seen with the empty prompt as well
        if model.capture is not None and job.kind != "direction":
            largest = model.capture.largest(job.kind, job.target)
        scores = {"activation_start": first[i].item(), "activation": own[i].item(),
                  "activation_no_noise": clean[i].item(), "activation_reencoded": again[i].item(),
                  "rank": None if target is None else 1 + sum(value > target for value in others.values()),
                  "dataset_largest": None if largest is None else float(largest[job.timestep])}
        if model.dtype == torch.float16:
            scores["repeated_steps"] = int(sum(repeats))
        strongest = sorted(map(list, others.items()), key=lambda item: -item[1])[:OTHERS]
        verdict = judge_result(scores, all(alive), sum(alive))
        results.append(Result(job, z[i].cpu(), images[i].cpu(), scores["activation"], verdict, scores, curves,
                              strongest))
    return results


def list_checks(scores):
    """List a verdict's checks in order, [(verdict where it fails, a sentence with its numbers, whether it holds)]."""
    a, start, again, rank, largest = (scores[name] for name in (
        "activation", "activation_start", "activation_reencoded", "rank", "dataset_largest"))
    found = [("non-finite", f"{a:.4g} is a number", math.isfinite(a)),
             ("silent", f"{a:.4g} is not 0", a != 0),
             ("weak", f"{a:.4g} is above {start:.4g} at the start", not a <= start),
             ("fragile", f"re-encoded {again:.4g}: at most half of {a:.4g} is lost",
              not again < a - 0.5 * abs(a))]                    # a channel's may be below 0
    if rank is not None:
        found.append(("raised", f"rank {rank} is at most {TOP_RANKS}", rank <= TOP_RANKS))
    if largest is not None:
        found.append(("raised", f"{a:.4g} is at least half of {largest:.4g}, the strongest dataset image's",
                      not a < 0.5 * max(largest, 0)))
    return found


def judge_result(scores, alive, stopped):
    """Return the first verdict of `list_checks` that fails, or excited; alive: all was finite, until step `stopped`."""
    failed = next((verdict for verdict, _, holds in list_checks(scores) if not holds), "excited")
    return f"non-finite at step {stopped}" if not alive or failed == "non-finite" else failed


def kept_steps(num_steps, frames):
    """List after how many steps a picture is kept: evenly, `frames` of them at most, with start and end."""
    return sorted({round(i * num_steps / (frames - 1)) for i in range(frames)}) if frames > 1 else []


def follow(phase, steps, on_step=None, stored=()):
    """Run all steps of one phase: (the last latents (B, 4, H, W), {name: one number a step (steps, B)} on the CPU). The
    values of `stored` {steps done: the latents then} are filled in, and `on_step` called with (phase, step)."""
    rows = []
    for step in steps:
        rows.append({"activation": step.activation, "gradient_norm": step.gradient.flatten(1).norm(dim=1),
                     "update_norm": (step.after - step.before).flatten(1).norm(dim=1), "repeats": step.repeats,
                     "alive": step.alive} | getattr(step, "penalties", {}))
        if on_step:
            on_step(phase, step)
        if step.index + 1 in stored:
            stored[step.index + 1] = step.after
    return step.after, {name: torch.stack([row[name] for row in rows]).cpu() for name in rows[0]}


def run(model, jobs, config, begin=None, frames=0, on_step=None):
    """Run the course of jobs that are computed together: start, ascent, scores, finish, scores. -> [Result]

    begin  what `start` gave; frames  how many pictures of the ascent to keep, see `kept_steps`
    on_step  is called after each step with (phase, step), phase "sampling", "ascent" or "finish"
    """
    begin = begin or start(model, jobs, config, on_step)
    first = measure(model, begin[1], jobs, config)[0]
    stored = dict.fromkeys(kept_steps(config.num_steps, frames), begin[1])
    z, history = follow("ascent", ascend(model, jobs, config, begin), on_step, stored)
    results = assess(model, z, jobs, first, config, history)
    with torch.no_grad():
        course = {done: model.decode(at).cpu() for done, at in stored.items()}
    finished = finish(model, jobs, z, first, config, on_step) if config.finish else [None] * len(jobs)
    for i, result in enumerate(results):
        result.frames = {done: pictures[i] for done, pictures in course.items()}
        result.finished = finished[i]
    return results


def finish(model, jobs, z, first, config, on_step=None):
    """Let the model redraw z (B, 4, H, W) from one time step or several; keep for each job the try whose picture,
    decoded and encoded again, excites its target most. -> [Result]"""
    tries, kept = {}, []
    for t0 in config.finish_times:
        steps = redraw(model, jobs, noised(model, jobs, z, t0), grid(t0, config.finish_steps), config)
        x, history = follow("finish", steps, on_step)
        tries[t0] = assess(model, x, jobs, first, config, history)
    for i in range(len(jobs)):
        again = {t0: results[i].scores["activation_reencoded"] for t0, results in tries.items()}
        best = max(again, key=lambda t0: -math.inf if math.isnan(again[t0]) else again[t0])
        kept.append(tries[best][i])
        kept[i].scores |= {"finish_from": best, "finish_scale": config.finish_scale}
        kept[i].scores |= {f"reencoded_from_{t0}": a for t0, a in again.items()}
    return kept


def course_lengths(config):
    """Return the steps of one batch by phase, at most."""
    twice = config.prior == "steer" and config.prior_sampler == "pndm"          # which takes its second step twice
    return {"sampling": config.prior_steps + twice if config.prior in ("steer", "guided") else 0,
            "ascent": config.num_steps, "finish": config.finish * len(config.finish_times) * config.finish_steps}


def batch_rows(model, jobs, config):
    """Return how many jobs go together where nobody says it: on a CPU so that small latents fill its cores; on a card
    what fits, by one step of one job against the whole card, so that the same card gives the same."""
    if model.device.type != "cuda":
        return 8 if model.latent_shape[-1] <= 16 else 1
    held = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    one = replace(config, prior="noise")
    next(ascend(model, jobs[:1], one, start(model, jobs[:1], one)))
    each = torch.cuda.max_memory_allocated(model.device) - held
    whole = torch.cuda.get_device_properties(model.device).total_memory
    rows = max(1, min(16, int(0.8 * (whole - held) / max(each, 1))))    # more than 16 make no row cheaper
    return 2 ** int(math.log2(rows))            # so that halves fall together with the first cut


def stream(model, jobs, config, batch_size=None, wanted=None, frames=0, on_step=None):
    """Yield the Results of one batch after another, in order.

    batch_size  jobs that are computed together, at most, None: see `batch_rows`; halved where memory runs out
    wanted      jobs whose results are needed: batches without one are skipped; None: all
    """
    if config.position:                         # outside the grid: refused before anything is sampled
        measure(model, torch.zeros(1, *model.latent_shape, device=model.device), jobs[:1], config, noise=False)
    size, done = batch_size or batch_rows(model, jobs, config), 0
    starts = share_starts(model, jobs, config, on_step)
    while done < len(jobs):
        batch = jobs[done:done + size]
        try:
            if wanted is None or not wanted.isdisjoint(batch):
                yield run(model, batch, config, starts(batch, size), frames, on_step)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            done += len(batch)
            continue
        size //= 2                              # outside of `except`, which holds on to the memory
        torch.cuda.empty_cache()
        print(f"memory ran out: {size} jobs at a time (--batch-size)", file=sys.stderr)


def visualize(model, features=None, channels=None, directions=None, seeds=SEEDS, timesteps=None, preset=None,
              batch_size=None, frames=0, on_step=None, **settings):
    """Visualise features, channels or directions of a model: [Result], by target, time step and seed.

    features, channels  lists of numbers; directions  {name: vector (D,)}; one of the three
    timesteps           numbers, "auto", "active"; None: the weights' own, or 0 and the peaks of the target's activity
    preset              sae, raw, none or quick; settings  any field of config.Config by its name
    Raises ValueError for what the model does not have, and for a setting that does not exist or is out of range.
    """
    every = {"feature": features, "channel": channels, "direction": directions}
    given = [(kind, targets) for kind, targets in every.items() if targets is not None]
    if len(given) != 1:
        raise ValueError("give features=, channels= or directions=, one of the three")
    if batch_size is not None and batch_size < 1 or not 0 <= frames <= 50:
        raise ValueError(f"batch_size must be at least 1 and frames 0 to 50, got {batch_size} and {frames}")
    kind, targets = given[0]
    if kind == "direction":
        model.directions = {name: torch.as_tensor(w, dtype=torch.float32, device=model.device)
                            for name, w in directions.items()}
    config = configure(model.settings, preset, kind, **settings)
    check_config(config, min(model.latent_shape[1:]))
    some = lambda value: [value] if isinstance(value, (int, str)) else value
    jobs = list_jobs(model, kind, some(targets), some(seeds), some(timesteps))
    return [result for batch in stream(model, jobs, config, batch_size, None, frames, on_step) for result in batch]
