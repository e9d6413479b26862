"""A job opened up, from start to verdict: each stage follows from the one before, and the page says what the tensors
say.

The audit reads the tensor files alone. It takes from the project what other tests pin: networks, regularizers, AdamW,
the samplers; everything between them is written here again.
"""
import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import featviz
import regularizers as reg
from activity.profile import read_capture
from ascent import adamw
from config import Config
from pages import trace
from schedule import pndm
from tests.tiny import write_model
from weights.load import load


EVERYTHING_ON = ["--total-variation-weight", 0.3, "--gradient-smoothing-sigma-start", 6,
                 "--gradient-smoothing-sigma-end", 2, "--jitter-max", 8, "--prior-steps", 8,
                 "--finish-steps", 4, "--finish-from", "auto"]
STEPS = (0, 4)
SCORE_SEED = 0x3C91B7E5


def run(out, *flags):
    return featviz.main([str(a) for a in ("--out", out, "--device", "cpu", *flags)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "<b>tiny & co")


@pytest.fixture(scope="module")
def model(weights):
    return load(weights)


@pytest.fixture(scope="module", params=["--feature 3", "--channel 7"])
def traced(request, weights, tmp_path_factory):
    """(folder of a trace, the record of the same job made without a trace, its path)"""
    flags = ["--weights", weights, *request.param.split(), "--timestep", 600, "--seed", 5, "--num-steps", 6,
             "--batch-size", 1, *EVERYTHING_ON]
    out, plain = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("plain")
    assert run(out, *flags, "--trace", *STEPS) == 0 and run(plain, *flags) == 0
    (folder,), (path,) = out.rglob("seed_5_trace"), plain.rglob("seed_5.json")
    return folder, json.loads(path.read_text()), path


def saved(folder, name):
    """The tensors of a file, and the recipe that it names; a number is a step's."""
    path = folder / (f"step_{name:03d}.safetensors" if isinstance(name, int) else f"{name}.safetensors")
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["featviz"])["recipe"]


def near(ours, theirs, tolerance=2e-5):
    ours, theirs = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64) for v in (ours, theirs))
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def hooked(model, x, t):
    """The hook's output (n, D, h, w) for noisy latents x (n, 4, H, W) at t, without a prompt."""
    return model.unet(x, torch.full((len(x),), t), model.embed([""]).expand(len(x), -1, -1), until=model.hook_point)


def measured(model, job, h):
    """The target before its relu at each place of h (D, h, w), and its activation."""
    if job["kind"] == "channel":
        return h[job["target"]], h[job["target"]].mean()
    w, b = model.sae.encoder.weight[job["target"]], model.sae.encoder.bias[job["target"]]
    pre = torch.einsum("d,dhw->hw", w, h - model.sae.b_dec[:, None, None]) + b
    return pre, pre.clamp(min=0).mean()


def noised(abar, z, eps):
    return abar.sqrt() * z + (1 - abar).sqrt() * eps


@pytest.mark.parametrize("k", STEPS)
def test_every_stage_follows_from_the_file(traced, model, k):
    s, made = saved(traced[0], k)
    job, c = made["job"], made["config"]
    z = s["before"].clone().requires_grad_(True)
    assert not any(torch.equal(s[a], s[b]) for a, b in trace.BEFORE.items()), "every stage is to be seen at work"
    moved = reg.transform(z[None], *(s[name][None] for name in ("shift", "angle", "zoom")))[0]
    near(moved, s["transformed"])
    x = noised(model.schedule.alphas_cumprod[job["timestep"]], moved, s["eps"])
    near(x, s["noised"])
    h = hooked(model, x[None], job["timestep"])[0]
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
    near(s["filtered"], reg.spectral_filter(s["gradient"][None])[0])
    share = k / (c["num_steps"] - 1)
    sigma = unit * ((1 - share) * c["gradient_smoothing_sigma_start"] + share * c["gradient_smoothing_sigma_end"])
    near(s["smoothed"], reg.blur(s["filtered"][None], sigma, c["gradient_smoothing_kernel_size"])[0])
    assert s["adam_mean"].any() == s["adam_square"].any() == (k > 0)
    updated = adamw(*(s[name] for name in ("before", "smoothed", "adam_mean", "adam_square")), k + 1, Config(**c))[0]
    near(s["after"], updated)
    near(s["before"] + s["update"], s["after"])
    h = s["hook"].flatten(1).T
    acts = h if job["kind"] == "channel" else (
        (h - model.sae.b_dec) @ model.sae.encoder.weight.T + model.sae.encoder.bias).clamp(min=0)
    assert s["strongest"].tolist() == acts.mean(dim=0).argsort(descending=True)[:10].tolist()
    near(acts.mean(dim=0)[s["strongest"]], s["strongest_activation"])
    assert s["longest"].tolist() == h.norm(dim=0).argsort(descending=True)[:4].tolist()


