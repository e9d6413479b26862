"""The page of a trace: the stages of a step in order, each with its formula, its line of code, numbers and pictures.

    STAGES     the literal table: what a section says, and which lines of which file it cites
    pictures   tensors of a step -> pictures; the same bytes lie on disk and in the page
    page       everything -> one self-contained HTML document, a section a stage, as wide as a projector; the last
               section is the finish's, see tracefinish.py

A cited line is searched for when the page is made, by a text that occurs once in its file, so its number cannot go
stale. Every number on the page is computed from the tensors that lie beside it; tests/slow/test_trace.py does it again.
Axes: 4 x H x W latents, D x h x w at the hook point.
"""
import inspect
import io
import math
from collections import namedtuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import ascent
import regularizers
import sae
import schedule
from pages.web import bars, chart, data_uri, document, escape, img, table
from vae import to_uint8

EDGE = 480                  # pixels that a map is enlarged to, at least
THUMB = 96
DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))          # negative, 0, positive; also for the colour-blind
EMBER = ((11, 11, 20), (122, 31, 92), (232, 100, 60), (255, 240, 176))  # from nothing to the largest
Panel = namedtuple("Panel", "name png alt caption look")          # look: picture, map or terms (trace.css)
Stage = namedtuple("Stage", "name title formula idea cites tensors")

