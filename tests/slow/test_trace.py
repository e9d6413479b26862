"""A step opened up: each stage follows from the one before by formulas written here again, and the page says what the
tensors say; of the finish, what finish.py yields.

The audit reads the tensor file alone, and takes nothing of the project but the networks (which tests/oracle compares
with the official ones), the SAE's weights and alphas_cumprod.
"""
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

import ascent
import featviz
import finish
from config import Config, Job, configure
from pages import trace, tracefinish, tracepage
from tests.tiny import write_model
from weights.load import load

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING_ON = ["--total-variation-weight", 0.3, "--gradient-smoothing-sigma-start", 6,
                 "--gradient-smoothing-sigma-end", 2, "--jitter-max", 8,
                 "--prior", "noise", "--finish-steps", 4, "--finish-from", "auto"]
STEPS = (0, 4)


def run(out, *flags):
    return featviz.main([str(a) for a in ("--out", out, "--device", "cpu", *flags)])


@pytest.fixture(scope="module")
def model():
    return load("weights/toy")


@pytest.fixture(scope="module", params=["--feature 22", "--channel 37"])
def traced(request, tmp_path_factory, one_thread):
    """(folder of a trace on the toy, its flags)"""
    out = tmp_path_factory.mktemp("out")
    flags = [*request.param.split(), "--timestep", 600, "--seed", 5, "--num-steps", 6, "--batch-size", 1,
             *EVERYTHING_ON, "--trace", *STEPS]
    assert run(out, *flags) == 0
    folder, = out.rglob("seed_5_trace")
    return folder, flags


def saved(folder, k):
    with safe_open(folder / f"step_{k:03d}.safetensors", framework="pt") as file:
        return load_file(folder / f"step_{k:03d}.safetensors"), json.loads(file.metadata()["featviz"])


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
    if job["feature"] is not None:
        pre = torch.einsum("d,dhw->hw", model.sae.encoder.weight[job["feature"]], h - model.sae.b_dec[:, None, None]) \
            + model.sae.encoder.bias[job["feature"]]
        a = pre.clamp(min=0).mean()
    else:
        pre = h[job["channel"]]
        a = pre.mean()
    near(pre, s["pre_activation"])
    near(a, s["activation"])
    unit = z.shape[-1] / 64
    steepness = (z[:, 1:] - z[:, :-1]).abs().mean() + (z[:, :, 1:] - z[:, :, :-1]).abs().mean()
    terms = {"total_variation": c["total_variation_weight"] * unit * steepness,
             "range": c["range_weight"] * (z.abs() - c["range_threshold"]).clamp(min=0).pow(2).mean(),
             "moment": c["moment_weight"] * (z.mean().abs() + (z.var().sqrt() - 1).abs())}
    for name, value in terms.items():
        near(value, s[f"penalty_{name}"])
    loss = sum(terms.values()) - (pre.mean() if job["feature"] is not None and a == 0 else a)
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
        acts = h if made["job"]["feature"] is None else pre.clamp(min=0)
        assert s["strongest"].tolist() == acts.mean(dim=0).argsort(descending=True)[:10].tolist()
        near(s["strongest_map"].mean((1, 2)), s["strongest_activation"])
        near(acts[:, s["strongest"]].T.reshape(s["strongest_map"].shape), s["strongest_map"])


def test_what_is_traced_is_the_ascent_itself(traced, tmp_path):
    """A trace's last step ends at the very latent that a run of as many steps writes, bit for bit; its first begins at
    the seed's noise."""
    folder, flags = traced
    assert run(tmp_path, *flags[:flags.index("--trace")], "--trace", 5) == 0
    assert not list(tmp_path.rglob("seed_5.*"))                 # a trace writes no result
    assert run(tmp_path, *flags[:flags.index("--trace")]) == 0
    latent, = tmp_path.rglob("seed_5.safetensors")
    assert torch.equal(load_file(latent)["latent"], saved(latent.with_name("seed_5_trace"), 5)[0]["after"])
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))
    assert torch.equal(saved(folder, 0)[0]["before"], noise)


