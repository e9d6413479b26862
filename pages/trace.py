"""A job opened up from start to verdict (--trace 0 50): every tensor of some steps, in files and on a page to project.

    out/<weights>/feature_00012/t0600/seed_1024_trace/
        start, step_050, finish, verdict.safetensors        their tensors, see the functions that collect them
        trace.html                                          written last; its words are in trace.toml

Tensors come from the steps that sampling, ascent and finish yield. What these do not carry, random draws and the noises
of a score, is computed again beside them; tests/slow/test_trace.py computes every number of the page again.

Axes: B jobs, 4 x H x W latents, D x h x w at the hook point, S = h w, n sampling or finish steps.
"""
import json
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

import visualize
from ascent import activation, draw, objective, readout
from finish import rms
from pages.evidence import ends
from pages.web import asset, bars, chart, checks, command, embedded, escape, figure, short, table, write_document
from regularizers import pitch, smoothing_sigma
from results import PROJECT, path_of, write
from steering import directions, read_hook
from vae import to_uint8

TEXTS = tomllib.loads(asset("trace.toml"))
STAGES = "before transformed noised hook activation loss gradient filtered smoothed update after".split()
LATENTS, FORCES = ("before", "transformed", "noised", "after"), ("gradient", "filtered", "smoothed")
BEFORE = {"transformed": "before", "noised": "transformed", "filtered": "gradient", "smoothed": "filtered"}
OFF = " <b>Switched off in this run: the same numbers as before.</b>"
DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))          # negative, 0, positive; also for the colour-blind
EMBER = ((11, 11, 20), (122, 31, 92), (232, 100, 60), (255, 240, 176))  # from nothing to the largest
OF_FINISH = ("before", "noise", "gradient", "filtered", "pulled", "after", "activation", "silent")


def trace(model, recipes, config, steps, out, on_step, size):
    """Run the jobs of `recipes` {job: recipe}, `size` together, open up these steps of each ascent, and yield the path
    of each job's page. on_step: see visualize.run."""
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
            files |= {f"step_{step.index:03d}": follow_step(model, job, config, step, i) for step in seen["ascent"]}
            if config.finish:
                files["finish"] = follow_finish(model, config, seen["finish"], i, result)
            files["verdict"] = follow_scores(model, job, config, start, result)
            yield save_trace(model, recipes[job], files, result, out)


def stacked(model, steps, i):
    """Stack row i of the steps of a sample or a finish, (n, ...) each: those of OF_FINISH that they have, timestep, and
    clean, the latent z of x = sqrt(abar_t) z + sqrt(1 - abar_t) e; x is `before`, e the noise that the step took."""
    names = [name for name in OF_FINISH if hasattr(steps[0], name)]
    s = {name: torch.stack([getattr(step, name)[i] for step in steps]) for name in names}
    s["timestep"], e = torch.tensor([step.timestep for step in steps]), s.get("pulled", s["noise"])
    abar = model.schedule.abar(s["timestep"].to(model.device)).to(e)                            # (n, 1, 1, 1)
    return s | {"clean": (s["before"] - (1 - abar).sqrt() * e) / abar.sqrt()}


def follow_start(model, job, config, start, sampled, i):
    """Record the start (4, H, W) of job i, of a sampled one also what is `stacked` of its steps, and of a steered one
    strength s_t (1001,), direction d (D,) and push s_t |d| (n,)."""
    s = {"start": start} | (stacked(model, sampled, i) if sampled else {})
    if config.prior == "steer":
        s["strength"] = config.steer_scale * model.capture.strength(job.kind, job.target, config.steer_steps).to(start)
        s["direction"] = directions(model, [job])[0]
        s["push"] = s["strength"][s["timestep"].to(start.device)] * s["direction"].float().norm()
    return s


