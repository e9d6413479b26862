"""A job opened up, from start to verdict: each stage follows from the one before by formulas written here again, and
the page says what the tensors say.

The audit reads the tensor files alone, and takes nothing of the project but the networks (which tests/oracle compares
with the official ones), the SAE's weights and alphas_cumprod.
"""
import base64
import io
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import featviz
from ascent import ascend
from config import Job, configure
from pages import trace, tracepage
from tests.tiny import write_model
from visualize import judge_result, start
from weights.load import load

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING_ON = ["--total-variation-weight", 0.3, "--gradient-smoothing-sigma-start", 6,
                 "--gradient-smoothing-sigma-end", 2, "--jitter-max", 8, "--prior-steps", 8,
                 "--finish-steps", 4, "--finish-from", "auto"]
STEPS = (0, 4)
SCORE_SEED = 0x3C91B7E5


def run(out, *flags):
    return featviz.main([str(a) for a in ("--out", out, "--device", "cpu", *flags)])


@pytest.fixture(scope="module")
def model():
    return load("weights/toy")


@pytest.fixture(scope="module", params=["--feature 22", "--channel 37"])
def traced(request, tmp_path_factory, one_thread):
    """(folder of a trace on the toy, its flags)"""
    out = tmp_path_factory.mktemp("out")
    flags = ["--weights", "weights/toy", *request.param.split(), "--timestep", 600, "--seed", 5, "--num-steps", 6,
             "--batch-size", 1, *EVERYTHING_ON, "--trace", *STEPS]
    assert run(out, *flags) == 0
    folder, = out.rglob("seed_5_trace")
    return folder, flags


@pytest.fixture(scope="module")
def plain(traced, tmp_path_factory):
    """The record of the same job's result, made without a trace, and its path."""
    out, flags = tmp_path_factory.mktemp("plain"), traced[1]
    assert run(out, *flags[:flags.index("--trace")]) == 0
    path, = out.rglob("seed_5.json")
    return path, json.loads(path.read_text())


def saved(folder, name):
    """The tensors of a file, and the recipe that it names; a number is a step's."""
    path = folder / (f"step_{name:03d}.safetensors" if isinstance(name, int) else f"{name}.safetensors")
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["featviz"])["recipe"]


# --- the audit: the method, a second time -------------------------------------------------------------------

def moved(z, s):
    """Roll with mixing, then read at the turned, shrunk place, bilinear, 0 outside: (C, H, W) -> the same."""
    for dim, d in ((1, s["shift"][0].item()), (2, s["shift"][1].item())):
        f = d - math.floor(d)
        z = (1 - f) * z.roll(math.floor(d), dim) + f * z.roll(math.floor(d) + 1, dim)
    _, H, W = z.shape
    a, zoom = math.radians(s["angle"].item()), s["zoom"].item()
    y, x = torch.meshgrid(torch.arange(H) - (H - 1) / 2, torch.arange(W) - (W - 1) / 2, indexing="ij")
    at_x = (math.cos(a) * x + math.sin(a) * y) / zoom + (W - 1) / 2
    at_y = (-math.sin(a) * x + math.cos(a) * y) / zoom + (H - 1) / 2
    out = torch.zeros_like(z)
    for dy in (0, 1):
        for dx in (0, 1):
            j, i = at_y.floor().long() + dy, at_x.floor().long() + dx
            weight = (1 - (at_y - j).abs()) * (1 - (at_x - i).abs()) * ((0 <= j) & (j < H) & (0 <= i) & (i < W))
            out = out + weight * z[:, j.clamp(0, H - 1), i.clamp(0, W - 1)]
    return out


def coarse(g):
    """The spectral filter: (C, H, W) -> the same."""
    H, W = g.shape[1:]
    fy, fx = (np.minimum(np.arange(n), n - np.arange(n)) for n in (H, W))
    low = np.fft.ifft2(np.fft.fft2(g) / (np.hypot(fy[:, None], fx[None]) + 1)).real
    return low * g.std(ddof=1) / low.std(ddof=1)