@pytest.fixture(scope="module")
def plain(traced, tmp_path_factory):
    """Path without suffix of the same job's result, made without a trace."""
    out, flags = tmp_path_factory.mktemp("plain"), traced[1]
    assert run(out, *flags[:flags.index("--trace")]) == 0
    path, = out.rglob("seed_5.json")
    return path.with_suffix("")


def test_the_finish_in_the_file_is_what_finish_py_yields(traced, plain, model, page):
    """Of the three tries that `auto` makes from the very latent that a run's ascent ends at: the one that it keeps."""
    job, config = (saved(traced[0], 0)[1][name] for name in ("job", "config"))
    job, z, steps = Job(**job), load_file(f"{plain}.safetensors")["latent"], []
    x, t0, scale, _ = finish.finish(model, [job], z[None], Config(**config), None, steps.append)
    assert len(steps) == 3 * 4 and len({step.timestep for step in steps if step.index == 0}) == 3
    first, = (i for i, step in enumerate(steps) if (step.index, step.timestep) == (0, t0.item()))
    steps, s = steps[first:first + 4], load_file(traced[0] / "finish.safetensors")
    for name in ("before", "noise", "gradient", "filtered", "pulled", "after", "activation"):
        assert torch.equal(s[name], torch.cat([getattr(step, name) for step in steps]))
    assert torch.equal(s["after"][-1], x[0]) and s["scale"] == scale
    size = lambda t: np.sqrt((t.double().numpy() ** 2).mean())
    shown = [[float(v) for v in row] for row in page.rows["finish"][-4:]]
    for row, step in zip(shown, steps):
        e, g, bent = (t[0].double() for t in (step.noise, step.filtered, step.pulled))
        pull = ((e - bent) * g).sum() / (g * g).sum()
        assert row[0] == step.timestep
        assert row[1:] == pytest.approx([size(e), size(g), pull.item(), step.activation.item()], rel=2e-4)
    for i, step in enumerate(steps):                            # put under e' again, the clean latent gives x
        abar = model.schedule.alphas_cumprod[step.timestep]
        near(abar.sqrt() * s["clean"][i] + (1 - abar).sqrt() * step.pulled[0], step.before[0])


def test_the_finish_in_the_file_ends_at_the_finished_picture(traced, plain, model):
    s = load_file(traced[0] / "finish.safetensors")
    assert torch.equal(s["after"][-1], load_file(f"{plain}.safetensors")["finished"])
    shown = np.asarray(Image.open(f"{plain}.finished.png"))
    assert np.array_equal(shown, tracepage.to_uint8(model.decode(s["after"][-1:])[0]))


def test_a_trace_beside_it_leaves_a_result_as_it_was(traced, plain):
    """Made again where the trace lies: the same bytes as where none was made."""
    out, flags = traced[0].parents[3], traced[1]
    assert run(out, *flags[:flags.index("--trace")]) == 0
    for name in ("seed_5.png", "seed_5.finished.png", "seed_5.safetensors"):
        assert (traced[0].parent / name).read_bytes() == plain.with_name(name).read_bytes()


# --- the page -----------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Ids, links, pictures, the text of cells by section, and cited lines."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.cited, self.inside = [], [], [], [], []
        self.rows, self.section = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
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
    assert [i for i in page.ids if i != "top"] == [*stages, "finish"]
    assert len(set(page.ids)) == len(page.ids) and {href.removeprefix("#") for href in page.links} == set(page.ids)
    assert page.inside == []


def test_every_picture_is_a_file_beside_the_page_and_has_an_alternative(page, traced):
    files = sorted(traced[0].glob("*.png"))
    assert len(page.images) == len(files) + len(STEPS) * len(tracepage.STAGES)      # and once small in the overview
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert {*(stage.name for stage in tracepage.STAGES), "clean.png"} == {f.name.split("_")[2] for f in files}
    last = [tracepage.data_uri(f.read_bytes(), "png") for f in files if f.name.startswith("finish_")]
    assert [image["src"] for image in page.images[-len(last):]] == last and len(last) == 4
    assert all(max(Image.open(f).size) >= 64 for f in files)


