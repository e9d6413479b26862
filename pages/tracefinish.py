"""The finish in a trace: its steps as tensors, as pictures and as the last section of the page.

    finish.safetensors      its steps in a row, by name (`follow`)
    finish_000_clean.png    what each of them takes for the clean picture

The loop is not touched: tensors come from the `Step` that finish.redraw yields. Where a setting is "auto", all tries
run, and the page shows the one that the finish keeps.

Axes: n steps of the finish, 4 x H x W latents.
"""
import torch

import finish
import schedule
from ascent import measure
from config import FINISH_FROM, STRENGTHS
from pages import tracepage
from pages.web import chart, data_uri, img, table

SECTION = tracepage.Stage(
    "finish", "The finish",
    "<i>e′</i> = <i>e</i> − pull · <i>g</i>,&ensp; pull = <i>s</i> rms <i>e</i> / rms <i>g</i>; &ensp;<i>x</i> takes "
    "the DDIM step with <i>e′</i>",
    "You see the model redraw what the ascent found, a picture and a row a step, from noise at t = {top} down: it says "
    "what in <i>x</i> is noise, <i>e</i>, the gradient <i>g</i> of the {kind} bends that, {scale:g} times as strong as "
    "<i>e</i> itself, and the picture is what is left without that noise.{kept}",
    [(finish, "unit = torch.where(rms(g) > 0"), (finish, "pulled = e - scale * unit * g"),
     (schedule, "x0 = (x - (1 - now).sqrt() * eps)")], ["noise", "filtered", "pulled", "after"])
MOST = "the one whose picture, decoded and encoded again, excites the {kind} most"
ENOUGH = (f"the weakest pull whose picture, decoded and encoded again, keeps {finish.ENOUGH:.0%} of the ascent's "
          f"activation, or where none does, {MOST}")


def follow(model, jobs, config, z, on_step=None):
    """For each job the finish of the ascent's result, z (B, 4, H, W): of what is tried, what finish.finish keeps.

    {name: tensor on the CPU}, a row a step: what a Step has but the hook, which follows from `before`; the s as `scale`
    (); and
        rms_noise, rms_gradient (n,)    rms e, rms g
        pull (n,)                       s rms e / rms g, what g is multiplied by; 0 where there is no gradient
        clean (n, 4, H, W)              (x - sqrt(1 - abar_t) e') / sqrt(abar_t), what the step takes for the clean z
    """
    names = ("before", "noise", "gradient", "filtered", "pulled", "after", "activation", "silent")
    kept = lambda step: {name: getattr(step, name).cpu() for name in names} | {
        "timestep": torch.full((len(jobs),), step.timestep)}                                    # (B, ...) each
    with torch.no_grad():                                                                       # as finish_results asks
        enough = finish.ENOUGH * measure(model, model.encode(model.decode(z)), jobs)[0]         # (B,)
    _, _, scales, history = finish.finish(model, jobs, z, config, enough, on_step, kept)
    found = []
    for i, scale in enumerate(scales):
        s = {name: torch.stack([step[name][i] for step in history]) for name in history[0]}     # (n, ...)
        e, g = finish.rms(s["noise"]).flatten(), finish.rms(s["filtered"]).flatten()            # (n,) each
        abar = model.schedule.abar(s["timestep"].to(model.device)).cpu()                        # (n, 1, 1, 1)
        s |= {"rms_noise": e, "rms_gradient": g, "pull": torch.where(g > 0, scale * e / g, 0), "scale": scale,
              "clean": (s["before"] - (1 - abar).sqrt() * s["pulled"]) / abar.sqrt()}
        found.append({name: t.clone().contiguous() for name, t in s.items()})
    return found


@torch.no_grad()
def pictures(model, s):
    """[Panel], one a step: its clean latent, decoded."""
    return [tracepage.decoded(f"{i:03d}_clean", model, z, f"What the finish takes for the clean latent at t = {t}")
            for i, (t, z) in enumerate(zip(s["timestep"].tolist(), s["clean"]))]


def section(kind, config, s, panels, k):
    """HTML, from the tensors and their pictures; it follows on step k of the ascent."""
    times = s["timestep"].tolist()
    told = {"kind": kind, "top": times[0], "scale": s["scale"].item()}
    strip = "".join(f'<li>{img(data_uri(p.png, "png"), p.alt)}t = {t}</li>' for t, p in zip(times, panels))
    columns = {"t": s["timestep"], "rms e": s["rms_noise"], "rms g": s["rms_gradient"], "pull": s["pull"],
               "activation": s["activation"]}
    rows = [[f"{v:.5g}" for v in row] for row in zip(*(x.tolist() for x in columns.values()))]
    course = chart(s["activation"].nan_to_num(0, 0, 0).tolist(), "Activation at every step of the finish",
                   max(len(times) - 1, 1))
    return f"""<section id="finish" tabindex="-1"><div><div>
<p class="where">{len(times)} steps after the ascent</p>
<h2>{SECTION.title}</h2>
<p class="formula">{SECTION.formula}</p>
<p class="idea">{SECTION.idea.format(**told, kept=choice(config, told))}</p>
{tracepage.cited(SECTION.cites)}
{tracepage.tensors(SECTION, s)}
</div><div><ol class="glance">{strip}</ol>
{table(columns, rows, "Steps of the finish")}
<p>Activation at every step of the finish:</p>{course}</div></div>
<nav class="ways noprint" aria-label="Stages"><a rel="prev" href="#s{k}-after">← step {k}: The latent after</a>
<a href="#top">overview</a></nav></section>
"""


def choice(config, told):
    """What was tried where a setting is "auto", and why this was kept; else nothing."""
    froms, scales = config["finish_from"] == "auto", config["finish_scale"] == "auto"
    if not froms and not scales:
        return ""
    tried = [f"{name} = {', '.join(map(str, values))}" for name, values, auto in
             (("t", FINISH_FROM, froms), ("<i>s</i>", STRENGTHS, scales)) if auto]
    kept = [text for text, auto in ((f"t = {told['top']}", froms), (f"<i>s</i> = {told['scale']:g}", scales)) if auto]
    why = (MOST if froms else ENOUGH).format(**told)
    return f" Of {' with '.join(tried)} this is {' with '.join(kept)}, which was kept: {why}."