def follow_step(model, job, config, step, i):
    """Record one step of the ascent of job i, {name: tensor}; its random numbers are drawn once more."""
    g = torch.Generator().manual_seed(job.seed)
    torch.randn(model.latent_shape, generator=g)                # the noise of the start comes before those of all steps
    drawn = [draw(g, model.latent_shape, config) for _ in range(step.index + 1)][-1]
    hook = step.hook[i:i + 1].float()                                                           # (1, D, h, w)
    flat = hook[0].flatten(1).T                                                                 # (S, D)
    everything = (model.sae.pre_acts(flat) if job.kind == "feature" else flat).mean(dim=0)      # (F or D,)
    top = everything.topk(min(10, len(everything)))             # listed beside the target
    climbed = objective(readout(model, hook, [job], config.position), job.kind, config.silent_gradient)[2][0]
    s = {name: getattr(step, name)[i] for name in (*LATENTS, *FORCES, "activation", "silent")}
    s |= {f"penalty_{name}": value[i] for name, value in step.penalties.items()}
    return s | dict(zip(("shift", "angle", "zoom", "eps"), drawn)) | {
        "hook": hook[0], "pre_activation": readout(model, hook, [job]).reshape(hook.shape[2:]), "climbed": climbed,
        "loss": sum(value[i] for value in step.penalties.values()) - climbed, "update": s["after"] - s["before"],
        "adam_mean": step.mean[i], "adam_square": step.square[i],
        "strongest": top.indices, "strongest_activation": top.values,
        "longest": flat.norm(dim=0).nan_to_num(0).topk(4).indices}                              # channels


def follow_finish(model, config, redrawn, i, result):
    """Record the finish of job i: what is `stacked` of the steps of the try that was kept; rms_noise, rms e (n,);
    rms_gradient, rms g (n,); pull, what g is multiplied by, s rms e / rms g (n,), 0 where there is no gradient."""
    first = config.finish_steps * config.finish_times.index(result.finished.scores["finish_from"])
    s = stacked(model, redrawn[first:first + config.finish_steps], i)
    e, g = rms(s["noise"]).flatten(), rms(s["filtered"]).flatten()                              # (n,) each
    return s | {"rms_noise": e, "rms_gradient": g, "pull": torch.where(g > 0, config.finish_scale * e / g, 0)}


def follow_scores(model, job, config, start, result):
    """Record what a job's scores are made of: eps (4, 4, H, W), the noises, the same for every latent; <name>_latent
    (4, H, W), <name>_activation (4,) of start, ascent, finished, and with _reencoded after decoding and encoding."""
    g = torch.Generator().manual_seed(visualize.SCORE_SEED ^ job.seed)
    eps = torch.stack([torch.randn(start.shape, generator=g) for _ in range(visualize.SCORE_DRAWS)]).to(start)
    t, s = torch.full((len(eps),), job.timestep, device=model.device), {"eps": eps}
    context, latents = model.embed([config.prompt]).expand(len(eps), -1, -1), {"start": start}
    for name, end in ends(result).items():
        latents[name] = end.latent.to(start)
        latents[f"{name}_reencoded"] = model.encode(model.decode(latents[name][None]))[0]
    for name, z in latents.items():
        hook = read_hook(model, model.schedule.add_noise(z, eps, t), t, context)                # (4, D, h, w)
        values = readout(model, hook, [job] * len(eps), config.position)
        s |= {f"{name}_latent": z, f"{name}_activation": activation(values, job.kind)}
    return s


def save_trace(model, recipe, files, result, out):
    """Write the files {name: {name: tensor}} of one job, trace.html last; what an earlier trace left goes first."""
    folder = Path(f"{path_of(out, recipe)}_trace")
    for old in folder.glob("*"):
        old.unlink()
    scores = {name: end.scores for name, end in ends(result).items()}
    meta = {"featviz": json.dumps({"recipe": recipe, "scores": scores}, sort_keys=True)}
    for name, tensors in files.items():
        files[name] = {key: t.cpu().clone().contiguous() for key, t in tensors.items()}
        write(folder / f"{name}.safetensors", save_tensors(files[name], metadata=meta))
    return write_page(folder / "trace.html", model, recipe, files, result)


def decoded(model, z, what, look="picture"):
    """Decode and show a latent (4, H, W); look: picture or small, see trace.css."""
    image = Image.fromarray(to_uint8(model.decode(z[None].to(model.device))[0].cpu()))
    return figure(embedded(image, f"{what}, decoded"), f"{what}, decoded.", look=f'class="{look}"')