STAGES = (
    Stage("before", "The latent", "<i>z</i>",
          "This is all that the ascent may change: {C} numbers at each of {H} × {W} places. First, what the decoder "
          "makes of them; then the numbers themselves.", [(ascent, "leaf = before.clone()")], ["before"]),
    Stage("transformed", "Augmented", "<i>z′</i> = zoom(turn(roll(<i>z</i>)))",
          "A moved copy: what lifts the {kind} must survive small moves, so it cannot be a trick of single numbers. "
          "Drawn at random for this step: {down:+.2f} pixels down, {right:+.2f} right, {angle:+.1f} degrees, zoom "
          "{zoom:.3f}. Between pixels neighbours are mixed, which calms the grain: the deviation goes from "
          "{std_before:.3f} to {std_after:.3f}.{same}",
          [(ascent, "transformed = reg.transform(z, shift, angle, zoom)"),
           (regularizers, "return F.grid_sample(z, grid,")], ["transformed"]),
    Stage("noised", "Noised",
          "<i>x<sub>t</sub></i> = √<i>ᾱ<sub>t</sub></i> <i>z′</i> + √(1 − <i>ᾱ<sub>t</sub></i>) <i>ε</i>",
          "The UNet learnt to read pictures under noise, and at t = {t} it expects this much: {signal:.3f} of the "
          "latent, {noise:.3f} of new noise. What lifts the {kind} under ever new noise is in the picture, not in the "
          "noise.{same}",
          [(schedule, "return abar.sqrt() * z + (1 - abar).sqrt() * eps")], ["eps", "noised"]),
    Stage("hook", "At the hook point", "<i>h</i> = UNet(<i>x<sub>t</sub></i>, <i>t</i>, “”) at the hook point",
          "The UNet runs as far as {point} and stops: {D} numbers at each of {h} × {w} places. The prompt is empty, so "
          "only the picture speaks. First, how long the vector is at each place; then its longest channels: "
          "{channels}.", [(ascent, "hook = model.unet(noised")], ["hook"]),
    Stage("activation", "Activation of the {kind}", None, None, None, ["pre_activation"]),
    Stage("loss", "The loss", "loss = −<i>a</i> + <i>w</i><sub>tv</sub> TV(<i>z</i>) + <i>w</i><sub>range</sub> "
          "R(<i>z</i>) + <i>w</i><sub>moment</sub> M(<i>z</i>)",
          "The activation with a minus sign, and penalties on latents of a kind that no picture has: restless, too "
          "large, of the wrong mean or deviation. Weights in this run: {weights}.{climbed}",
          [(ascent, "loss = -climb + sum(")], []),
    Stage("gradient", "The gradient", "<i>g</i> = ∂loss / ∂<i>z</i>",
          "Which way each number of the latent would make the loss larger, found by going back through UNet, noise and "
          "move. Beside it its spectrum: slow waves in the middle, fine grain at the rim.",
          [(ascent, "torch.autograd.grad(loss.sum(), leaf)")], ["gradient"]),
    Stage("filtered", "Spectral filter",
          "low = FFT<sup>−1</sup>[ FFT[<i>g</i>] / (<i>r</i> + 1) ],&ensp; <i>ĝ</i> = low · std(<i>g</i>) / std(low)",
          "A wave that fits <i>r</i> times into the picture is divided by <i>r</i> + 1, then the gradient gets its "
          "spread back. Its energy moves from {grain_before:.2f} to {grain_after:.2f} waves a picture, on "
          "average.{same}",
          [(regularizers, "torch.fft.ifft2("), (regularizers, "return low * gain[")], ["filtered"]),
    Stage("smoothed", "Blur", "<i>g̃</i> = Gaussian blur of <i>ĝ</i>, <i>σ</i> = {sigma:.3g}",
          "A second, weaker way against grain. This is the gradient that the optimiser gets.{same}",
          [(regularizers, "kernel = torch.exp("), (ascent, "smoothed = reg.blur(")], ["smoothed"]),
    Stage("update", "The update", "Δ<i>z</i> = −<i>η</i> <i>m̂</i> / (√<i>v̂</i> + <i>ε</i>) − <i>η λ z</i>",
          "AdamW divides the running mean of the gradient, <i>m</i>, by its running size, √<i>v</i>: each number moves "
          "by about the learning rate, {rate:g}, wherever the gradient keeps its sign. The last term, weight decay, "
          "takes {decay:.2g} of this move's length.",
          [(ascent, "mean = mean.lerp("), (ascent, "square = (config.beta2"), (ascent, ".addcdiv(mean, size")],
          ["adam_mean", "adam_square", "update"]),
    Stage("after", "The latent after", "<i>z</i> ← <i>z</i> + Δ<i>z</i>",
          "Hardly different from the first picture: one step changes the latent by {change:.1%} of its length. The "
          "picture comes from doing this {steps} times.", [(ascent, "leaf = torch.where(alive")], ["after"]),
)
ANSWER = {      # of the stage "activation", for each kind of target: formula, idea, cites
    "feature": (("<i>a</i> = mean<sub><i>s</i></sub> relu( <i>W</i><sub>enc</sub>[{n}] · (<i>h<sub>s</sub></i> − "
                 "<i>b</i><sub>dec</sub>) + <i>b</i><sub>enc</sub>[{n}]&nbsp;)"),
                ("At each place, one dot product with the feature's row of the sparse autoencoder; what is below 0 "
                 "counts as 0. Their mean, {a:.4f}, is the activation, the number that the ascent climbs. {place} It "
                 "fires at {firing} of {places} places."),
                [(sae, "(h * self.encoder.weight[feature]"), (ascent, 'values.relu() if kind == "feature"')]),
    "channel": ("<i>a</i> = mean<sub><i>s</i></sub> <i>h<sub>s</sub></i>[{n}]",
                ("The channel itself, without the sparse autoencoder. Its mean, {a:.4f}, is the activation, the number "
                 "that the ascent climbs. {place}"),
                [(ascent, "return h[torch.arange(len(jobs)), targets]"),
                 (ascent, 'values.relu() if kind == "feature"')]),
}
BEFORE = {"transformed": "before", "noised": "transformed", "filtered": "gradient", "smoothed": "filtered"}
JUMPS = " It jumps because the noise is new at every step."
OFF = " <b>Switched off in this run: the same numbers as before.</b>"


# Pictures: tensors -> PNG bytes

def png(picture):
    """An image, or (H, W, 3) uint8 -> bytes."""
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, format="PNG")
    return file.getvalue()


def colours(x, stops):
    """Numbers in [0, 1], NaN as 0, of any shape (...) -> (..., 3) uint8, linear between evenly spaced stops."""
    at = np.linspace(0, 1, len(stops))
    x = np.nan_to_num(np.asarray(x, np.float64))
    return np.stack([np.interp(x, at, channel) for channel in zip(*stops)], axis=-1).round().astype(np.uint8)


def enlarge(array, edge=EDGE):
    """Each number becomes a square, so many pixels wide that the longer side has at least `edge`."""
    n = max(1, math.ceil(edge / max(array.shape[:2])))
    return array.repeat(n, axis=0).repeat(n, axis=1)