def pushed(model, x, t, push):
    """The noise predicted for x (4, H, W) at t while push (D,) is added at the hook point, without a prompt."""
    passes = model.unet.run(x[None], torch.tensor([t]), model.embed([""]))
    name, h = next(passes)
    while name != "conv_out":
        name, h = passes.send(h + push[None, :, None, None] if name == model.hook_point else h)
    return h[0]


@torch.no_grad()
def test_the_start_follows_from_the_seed_the_strengths_and_the_sampler(traced, model):
    s, made = saved(traced[0], "start")
    times, abar = s["timestep"].tolist(), model.schedule.alphas_cumprod
    assert times == [876, 751, 751, 626, 501, 376, 251, 126, 1]
    assert torch.equal(s["before"][0], torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(5)))
    kind, target = made["job"]["kind"], made["job"]["target"]
    near(made["config"]["steer_scale"] * read_capture(model.folder / "activity").strength(kind, target), s["strength"])
    near(s["strength"][times] * s["direction"].norm(), s["push"])
    near(model.sae.W_dec[target] if kind == "feature" else torch.eye(32)[target], s["direction"])
    for i, t in enumerate(times):
        near(pushed(model, s["before"][i], t, s["strength"][t] * s["direction"]), s["noise"][i], 1e-4)
        near(noised(abar[t], s["clean"][i], s["noise"][i]), s["before"][i], 1e-4)
    noises = iter(s["noise"])
    latents = [x[0] for _, x in pndm(model.schedule, lambda x, t: next(noises)[None], s["before"][:1], 8)]
    near(torch.stack(latents), torch.stack([*s["before"][1:], s["start"]]))
    assert torch.equal(s["start"], saved(traced[0], 0)[0]["before"])


def test_every_step_of_the_finish_follows_from_the_file(traced, model):
    (s, made), record = saved(traced[0], "finish"), traced[1]
    times, abar = [*s["timestep"].tolist(), 0], model.schedule.alphas_cumprod
    assert times[0] == record["finished"]["scores"]["finish_from"] and len(times) == 5
    size = lambda t: t.double().square().mean().sqrt()
    for i, t in enumerate(times[:-1]):
        x = s["before"][i].clone().requires_grad_(True)
        h = hooked(model, x[None], t)[0]
        a = measured(model, made["job"], h)[1]
        near(a, s["activation"][i])
        a.backward()
        near(x.grad, s["gradient"][i], 1e-3)
        near(reg.spectral_filter(s["gradient"][i:i + 1])[0], s["filtered"][i], 1e-4)
        e, g = s["noise"][i], s["filtered"][i]
        near(pushed(model, s["before"][i], t, torch.zeros(len(h))), e, 1e-4)
        pull = made["config"]["finish_scale"] * size(e) / size(g)
        near([size(e), size(g), pull], [s[name][i] for name in ("rms_noise", "rms_gradient", "pull")])
        near(e - pull * g, s["pulled"][i], 1e-4)
        near(noised(abar[t], s["clean"][i], s["pulled"][i]), s["before"][i], 1e-4)
        near(noised(abar[times[i + 1]], s["clean"][i], s["pulled"][i]), s["after"][i], 1e-4)