def blurred(g, sigma, size):
    """Gaussian blur with mirrored borders, by its definition."""
    half = size // 2
    w = np.exp(-np.arange(-half, half + 1) ** 2 / (2 * sigma ** 2))
    w2 = np.outer(w, w) / w.sum() ** 2
    g = np.pad(g, ((0, 0), (half, half), (half, half)), mode="reflect")
    H, W = g.shape[1] - 2 * half, g.shape[2] - 2 * half
    return sum(w2[y, x] * g[:, y:y + H, x:x + W] for y in range(size) for x in range(size))


def near(ours, theirs, tolerance=2e-5):
    ours, theirs = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64) for v in (ours, theirs))
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def measured(model, job, h):
    """The target before its relu at each place of h (D, h, w), and its activation."""
    if job["kind"] == "channel":
        return h[job["target"]], h[job["target"]].mean()
    w, b = model.sae.encoder.weight[job["target"]], model.sae.encoder.bias[job["target"]]
    pre = torch.einsum("d,dhw->hw", w, h - model.sae.b_dec[:, None, None]) + b
    return pre, pre.clamp(min=0).mean()


@pytest.mark.parametrize("k", STEPS)
def test_every_stage_follows_from_the_file(traced, model, k):
    s, made = saved(traced[0], k)
    job, c = made["job"], made["config"]
    z = s["before"].clone().requires_grad_(True)
    assert not any(torch.equal(s[a], s[b]) for a, b in tracepage.BEFORE.items()), "every stage is to be seen at work"
    z_moved = moved(z, s)
    near(z_moved, s["transformed"])
    abar = model.schedule.alphas_cumprod[job["timestep"]]
    x = abar.sqrt() * z_moved + (1 - abar).sqrt() * s["eps"]
    near(x, s["noised"])
    h = model.unet(x[None], torch.tensor([job["timestep"]]), model.embed([""]), until=model.hook_point)[0]
    near(h, s["hook"])
    pre, a = measured(model, job, h)
    near(pre, s["pre_activation"])
    near(a, s["activation"])
    unit = z.shape[-1] / 64
    steepness = (z[:, 1:] - z[:, :-1]).abs().mean() + (z[:, :, 1:] - z[:, :, :-1]).abs().mean()
    terms = {"total_variation": c["total_variation_weight"] * unit * steepness,
             "range": c["range_weight"] * (z.abs() - c["range_threshold"]).clamp(min=0).pow(2).mean(),
             "moment": c["moment_weight"] * (z.mean().abs() + (z.var().sqrt() - 1).abs())}
    for name, value in terms.items():
        near(value, s[f"penalty_{name}"])
    loss = sum(terms.values()) - (pre.mean() if job["kind"] == "feature" and a == 0 else a)
    near(loss, s["loss"])
    loss.backward()
    near(z.grad, s["gradient"], 1e-4)
    filtered = coarse(s["gradient"].double().numpy())
    near(s["filtered"], filtered)
    share = k / (c["num_steps"] - 1)
    sigma = unit * ((1 - share) * c["gradient_smoothing_sigma_start"] + share * c["gradient_smoothing_sigma_end"])
    near(s["smoothed"], blurred(filtered, sigma, c["gradient_smoothing_kernel_size"]))
    near(s["update"], adamw(s, c, k), 1e-4)
    near(s["before"] + s["update"], s["after"])


def adamw(s, c, k):
    """The update by Loshchilov & Hutter's formula, in double precision."""
    g, m, v, z = (s[name].double() for name in ("smoothed", "adam_mean", "adam_square", "before"))
    m, v = c["beta1"] * m + (1 - c["beta1"]) * g, c["beta2"] * v + (1 - c["beta2"]) * g ** 2
    m, v = m / (1 - c["beta1"] ** (k + 1)), v / (1 - c["beta2"] ** (k + 1))
    return -c["learning_rate"] * (m / (v.sqrt() + c["epsilon"]) + c["weight_decay"] * z)