def mosaic(tiles):
    """Up to four pictures (H, W, 3) in a square, a white line between them."""
    if len(tiles) == 1:
        return tiles[0]
    gap = max(2, tiles[0].shape[0] // 40)
    tiles = [np.pad(t, ((0, gap), (0, gap), (0, 0)), constant_values=255) for t in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (len(tiles) % 2)
    return np.concatenate([np.concatenate(tiles[i:i + 2], axis=1) for i in range(0, len(tiles), 2)])[:-gap, :-gap]


def largest(*tensors):
    """The largest finite size of any number in them, or 1 where all are 0."""
    return max(t.abs().nan_to_num(0, 0, 0).max().item() for t in tensors) or 1.0


def bar(stops, low, high):
    """The colour scale as HTML, between its two ends."""
    line = ", ".join(f"rgb{stop}" for stop in stops)
    return f'<br>{low:.3g} <span class="scale" style="background:linear-gradient(90deg, {line})"></span> {high:.3g}'


def decoded(name, model, z, what):
    image = model.decode(z[None].to(model.device))[0].cpu()
    return Panel(name, png(to_uint8(image)), f"{what}, decoded", f"{what}, decoded by the autoencoder.", "picture")


def signed(name, x, top, what):
    """Up to four maps (n, H, W) in blue and red, `top` the number of full colour."""
    tiles = [enlarge(colours(0.5 + 0.5 * m / top, DIVERGING), EDGE // 2) for m in x[:4].numpy()]
    scale = bar(DIVERGING, -top, top) if x.any() else "<br>0 everywhere"
    return Panel(name, png(mosaic(tiles)), f"{what}: blue below 0, red above", f"{what}. {scale}", "map")


def heat(name, x, what, low=0.0, top=None):
    """A map (h, w) from dark to bright; a small one has its numbers written in."""
    top = largest(x) if top is None else top
    share = ((x - low) / ((top - low) or 1.0)).clamp(0, 1).numpy()
    picture = enlarge(colours(share, EMBER))
    if max(x.shape) <= 8:
        picture, cell = Image.fromarray(picture), picture.shape[0] // x.shape[0]
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(max(cell // 5, 12))
        for (row, column), v in np.ndenumerate(x.numpy()):
            pen.text(((column + 0.5) * cell, (row + 0.5) * cell), f"{v:.2f}", anchor="mm", font=font,
                     fill="black" if share[row, column] > 0.6 else "white")
        picture = np.asarray(picture)
    return Panel(name, png(picture), f"{what}, brighter where larger", f"{what}. {bar(EMBER, low, top)}", "map")


def lit(name, model, z, fires, what):
    """The picture, bright where the target fires and dark elsewhere."""
    image = to_uint8(model.decode(z[None].to(model.device))[0].cpu())
    light = Image.fromarray((255 * fires / largest(fires)).nan_to_num(0, 0, 0).numpy().astype(np.uint8))
    light = np.asarray(light.resize(image.shape[1::-1], Image.Resampling.NEAREST))
    shown = (image * (0.2 + 0.8 * light[..., None] / 255)).round().astype(np.uint8)
    return Panel(name, png(shown), what, what + ".", "picture")


def spectrum(g):
    """log10 of the size of each wave, root mean square over channels, slow ones in the middle: (C, H, W) -> (H, W)."""
    size = torch.fft.fftshift(torch.fft.fft2(g), dim=(-2, -1)).abs().square().mean(dim=0).sqrt()
    return size.clamp_min(torch.finfo(torch.float32).tiny).log10()


def loss_bars(s):
    """The terms of the loss as bars, to one scale, left of 0 what lowers it."""
    terms = loss_terms(s)
    width, height, row, zero = 720, 56 * len(terms) + 16, 56, 420
    picture = Image.new("RGB", (width, height), "white")
    pen, font, top = ImageDraw.Draw(picture), ImageFont.load_default(20), largest(*(v for _, v in terms))
    for i, (name, value) in enumerate(terms):
        y, end = 8 + i * row, zero + (value.nan_to_num(0, 0, 0).item() / top) * (180 if value > 0 else 200)
        pen.rectangle((min(zero, end), y + 8, max(zero, end), y + row - 12), fill=DIVERGING[2 if value > 0 else 0])
        pen.text((8, y + 14), name, fill="black", font=font)
        pen.text((width - 8, y + 14), f"{value.item():+.4f}", anchor="ra", fill="black", font=font)
    pen.line((zero, 0, zero, height), fill="#888888", width=2)
    said = ", ".join(f"{name} {value.item():+.4f}" for name, value in terms)
    return Panel("terms", png(picture), f"Terms of the loss: {said}",
                 "The terms and their sum. Blue lowers the loss, red raises it.", "terms")


def loss_terms(s):
    """[(name, value)], the sum last."""
    names = [("-activation", -s["climbed"])] + [(name.removeprefix("penalty_").replace("_", " "), s[name])
                                                for name in s if name.startswith("penalty_")]
    return [*names, ("loss", s["loss"])]


def strongest_channels(hook):
    """The four channels of hook (D, h, w) that are longest over its positions."""
    return hook.flatten(1).norm(dim=1).nan_to_num(0).topk(min(4, len(hook))).indices


@torch.no_grad()
def pictures(model, kind, s):
    """{stage: [Panel]} of one step's tensors; latents share one scale, gradients another, spectra a third."""
    z_top = largest(*(s[name] for name in ("before", "transformed", "noised", "after")))
    g_top = largest(*(s[name] for name in ("gradient", "filtered", "smoothed")))
    waves = {name: spectrum(s[name]) for name in ("gradient", "filtered", "smoothed")}
    sound = {name: w.nan_to_num(0, 0, 0) for name, w in waves.items()}
    low, high = sound["gradient"].min().item(), max(sound[name].max().item() for name in ("gradient", "filtered"))
    pre, long = s["pre_activation"], s["hook"][strongest_channels(s["hook"])]
    fires, lights = pre.relu(), "feature fires" if kind == "feature" else "channel is above 0"
    latent = lambda name, what: [decoded("picture", model, s[name], what),
                                 signed("channels", s[name], z_top, f"{what}, channels 0 to 3 row by row")]
    force = lambda name, what: [signed("channels", s[name], g_top, f"{what}, channels 0 to 3 row by row"),
                                heat("spectrum", waves[name], f"{what}, spectrum, log10", low, high)]
    return {
        "before": latent("before", "The latent"), "transformed": latent("transformed", "The moved copy"),
        "noised": latent("noised", "What the UNet sees"),
        "hook": [heat("norm", s["hook"].norm(dim=0), "Length of the vector at each place"),
                 signed("channels", long, largest(long), "Its four longest channels")],
        "activation": [heat("map", fires, "Activation at each place") if kind == "feature" else
                       signed("map", pre[None], largest(pre), "The channel at each place"),
                       lit("where", model, s["transformed"], fires, f"The moved copy, lit where the {lights}")],
        "loss": [loss_bars(s)],
        "gradient": force("gradient", "Gradient"), "filtered": force("filtered", "After the filter"),
        "smoothed": force("smoothed", "After the blur"),
        "update": [signed("channels", s["update"], largest(s["update"]), "The update, channels 0 to 3 row by row"),
                   signed("mean", s["adam_mean"], largest(s["adam_mean"]),
                          "The running mean of the gradient, as it was before this step")],
        "after": latent("after", "The latent after the step"),
    }


# The page: tensors, pictures -> HTML

def cite(module, text):
    """(file, line number, line) of the one line of a module that contains `text`; runs of blanks as one."""
    lines = inspect.getsource(module).splitlines()
    (at,) = [i for i, line in enumerate(lines) if text in line]
    return f"{module.__name__}.py", at + 1, " ".join(lines[at].split())


def numbers(t):
    """What the table says of a tensor: mean, deviation, smallest, largest, norm, in double precision."""
    x = t.double()
    return {"mean": x.mean(), "std": x.std(correction=0), "min": x.min(), "max": x.max(), "norm": x.norm()}


def grain(g):
    """Mean number of waves in the picture, weighted by energy: (C, H, W) -> number."""
    energy = torch.fft.fft2(g.double()).abs().square().sum(dim=0)
    fy, fx = (torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64) for n in energy.shape)
    return ((fy[:, None] ** 2 + fx ** 2).sqrt() * energy).sum() / energy.sum()


def facts(recipe, k, s, abar):
    """What the sentences of STAGES and ANSWER take, from a step's tensors and its recipe; abar is that of its t."""
    job, config = recipe["job"], recipe["config"]
    kind = "channel" if job["feature"] is None else "feature"
    order = s["strongest"].tolist()
    more = order.index(job[kind]) if job[kind] in order else f"{len(order)} or more"
    unit = s["before"].shape[-1] / regularizers.REFERENCE_WIDTH
    sigma = regularizers.smoothing_sigma(k, config["num_steps"], config["gradient_smoothing_sigma_start"],
                                         config["gradient_smoothing_sigma_end"])
    climbed = " The feature is silent at every place, so its mean before the relu is climbed instead."
    told = {
        "kind": kind, "n": job[kind], "t": job["timestep"], "point": recipe["hook_point"], "steps": config["num_steps"],
        **dict(zip("CHW", s["before"].shape)), **dict(zip("Dhw", s["hook"].shape)),
        "down": s["shift"][0], "right": s["shift"][1], "angle": s["angle"], "zoom": s["zoom"],
        "signal": abar.sqrt(), "noise": (1 - abar).sqrt(),
        "channels": ", ".join(map(str, strongest_channels(s["hook"]).tolist())), "a": s["activation"],
        "place": f"At this step {more or 'no'} other {kind}s are more active.",
        "firing": (s["pre_activation"] > 0).sum(), "places": s["pre_activation"].numel(),
        "grain_before": grain(s["gradient"]), "grain_after": grain(s["filtered"]),
        "climbed": climbed if s["silent"] and config["silent_gradient"] else "",
        "sigma": unit * sigma, "rate": config["learning_rate"], "change": s["update"].norm() / s["before"].norm(),
        "std_before": s["before"].std(), "std_after": s["transformed"].std(),
        "weights": ", ".join(f"{name.replace('_', ' ')} {config[name + '_weight']:g}"
                             for name in ("total_variation", "range", "moment")),
        "decay": config["learning_rate"] * config["weight_decay"] * s["before"].norm() / s["update"].norm(),
    }
    return {name: v.item() if isinstance(v, torch.Tensor) else v for name, v in told.items()}


def section(stage, k, steps, s, panels, told, redrawn):
    """One stage of step k as HTML; `told` are its facts. redrawn: a finish follows."""
    place, before = STAGES.index(stage), BEFORE.get(stage.name)
    formula, idea, cites = ANSWER[told["kind"]] if stage.name == "activation" else stage[2:5]
    told = told | {"same": OFF if before and torch.equal(s[stage.name], s[before]) else ""}
    figures = "".join(f'<figure><img class="{p.look}" src="{data_uri(p.png, "png")}" alt="{escape(p.alt)}, step {k}">'
                      f"<figcaption>{p.caption}</figcaption></figure>" for p in panels)
    return f"""<section id="s{k}-{stage.name}" tabindex="-1"><div><div>
<p class="where">step {k} of {told["steps"]}, stage {place + 1} of {len(STAGES)}</p>
<h2>{stage.title.format(**told)}</h2>
<p class="formula">{formula.format(**told)}</p>
<p class="idea">{idea.format(**told)}</p>
{cited(cites)}
{tensors(stage, s)}
</div><div class="pictures">{figures}{strongest(s, told) if stage.name == "activation" else ""}</div></div>
{ways(place, k, steps, redrawn)}</section>
"""


def cited(cites):
    """The lines of code of a section."""
    lines = ('<p class="line"><b>{}:{}</b></p><pre>{}</pre>'.format(*map(escape, cite(*c))) for c in cites)
    return f'<div class="line">{"".join(lines)}</div>'


def tensors(stage, s):
    """The numbers of a stage's tensors; for the loss its terms."""
    if stage.name == "loss":
        return table((), [(name, f"{v.item():.5g}") for name, v in loss_terms(s)], "Terms of the loss")
    rows = [(name, *(f"{v.item():.4g}" for v in numbers(s[name]).values())) for name in stage.tensors]
    return table(("", *numbers(s["before"])), rows, "Numbers of its tensors")


def strongest(s, told):
    """The most active features or channels at this step as bars, the target in another colour."""
    rows = [(f"{told['kind']} {n}", f"{a:.4f}", a, n == told["n"])
            for n, a in zip(s["strongest"].tolist(), s["strongest_activation"].nan_to_num(0).tolist())]
    return f'<div class="wide"><p>The most active {told["kind"]}s at this step, mean over places:</p>{bars(rows)}</div>'


def ways(place, k, steps, redrawn):
    """Links to the stage before and after, and to the same stage of the other steps; from the last to the finish."""
    order, links = [(step, stage) for step in steps for stage in STAGES], []
    at = steps.index(k) * len(STAGES) + place
    for i, rel, arrow in ((at - 1, "prev", "← {}"), (at + 1, "next", "{} →")):
        if 0 <= i < len(order):
            step, stage = order[i]
            there = title(stage) if step == k else f"step {step}: {title(stage)}"
            links.append(f'<a rel="{rel}" href="#s{step}-{stage.name}">{arrow.format(there)}</a>')
    links += ['<a rel="next" href="#finish">The finish →</a>'] * (redrawn and at + 1 == len(order))
    links += [f'<a href="#s{other}-{STAGES[place].name}">the same at step {other}</a>' for other in steps if other != k]
    return f'<nav class="ways noprint" aria-label="Stages">{"".join(links)} <a href="#top">overview</a></nav>'


def title(stage):
    return stage.title.format(kind="target")


def glance(k, panels):
    """The first picture of every stage of step k, small, as links to the stages."""
    entries = []
    for stage in STAGES:
        panel = panels[stage.name][0]
        picture = Image.open(io.BytesIO(panel.png))
        small = picture.resize((THUMB * picture.width // picture.height, THUMB), Image.Resampling.BICUBIC
                               if panel.look == "picture" else Image.Resampling.BOX)
        source = img(data_uri(png(small), "png"), f"{stage.name} at step {k}")
        entries.append(f'<li><a href="#s{k}-{stage.name}">{source}{title(stage)}</a></li>')
    return f'<h3>Step {k}</h3><div class="scroll"><ol class="glance">{"".join(entries)}</ol></div>'


def page(noise_schedule, recipe, command, records, pictures, curve, redrawn=""):
    """The document: {step: tensors}, {step: {stage: [Panel]}}, the activation at each step so far, the finish's section
    or nothing."""
    job, steps, last = recipe["job"], list(records), len(curve) - 1
    abar = noise_schedule.alphas_cumprod[job["timestep"]].double().cpu()
    told = {k: facts(recipe, k, records[k], abar) for k in steps}
    kind = told[steps[0]]["kind"]
    name = f"{kind} {job[kind]} of {recipe['weights']}, t {job['timestep']}, seed {job['seed']}"
    sections = "".join(section(stage, k, steps, records[k], pictures[k][stage.name], told[k], bool(redrawn))
                       for k in steps for stage in STAGES)
    names = [f"step_{k:03d}" for k in steps] + ["finish"] * bool(redrawn)
    files = ", ".join(f"<code>{name}.safetensors</code>" for name in names)
    course = chart(list(curve), f"Activation at steps 0 to {last}", max(last, 1), 900, marks=steps if last else ())
    body = f"""<header id="top" tabindex="-1">
<h1>{"One step" if len(steps) == 1 else f"{len(steps)} steps"} of the ascent{" and the finish" if redrawn else ""},
opened up</h1>
<p class="lead">{escape(name)}. Every step changes the latent a little so that the {kind} answers more. Follow one from
stage to stage: by scrolling, by the links, or with the arrow keys.</p>
{"".join(glance(k, pictures[k]) for k in steps)}
{'<p><a href="#finish">Then the finish: its steps</a></p>' if redrawn else ""}
<h3>Activation at every step so far</h3>
{course}
<p>Marked: the steps opened up here.{JUMPS if recipe["config"]["noise"] else ""}</p></header>
{sections}{redrawn}<footer><h2>How this page was made</h2>
<p>By <code>featviz.py --trace</code>, from the tensors in {files} beside it; they hold every number of these steps, by
the names in the tables, and with the weights each stage can be computed again from the one before. Torch
{escape(recipe["torch"])} on {escape(recipe["device"])}, {escape(recipe["dtype"])}. The command:</p>
<pre>{escape(command)}</pre></footer>"""
    return document(f"{name}: steps {', '.join(map(str, steps))}", body, "trace")
