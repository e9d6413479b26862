"""A job opened up from start to verdict: every tensor of some steps, in files, as pictures and on a page to project.

    python featviz.py --feature 12 --timestep 600 --seed 1024 --trace 0 50

    out/<weights>/feature_00012/t0600/seed_1024_trace/
        start.safetensors           how the start came about (`follow_start`)
        step_050.safetensors        all tensors of a step, by name (`record`)
        finish.safetensors          the steps of the finish, where it is on (`follow_finish`)
        verdict.safetensors         the noises and activations behind each score (`follow_scores`)
        trace.html                  written last: stages in order, formula, line, numbers, pictures

The loop is not touched: tensors come from the steps that ascend and redraw yield. What they do not carry, random draws,
the sampling of the start, the noises of a score, is computed again beside them, so that all of it can be checked from
the files. No result is written.

Axes: B jobs, 4 x H x W latents, D x h x w at the hook point, n sampling or finish steps.
"""
import dataclasses
import json

import torch
from safetensors.torch import save as save_tensors

import visualize
from ascent import activation, draw, objective, readout
from finish import grid, redraw, rms
from pages import tracepage, words
from results import path_of, with_suffix, write
from schedule import SAMPLERS, guided
from steering import directions, predict, read_hook

STRONGEST = 10              # features or channels that are listed beside the target


def trace(model, recipes, config, steps, out, on_step=None, size=None):
    """Run the jobs of `recipes` {job: recipe}, `size` together, and yield the path of each job's page.

    steps    which steps of the ascent to open up
    on_step  is called after each step as on_step(phase, step), see visualize.run
    """
    model.require("vae")
    jobs = list(recipes)
    for i in range(0, len(jobs), size or len(jobs)):
        batch = jobs[i:i + (size or len(jobs))]
        for job, parts in zip(batch, follow(model, batch, config, set(steps), on_step)):
            yield save_trace(model, recipes[job], parts, out, steps)


@dataclasses.dataclass
class Parts:
    """All that is recorded of one job, {name: tensor on the CPU} each."""
    start: dict
    steps: dict                     # {step of the ascent: its tensors}
    finish: dict | None             # None where the finish is off
    verdict: dict
    result: visualize.Result        # what a run without a trace gives


def follow(model, jobs, config, steps, on_step=None):
    """Run jobs together from start to verdict and record each: [Parts]."""
    begin = visualize.start(model, jobs, config, on_step)
    replay = [torch.Generator().set_state(g.get_state()) for g in begin[0]]
    found, redrawn = [{} for _ in jobs], []

    def see(phase, step):
        if phase == "ascent":
            drawn = [draw(g, step.before.shape[1:], config) for g in replay]
            values = readout(model, step.hook, jobs)                                            # (B, S)
            for i, job in enumerate(jobs if step.index in steps else ()):
                found[i][step.index] = record(model, job, config, step, i, values[i], drawn[i])
        elif phase == "finish":
            redrawn.append(step)
        if on_step:
            on_step(phase, step)

    starts = follow_start(model, jobs, config, begin[1])
    results = visualize.run(model, jobs, config, begin, on_step=see)
    finished = [follow_finish(model, config, redrawn, i, result) if config.finish else None
                for i, result in enumerate(results)]
    verdicts = follow_scores(model, jobs, config, begin[1], results)
    return [Parts(*parts) for parts in zip(starts, found, finished, verdicts, results)]


def plain(tensors):
    """Copy {name: tensor} to the CPU, in float32 where they hold fractions."""
    return {name: (t.float() if t.is_floating_point() else t).detach().cpu().clone().contiguous()
            for name, t in tensors.items()}


def clean_of(model, x, e, times):
    """Solve x = sqrt(abar_t) z + sqrt(1 - abar_t) e for z: x, e (n, 4, H, W) at times (n,)."""
    abar = model.schedule.abar(times.to(model.device)).to(x)                                    # (n, 1, 1, 1)
    return (x - (1 - abar).sqrt() * e) / abar.sqrt()