def test_the_first_update_needs_no_history(traced):
    """At step 0 both running means are 0, and their corrections cancel: -lr g / (|g| + eps) - lr wd z."""
    s, made = saved(traced[0], 0)
    c, g = made["config"], s["smoothed"].double()
    assert not s["adam_mean"].any() and not s["adam_square"].any()
    near(s["update"], -c["learning_rate"] * (g / (g.abs() + c["epsilon"]) + c["weight_decay"] * s["before"].double()))


def test_the_strongest_are_those_of_the_whole_sae(traced, model):
    for k in STEPS:
        s, made = saved(traced[0], k)
        h = s["hook"].flatten(1).T
        pre = (h - model.sae.b_dec) @ model.sae.encoder.weight.T + model.sae.encoder.bias
        acts = h if made["job"]["kind"] == "channel" else pre.clamp(min=0)
        assert s["strongest"].tolist() == acts.mean(dim=0).argsort(descending=True)[:10].tolist()
        near(s["strongest_map"].mean((1, 2)), s["strongest_activation"])
        near(acts[:, s["strongest"]].T.reshape(s["strongest_map"].shape), s["strongest_map"])


# --- the start --------------------------------------------------------------------------------------------------------

def pushed(model, x, t, push):
    """The noise predicted for x (4, H, W) at t while push (D,) is added at the hook point, without a prompt."""
    passes = model.unet.run(x[None], torch.tensor([t]), model.embed([""]))
    name, h = next(passes)
    while name != "conv_out":
        name, h = passes.send(h + push[None, :, None, None] if name == model.hook_point else h)
    return h[0]


