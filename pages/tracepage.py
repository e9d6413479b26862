"""The page of a trace: the stages of a run in order, each with its formula, its line of code, numbers and pictures.

    STAGES, START, FINISH, VERDICT      the literal table: what a section says, and which lines of which file it cites
    pictures                            tensors of a step -> pictures of each stage
    page                                everything -> one self-contained HTML document, a section a stage

A cited line is searched for when the page is made, by a text that occurs once in its file, so its number cannot go
stale. Every number on the page is computed from the tensors beside it; tests/slow/test_trace.py does it again.
Axes: 4 x H x W latents, D x h x w at the hook point.
"""
import inspect
import io
import math
from collections import namedtuple

import numpy as np
import torch
from PIL import Image

import ascent
import finish
import regularizers
import sae
import schedule
import steering
import visualize
from pages.web import bars, chart, checks, data_uri, document, escape, table
from pages.words import short
from vae import to_uint8

EDGE = 480                  # pixels that a map is enlarged to, at least
SHOWN = 10                  # steps of the start and of the finish that are shown as pictures
DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))          # negative, 0, positive; also for the colour-blind
EMBER = ((11, 11, 20), (122, 31, 92), (232, 100, 60), (255, 240, 176))  # from nothing to the largest
Panel = namedtuple("Panel", "png alt look scale", defaults=("",))  # look: picture, map or small (trace.css)
Stage = namedtuple("Stage", "name title formula idea cites tensors")

START = Stage(
    "start", "The start", "<i>h</i> ← <i>h</i> + <i>s<sub>t</sub> d</i> &ensp;at the hook point, at every <i>t</i>",
    "The ascent needs a place to begin. {how} The pictures show the clean latent at some steps. The last one "
    "is where the ascent begins.",
    [(steering, "push = lambda t:"), (steering, "h = h + push[name]"), (visualize, "d = directions(model, jobs)")],
    ["start"])
STEERED = ("The model samples from noise, without a prompt. Meanwhile the direction <i>d</i> of the {kind} is added. "
           "Its strength is {scale:g} times the largest activation known.")