def mapped(x, what, top=None, low=None):
    """Show one or four maps (n, h, w), a pixel a number: blue below 0 and red above; with `low` from dark to bright.
    `top` is the number of full colour, or the largest."""
    top = largest(x) if top is None else top
    stops, said = (DIVERGING, ": blue below 0, red above") if low is None else (EMBER, ", brighter where larger")
    low = -top if low is None else low
    share = np.nan_to_num((x.double().numpy() - low) / ((top - low) or 1.0))
    at = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(share, at, channel) for channel in zip(*stops)], axis=-1).round().astype(np.uint8)
    if len(x) == 4:
        rgb = np.pad(rgb, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)                # (4, h + 1, w + 1, 3)
        rgb = np.vstack([np.hstack(rgb[:2]), np.hstack(rgb[2:])])[None]
    line = ", ".join(f"rgb{stop}" for stop in stops)
    scale = f'{low:.3g} <span class="scale" style="background:linear-gradient(90deg, {line})"></span> {top:.3g}'
    return figure(embedded(Image.fromarray(rgb[0]), what + said), f"{what + said}.",
                  scale if x.any() else "0 everywhere", look='class="map"')


def largest(x):
    """Find the largest finite size of any number, or 1 where all are 0."""
    return x.abs().nan_to_num(0, 0, 0).max().item() or 1.0


def course(model, s):
    """Decode the clean latent at ten of the steps of a start or a finish, evenly, first and last included."""
    at = visualize.kept_steps(len(s["timestep"]) - 1, 10)
    return [decoded(model, s["clean"][i], f"The clean latent at t = {s['timestep'][i]}", "small") for i in at]


def pictures(model, kind, s):
    """{stage: figures} of one step's tensors; latents share one scale, gradients another, spectra a third."""
    pre, shown, four = s["pre_activation"][None], {}, ", channels 0 to 3 row by row"
    z, g = (torch.stack([s[name] for name in names]) for names in (LATENTS, FORCES))            # (4 or 3, 4, H, W)
    size = torch.fft.fftshift(torch.fft.fft2(g), dim=(-2, -1)).abs().square().mean(dim=1).sqrt()    # slow in the middle
    waves = size.clamp_min(torch.finfo(torch.float32).tiny).log10()                             # (3, H, W)
    low, high = waves[0].nan_to_num(0, 0, 0).min().item(), waves.nan_to_num(0, 0, 0).max().item()
    said = {name: TEXTS[name]["picture"] for name in (*LATENTS, *FORCES)}
    for name in LATENTS:
        shown[name] = [decoded(model, s[name], said[name]), mapped(s[name], said[name] + four, largest(z))]
    for name, wave in zip(FORCES, waves):
        shown[name] = [mapped(s[name], said[name] + four, largest(g)),
                       mapped(wave[None], f"{said[name]}, spectrum, log10", high, low)]
    shown["hook"] = [mapped(s["hook"].norm(dim=0)[None], "Length of the vector at each place", low=0.0),
                     mapped(s["hook"][s["longest"]], "Its four longest channels")]
    shown["activation"] = [mapped(pre.relu(), "Activation at each place", low=0.0) if kind == "feature" else
                           mapped(pre, f"The {kind} at each place")]
    shown["update"] = [mapped(s["update"], "The update" + four),
                       mapped(s["adam_mean"], "The gradient's running mean before this step")]
    return shown