@torch.no_grad()
def test_the_start_follows_from_the_seed_the_strengths_and_the_sampler(traced, model):
    """PLMS with the first step taken twice; every prediction and every step of it again."""
    s, made = saved(traced[0], "start")
    times, abar, stride = s["timestep"].tolist(), model.schedule.alphas_cumprod, 1000 // 8
    assert times == [876, 751, 751, 626, 501, 376, 251, 126, 1]
    assert torch.equal(s["before"][0], torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5)))
    near(strengths(made), s["strength"])
    near(s["strength"][times] * s["direction"].norm(), s["push"])
    if made["job"]["kind"] == "feature":
        near(model.sae.W_dec[made["job"]["target"]], s["direction"])
    past, latents = [], [*s["before"][1:], s["start"]]
    for i, t in enumerate(times):
        x, e = s["before"][i], pushed(model, s["before"][i], t, s["strength"][t] * s["direction"])
        near(e, s["noise"][i], 1e-4)
        near(abar[t].sqrt() * s["clean"][i] + (1 - abar[t]).sqrt() * s["noise"][i], x, 1e-4)
        t_from, e = t, s["noise"][i]
        if i == 1:
            x, t_from, e = s["before"][0], times[0], (e + s["noise"][0]) / 2
        else:
            past.append(e)
            weights = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}.get(
                len(past), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
            e = sum(w * old for w, old in zip(weights, past[::-1]))
        after = abar[max(t_from - stride, 0)]
        clean = (x - (1 - abar[t_from]).sqrt() * e) / abar[t_from].sqrt()
        near(after.sqrt() * clean + (1 - after).sqrt() * e, latents[i], 1e-4)
    assert torch.equal(s["start"], saved(traced[0], 0)[0]["before"])


def strengths(made):
    """steer_scale times the largest activation at t where the target is active, from the capture's own file."""
    tables = {k: v.float().numpy() for k, v in load_file("weights/toy/activity/activity.safetensors").items()}
    kind, n, t, x = made["job"]["kind"], made["job"]["target"], np.arange(1001), tables["timesteps"][::-1]
    most, share = (np.interp(t, x, tables[f"{name}_{kind}"][::-1, n].clip(0), left=0, right=0)
                   for name in ("max", "share"))
    return made["config"]["steer_scale"] * most * (share > 0)


# --- the finish and the verdict ---------------------------------------------------------------------------------------

def test_a_trace_s_latents_are_those_of_a_result(traced, plain):
    """A trace writes no result; its latents are those of a run without it, bit for bit."""
    folder, latents = traced[0], load_file(plain[0].with_suffix(".safetensors"))
    assert not list(folder.parent.glob("seed_5.*"))
    verdict = saved(folder, "verdict")[0]
    assert torch.equal(latents["latent"], verdict["ascent_latent"])
    assert torch.equal(latents["finished"], verdict["finished_latent"])
    assert torch.equal(latents["finished"], saved(folder, "finish")[0]["after"][-1])


def test_every_step_of_the_finish_follows_from_the_file(traced, model, plain):
    s, made = saved(traced[0], "finish")
    times, abar = [*s["timestep"].tolist(), 0], model.schedule.alphas_cumprod
    assert times[0] == plain[1]["finished"]["scores"]["finish_from"] and len(times) == 5
    size = lambda t: t.double().square().mean().sqrt()
    for i, t in enumerate(times[:-1]):
        x = s["before"][i].clone().requires_grad_(True)
        h = model.unet(x[None], torch.tensor([t]), model.embed([""]), until=model.hook_point)[0]
        a = measured(model, made["job"], h)[1]
        near(a, s["activation"][i])
        a.backward()
        near(x.grad, s["gradient"][i], 1e-3)
        near(coarse(s["gradient"][i].double().numpy()), s["filtered"][i], 1e-4)
        e, g = s["noise"][i], s["filtered"][i]
        near(pushed(model, s["before"][i], t, torch.zeros(len(h))), e, 1e-4)
        pull = made["config"]["finish_scale"] * size(e) / size(g)
        near([size(e), size(g), pull], [s[name][i] for name in ("rms_noise", "rms_gradient", "pull")])
        near(e - pull * g, s["pulled"][i], 1e-4)
        near(abar[t].sqrt() * s["clean"][i] + (1 - abar[t]).sqrt() * s["pulled"][i], s["before"][i], 1e-4)
        after = abar[times[i + 1]]
        near(after.sqrt() * s["clean"][i] + (1 - after).sqrt() * s["pulled"][i], s["after"][i], 1e-4)


@torch.no_grad()
def test_scores_follow_from_four_noises_and_the_re_encoded_latent(traced, model, plain):
    s, made = saved(traced[0], "verdict")
    job, abar, record = made["job"], model.schedule.alphas_cumprod[made["job"]["timestep"]], plain[1]
    g = torch.Generator().manual_seed(SCORE_SEED ^ 5)
    assert torch.equal(s["eps"], torch.stack([torch.randn(4, 16, 16, generator=g) for _ in range(4)]))

    def under_noises(z):
        x = abar.sqrt() * z + (1 - abar).sqrt() * s["eps"]
        h = model.unet(x, torch.full((4,), job["timestep"]), model.embed([""]).expand(4, -1, -1),
                       until=model.hook_point)
        return torch.stack([measured(model, job, row)[1] for row in h])

    near(under_noises(saved(traced[0], "start")[0]["start"]), s["activation_start"], 1e-4)
    for name, scores in (("ascent", record["scores"]), ("finished", record["finished"]["scores"])):
        z = s[f"{name}_latent"]
        near(model.encode(model.decode(z[None]))[0], s[f"{name}_reencoded"], 1e-4)
        near(under_noises(z), s[f"{name}_activation"], 1e-4)
        near(under_noises(s[f"{name}_reencoded"]), s[f"{name}_activation_reencoded"], 1e-4)
        near(s[f"{name}_activation"].mean(), scores["activation"], 1e-4)
        near(s[f"{name}_activation_reencoded"].mean(), scores["activation_reencoded"], 1e-4)
        near(s["activation_start"].mean(), scores["activation_start"], 1e-4)


def test_the_rule_with_its_numbers_gives_the_verdict():
    scores = {"activation": 8.0, "activation_start": 1.0, "activation_reencoded": 5.0, "rank": 3,
              "dataset_largest": 9.0}
    for changes, verdict in (({}, None), ({"activation": math.nan}, "non-finite"), ({"activation": 0.0}, "silent"),
                             ({"activation_start": 9.0}, "weak"), ({"activation_reencoded": 3.9}, "fragile"),
                             ({"activation": -2.0, "activation_start": -3.0, "activation_reencoded": -2.5,
                               "dataset_largest": None}, None), ({"rank": 11}, "raised"),
                             ({"dataset_largest": 17.0}, "raised")):
        failed = [fails for fails, _, holds in tracepage.rules(scores | changes) if not holds]
        assert failed[:1] == ([verdict] if verdict else [])
        assert judge_result(scores | changes, True, 6).partition(" ")[0] == (verdict or "excited")


def test_the_page_says_the_verdicts_and_the_tries_that_lost(traced, plain):
    text, record = (traced[0] / "trace.html").read_text(encoding="utf-8"), plain[1]
    assert f"<h3>Ascent: {record['verdict']}</h3>" in text
    assert f"<h3>Finished: {record['finished']['verdict']}</h3>" in text
    tries = {k: v for k, v in record["finished"]["scores"].items() if k.startswith("reencoded_from_")}
    assert len(tries) == 3 and max(tries, key=tries.get).endswith(str(record["finished"]["scores"]["finish_from"]))
    for name, value in tries.items():
        assert f"{tracepage.short(value)} from t = {name.rpartition('_')[2]}" in text


# --- the page -----------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Ids, links, pictures, the text of cells by section, and cited lines."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.cited, self.inside, self.headings = [], [], [], [], [], []
        self.rows, self.section = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.headings += [int(tag[1])] if tag in ("h1", "h2", "h3", "h4") else []
        self.inside.append((tag, attributes.get("class")))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag == "section":
            self.section = attributes["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("th", "td"):
            self.rows[self.section][-1].append("")
        if tag == "img":
            self.images.append(attributes)
            self.inside.pop()
        if tag in ("meta", "br"):
            self.inside.pop()

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        tags = [tag for tag, _ in self.inside]
        if {"th", "td"} & set(tags):
            self.rows[self.section][-1][-1] += data
        if "line" in [c for _, c in self.inside]:
            self.cited.append(data) if data.strip() else None


@pytest.fixture(scope="module")
def page(traced):
    return Page((traced[0] / "trace.html").read_text(encoding="utf-8"))


def test_a_section_for_every_stage_and_no_dead_link(page):
    stages = [f"s{k}-{stage.name}" for k in STEPS for stage in tracepage.STAGES]
    assert [i for i in page.ids if i != "top"] == ["start", *stages, "finish", "verdict"]
    assert page.headings[0] == 1 and all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
    assert "../../index.html" in page.links
    page.links.remove("../../index.html")
    assert len(set(page.ids)) == len(page.ids) and {href.removeprefix("#") for href in page.links} == set(page.ids)
    assert page.inside == []


def test_every_picture_has_an_alternative(page):
    assert all(image["alt"] for image in page.images)
    assert sum(image["alt"].startswith("The clean latent") for image in page.images) == 9 + 4
    files = [io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2])) for image in page.images]
    assert len(files) == 1 + 9 + len(STEPS) * (2 * 9 + 1) + 4 + 4
    assert all(max(Image.open(file).size) >= 64 for file in files)