GUIDED = "The model samples from noise while the gradient of the {kind} pulls."
NOISE = "Here it is noise from the seed alone."
PICTURE = "Here it is a picture of your own, encoded."
STAGES = (
    Stage("before", "The latent", "<i>z</i>",
          "Only this may change: {C} numbers at each of {H} × {W} places. First its decoded picture, then the numbers.",
          [(ascent, "z = before.clone()")], ["before"]),
    Stage("transformed", "Augmented", "<i>z′</i> = zoom(turn(roll(<i>z</i>)))",
          "A moved copy. The {kind} must survive small moves, so single numbers cannot trick it. Drawn at random: "
          "{down:+.2f} pixels down, {right:+.2f} right, {angle:+.1f} degrees, zoom {zoom:.3f}. Mixing neighbours calms "
          "the grain: deviation {std_before:.3f} to {std_after:.3f}.{same}",
          [(ascent, "transformed = reg.transform(z, shift, angle, zoom)"),
           (regularizers, "return F.grid_sample(z, grid,")], ["transformed"]),
    Stage("noised", "Noised",
          "<i>x<sub>t</sub></i> = √<i>ᾱ<sub>t</sub></i> <i>z′</i> + √(1 − <i>ᾱ<sub>t</sub></i>) <i>ε</i>",
          "The UNet reads pictures under noise. At t = {t}: {signal:.3f} of the latent, {noise:.3f} of noise. It is "
          "new each step, so it cannot be exploited.{same}",
          [(schedule, "return abar.sqrt() * z + (1 - abar).sqrt() * eps")], ["eps", "noised"]),
    Stage("hook", "At the hook point", "<i>h</i> = UNet(<i>x<sub>t</sub></i>, <i>t</i>, “{prompt}”) at the hook point",
          "The UNet runs as far as {point} and stops. It gives {D} numbers at each of {h} × {w} places. First the "
          "length of that vector, then its longest channels: {channels}.", [(ascent, "hook = read_hook(model, noised"),
           (steering, "return model.unet(x.to(model.dtype), t, context, until")], ["hook"]),
    Stage("activation", "Activation of the {kind}", None, None, None, ["pre_activation"]),
    Stage("loss", "The loss", "loss = −<i>a</i> + <i>w</i><sub>tv</sub> TV(<i>z</i>) + <i>w</i><sub>range</sub> "
          "R(<i>z</i>) + <i>w</i><sub>moment</sub> M(<i>z</i>)",
          "The activation with a minus sign, and penalties. These hit latents that are restless, large, or lopsided. "
          "Weights in this run: {weights}.{climbed}", [(ascent, "loss = -climb + sum(")], []),
    Stage("gradient", "The gradient", "<i>g</i> = ∂loss / ∂<i>z</i>",
          "How each number of the latent would raise the loss. It is found by going back through the UNet. Beside it "
          "its spectrum: slow waves in the middle, grain outside.",
          [(ascent, "torch.autograd.grad(loss.sum(), leaf)")], ["gradient"]),
    Stage("filtered", "Spectral filter",
          "low = FFT<sup>−1</sup>[ FFT[<i>g</i>] / (<i>r</i> + 1) ],&ensp; <i>ĝ</i> = low · std(<i>g</i>) / std(low)",
          "A wave that fits <i>r</i> times is divided by <i>r</i> + 1. Then the gradient gets its spread back. Its "
          "energy moves from {grain_before:.2f} to {grain_after:.2f} waves a picture.{same}",
          [(regularizers, "torch.fft.ifft2("), (regularizers, "return low * gain[")], ["filtered"]),
    Stage("smoothed", "Blur", "<i>g̃</i> = Gaussian blur of <i>ĝ</i>, <i>σ</i> = {sigma:.3g}",
          "A second, weaker way against grain. The optimiser gets this gradient.{same}",
          [(regularizers, "kernel = torch.exp("), (ascent, "smoothed = reg.blur(")], ["smoothed"]),
    Stage("update", "The update", "Δ<i>z</i> = −<i>η</i> <i>m̂</i> / (√<i>v̂</i> + <i>ε</i>) − <i>η λ z</i>",
          "AdamW divides the gradient's running mean <i>m</i> by its running size √<i>v</i>. So each number moves by "
          "about the learning rate, {rate:g}. The last term, weight decay, takes {decay:.2g} of the length.",
          [(ascent, "mean = mean.lerp("), (ascent, "square = (config.beta2"), (ascent, ".addcdiv(mean, size")],
          ["adam_mean", "adam_square", "update"]),
    Stage("after", "The latent after", "<i>z</i> ← <i>z</i> + Δ<i>z</i>",
          "One step changes the latent by {change:.1%} of its length. The picture comes from {steps} such steps.",
          [(ascent, "z = torch.where(alive")], ["after"]),
)
READOUT = {     # of the stage "activation", for each kind of target: formula, idea, cites
    "feature": ("<i>a</i> = {over} relu( <i>W</i><sub>enc</sub>[{n}] · {read} + <i>b</i><sub>enc</sub>[{n}]&nbsp;)",
                "At each place, one dot product with the feature's row. Numbers below 0 count as 0. Their mean, "
                "{a:.4f}, is the activation. {place} It fires at {firing} of {places} places.",
                [(sae, "(h * self.encoder.weight[feature]"), (ascent, 'values.relu() if kind == "feature"')]),
    "channel": ("<i>a</i> = {over} <i>h<sub>s</sub></i>[{n}]",
                "The channel itself, without the sparse autoencoder. Its mean, {a:.4f}, is the activation. {place}",
                [(ascent, "return (h @ directions(model, jobs)"), (ascent, 'values.relu() if kind == "feature"')]),
    "direction": ("<i>a</i> = {over} <i>w</i> · <i>h<sub>s</sub></i>",
                  "At each place, one dot product with the vector {n}. Their mean, {a:.4f}, is the activation.",
                  [(ascent, "return (h @ directions(model, jobs)"), (ascent, 'values.relu() if kind == "feature"')]),
}
FINISH = Stage(
    "finish", "The finish",
    "<i>e′</i> = <i>e</i> − pull · <i>g</i>,&ensp; pull = <i>s</i> rms <i>e</i> / rms <i>g</i>; &ensp;<i>x</i> takes "
    "the DDIM step with <i>e′</i>",
    "The model redraws the ascent's picture from noise at t = {top}. At each step it says what is noise, <i>e</i>. The "
    "gradient <i>g</i> of the {kind} bends that, {scale:g} times as strong. The pictures show what is left without "
    "noise.{tried}",
    [(finish, "unit = torch.where(rms(g) > 0"), (finish, "pulled = e - config.finish_scale"),
     (schedule, "x0 = (x - (1 - now).sqrt() * eps)")], ["noise", "filtered", "pulled", "after"])