def facts(model, recipe, k, s):
    """Return the values for the sentences about step k: of the recipe, of the step's tensors, and of both."""
    job, config, order = recipe["job"], recipe["config"], s["strongest"].tolist()
    abar, read = model.schedule.alphas_cumprod[job["timestep"]].double(), "<i>h<sub>s</sub></i>"
    if job["kind"] == "feature":
        read = read if model.sae.norm == "none" else f"n({read})"
        read = f"({read} − <i>b</i><sub>dec</sub>)" if model.sae.centre else read
    sigma = smoothing_sigma(k, config["num_steps"], config["gradient_smoothing_sigma_start"],
                            config["gradient_smoothing_sigma_end"])
    return config | job | s | {
        "prompt": escape(config["prompt"]), "n": escape(job["target"]), "hook_point": recipe["hook_point"],
        "over": f"at place {tuple(config['position'])}:" if config["position"] else "mean<sub><i>s</i></sub>",
        "read": read, "rank": order.index(job["target"]) + 1 if job["target"] in order else "11 or more",
        "climbs": " The feature is silent everywhere, so its mean before the relu is climbed."
                  if s["silent"] and config["silent_gradient"] else "",
        "signal": abar.sqrt(), "noise": (1 - abar).sqrt(), "channels": str(s["longest"].tolist())[1:-1],
        "std_before": s["before"].std(), "std_after": s["transformed"].std(), "sigma": pitch(s["before"]) * sigma,
        "firing": (s["pre_activation"] > 0).sum(), "places": s["pre_activation"].numel(),
        "decay": config["learning_rate"] * config["weight_decay"] * s["before"].norm() / s["update"].norm(),
        "change": s["update"].norm() / s["before"].norm()}


def section(place, text, where, values, s, figures, below="", said="", of=""):
    """Build a section from a text of trace.toml, filled from `values`: (its id, its title in links after `of`, HTML).
    s: its tensors; figures, below, said: HTML beside the words, under it, and below the words."""
    lines = ""
    for file, words in (cited.split(": ", 1) for cited in text["code"]):
        numbered = enumerate((PROJECT / file).read_text(encoding="utf-8").splitlines(), start=1)
        ((number, line),) = [(number, line) for number, line in numbered if words in line]
        lines += f"<p><b>{file}:{number}</b></p><pre>{escape(' '.join(line.split()))}</pre>"
    rows = [(name, *(f"{v:.4g}" for v in (x.mean(), x.std(correction=0), x.min(), x.max(), x.norm())))
            for name in text["tensors"] for x in [s[name].double()]]
    numbers = table(("", "mean", "std", "min", "max", "norm"), rows, "Numbers of its tensors") if rows else ""
    formula, idea = (text[part].strip().format(**values) for part in ("formula", "idea"))
    return place, of + text["title"], f"""<section id="{place}" tabindex="-1"><div><div>
<p class="where">{where}</p>
<h2>{text["title"]}</h2>
<p class="formula">{formula}</p>
<p class="idea">{idea}</p>
<div class="line">{lines}</div>
{numbers}{said}
</div><div><div class="pictures">{"".join(figures)}</div>{below}</div></div>
"""


def columns(named, label):
    return table(named, [[f"{v:.5g}" for v in line] for line in zip(*(x.tolist() for x in named.values()))], label)


def of_start(model, recipe, s):
    """Build the section of the start: the sample that became it, with the curve of strengths."""
    prior, below = recipe["config"]["prior"], ""
    if prior == "steer":
        named = {"t": s["timestep"], "length of the push": s["push"], "length of e": s["noise"].flatten(1).norm(dim=1)}
        below = ("<p>Strength <i>s<sub>t</sub></i> over the time steps:</p>"
                 + chart(s["strength"].tolist(), "Strength of the push by time step")
                 + columns(named, "Steps of the start"))
    figures = [*(course(model, s) if "clean" in s else ()), decoded(model, s["start"], "The start")]
    text = TEXTS.get(f"start_{prior}", TEXTS["start_picture"])
    return section("start", text, "before the ascent", recipe["config"] | recipe["job"], s, figures, below)


def of_step(model, recipe, k, s):
    kind, target, num_steps = recipe["job"]["kind"], recipe["job"]["target"], recipe["config"]["num_steps"]
    values, shown, thing = facts(model, recipe, k, s), pictures(model, kind, s), kind.replace("direction", "channel")
    penalties = {name.replace("penalty_", "").replace("_", " "): s[name] for name in s if "penalty_" in name}
    terms = {"-activation": -s["climbed"], **penalties, "loss": s["loss"]}
    parts = bars([(name, f"{v:.5g}", v.nan_to_num(0, 0, 0).item(), name == "loss") for name, v in terms.items()])
    strongest = bars([(f"{thing} {n}", f"{a:.4f}", a, n == target)
                      for n, a in zip(s["strongest"].tolist(), s["strongest_activation"].nan_to_num(0).tolist())])
    below = {"loss": f"{parts}<p>The terms and their sum. Grey lowers the loss.</p>",
             "activation": f"<p>The most active at this step, mean over places:</p>{strongest}"}
    for number, name in enumerate(STAGES, start=1):
        same = name in BEFORE and torch.equal(s[name], s[BEFORE[name]])
        text = TEXTS.get(name) or TEXTS[f"activation_{kind}"]
        yield section(f"s{k}-{name}", text, f"step {k} of {num_steps}, stage {number} of {len(STAGES)}",
                      values | {"same": OFF * same}, s, shown.get(name, ()), below.get(name, ""), of=f"Step {k}: ")