def test_sentences_are_short():
    texts = [stage.idea for stage in (*tracepage.STAGES, tracepage.START, tracepage.FINISH, tracepage.VERDICT)
             if stage.idea]
    texts += [idea for _, idea, _ in tracepage.READOUT.values()]
    texts += [tracepage.STEERED, tracepage.GUIDED, tracepage.NOISE, tracepage.PICTURE, tracepage.OFF, tracepage.JUMPS]
    sentences = [s for text in texts for s in re.split(r"(?<=[a-z0-9})>])[.:] ", re.sub("<.*?>", "", text))]
    assert [s for s in sentences if len(s.split()) > 12] == []


def test_the_page_needs_no_network(traced):
    text = (traced[0] / "trace.html").read_text(encoding="utf-8")
    assert "://" not in text and "@import" not in text and "url(" not in text


def test_cited_lines_are_the_ones_that_do_it(page):
    """Each stage's line, looked up by its number in the file itself, holds the operation that the section speaks of."""
    expected = {"before": "clone()", "transformed": "reg.transform(", "noised": "abar.sqrt() * z",
                "hook": "read_hook(model, noised",
                "loss": "-climb + sum(", "gradient": "autograd.grad(", "filtered": "ifft2", "smoothed": "torch.exp(",
                "update": "config.beta",
                "after": "torch.where(alive"}
    cited = list(zip(page.cited[::2], page.cited[1::2]))
    stages = len(STEPS) * sum(len(stage.cites or "12") for stage in tracepage.STAGES)
    assert len(cited) == stages + sum(len(stage.cites) for stage in (tracepage.START, tracepage.FINISH,
                                                                     tracepage.VERDICT))
    for where, line in cited:
        file, number = where.split(":")
        assert " ".join(Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1].split()) == line
    for stage in tracepage.STAGES:
        if stage.cites:
            assert expected[stage.name] in tracepage.cite(*stage.cites[0])[2]
    assert "encoder.weight[feature]" in tracepage.cite(*tracepage.READOUT["feature"][2][0])[2]
    assert "h @ directions" in tracepage.cite(*tracepage.READOUT["channel"][2][0])[2]