def sampling(model, jobs, config):
    """Sample the starts again: [(t, x (B, 4, H, W), noise that was predicted (B, 4, H, W))], s (B, 1001), d (B, D)."""
    noise, seen = visualize.start(model, jobs, dataclasses.replace(config, prior="noise"))[1], []
    d = directions(model, jobs)
    s = torch.zeros(len(jobs), 1001).to(noise)
    if config.prior == "steer":
        curves = [torch.as_tensor(model.capture.strength(job.kind, job.target, config.steer_steps)) for job in jobs]
        s = config.steer_scale * torch.stack(curves).to(noise)

        def net(x, t, context):
            push = {model.hook_point: s[:, t[0], None].to(model.dtype) * d.to(model.dtype)}
            seen.append((int(t[0]), x, predict(model, x, t, context, push)))
            return seen[-1][2]

        sampler = SAMPLERS[config.prior_sampler]
        with torch.no_grad():
            for _ in sampler(model.schedule, guided(net, model.embed([""])), noise, config.prior_steps):
                pass
    elif config.prior == "guided":
        for step in redraw(model, jobs, noise, grid(len(model.schedule) - 1, config.prior_steps), config):
            seen.append((step.timestep, step.before, step.pulled))
    return seen, s, d


def follow_start(model, jobs, config, z):
    """Record how the starts z (B, 4, H, W) came about; of noise or a picture there is `start` alone.

    strength (1001,), direction (D,)        s_t, d
    timestep (n,), push (n,)                t, s_t |d|
    before, noise, clean (n, 4, H, W)       x_t, the noise e predicted there, and what is left of x_t without e
    """
    if config.prior not in ("steer", "guided"):
        return [plain({"start": row}) for row in z]
    seen, s, d = sampling(model, jobs, config)
    times, found = torch.tensor([t for t, _, _ in seen]), []
    for i, row in enumerate(z):
        x, e = (torch.stack([step[k][i] for step in seen]) for k in (1, 2))                     # (n, 4, H, W) each
        found.append(plain({"strength": s[i], "direction": d[i], "timestep": times, "before": x, "noise": e,
                            "push": s[i][times.to(s.device)] * d[i].float().norm(),
                            "clean": clean_of(model, x, e, times), "start": row}))
    return found


@torch.no_grad()
def record(model, job, config, step, i, values, drawn):
    """All of one step of job i, {name: tensor}; values (S,) is what its relu is applied to at each place."""
    hook = step.hook[i].float()                                                                 # (D, h, w)
    flat, places = hook.flatten(1).T, hook.shape[1:]                                            # (S, D)
    everything = model.sae.pre_acts(flat) if job.kind == "feature" else flat                    # (S, F)
    top = everything.mean(dim=0).topk(min(STRONGEST, everything.shape[1]))
    read = values.reshape(places)[config.position].reshape(1) if config.position else values    # (S,) or (1,)
    climb = objective(read[None], job.kind, config.silent_gradient)[2][0]
    tensors = {name: getattr(step, name)[i] for name in ("before", "transformed", "noised", "gradient", "filtered",
                                                         "smoothed", "after", "activation", "silent")}
    tensors |= dict(zip(("shift", "angle", "zoom", "eps"), map(torch.as_tensor, drawn)))
    tensors |= {"hook": hook, "pre_activation": values.reshape(places), "climbed": climb,
                "update": step.after[i] - step.before[i], "strongest": top.indices, "strongest_activation": top.values,
                "strongest_map": everything[:, top.indices].T.unflatten(1, places), "adam_mean": step.mean[i],
                "adam_square": step.square[i]}
    tensors |= {f"penalty_{name}": value[i] for name, value in step.penalties.items()}
    tensors["loss"] = sum(value[i] for value in step.penalties.values()) - climb
    return plain(tensors)