VERDICT = Stage(
    "verdict", "Scores and verdict", "<i>a</i> = mean over four noises <i>ε</i> of the activation",
    "Each latent is measured under the same four noises. It is decoded, encoded, and measured again. The first rule "
    "that fails gives the verdict.",
    [(visualize, "x = model.schedule.add_noise(z, eps, t) if noise else z"),
     (visualize, "again = measure(model, model.encode(images)"),
     (visualize, 'if scores["activation_reencoded"] < a - 0.5 * abs(a):')], ["eps"])
BEFORE = {"transformed": "before", "noised": "transformed", "filtered": "gradient", "smoothed": "filtered"}
OFF = " <b>Switched off in this run: the same numbers as before.</b>"
JUMPS = " It jumps because the noise is new at every step."


# --- pictures: tensors -> PNG bytes -----------------------------------------------------------------------------------

def png(picture):
    """Encode (H, W, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def colours(x, stops):
    """Colour numbers in [0, 1], NaN as 0, of any shape (...) -> (..., 3) uint8, linear between evenly spaced stops."""
    at = np.linspace(0, 1, len(stops))
    x = np.nan_to_num(np.asarray(x, np.float64))
    return np.stack([np.interp(x, at, channel) for channel in zip(*stops)], axis=-1).round().astype(np.uint8)


def enlarge(array, edge=EDGE):
    """Make each number a square, so many pixels wide that the longer side has at least `edge`."""
    n = max(1, math.ceil(edge / max(array.shape[:2])))
    return array.repeat(n, axis=0).repeat(n, axis=1)


def largest(*tensors):
    """Find the largest finite size of any number in them, or 1 where all are 0."""
    return max(t.abs().nan_to_num(0, 0, 0).max().item() for t in tensors) or 1.0


def scale(stops, low, high):
    """Draw the colour scale as HTML, between its two ends."""
    line = ", ".join(f"rgb{stop}" for stop in stops)
    return f'<br>{low:.3g} <span class="scale" style="background:linear-gradient(90deg, {line})"></span> {high:.3g}'


def decoded(model, z, what, look="picture"):
    """Decode a latent (4, H, W)."""
    return Panel(png(to_uint8(model.decode(z[None].to(model.device))[0].cpu())), f"{what}, decoded", look)


def signed(x, top, what):
    """Draw one or four maps (n, H, W) in blue and red, `top` the number of full colour."""
    tiles = [np.pad(enlarge(colours(0.5 + 0.5 * m / top, DIVERGING), EDGE // 2), ((0, 4), (0, 4), (0, 0)),
                    constant_values=255) for m in x[:4].numpy()]
    square = [np.hstack(tiles[i:i + 2]) for i in range(0, len(tiles), 2)]
    said = scale(DIVERGING, -top, top) if x.any() else "<br>0 everywhere"
    return Panel(png(np.vstack(square)), f"{what}: blue below 0, red above", "map", said)


def heat(x, what, low=0.0, top=None):
    """Draw a map (h, w) from dark to bright."""
    top = largest(x) if top is None else top
    share = ((x - low) / ((top - low) or 1.0)).clamp(0, 1).numpy()
    return Panel(png(enlarge(colours(share, EMBER))), f"{what}, brighter where larger", "map", scale(EMBER, low, top))


def spectrum(g):
    """Take log10 of the size of each wave, rms over channels, slow ones in the middle: (C, H, W) -> (H, W)."""
    size = torch.fft.fftshift(torch.fft.fft2(g), dim=(-2, -1)).abs().square().mean(dim=0).sqrt()
    return size.clamp_min(torch.finfo(torch.float32).tiny).log10()


def strongest_channels(hook):
    """Find the four channels of hook (D, h, w) that are longest over its positions."""
    return hook.flatten(1).norm(dim=1).nan_to_num(0).topk(min(4, len(hook))).indices


def pictures(model, kind, s):
    """{stage: [Panel]} of one step's tensors; latents share one scale, gradients another, spectra a third."""
    z_top = largest(*(s[name] for name in ("before", "transformed", "noised", "after")))
    forces = {"gradient": "Gradient", "filtered": "After the filter", "smoothed": "After the blur"}
    g_top = largest(*(s[name] for name in forces))
    waves = {name: spectrum(s[name]) for name in forces}
    sound = {name: w.nan_to_num(0, 0, 0) for name, w in waves.items()}
    low, high = sound["gradient"].min().item(), max(sound[name].max().item() for name in ("gradient", "filtered"))
    pre, long = s["pre_activation"], s["hook"][strongest_channels(s["hook"])]
    found = {name: [decoded(model, s[name], what), signed(s[name], z_top, f"{what}, channels 0 to 3 row by row")]
             for name, what in (("before", "The latent"), ("transformed", "The moved copy"),
                                ("noised", "What the UNet sees"), ("after", "The latent after the step"))}
    found |= {name: [signed(s[name], g_top, f"{what}, channels 0 to 3 row by row"),
                     heat(waves[name], f"{what}, spectrum, log10", low, high)] for name, what in forces.items()}
    return found | {
        "hook": [heat(s["hook"].norm(dim=0), "Length of the vector at each place"),
                 signed(long, largest(long), "Its four longest channels")],
        "activation": [heat(pre.relu(), "Activation at each place") if kind == "feature" else
                       signed(pre[None], largest(pre), f"The {kind} at each place")],
        "update": [signed(s["update"], largest(s["update"]), "The update, channels 0 to 3 row by row"),
                   signed(s["adam_mean"], largest(s["adam_mean"]), "The gradient's running mean before this step")],
    }