def test_numbers_on_the_page_are_those_of_the_tensors(page, traced):
    for k in STEPS:
        s, _ = saved(traced[0], k)
        for stage in tracepage.STAGES:
            rows = page.rows[f"s{k}-{stage.name}"]
            for name in stage.tensors:
                x = s[name].numpy().astype(np.float64)
                shown, = [[float(v) for v in row[1:]] for row in rows if row[0] == name]
                assert shown == pytest.approx([x.mean(), x.std(), x.min(), x.max(), np.sqrt((x ** 2).sum())], rel=1e-3,
                                              abs=1e-12)
        terms = {row[0]: float(row[1]) for row in page.rows[f"s{k}-loss"]}
        assert terms == pytest.approx({"-activation": -s["climbed"].item(), "loss": s["loss"].item(),
                                       "range": s["penalty_range"].item(),
                                       "moment": s["penalty_moment"].item(),
                                       "total variation": s["penalty_total_variation"].item()}, rel=1e-4)
        listed = [row for row in page.rows[f"s{k}-activation"] if re.match(r"(feature|channel) \d", row[0])]
        assert [int(row[0].split()[1]) for row in listed] == s["strongest"].tolist()
        assert [float(row[1]) for row in listed] == pytest.approx(s["strongest_activation"].tolist(), abs=1e-4)


def test_the_command_on_the_page_makes_the_same_files(traced, tmp_path):
    text = (traced[0] / "trace.html").read_text(encoding="utf-8")
    words = shlex.split(re.search(r"<pre>(python featviz.py [^<]*)</pre>", text).group(1))
    assert run(tmp_path, *words[2:]) == 0
    again, = tmp_path.rglob("seed_5_trace")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in traced[0].iterdir()}


# --- what may go wrong, and odd cases, on the tiny model --------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "<b>tiny & co")


SHORT = ["--feature", 3, "--timestep", 300, "--num-steps", 4, "--prior-steps", 2, "--batch-size", 2]


def test_a_trace_for_every_job_and_the_old_steps_go(tiny, tmp_path):
    for steps in ((0,), (1,)):
        assert run(tmp_path, "--weights", tiny, *SHORT, "--num-steps", 2, "--seed", 5, 6, 7, "--trace", *steps) == 0
    folders = sorted(tmp_path.rglob("seed_*_trace"))
    assert [f.name for f in folders] == ["seed_5_trace", "seed_6_trace", "seed_7_trace"]
    for folder in folders:
        assert {f.name.partition(".")[0].partition("_")[0] + f.name[4:8] * f.name.startswith("step")
                for f in folder.iterdir()} == {"start", "step_001", "finish", "verdict", "trace"}
        text = (folder / "trace.html").read_text(encoding="utf-8")
        assert "<b>tiny" not in text and "&lt;b&gt;tiny &amp; co" in text