def test_the_page_needs_no_network(traced):
    text = (traced[0] / "trace.html").read_text(encoding="utf-8")
    assert "://" not in text and "@import" not in text and "url(" not in text


def test_cited_lines_are_the_ones_that_do_it(page):
    """Each stage's line, looked up by its number in the file itself, holds the operation that the section speaks of."""
    expected = {"before": "clone()", "transformed": "reg.transform(", "noised": "abar.sqrt() * z",
                "hook": "until=model.hook_point",
                "loss": "-climb + sum(", "gradient": "autograd.grad(", "filtered": "ifft2", "smoothed": "torch.exp(",
                "update": "config.beta",
                "after": "torch.where(alive"}
    cited = list(zip(page.cited[::2], page.cited[1::2]))
    stages = len(STEPS) * sum(len(stage.cites or "12") for stage in tracepage.STAGES)
    assert len(cited) == stages + len(tracefinish.SECTION.cites)
    for where, line in cited:
        file, number = where.split(":")
        assert " ".join(Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1].split()) == line
    for stage in tracepage.STAGES:
        if stage.cites:
            assert expected[stage.name] in tracepage.cite(*stage.cites[0])[2]
    assert "encoder.weight[feature]" in tracepage.cite(*tracepage.ANSWER["feature"][2][0])[2]
    assert "h[torch.arange" in tracepage.cite(*tracepage.ANSWER["channel"][2][0])[2]


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


# --- what may go wrong, and odd cases, on the tiny model ----------------------------------------------------

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "<b>tiny & co")


SHORT = ["--feature", 3, "--timestep", 300, "--num-steps", 4, "--prior-steps", 2, "--batch-size", 2]


@pytest.mark.parametrize("step", [4, -1])
def test_a_step_that_is_not_there_ends_in_one_line(tiny, tmp_path, capsys, step):
    assert run(tmp_path / "out", "--weights", tiny, *SHORT, "--trace", 0, step) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line == f"featviz: --trace {step} is out of range: the ascent has 4 steps, 0..3 (--num-steps sets how many)"
    assert not (tmp_path / "out").exists()


def test_a_trace_for_every_job_and_the_old_steps_go(tiny, tmp_path):
    for steps in ((0, 1), (3,)):
        assert run(tmp_path, "--weights", tiny, *SHORT, "--seed", 5, 6, 7, "--trace", *steps) == 0
    folders = sorted(tmp_path.rglob("seed_*_trace"))
    assert [f.name for f in folders] == ["seed_5_trace", "seed_6_trace", "seed_7_trace"]
    for folder in folders:
        assert {f.name[:8] for f in folder.iterdir()} == {"step_003", "finish_0", "finish.s", "trace.ht"}


def test_markup_in_a_name_is_shown_as_text(tiny, tmp_path):
    assert run(tmp_path, "--weights", tiny, *SHORT, "--seed", 5, "--trace", 0) == 0
    page, = tmp_path.rglob("trace.html")
    text = page.read_text(encoding="utf-8")
    assert "<b>tiny" not in text and "&lt;b&gt;tiny &amp; co" in text


def test_an_ascent_that_left_the_numbers_can_be_looked_at(tiny, tmp_path):
    wild = ["--learning-rate", 1e6, "--weight-decay", 1e6, "--prior", "noise"]
    assert run(tmp_path, "--weights", tiny, *SHORT, *wild, "--seed", 5, "--trace", 3) == 0
    folder, = tmp_path.rglob("seed_5_trace")
    assert not saved(folder, 3)[0]["loss"].isfinite() and "nan" in (folder / "trace.html").read_text(encoding="utf-8")


def test_switched_off_stages_say_so(tiny, tmp_path):
    off = ["--preset", "none", "--no-noise"]
    assert run(tmp_path, "--weights", tiny, *SHORT, *off, "--seed", 5, "--trace", 0) == 0
    text = next(tmp_path.rglob("trace.html")).read_text(encoding="utf-8")
    said = {name: tracepage.OFF.strip() in text[text.index(f'id="s0-{name}"'):].split("</section>")[0]
            for name in tracepage.BEFORE}
    assert said == {"transformed": True, "noised": True, "filtered": True, "smoothed": True}