def spread(count, shown=SHOWN):
    """Choose at most `shown` of `count` steps evenly, first and last included."""
    return sorted({round(i * (count - 1) / (shown - 1)) for i in range(shown)})


def course(model, s):
    """Decode the clean latent at some of the steps of a start or a finish: [Panel]."""
    times = s["timestep"].tolist()
    return [decoded(model, s["clean"][i], f"The clean latent at t = {times[i]}", "small") for i in spread(len(times))]


# --- numbers ----------------------------------------------------------------------------------------------------------

def numbers(t):
    """Summarise a tensor for the table: mean, deviation, smallest, largest, norm, in double precision."""
    x = t.double()
    return {"mean": x.mean(), "std": x.std(correction=0), "min": x.min(), "max": x.max(), "norm": x.norm()}


def grain(g):
    """Mean number of waves in the picture, weighted by energy: (C, H, W) -> number."""
    energy = torch.fft.fft2(g.double()).abs().square().sum(dim=0)
    fy, fx = (torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64) for n in energy.shape)
    return ((fy[:, None] ** 2 + fx ** 2).sqrt() * energy).sum() / energy.sum()


def facts(recipe, k, s, abar):
    """Numbers for the sentences of STAGES and READOUT, from a step's tensors and its recipe; abar is that of its t."""
    job, config = recipe["job"], recipe["config"]
    kind, order = job["kind"], s["strongest"].tolist()
    more = order.index(job["target"]) if job["target"] in order else f"{len(order)} or more"
    sigma = regularizers.smoothing_sigma(k, config["num_steps"], config["gradient_smoothing_sigma_start"],
                                         config["gradient_smoothing_sigma_end"])
    place = config.get("position")
    climbed = " The feature is silent everywhere, so its mean before the relu is climbed."
    told = {
        "kind": kind, "over": f"at place {tuple(place)}:" if place else "mean<sub><i>s</i></sub>",
        "n": escape(job["target"]), "t": job["timestep"], "point": recipe["hook_point"],
        "prompt": escape(config["prompt"]), "steps": config["num_steps"],
        **dict(zip("CHW", s["before"].shape)), **dict(zip("Dhw", s["hook"].shape)),
        "down": s["shift"][0], "right": s["shift"][1], "angle": s["angle"], "zoom": s["zoom"],
        "signal": abar.sqrt(), "noise": (1 - abar).sqrt(),
        "channels": ", ".join(map(str, strongest_channels(s["hook"]).tolist())), "a": s["activation"],
        "place": f"Here {more or 'no'} other {kind}s are more active.",
        "firing": (s["pre_activation"] > 0).sum(), "places": s["pre_activation"].numel(),
        "grain_before": grain(s["gradient"]), "grain_after": grain(s["filtered"]),
        "climbed": climbed if s["silent"] and config["silent_gradient"] else "",
        "sigma": regularizers.pitch(s["before"]) * sigma, "rate": config["learning_rate"],
        "change": s["update"].norm() / s["before"].norm(),
        "std_before": s["before"].std(), "std_after": s["transformed"].std(),
        "weights": ", ".join(f"{name.replace('_', ' ')} {config[name + '_weight']:g}"
                             for name in ("total_variation", "range", "moment")),
        "decay": config["learning_rate"] * config["weight_decay"] * s["before"].norm() / s["update"].norm(),
    }
    return {name: v.item() if isinstance(v, torch.Tensor) else v for name, v in told.items()}