@torch.no_grad()
def test_scores_follow_from_four_noises_and_the_re_encoded_latent(traced, model):
    """A trace writes no result; its latents are those of a run without it, bit for bit."""
    folder, record, path = traced
    (s, made), latents = saved(folder, "verdict"), load_file(path.with_suffix(".safetensors"))
    job, abar, g = made["job"], model.schedule.alphas_cumprod[600], torch.Generator().manual_seed(SCORE_SEED ^ 5)
    assert torch.equal(s["eps"], torch.stack([torch.randn(model.latent_shape, generator=g) for _ in range(4)]))
    assert not list(folder.parent.glob("seed_5.*")) and torch.equal(latents["latent"], s["ascent_latent"])
    assert torch.equal(latents["finished"], s["finished_latent"])
    assert torch.equal(latents["finished"], saved(folder, "finish")[0]["after"][-1])
    assert torch.equal(s["start_latent"], saved(folder, "start")[0]["start"])
    for name in ("start", "ascent", "ascent_reencoded", "finished", "finished_reencoded"):
        h = hooked(model, noised(abar, s[f"{name}_latent"], s["eps"]), 600)
        near(torch.stack([measured(model, job, row)[1] for row in h]), s[f"{name}_activation"], 1e-4)
    for name, scores in (("ascent", record["scores"]), ("finished", record["finished"]["scores"])):
        near(model.encode(model.decode(s[f"{name}_latent"][None]))[0], s[f"{name}_reencoded_latent"], 1e-4)
        found = [s[f"{which}_activation"].mean() for which in ("start", name, f"{name}_reencoded")]
        near(found, [scores[f"activation{end}"] for end in ("_start", "", "_reencoded")], 1e-4)


