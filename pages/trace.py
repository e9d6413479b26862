"""A job opened up from start to verdict: every tensor of some steps, in files, as pictures and on a page to project.

    python featviz.py --feature 12 --timestep 600 --seed 1024 --trace 0 50

    out/<weights>/feature_00012/t0600/seed_1024_trace/
        start, step_050, finish, verdict.safetensors        their tensors, see the functions that collect them
        trace.html              written last: stages in order, formula, line, numbers, pictures (tracepage.py)

The loop is not touched: tensors come from the steps that sampling, ascent and finish yield. What these do not carry,
random draws and the noises of a score, is computed again beside them. No result is written.

Axes: B jobs, 4 x H x W latents, D x h x w at the hook point, n sampling or finish steps.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

import visualize
from ascent import activation, draw, objective, readout
from finish import rms
from pages import tracepage, web
from results import path_of, write
from steering import directions, read_hook

STRONGEST = 10              # features or channels that are listed beside the target
OF_STEP = ("before", "transformed", "noised", "gradient", "filtered", "smoothed", "after", "activation", "silent")
OF_FINISH = ("before", "noise", "gradient", "filtered", "pulled", "after", "activation", "silent")


def trace(model, recipes, config, steps, out, on_step, size):
    """Run the jobs of `recipes` {job: recipe}, `size` together, and yield the path of each job's page.

    steps    which steps of the ascent to open up
    on_step  is called after each step as on_step(phase, step), see visualize.run
    """
    model.require("vae")
    jobs = list(recipes)
    for at in range(0, len(jobs), size):
        batch, seen = jobs[at:at + size], {"sampling": [], "ascent": [], "finish": []}

        def see(phase, step):
            if phase != "ascent" or step.index in steps:
                seen[phase].append(step)
            on_step(phase, step)

        begin = visualize.start(model, batch, config, see)
        for i, result in enumerate(visualize.run(model, batch, config, begin, on_step=see)):
            job, start = batch[i], begin[1][i]
            files = {"start": follow_start(model, job, config, start, seen["sampling"], i)}
            files |= {f"step_{step.index:03d}": record(model, job, config, step, i) for step in seen["ascent"]}
            if config.finish:
                files["finish"] = follow_finish(model, config, seen["finish"], i, result)
            files["verdict"] = follow_scores(model, job, config, start, result)
            yield save_trace(model, recipes[job], files, result, out, steps)


def clean_of(model, x, e, times):
    """Solve x = sqrt(abar_t) z + sqrt(1 - abar_t) e for z: x, e (n, 4, H, W) at times (n,)."""
    abar = model.schedule.abar(times.to(model.device)).to(x)                                    # (n, 1, 1, 1)
    return (x - (1 - abar).sqrt() * e) / abar.sqrt()


def follow_start(model, job, config, start, sampled, i):
    """Record how the start (4, H, W) of job i came about:

    start (4, H, W)                                 where the ascent begins; of noise or a picture this alone
    timestep (n,), before, noise, clean (n, 4, H, W)    of sampling: t, x_t, the noise e predicted there, x_t without e
    strength (1001,), direction (D,), push (n,)     of a steered start: s_t, d, s_t |d|
    """
    s = {"start": start}
    if sampled:
        t = torch.tensor([step.timestep for step in sampled])
        x = torch.stack([step.before[i] for step in sampled])                                   # (n, 4, H, W)
        e = torch.stack([getattr(step, "pulled", step.noise)[i] for step in sampled])           # (n, 4, H, W)
        s |= {"timestep": t, "before": x, "noise": e, "clean": clean_of(model, x, e, t)}
    if config.prior == "steer":
        curve = torch.as_tensor(model.capture.strength(job.kind, job.target, config.steer_steps))
        s["strength"], s["direction"] = config.steer_scale * curve.to(start), directions(model, [job])[0]
        s["push"] = s["strength"][t.to(start.device)] * s["direction"].float().norm()
    return s


@torch.no_grad()
def record(model, job, config, step, i):
    """Collect all of one step of job i, {name: tensor}; its random numbers are drawn once more."""
    g = torch.Generator().manual_seed(job.seed)
    torch.randn(model.latent_shape, generator=g)                # the noise of the start comes before those of all steps
    for _ in range(step.index + 1):
        drawn = draw(g, model.latent_shape, config)
    hook = step.hook[i:i + 1].float()                                                           # (1, D, h, w)
    flat = hook[0].flatten(1).T                                                                 # (S, D)
    everything = (model.sae.pre_acts(flat) if job.kind == "feature" else flat).mean(dim=0)      # (F or D,)
    top = everything.topk(min(STRONGEST, len(everything)))
    climbed = objective(readout(model, hook, [job], config.position), job.kind, config.silent_gradient)[2][0]
    penalties = {name: value[i] for name, value in step.penalties.items()}
    tensors = {name: getattr(step, name)[i] for name in OF_STEP}
    tensors |= dict(zip(("shift", "angle", "zoom", "eps"), drawn))
    tensors |= {f"penalty_{name}": value for name, value in penalties.items()}
    return tensors | {
        "hook": hook[0], "pre_activation": readout(model, hook, [job]).reshape(hook.shape[2:]), "climbed": climbed,
        "loss": sum(penalties.values()) - climbed, "update": step.after[i] - step.before[i], "adam_mean": step.mean[i],
        "adam_square": step.square[i], "strongest": top.indices, "strongest_activation": top.values}


def follow_finish(model, config, redrawn, i, result):
    """Record the finish of job i: from the steps of all tries those of the try that was kept.

    A row a step, what finish.Step has but the hook, and
        rms_noise, rms_gradient (n,)    rms e, rms g
        pull (n,)                       s rms e / rms g, what g is multiplied by; 0 where there is no gradient
        clean (n, 4, H, W)              what the step takes for the clean latent
    """
    first = config.finish_steps * config.finish_times.index(result.finished.scores["finish_from"])
    kept = redrawn[first:first + config.finish_steps]
    s = {name: torch.stack([getattr(step, name)[i] for step in kept]) for name in OF_FINISH}    # (n, ...) each
    s["timestep"] = torch.tensor([step.timestep for step in kept])
    e, g = rms(s["noise"]).flatten(), rms(s["filtered"]).flatten()                              # (n,) each
    return s | {"rms_noise": e, "rms_gradient": g, "pull": torch.where(g > 0, config.finish_scale * e / g, 0),
                "clean": clean_of(model, s["before"], s["pulled"], s["timestep"])}


@torch.no_grad()
def follow_scores(model, job, config, start, result):
    """Record what the scores of a job's latents are made of.

    eps (4, 4, H, W)                                    the noises, the same for every latent
    <name>_latent (4, H, W), <name>_activation (4,)     name: start, ascent, finished; with _reencoded the latent after
                                                        decoding and encoding
    """
    g = torch.Generator().manual_seed(visualize.SCORE_SEED ^ job.seed)
    eps = torch.stack([torch.randn(start.shape, generator=g) for _ in range(visualize.SCORE_DRAWS)]).to(start)
    latents = {"start": start}
    for name, end in tracepage.ends(result).items():
        z = end.latent.to(start)
        latents |= {name: z, f"{name}_reencoded": model.encode(model.decode(z[None]))[0]}
    t = torch.full((len(eps),), job.timestep, device=model.device)
    context, found = model.embed([config.prompt]).expand(len(eps), -1, -1), {"eps": eps}
    for name, z in latents.items():
        hook = read_hook(model, model.schedule.add_noise(z, eps, t), t, context)                # (4, D, h, w)
        values = readout(model, hook, [job] * len(eps), config.position)
        found |= {f"{name}_latent": z, f"{name}_activation": activation(values, job.kind)}
    return found


def save_trace(model, recipe, files, result, out, steps):
    """Write the files {name: {name: tensor}} of one job, fractions in float32, trace.html last; what an earlier trace
    left in the folder goes first."""
    folder, job = Path(f"{path_of(out, recipe)}_trace"), recipe["job"]
    for old in folder.glob("*"):
        old.unlink()
    scores = {name: end.scores for name, end in tracepage.ends(result).items()}
    meta = {"featviz": json.dumps({"recipe": recipe, "scores": scores}, sort_keys=True)}
    for name, tensors in files.items():
        files[name] = {key: (t.float() if t.is_floating_point() else t).detach().cpu().clone().contiguous()
                       for key, t in tensors.items()}
        write(folder / f"{name}.safetensors", save_tensors(files[name], metadata=meta))
    command = f"{web.command(recipe, [job['timestep']], [job['seed']])} --trace {' '.join(map(str, steps))}"
    write(folder / "trace.html", tracepage.page(model, recipe, command, files, result).encode("utf-8"))
    return folder / "trace.html"