def loss_terms(s):
    """[(name, value)], the sum last."""
    names = [("-activation", -s["climbed"])] + [(name.removeprefix("penalty_").replace("_", " "), s[name])
                                                for name in s if name.startswith("penalty_")]
    return [*names, ("loss", s["loss"])]


def rules(scores):
    """The rule of the verdict with its numbers put in: [(verdict where it fails, text, whether it holds)]."""
    a, start, again, rank, most = (scores.get(name) for name in (
        "activation", "activation_start", "activation_reencoded", "rank", "dataset_largest"))
    found = [("non-finite", f"{short(a)} is a number", math.isfinite(a)),
             ("silent", f"{short(a)} is not 0", a != 0),
             ("weak", f"{short(a)} is above {short(start)} at the start", a > start),
             ("fragile", f"re-encoded {short(again)}: at most half of {short(a)} is lost", again >= a - 0.5 * abs(a))]
    if rank is not None:
        found.append(("raised", f"rank {rank} is at most {visualize.TOP_RANKS}", rank <= visualize.TOP_RANKS))
    if most is not None:
        found.append(("raised", f"{short(a)} is at least half of {short(most)}, the strongest dataset image's",
                      a >= 0.5 * max(most, 0)))
    return found


# --- the page: tensors, pictures -> HTML ------------------------------------------------------------------------------

def cite(module, text):
    """Find the one line of a module that contains `text`: (file, line number, line); runs of blanks as one."""
    lines = inspect.getsource(module).splitlines()
    (at,) = [i for i, line in enumerate(lines) if text in line]
    return f"{module.__name__}.py", at + 1, " ".join(lines[at].split())


def section(name, stage, where, told, said, shown):
    """One stage as HTML; told: numbers for its sentences; said, shown: HTML beside and below its pictures."""
    lines = ('<p><b>{}:{}</b></p><pre>{}</pre>'.format(*map(escape, cite(*c))) for c in stage.cites)
    return f"""<section id="{name}" tabindex="-1"><div><div>
<p class="where">{where}</p>
<h2>{stage.title.format(**told)}</h2>
<p class="formula">{stage.formula.format(**told)}</p>
<p class="idea">{stage.idea.format(**told)}</p>
<div class="line">{"".join(lines)}</div>
{said}
</div><div>{shown}</div></div>
"""


def figures(panels, step=""):
    """Pictures of a stage; small ones in a row."""
    drawn = "".join(f'<figure class="{p.look}"><img src="{data_uri(p.png, "png")}" alt="{escape(p.alt)}{step}">'
                    f"<figcaption>{escape(p.alt)}. {p.scale}</figcaption></figure>" for p in panels)
    return f'<div class="pictures">{drawn}</div>'


def tensors(stage, s):
    """The numbers of a stage's tensors."""
    rows = [(name, *(f"{v.item():.4g}" for v in numbers(s[name]).values())) for name in stage.tensors]
    return table(("", *numbers(torch.zeros(1))), rows, "Numbers of its tensors")


def columns(named, label):
    """Set tensors of equal length as the columns of a table."""
    rows = [[f"{v:.5g}" for v in row] for row in zip(*(x.tolist() for x in named.values()))]
    return table(named, rows, label)