@pytest.mark.parametrize("prior, said", [("noise", "Here it is noise from the seed alone."),
                                         ("guided", "while the gradient of the feature pulls")])
def test_other_starts(tiny, tmp_path, prior, said):
    assert run(tmp_path, "--weights", tiny, *SHORT, "--prior", prior, "--seed", 5, "--trace", 0) == 0
    folder, = tmp_path.rglob("seed_5_trace")
    assert said in " ".join((folder / "trace.html").read_text(encoding="utf-8").split())
    s = saved(folder, "start")[0]
    assert set(s) == {"start"} if prior == "noise" else len(s["clean"]) == 2 and not s["push"].any()
    assert torch.equal(s["start"], saved(folder, 0)[0]["before"])


def test_one_place_under_a_prompt(tiny, tmp_path):
    flags = ["--position", 1, 0, "--prompt", "A <b> cat", "--prior", "noise", "--seed", 5, "--trace", 1]
    assert run(tmp_path, "--weights", tiny, *SHORT, *flags) == 0
    folder, = tmp_path.rglob("seed_5_trace")
    s, text = saved(folder, 1)[0], (folder / "trace.html").read_text(encoding="utf-8")
    near(s["pre_activation"][1, 0].clamp(min=0), s["activation"])
    assert "at place (1, 0): relu(" in text and "“A &lt;b&gt; cat”" in text
    assert "--position 1 0" in text and "--prompt &#x27;A &lt;b&gt; cat&#x27;" in text


def test_an_ascent_that_left_the_numbers_can_be_looked_at(tiny, tmp_path):
    wild = ["--learning-rate", 1e6, "--weight-decay", 1e6, "--prior", "noise"]
    assert run(tmp_path, "--weights", tiny, *SHORT, *wild, "--seed", 5, "--trace", 3) == 0
    folder, = tmp_path.rglob("seed_5_trace")
    assert not saved(folder, 3)[0]["loss"].isfinite() and "nan" in (folder / "trace.html").read_text(encoding="utf-8")


def test_switched_off_stages_say_so_and_there_is_no_finish(tiny, tmp_path):
    off = ["--preset", "none", "--no-noise"]
    assert run(tmp_path, "--weights", tiny, *SHORT, *off, "--seed", 5, "--trace", 0) == 0
    text = next(tmp_path.rglob("trace.html")).read_text(encoding="utf-8")
    said = {name: tracepage.OFF.strip() in text[text.index(f'id="s0-{name}"'):].split("</section>")[0]
            for name in tracepage.BEFORE}
    assert said == {"transformed": True, "noised": True, "filtered": True, "smoothed": True}
    assert 'id="finish"' not in text and not list(tmp_path.rglob("finish*"))


def test_nothing_of_the_loop_is_drawn_twice(tiny):
    """Replayed draws come from a copy of each generator: a traced job's ascent and an untraced one's are the same."""
    m = load(tiny)
    config = configure(m.settings, num_steps=3, prior="noise")
    jobs = [Job("feature", 3, 300, s) for s in (5, 6)]
    plain = [step.after for step in ascend(m, jobs, config, start(m, jobs, config))]
    for i, parts in enumerate(trace.follow(m, jobs, config, {0, 2})):
        assert all(torch.equal(parts.steps[k]["after"], plain[k][i]) for k in (0, 2))


def test_a_feature_without_a_gradient_does_not_pull(tiny):
    """Silent at every place, and its mean before the relu not climbed: the pull is 0, not 0 / 0."""
    m = load(tiny)
    m.sae.encoder.bias[3] = -100.0
    config = configure(m.settings, num_steps=1, prior="noise", silent_gradient=False, finish_scale=0.4)
    (parts,) = trace.follow(m, [Job("feature", 3, 300, 5)], config, {0})
    s = parts.finish
    assert not s["pull"].any() and not s["rms_gradient"].any() and torch.equal(s["pulled"], s["noise"])