def test_nothing_of_the_loop_is_drawn_twice(tiny):
    """Replayed draws come from a copy of each generator: a traced job's ascent and an untraced one's are the same."""
    m = load(tiny)
    config = configure(m.settings, num_steps=3, prior="noise")
    jobs = [Job(feature=3, timestep=300, seed=s) for s in (5, 6)]
    plain = [step.after for step in ascent.ascend(m, jobs, config)]
    found = trace.follow(m, jobs, config, {0, 2})
    for i, (records, curve, _) in enumerate(found):
        assert all(torch.equal(records[k]["after"], plain[k][i]) for k in (0, 2)) and len(curve) == 3


@pytest.mark.parametrize("settings", [["--finish-from", "auto", "--finish-scale", "auto"], ["--finish-scale", "auto"],
                                      ["--finish-from", 700]])
def test_the_page_says_which_finish_was_kept(tiny, tmp_path, settings):
    """As the record of the same job's result has it; and nothing where there was no choice."""
    flags = ["--weights", tiny, *SHORT, *settings, "--seed", 5, 6, "--frames", 0]
    assert run(tmp_path, *flags, "--trace", 0) == 0 and run(tmp_path, *flags) == 0
    for record in tmp_path.rglob("seed_[56].json"):
        scores = json.loads(record.read_text())["finished"]["scores"]
        t0, s = scores["finish_from"], scores["finish_scale"]
        trace_folder = record.with_name(f"{record.stem}_trace")
        text = (trace_folder / "trace.html").read_text(encoding="utf-8")
        assert Page(text).rows["finish"][-2][0] == str(t0) and f"from noise at t = {t0} down" in " ".join(text.split())
        froms, scales = "--finish-from" in settings and "auto" == settings[1], settings[-1] == "auto"
        said = re.search("Of (.*) this is (.*), which was kept: the (one|weakest)", text)
        assert bool(said) == (froms or scales)
        if said:
            assert said.group(1) == "t = 600, 800, 900 with " * froms + "<i>s</i> = 0.2, 0.4, 0.8, 1.6"
            assert said.group(2) == f"t = {t0} with " * froms + f"<i>s</i> = {s:g}"
            assert said.group(3) == ("one" if froms else "weakest")
        assert load_file(trace_folder / "finish.safetensors")["scale"].item() == pytest.approx(s)


def test_a_finish_switched_off_is_not_shown_and_the_ascent_stops_after_the_last_step(tiny, tmp_path, monkeypatch):
    done, real = [], ascent.Step
    monkeypatch.setattr(ascent, "Step", lambda *given: done.append(given[0]) or real(*given))
    for flag, steps in (("--finish", [0, 1, 2, 3]), ("--no-finish", [0, 1])):
        assert run(tmp_path / flag, "--weights", tiny, *SHORT, flag, "--seed", 5, "--trace", 1) == 0
        page, = (tmp_path / flag).rglob("trace.html")
        found = Page(page.read_text(encoding="utf-8"))
        assert done == steps and done.clear() is None
        there = ["finish" in found.ids, "#finish" in found.links, any(page.parent.glob("finish*"))]
        assert there == [flag == "--finish"] * 3


def test_a_feature_without_a_gradient_does_not_pull(tiny):
    """Silent at every place, and its mean before the relu not climbed: the pull is 0, not 0 / 0."""
    m = load(tiny)
    m.sae.encoder.bias[3] = -100.0
    config = configure(m.settings, num_steps=1, prior="noise", silent_gradient=False, finish_scale=0.4)
    (_, _, s), = trace.follow(m, [Job(feature=3, timestep=300, seed=5)], config, {0})
    assert not s["pull"].any() and not s["rms_gradient"].any() and torch.equal(s["pulled"], s["noise"])