def of_finish(model, recipe, s, scores):
    """Build the section of the finish: its steps, and the tries that lost."""
    tries = [f"{short(a)} from t = {name.removeprefix('reencoded_from_')}" for name, a in scores.items()
             if name.startswith("reencoded_from_")]
    tried = f" It was tried from several t. Re-encoded activations: {', '.join(tries)}. The largest was kept."
    named = {"t": s["timestep"], "rms e": s["rms_noise"], "rms g": s["rms_gradient"], "pull": s["pull"],
             "activation": s["activation"]}
    values = recipe["config"] | recipe["job"] | {"top": s["timestep"][0], "tried": tried if len(tries) > 1 else ""}
    return section("finish", TEXTS["finish"], f"{len(s['timestep'])} steps after the ascent", values, s,
                   course(model, s), columns(named, "Steps of the finish"))


def of_verdict(model, s, result):
    """Build the section of the scores: activations under each noise, their means, the checks with their numbers."""
    rows = [(name.removesuffix("_activation").replace("_reencoded", ", re-encoded"),
             *(f"{a:.5g}" for a in (*values, values.mean()))) for name, values in s.items() if "_activation" in name]
    said = table(("", *(f"noise {i}" for i in range(1, 5)), "mean"), rows, "Activations under each noise")
    figures = []
    for name, end in ends(result).items():
        found = [(line if holds else f"{line}, so {fails}", holds)
                 for fails, line, holds in visualize.list_checks(end.scores)]
        said += f"<h3>{name.capitalize()}: {escape(end.verdict)}</h3><ol>{checks(found)}</ol>"
        figures += [decoded(model, s[f"{name}_latent"], name.capitalize()),
                    decoded(model, s[f"{name}_reencoded_latent"], f"{name.capitalize()}, encoded and decoded again")]
    return section("verdict", TEXTS["verdict"], "after all steps", {}, s, figures, said=said)


def write_page(path, model, recipe, files, result):
    """Write the page of {file: its tensors} and the result, and return its path."""
    job, steps = recipe["job"], {int(name[5:]): s for name, s in files.items() if name.startswith("step_")}
    body = [of_start(model, recipe, files["start"])]
    for k, s in steps.items():
        body += of_step(model, recipe, k, s)
    if result.finished:
        body.append(of_finish(model, recipe, files["finish"], result.finished.scores))
    body.append(of_verdict(model, files["verdict"], result))
    sections = ""
    for (_, _, html), back, on in zip(body, [None, *body], [*body[1:], None]):
        ways = [f'<a rel="{rel}" href="#{to[0]}">{arrow.format(to[1])}</a>'
                for rel, to, arrow in (("prev", back, "← {}"), ("next", on, "{} →")) if to]
        sections += (f'{html}<nav class="ways noprint" aria-label="Stages">{" ".join(ways)} <a href="#top">overview</a>'
                     "</nav></section>\n")
    again = f"{command(recipe, [job['timestep']], [job['seed']])} --trace {' '.join(map(str, steps))}"
    name = f"{job['kind']} {job['target']} of {recipe['weights']}, time step {job['timestep']}, seed {job['seed']}"
    return write_document(path, f"{name}: a trace", asset("trace.html").format(
        name=escape(name), command=escape(again), sections=sections, **recipe, **job,
        index="".join(f'<li><a href="#{place}">{title}</a></li>' for place, title, _ in body),
        curve=chart(result.history["activation"], "Activation at every step of the ascent", 900, marks=steps),
        jumps=" It jumps because the noise is new at every step." if recipe["config"]["noise"] else ""), "trace")
