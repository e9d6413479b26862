"""Steps of the ascent opened up, stage by stage, and the finish: tensors, pictures and a page to project.

    python featviz.py --feature 12 --timestep 600 --seed 1024 --trace 0 50

    out/<weights>/feature_00012/t0600/seed_1024_trace/
        step_050.safetensors            all tensors of the step, by name (`record`)
        step_050_<stage>_<what>.png     its pictures (tracepage.py)
        finish.safetensors, finish_*.png    the steps of the finish, where it is on (tracefinish.py)
        trace.html                      written last: stages in order, formula, line, numbers

The loop is not touched: tensors come from the `Step` that ascent.ascend yields. What a step does not carry, its random
draws, are played again beside it, from a copy of the job's generator, so that all of it can be recomputed from the
file. Without the finish nothing runs after the last step asked for. No result is written.
"""
import json

import torch
from safetensors.torch import save as save_tensors

from ascent import ascend, default_batch_size, draw, filled, objective, readout
from finish import start
from pages import again, files, tracefinish, tracepage
from weights.disk import replacing

STRONGEST = 10              # features or channels that are listed beside the target


def trace(model, recipes, config, steps, out, size, weights=None, on_step=None):
    """Run the jobs of `recipes`, `size` together as finish.stream does; yields each's page, of `steps` and the finish.

    `weights`: as given on the command line, for the command that the page shows.
    """
    _ = model.vae                                               # says so where there is none, before any work
    jobs, usual = list(recipes), default_batch_size(model.device, model.latent_shape)
    for i in range(0, len(jobs), size):
        batch = jobs[i:i + size]
        full = [*batch, *batch[-1:] * (filled(len(batch), size, usual) - len(batch))]
        for job, (records, curve, redrawn) in zip(batch, follow(model, full, config, set(steps), on_step)):
            recipe, together = recipes[job], f" --batch-size {size}" if size != usual else ""
            command = again.command(recipe, [job.timestep], [job.seed], weights=weights)
            command += f"{together} --trace {' '.join(map(str, steps))}"
            folder = files.path_of(out, recipe).with_name(f"seed_{job.seed}_trace")
            yield write(model, recipe, command, records, curve, redrawn, folder)


def follow(model, jobs, config, steps, on_step=None):
    """For each job ({step: record}, the activation at every step so far, its tracefinish.follow or None)."""
    begin = start(model, jobs, config)
    replay = [torch.Generator().set_state(g.get_state()) for g in begin[0]]
    found, curve = [{} for _ in jobs], []
    for step in ascend(model, jobs, config, begin):
        drawn = [draw(g, step.before.shape[1:], config) for g in replay]
        curve.append(step.activation.tolist())
        if step.index in steps:
            values = readout(model, step.hook, jobs)                                            # (B, S)
            for i, job in enumerate(jobs):
                found[i][step.index] = record(model, job, config, step, i, values[i], drawn[i])
        if on_step:
            on_step(step)
        if step.index == max(steps) and not config.finish:
            break
    redrawn = tracefinish.follow(model, jobs, config, step.after, on_step) if config.finish else [None] * len(jobs)
    return list(zip(found, zip(*curve), redrawn))


@torch.no_grad()
def record(model, job, config, step, i, values, drawn):
    """All of one step of job i, {name: tensor on the CPU}; values (S,) is what its relu is applied to."""
    hook = step.hook[i].float()                                                                 # (D, h, w)
    flat, grid = hook.flatten(1).T, hook.shape[1:]                                              # (S, D)
    everything = model.sae.pre_acts(flat) if job.kind == "feature" else flat                    # (S, F)
    top = everything.mean(dim=0).topk(min(STRONGEST, everything.shape[1]))
    climb = objective(values[None], job.kind, config.silent_gradient)[2][0]
    tensors = {name: getattr(step, name)[i] for name in ("before", "transformed", "noised", "gradient", "filtered",
                                                         "smoothed", "after", "activation", "silent")}
    tensors |= dict(zip(("shift", "angle", "zoom", "eps"), map(torch.as_tensor, drawn)))
    tensors |= {"hook": hook, "pre_activation": values.reshape(grid), "climbed": climb,
                "update": step.after[i] - step.before[i], "strongest": top.indices, "strongest_activation": top.values,
                "strongest_map": everything[:, top.indices].T.unflatten(1, grid), "adam_mean": step.mean[i],
                "adam_square": step.square[i]}
    tensors |= {f"penalty_{name}": value[i] for name, value in step.penalties.items()}
    tensors["loss"] = sum(value[i] for value in step.penalties.values()) - climb
    return {name: (t.float() if t.is_floating_point() else t).cpu().clone().contiguous()
            for name, t in tensors.items()}


def write(model, recipe, command, records, curve, redrawn, folder):
    """The files of one job, trace.html last; what an earlier trace left in the folder goes first."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / "trace.html", *folder.glob("step_*"), *folder.glob("finish*")]:
        old.unlink(missing_ok=True)
    kind = "channel" if recipe["job"]["feature"] is None else "feature"
    pictures, last = {}, ""
    for k, tensors in sorted(records.items()):
        meta = json.dumps({"step": k, **recipe}, sort_keys=True)
        keep(folder / f"step_{k:03d}.safetensors", save_tensors(tensors, metadata={"featviz": meta}))
        pictures[k] = tracepage.pictures(model, kind, tensors)
        for stage, panels in pictures[k].items():
            for panel in panels:
                keep(folder / f"step_{k:03d}_{stage}_{panel.name}.png", panel.png)
    if redrawn:
        meta = json.dumps(recipe, sort_keys=True)
        keep(folder / "finish.safetensors", save_tensors(redrawn, metadata={"featviz": meta}))
        panels = tracefinish.pictures(model, redrawn)
        for panel in panels:
            keep(folder / f"finish_{panel.name}.png", panel.png)
        last = tracefinish.section(kind, recipe["config"], redrawn, panels, max(records))
    page = tracepage.page(model.schedule, recipe, command, {k: records[k] for k in sorted(records)}, pictures, curve,
                          last)
    keep(folder / "trace.html", page.encode("utf-8"))
    return folder / "trace.html"


def keep(path, data):
    with replacing(path) as file:
        file.write(data)