def follow_finish(model, config, steps, i, result):
    """Record the finish of job i: of all steps of all tries those of the try that was kept.

    A row a step, what finish.Step has but the hook, and
        rms_noise, rms_gradient (n,)    rms e, rms g
        pull (n,)                       s rms e / rms g, what g is multiplied by; 0 where there is no gradient
        clean (n, 4, H, W)              what the step takes for the clean latent
    """
    firsts = [n for n, step in enumerate(steps) if step.index == 0]
    (first,) = [n for n in firsts if steps[n].timestep == result.finished.scores["finish_from"]]
    kept = steps[first:first + config.finish_steps]
    s = {name: torch.stack([getattr(step, name)[i] for step in kept]) for name in (
        "before", "noise", "gradient", "filtered", "pulled", "after", "activation", "silent")}  # (n, ...) each
    s["timestep"] = torch.tensor([step.timestep for step in kept])
    e, g = rms(s["noise"]).flatten(), rms(s["filtered"]).flatten()                              # (n,) each
    s |= {"rms_noise": e, "rms_gradient": g, "pull": torch.where(g > 0, config.finish_scale * e / g, 0),
          "clean": clean_of(model, s["before"], s["pulled"], s["timestep"])}
    return plain(s)


@torch.no_grad()
def under_noise(model, jobs, z, config):
    """Measure latents z (B, 4, H, W) under the noises of a score: these (B, 4, 4, H, W), and activations (B, 4)."""
    context = model.embed([config.prompt]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    generators = [torch.Generator().manual_seed(visualize.SCORE_SEED ^ job.seed) for job in jobs]
    noises, found = [], []
    for _ in range(visualize.SCORE_DRAWS):
        noises.append(torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z))
        x = model.schedule.add_noise(z, noises[-1], t)
        hook = read_hook(model, x, t, context)                                                  # (B, D, h, w)
        found.append(activation(readout(model, hook, jobs), jobs[0].kind))                      # (B,)
    return torch.stack(noises, dim=1), torch.stack(found, dim=1)


@torch.no_grad()
def follow_scores(model, jobs, config, begin, results):
    """Record what the scores of each job's latents are made of: [tensors].

    eps (4, 4, H, W)                    the noises, the same for every latent of a job
    activation_start (4,)               of the start under each of them
    <name>_latent, <name>_reencoded     (4, H, W) each; name: ascent, finished
    <name>_activation, <name>_activation_reencoded      (4,) each
    """
    eps, start = under_noise(model, jobs, begin, config)
    found = [{"eps": eps[i], "activation_start": start[i]} for i in range(len(jobs))]
    for name in tracepage.ends(results[0]):
        z = torch.stack([tracepage.ends(result)[name].latent for result in results]).to(model.device)
        again = model.encode(model.decode(z))
        own, reencoded = (under_noise(model, jobs, latents, config)[1] for latents in (z, again))
        for i, tensors in enumerate(found):
            tensors |= {f"{name}_latent": z[i], f"{name}_reencoded": again[i], f"{name}_activation": own[i],
                        f"{name}_activation_reencoded": reencoded[i]}
    return [plain(tensors) for tensors in found]


def save_trace(model, recipe, parts, out, steps):
    """Write the files of one job, trace.html last; what an earlier trace left in the folder goes first."""
    path, job = path_of(out, recipe), recipe["job"]
    folder = with_suffix(path, "_trace")
    for old in folder.glob("*") if folder.exists() else ():
        old.unlink()
    files = {"start": parts.start, **{f"step_{k:03d}": s for k, s in sorted(parts.steps.items())},
             "finish": parts.finish, "verdict": parts.verdict}
    scores = {name: end.scores for name, end in tracepage.ends(parts.result).items()}
    meta = json.dumps({"recipe": recipe, "scores": scores}, sort_keys=True)
    for name, tensors in files.items():
        if tensors is not None:
            write(folder / f"{name}.safetensors", save_tensors(tensors, metadata={"featviz": meta}))
    command = f"{words.command(recipe, [job['timestep']], [job['seed']])} --trace {' '.join(map(str, steps))}"
    write(folder / "trace.html", tracepage.page(model, recipe, command, parts).encode("utf-8"))
    return folder / "trace.html"