def of_step(stage, k, s, panels, told):
    """The section of one stage of step k."""
    before = BEFORE.get(stage.name)
    told = told | {"same": OFF if before and torch.equal(s[stage.name], s[before]) else ""}
    if stage.name == "activation":
        stage = stage._replace(**dict(zip(("formula", "idea", "cites"), READOUT[told["kind"]])))
    said, shown = tensors(stage, s) if stage.tensors else "", figures(panels, f", step {k}")
    if stage.name == "loss":
        rows = [(name, f"{v.item():.5g}", v.nan_to_num(0, 0, 0).item(), name == "loss") for name, v in loss_terms(s)]
        shown = bars(rows) + "<p>The terms and their sum. Grey lowers the loss.</p>"
    if stage.name == "activation":
        thing = "feature" if told["kind"] == "feature" else "channel"
        rows = [(f"{thing} {n}", f"{a:.4f}", a, str(n) == told["n"])
                for n, a in zip(s["strongest"].tolist(), s["strongest_activation"].nan_to_num(0).tolist())]
        shown += f"<p>The most active at this step, mean over places:</p>{bars(rows)}"
    where = f"step {k} of {told['steps']}, stage {STAGES.index(stage) + 1 if stage in STAGES else 5} of {len(STAGES)}"
    return section(f"s{k}-{stage.name}", stage, where, told, said, shown)


def of_start(model, config, s, kind):
    """The section of the start: the sample that became it, with the curve of strengths."""
    how = {"steer": STEERED, "guided": GUIDED, "noise": NOISE}.get(config["prior"], PICTURE)
    stage, shown = START, figures([decoded(model, s["start"], "The start")])
    shown += figures(course(model, s)) if "clean" in s else ""
    if config["prior"] == "steer":
        shown += "<p>Strength <i>s<sub>t</sub></i> over the time steps:</p>"
        shown += chart(s["strength"].tolist(), "Strength of the push by time step", 1000)
        shown += columns({"t": s["timestep"], "length of the push": s["push"],
                          "length of e": s["noise"].flatten(1).norm(dim=1)}, "Steps of the start")
    elif config["prior"] == "guided":
        stage = START._replace(formula=FINISH.formula, cites=FINISH.cites)
    else:
        drawn = "<i>z</i> ~ N(0, 1)" if config["prior"] == "noise" else "<i>z</i> = encode(picture)"
        stage = START._replace(formula=drawn, cites=[(visualize, "z = torch.stack([torch.randn(model.latent_shape")])
    told = {"how": how.format(kind=kind, scale=config["steer_scale"])}
    return section("start", stage, "before the ascent", told, tensors(stage, s), shown)


def of_finish(model, config, s, kind, scores):
    """The section of the finish: its steps, and the tries that lost."""
    times, tried = s["timestep"].tolist(), ""
    tries = {name.removeprefix("reencoded_from_"): a for name, a in scores.items() if name.startswith("reencoded_from")}
    if len(tries) > 1:
        lost = ", ".join(f"{short(a)} from t = {t0}" for t0, a in tries.items())
        tried = f" It was tried from several t. Re-encoded activations: {lost}. The largest was kept."
    named = {"t": s["timestep"], "rms e": s["rms_noise"], "rms g": s["rms_gradient"], "pull": s["pull"],
             "activation": s["activation"]}
    curve = chart(s["activation"].nan_to_num(0, 0, 0).tolist(), "Activation of the finish", len(times) - 1)
    told = {"kind": kind, "top": times[0], "scale": config["finish_scale"], "tried": tried}
    shown = (f"{figures(course(model, s))}{columns(named, 'Steps of the finish')}"
             f"<p>Activation at every step of the finish:</p>{curve}")
    return section("finish", FINISH, f"{len(times)} steps after the ascent", told, tensors(FINISH, s), shown)


def ends(result):
    """{"ascent": result, "finished": the finished one, if there is one}."""
    return {"ascent": result} | ({"finished": result.finished} if result.finished else {})