def read(folder):
    """The text of a page, and {section: [cells of each row]}."""
    text = (folder / "trace.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="(.*?)"(.*?)</section>', text, re.DOTALL))
    rows = {name: [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?>(.*?)</tr>", inside)]
            for name, inside in sections.items()}
    return text, rows


def test_a_section_for_every_stage_and_no_dead_link(traced):
    text, rows = read(traced[0])
    links = set(re.findall(r'href="(.*?)"', text)) - {"../../index.html"}
    assert list(rows) == ["start", *(f"s{k}-{name}" for k in STEPS for name in trace.STAGES), "finish", "verdict"]
    assert links == {f"#{name}" for name in ("top", *rows)} and "://" not in text and "url(" not in text
    assert "<b>tiny" not in text and "&lt;b&gt;tiny &amp; co" in text
    captions = re.findall(r'<img [^>]*alt="(.+?)"', text)
    assert len(captions) == text.count("<img") == 1 + 9 + len(STEPS) * (2 * 9 + 1) + 4 + 4
    cited = re.findall(r"<p><b>(\w+\.py):(\d+)</b></p><pre>(.*?)</pre>", text)
    assert len(cited) > 30
    for file, number, line in cited:
        found = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert " ".join(found.split()) == html.unescape(line)


def test_numbers_on_the_page_are_those_of_the_tensors(traced):
    (folder, record, _), (text, rows) = traced, read(traced[0])
    for k in STEPS:
        s, _ = saved(folder, k)
        for stage in trace.STAGES:
            for name in trace.TEXTS.get(stage, {"tensors": ["pre_activation"]})["tensors"]:
                x, (shown,) = s[name].double(), [row[1:] for row in rows[f"s{k}-{stage}"] if row[0] == name]
                found = torch.stack([x.mean(), x.std(correction=0), x.min(), x.max(), x.norm()])
                assert list(map(float, shown)) == pytest.approx(found.tolist(), rel=1e-3, abs=1e-12)
        terms = {row[0]: float(row[1]) for row in rows[f"s{k}-loss"]}
        names = {"-activation": -s["climbed"], "loss": s["loss"], "range": s["penalty_range"],
                 "moment": s["penalty_moment"], "total variation": s["penalty_total_variation"]}
        assert terms == pytest.approx({name: value.item() for name, value in names.items()}, rel=1e-4)
        listed = [row[:2] for row in rows[f"s{k}-activation"] if re.match(r"(feature|channel) \d", row[0])]
        assert [int(name.split()[1]) for name, _ in listed] == s["strongest"].tolist()
        assert [float(a) for _, a in listed] == pytest.approx(s["strongest_activation"].tolist(), abs=1e-4)
    for title, one in (("Ascent", record), ("Finished", record["finished"])):
        assert f"<h3>{title}: {one['verdict']}</h3>" in text
    tries = {k: a for k, a in record["finished"]["scores"].items() if k.startswith("reencoded_from_")}
    assert len(tries) == 3 and max(tries, key=tries.get).endswith(str(record["finished"]["scores"]["finish_from"]))
    assert all(f"{trace.short(a)} from t = {name.rpartition('_')[2]}" in text for name, a in tries.items())


def test_the_command_on_the_page_makes_the_same_files(traced, weights, tmp_path):
    command = html.unescape(re.search(r"<pre>(python featviz.py [^<]*)</pre>", read(traced[0])[0]).group(1))
    assert run(tmp_path, *shlex.split(command.replace("'weights/<b>tiny & co'", shlex.quote(str(weights))))[2:]) == 0
    (again,) = tmp_path.rglob("seed_5_trace")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in traced[0].iterdir()}


def short(weights, out, *flags):
    """Trace a few steps -> the folders."""
    usual = ["--feature", 3, "--timestep", 300, "--num-steps", 2, "--prior-steps", 2, "--batch-size", 2, "--seed", 5]
    assert run(out, "--weights", weights, *usual, *flags) == 0
    return sorted(out.rglob("seed_*_trace"))


def test_a_trace_for_every_job_and_the_old_steps_go(weights, tmp_path):
    short(weights, tmp_path, "--trace", 0)
    folders = short(weights, tmp_path, "--seed", 5, 6, 7, "--trace", 1)
    files = {"start.safetensors", "step_001.safetensors", "finish.safetensors", "verdict.safetensors", "trace.html"}
    assert len(folders) == 3 and all({f.name for f in folder.iterdir()} == files for folder in folders)


def test_one_place_under_a_prompt_from_a_guided_start(weights, tmp_path):
    flags = ["--position", 1, 0, "--prompt", "A <b> cat", "--prior", "guided", "--trace", 0]
    (folder,) = short(weights, tmp_path, *flags)
    (s, _), (begun, _), (text, _) = saved(folder, 0), saved(folder, "start"), read(folder)
    near(s["pre_activation"][1, 0].clamp(min=0), s["activation"])
    assert "at place (1, 0): relu(" in text and "“A &lt;b&gt; cat”" in text and "gradient of the feature pulls" in text
    assert begun.keys() == {"start", "timestep", "clean", *trace.OF_FINISH}
    assert torch.equal(begun["start"], s["before"]) and torch.equal(begun["start"], begun["after"][-1])
    with safe_open(folder / "verdict.safetensors", framework="pt") as file:
        scores = json.loads(file.metadata()["featviz"])["scores"]["ascent"]
        near(file.get_tensor("ascent_activation").mean(), scores["activation"], 1e-4)


def test_an_ascent_that_left_the_numbers_can_be_looked_at(weights, tmp_path):
    wild = ["--learning-rate", 1e6, "--weight-decay", 1e6, "--prior", "noise", "--num-steps", 4]
    (folder,) = short(weights, tmp_path, *wild, "--trace", 3)
    assert not saved(folder, 3)[0]["loss"].isfinite() and "nan" in read(folder)[0]
    assert "noise from the seed alone" in read(folder)[0] and saved(folder, "start")[0].keys() == {"start"}


def test_switched_off_stages_say_so_and_there_is_no_finish(weights, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "p.png")
    (folder,) = short(weights, tmp_path, "--preset", "none", "--no-noise", "--prior", tmp_path / "p.png", "--trace", 0)
    text, rows = read(folder)
    assert text.count(trace.OFF.strip()) == len(trace.BEFORE) and "a picture of your own" in text
    assert "finish" not in rows and not list(folder.glob("finish*"))