def of_verdict(model, s, result):
    """The section of the scores: activations under each noise, their means, the rule with its numbers."""
    found, shown = {"start": s["activation_start"]}, []
    for name in ends(result):
        shown += [decoded(model, s[f"{name}_latent"], name.capitalize()),
                  decoded(model, s[f"{name}_reencoded"], f"{name.capitalize()}, encoded and decoded again")]
        found |= {name: s[f"{name}_activation"], f"{name}, re-encoded": s[f"{name}_activation_reencoded"]}
    rows = [(name, *(f"{a:.5g}" for a in [*values.tolist(), values.mean().item()])) for name, values in found.items()]
    said = table(("", "noise 1", "noise 2", "noise 3", "noise 4", "mean"), rows, "Activations under each noise")
    for name, end in ends(result).items():
        lines = checks([(escape(text if holds else f"{text}, so {fails}"), holds)
                        for fails, text, holds in rules(end.scores)])
        said += f"<h3>{name.capitalize()}: {escape(end.verdict)}</h3><ol>{lines}</ol>"
    return section("verdict", VERDICT, "after all steps", {}, tensors(VERDICT, s) + said, figures(shown))


def reading(model, kind):
    """What W_enc is applied to, as HTML: the hook's output, normalised and centred as this autoencoder asks."""
    h = "<i>h<sub>s</sub></i>" if kind != "feature" or model.sae.norm == "none" else "n(<i>h<sub>s</sub></i>)"
    return f"({h} − <i>b</i><sub>dec</sub>)" if kind == "feature" and model.sae.centre else h


@torch.no_grad()
def page(model, recipe, command, parts):
    """Build the document from all that was recorded (trace.Parts)."""
    job, config, steps = recipe["job"], recipe["config"], sorted(parts.steps)
    abar, kind = model.schedule.alphas_cumprod[job["timestep"]].double().cpu(), job["kind"]
    name = f"{kind} {job['target']} of {recipe['weights']}, time step {job['timestep']}, seed {job['seed']}"
    body = [("start", START.title, of_start(model, config, parts.start, kind))]
    for k in steps:
        drawn = pictures(model, kind, parts.steps[k])
        told = facts(recipe, k, parts.steps[k], abar) | {"read": reading(model, kind)}
        body += [(f"s{k}-{stage.name}", f"Step {k}: {stage.title.format(kind=kind)}",
                  of_step(stage, k, parts.steps[k], drawn.get(stage.name, []), told))
                 for stage in STAGES]
    if parts.finish:
        scores = parts.result.finished.scores
        body.append(("finish", FINISH.title, of_finish(model, config, parts.finish, kind, scores)))
    body.append(("verdict", VERDICT.title, of_verdict(model, parts.verdict, parts.result)))
    sections = "".join(html + ways(body, i) + "</section>\n" for i, (_, _, html) in enumerate(body))
    values = parts.result.history["activation"]
    curve = chart(values, "Activation at every step of the ascent", len(values) - 1, 900, marks=steps)
    head = f"""<header id="top" tabindex="-1">
<h1>From start to verdict, opened up</h1>
<p class="lead">{escape(name)}. Follow it by scrolling, links, or arrow keys.</p>
<p><a href="../../index.html">The page of this {kind}</a></p>
<h2>Stages</h2><ol class="index">{"".join(f'<li><a href="#{at}">{title}</a></li>' for at, title, _ in body)}</ol>
<h2>Activation at every step</h2>
{curve}
<p>Marked: the steps opened up here.{JUMPS if config["noise"] else ""}</p></header>
"""
    foot = f"""<footer><h2>How this page was made</h2>
<p>From the .safetensors files beside it. They hold every number, by the names in the tables. Torch
{escape(recipe["torch"])} on {escape(recipe["device"])}, {escape(recipe["dtype"])}. The command:</p>
<pre>{escape(command)}</pre></footer>"""
    return document(f"{name}: a trace", head + sections + foot, "trace")


def ways(body, i):
    """Links to the sections before and after."""
    links = [f'<a rel="{rel}" href="#{body[at][0]}">{arrow.format(body[at][1])}</a>'
             for at, rel, arrow in ((i - 1, "prev", "← {}"), (i + 1, "next", "{} →")) if 0 <= at < len(body)]
    return f'<nav class="ways noprint" aria-label="Stages">{" ".join(links)} <a href="#top">overview</a></nav>'
