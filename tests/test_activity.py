"""Capture, profile, peaks, examples, probe and shards, on the tiny model: the path from prompts to files and back."""
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import featviz
from activity import __main__ as activity_command
from activity import capture, profile
from activity import run as activity_run
from ascent import start
from command import flags as shared
from config import Job, configure
from schedule import SAMPLERS, guided
from steering import sample
from tests.tiny import ACTIVITY, HOOK, TIMES, edit_json, edit_tensors, write_model
from weights.disk import WeightsError
from weights.load import load

PROMPTS = ("A Tree", "A Cat", "A Sun")
ELSEWHERE = "mid_block.attentions.0"                            # a hook point without an SAE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny", activity=None)


@pytest.fixture(scope="module")
def model(weights):
    return load(weights)


@pytest.fixture(scope="module")
def settings(model):
    return capture.configure(model, prompts=PROMPTS, images_per_prompt=3, steps=5, batch_size=2)


@pytest.fixture(scope="module")
def whole(model, settings, tmp_path_factory):
    """A finished capture's folder, made in one go: 9 images in 5 batches."""
    folder = tmp_path_factory.mktemp("out") / "tiny/activity"
    assert capture.capture(model, settings, folder)
    return folder


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(main, *argv):
    try:
        return main([str(a) for a in argv])
    except SystemExit as e:
        return e.code


def command_of(weights, out):
    """python -m activity on these weights: a function of subcommand and flags."""
    return lambda *argv: run(activity_command.main, *argv, "--weights", weights, "--out", out)


def refused(capsys, code, *fragments):
    """Exit code 2 and one line on stderr."""
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith(("activity: ", "featviz: ")), error
    for fragment in fragments:
        assert fragment in error, error


# --- prompts and settings ---------------------------------------------------------------------------------------------

def test_the_grid_of_the_thesis():
    """Its four example prompts are all there."""
    prompts = capture.grid()
    assert len(prompts) == len(set(prompts)) == 20 * 61
    assert {
        "An Butterfly image in Pointillism style",
        "An Flowers image in Winter style",
        "An Towers image in Surrealism style",
        "An Waterfalls image in French style",
        "An Sea image in photo style",
    } <= set(prompts)


def test_the_grid_of_unlearn_canvas():
    prompts = capture.grid("unlearncanvas")
    assert len(prompts) == len(set(prompts)) == 20 * 51 and not any("Pointillism" in p for p in prompts)
    assert {"An Architectures image in Van Gogh style", "A Trees image in Winter style", "A Sea image in photo style"} \
        <= set(prompts)


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("a dog\n\n  a cat \na dog\n{x}\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"file_name": "1.jpg", "text": "a dog"}\n\n{"text": "é"}\n', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n')
    (tmp_path / "none.txt").write_text("\n")
    assert capture.read_prompts(tmp_path / "p.txt") == ("a dog", "a cat", "{x}")
    assert capture.read_prompts(tmp_path / "p.jsonl") == ("a dog", "é")
    for name, says in (("bad.jsonl", "line 2"), ("none.txt", "holds no prompt"), ("absent.txt", "cannot be read")):
        with pytest.raises(ValueError, match=says):
            capture.read_prompts(tmp_path / name)


def test_settings_are_the_method_s_then_the_model_s_then_the_user_s(tmp_path):
    folder = write_model(tmp_path / "m")
    plain = capture.configure(load(folder))
    assert (plain.steps, plain.sampler, plain.guidance, plain.images) == (50, "pndm", 7.5, 6100)
    assert (plain.top, plain.halves, plain.prompts) == (20, "conditional", capture.grid())
    assert capture.configure(load(folder), prompts="unlearncanvas").prompts == capture.grid("unlearncanvas")
    edit_json(folder / "featviz.json", capture={"prompts": "unlearncanvas"})
    assert capture.configure(load(folder)).images == 5100
    (folder / "p.txt").write_text("a dog\n")
    edit_json(folder / "featviz.json", capture={"guidance": 3.0, "sampler": "ddim", "prompts": "p.txt"})
    own = capture.configure(load(folder), sampler="pndm", steps=None)
    assert (own.guidance, own.sampler, own.prompts, own.steps) == (3.0, "pndm", ("a dog",), 50)
    for wrong, says in (
        ({"scale": 3.0}, "must be an object with some of"),
        ({"prompts": []}, "must be a list of texts"),
        ({"prompts": [1]}, "must be a list of texts"),
        ({"steps": "5"}, "--steps of a capture cannot be '5'"),
        ({"halves": "pndm"}, "--halves of a capture cannot be 'pndm'"),
        ({"top": 0}, "--top of a capture"),
    ):
        edit_json(folder / "featviz.json", capture=wrong)
        with pytest.raises((WeightsError, ValueError), match=says):
            capture.configure(load(folder))


# --- what is captured -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("halves", ("conditional", "both"))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_looked_at_at_every_step_the_later_call_counting(model, settings, sampler, halves):
    """Against a trajectory whose noise predictions and hook outputs are each computed on their own."""
    settings = dataclasses.replace(settings, sampler=sampler, halves=halves)
    images, means = capture.observe(model, settings, [4, 5])
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (4, 5)])
    context, null, seen = model.embed([PROMPTS[1], PROMPTS[2]]), model.embed([""]), {}
    plain = guided(model.unet, context, null, settings.guidance)

    @torch.no_grad()
    def predict(x, t):
        texts = [context] if halves == "conditional" else [null.expand(2, -1, -1), context]
        seen[t] = torch.cat([model.unet(x, torch.full((2,), t), text, until=HOOK) for text in texts])
        return plain(x, t)

    with torch.no_grad():
        for _, x in SAMPLERS[sampler](model.schedule, predict, noise, settings.steps):
            pass
    assert list(seen) == model.schedule.timesteps(5)
    h = torch.stack(list(seen.values()), dim=1)                                                 # (R, N, D, h, w)
    assert torch.allclose(means["channel"], h.mean((3, 4)), atol=1e-4)
    assert torch.allclose(means["feature"], model.sae.pre_acts(h.flatten(3).transpose(2, 3)).mean(2), atol=1e-4)
    assert torch.allclose(images, model.decode(x), atol=1e-3)


def test_the_files_are_what_all_activations_say(model, settings, whole):
    """Shares, maxima and examples from the whole table of 9 images, worked out one feature at a time."""
    everything = {kind: [] for kind in capture.KINDS}
    for i in range(0, 9, 2):
        _, means = capture.observe(model, settings, [i, min(i + 1, 8)])
        for kind, values in means.items():
            everything[kind].append(values[:9 - i])
    tables, examples = load_file(whole / "activity.safetensors"), load_file(whole / "examples.safetensors")
    assert tables["timesteps"].tolist() == model.schedule.timesteps(5)
    for kind, width in (("feature", 64), ("channel", 32)):
        values = torch.cat(everything[kind]).numpy()                                            # (9, N, width)
        assert values.shape == (9, 5, width)
        assert np.array_equal(tables[f"max_{kind}"], values.max(0))
        for n in range(5):
            member = np.array(
                [[v > 0 or kind == "channel" for v in row] & (row >= np.sort(row)[-20]) for row in values[:, n]]
            )
            assert member.sum(1).max() == 20
            assert np.allclose(tables[f"share_{kind}"][n], member.mean(0))
            for f in range(width):
                expected = sorted(np.flatnonzero(member[:, f]), key=lambda i: (-values[i, n, f], i))
                image, value = examples[f"image_{kind}"][n, f], examples[f"activation_{kind}"][n, f]
                assert image.tolist() == [*expected, *[-1] * (10 - len(expected))]
                assert np.allclose(value[:len(expected)].float(), values[expected, n, f], rtol=1e-3)


def test_both_halves_count_and_the_examples_are_those_of_the_prompts(model, settings, tmp_path):
    """The original's way: two samples an image, divided by the number of images."""
    settings = dataclasses.replace(settings, halves="both", top=7)
    assert capture.capture(model, settings, tmp_path)
    everything = [capture.observe(model, settings, [i, min(i + 1, 8)])[1] for i in range(0, 9, 2)]
    tables, examples = load_file(tmp_path / "activity.safetensors"), load_file(tmp_path / "examples.safetensors")
    for kind in capture.KINDS:
        halves = [means[kind].unflatten(0, (2, 2)) for means in everything]
        null, text = torch.cat(halves, dim=1)[:, :9]                                            # (9, N, width)
        assert torch.equal(tables[f"max_{kind}"], torch.maximum(null.amax(0), text.amax(0)))
        member = torch.stack([half >= half.topk(7).values[..., -1:] for half in (null, text)])
        assert torch.allclose(tables[f"share_{kind}"], member.sum((0, 1)) / 9) and tables[f"share_{kind}"].max() > 1
        n, f = divmod(int(member[1].sum(0).flatten().argmax()), null.shape[-1])
        found = [i for i in examples[f"image_{kind}"][n, f].tolist() if i >= 0]
        assert sorted(found) == member[1][:, n, f].nonzero().flatten().tolist()
        assert torch.allclose(examples[f"activation_{kind}"][n, f][:len(found)].float(), text[found, n, f], rtol=1e-3)
    made = json.loads((tmp_path / "capture.json").read_text())["recipe"]["settings"]
    assert (made["halves"], made["top"]) == ("both", 7)
    record = profile.analysis(profile.attach(model, tmp_path), "feature", 3)
    assert (record["halves"], record["top"], record["distance"], record["most_peaks"]) == ("both", 7, 100, 3)


def test_without_guidance_there_is_one_half(model, settings):
    settings = dataclasses.replace(settings, guidance=1.0)
    _, one = capture.observe(model, settings, [4, 5])
    _, both = capture.observe(model, dataclasses.replace(settings, halves="both"), [4, 5])
    assert all(torch.equal(one[kind], both[kind]) for kind in capture.KINDS)


def test_pictures_and_record(model, settings, whole):
    made = json.loads((whole / "capture.json").read_text())
    assert sorted(files(whole)) == [
        "activity.safetensors",
        "capture.json",
        "examples.safetensors",
        *(f"images/{i:05d}.jpg" for i in range(9)),
    ]
    assert made["images"] == 9 and made["recipe"]["hook_point"] == HOOK
    assert made["recipe"]["settings"]["prompts"] == list(PROMPTS)
    assert not any("activity" in name or "featviz" in name for name in made["recipe"]["fingerprints"])
    images, _ = capture.observe(model, settings, [2, 3])
    with Image.open(capture.image_path(whole, 2)) as picture:
        assert np.abs(np.asarray(picture, np.float32) / 255 - images[0].permute(1, 2, 0).numpy()).mean() < 0.05


def random_stats(numbers, seed):
    """Statistics of images whose activations take few values, so that many are equal."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 6, (60, 3, 50), generator=g).float()
    means = {"feature": values, "channel": values[..., :30] - 2}
    return capture.combine(
        capture.empty(3, 50, 30), capture.summarize({k: v[numbers] for k, v in means.items()}, numbers)
    )


def test_statistics_combine_in_any_order_and_grouping():
    whole = random_stats(list(range(60)), 0)
    for seed in range(5):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed)).tolist()
        cuts = [0, 7, 8, 30, 60]
        parts = [random_stats(sorted(order[a:b]), 0) for a, b in zip(cuts, cuts[1:])]
        for group in (capture.combine(capture.combine(parts[2], parts[0]), capture.combine(parts[3], parts[1])),):
            assert all(torch.equal(group[name], whole[name]) for name in whole)
    assert whole["image_feature"].max() < 60 and (whole["activation_feature"].diff(dim=-1).nan_to_num(-1) <= 0).all()


def test_silent_features_are_never_among_the_strongest():
    means = torch.zeros(1, 1, 30)
    means[..., 3] = 1.0
    assert capture.strongest(means, "feature").nonzero()[:, 2].tolist() == [3]


def test_memory_and_disk_do_not_grow_with_the_images_but_for_the_pictures():
    sd = lambda images: activity_run.costs(50, 20480, 1280, images, 512, 8)
    assert sd(5100)["memory"] == sd(100)["memory"] < 2 ** 30 and sd(5100)["running"] == 50 * 21760 * 88
    assert sd(10)["disk"] - 10 * 512 ** 2 * activity_run.JPEG_BYTES == pytest.approx(50 * 21760 * 48, abs=1)


# --- kill, resume, shards ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_capture_goes_on_at_the_same_image(after, model, settings, whole, tmp_path, monkeypatch):
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture.capture(model, settings, tmp_path, on_batch=stop)
    assert not (tmp_path / "capture.json").exists()
    seen, observe = [], capture.observe
    monkeypatch.setattr(capture, "observe", lambda m, s, numbers: seen.append(numbers[0]) or observe(m, s, numbers))
    assert capture.capture(model, settings, tmp_path)
    assert seen == [0, 2, 4, 6, 8][after:] and files(tmp_path) == files(whole)
    assert capture.capture(model, settings, tmp_path) and len(seen) == 5 - after  # finished: nothing is computed again


def command(weights, out, *flags):
    (out.parent / "p.txt").write_text("\n".join(PROMPTS))
    return ["-m", "activity", "capture", "--weights", str(weights), "--out", str(out), "--prompts",
            str(out.parent / "p.txt"), "--images-per-prompt", "3", "--steps", "5", "--batch-size", "2", "--device",
            "cpu", *flags]


def test_a_slurm_array_with_more_tasks_than_batches(model, settings, whole, tmp_path, monkeypatch):
    for task in range(7):
        for name, value in (("ID", 3 + task), ("COUNT", 7), ("MIN", 3)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert shared.find_shard(None) == (task, 7)
        assert capture.capture(model, settings, tmp_path, shared.find_shard(None)) == (task == 6)
    assert files(tmp_path) == files(whole)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "10")
    with pytest.raises(ValueError, match="expected consecutive numbers"):
        shared.find_shard(None)


def test_a_folder_of_another_capture_is_refused(model, settings, whole, tmp_path):
    with pytest.raises(ValueError, match="another guidance; give another --out"):
        capture.capture(model, dataclasses.replace(settings, guidance=2.0), whole)
    capture.capture(model, settings, tmp_path, (0, 2))
    with pytest.raises(ValueError, match="another number of shards"):
        capture.capture(model, settings, tmp_path)
    with pytest.raises(ValueError, match="another sampler"):
        capture.capture(model, dataclasses.replace(settings, sampler="ddim"), tmp_path, (0, 2))
    with pytest.raises(ValueError, match="another top"):
        capture.capture(model, dataclasses.replace(settings, top=19), whole)
    with pytest.raises(ValueError, match="another halves"):
        capture.capture(model, dataclasses.replace(settings, halves="both"), tmp_path, (0, 2))
    (tmp_path / "shard_0_of_2.safetensors").write_bytes(b"?")
    with pytest.raises(ValueError, match="no whole state of a capture"):
        capture.capture(model, settings, tmp_path, (0, 2))


def test_a_capture_from_before_these_settings_was_made_with_their_defaults(model, settings, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "old")
    made = json.loads((whole / "capture.json").read_text())
    del made["recipe"]["settings"]["top"], made["recipe"]["settings"]["halves"]
    (tmp_path / "old/capture.json").write_text(json.dumps(made))
    assert capture.capture(model, settings, tmp_path / "old")
    record = profile.analysis(profile.attach(model, tmp_path / "old"), "feature", 3)
    assert (record["halves"], record["top"]) == ("conditional", 20)
    with pytest.raises(ValueError, match="another halves"):
        capture.capture(model, dataclasses.replace(settings, halves="both"), tmp_path / "old")


def test_activations_that_are_no_numbers_are_refused(model, settings, tmp_path, monkeypatch):
    broken = lambda m, s, numbers: (
        torch.zeros(2, 3, 8, 8),
        {"feature": torch.full((2, 5, 64), float("nan")), "channel": torch.zeros(2, 5, 32)},
    )
    monkeypatch.setattr(capture, "observe", broken)
    with pytest.raises(ValueError, match="images 0 to 1: activations are NaN or infinite in torch.float32"):
        capture.capture(model, settings, tmp_path)


# --- analysis ---------------------------------------------------------------------------------------------------------

def test_interpolation_is_linear_between_steps_and_0_outside():
    y = profile.interpolate([21.0, 11.0, 1.0], [4.0, 2.0, 0.5])
    assert y.shape == (1001,) and y[[0, 1, 6, 16, 21]].tolist() == [0, 0.5, 1.25, 3, 4] and not y[22:].any()
    assert np.flatnonzero(profile.interpolate([1.0], [4.0])).tolist() == [1]


def curve(*points):
    return np.interp(np.arange(1001), *zip(*points))


@pytest.mark.parametrize("y, expected", [
    (curve((0, 0), (400, 1), (1000, 0)), [400]),
    (curve((0, 0), (400, 1), (431, 1), (1000, 0)), [415]),      # a plateau once, its middle rounded down
    (curve((0, 1), (500, 0), (1000, 1)), []),                   # neither end is a maximum
    # 99 apart: the higher one; 100 apart: both; who is ruled out rules nobody out
    (curve((0, 0), (100, 3), (150, 0), (199, 2), (400, 0), (600, 1), (1000, 0)), [100, 600]),
    (curve((0, 0), (100, 3), (150, 0), (200, 2), (400, 0), (600, 1), (1000, 0)), [100, 200, 600]),
    (curve((0, 0), (100, 1), (150, 0), (190, 2), (240, 0), (280, 3), (1000, 0)), [100, 280]),
    (np.zeros(1001), []),
])
def test_local_maxima(y, expected):
    assert profile.find_peaks(y).tolist() == expected


def test_the_three_highest_peaks_and_other_numbers():
    y = curve((0, 0), (100, 1), (200, 0), (300, 2), (400, 0), (500, 3), (600, 0), (700, 4), (1000, 0))
    assert profile.peaks(y) == [300, 500, 700]
    assert profile.peaks(y, most=1) == [700] and profile.peaks(y, most=9) == [100, 300, 500, 700]
    assert profile.peaks(y, distance=201) == [300, 700] and profile.peaks(y, distance=201, most=1) == [700]
    assert profile.peaks(np.zeros(1001)) == []


def small_tables(share, most, kind="feature"):
    """Tables of one feature (or channel) at four sampling steps."""
    return {"timesteps": torch.tensor([981.0, 641.0, 301.0, 1.0]), f"share_{kind}": torch.tensor(share)[:, None],
            f"max_{kind}": torch.tensor(most)[:, None]}


@pytest.mark.parametrize("share, expected", [
    ([0.0, 0.1, 0.2, 0.4], [1]),                                # only rises towards the picture: the last sampled step
    ([0.4, 0.2, 0.1, 0.0], [981]),                              # only falls: the first
    ([0.4, 0.1, 0.1, 0.3], [1, 981]),
    ([0.5, 0.5, 0.25, 0.0], [811]),                             # a plateau that begins with the first: its middle
    ([0.5, 0.5, 0.5, 0.5], [491]),
    ([0.0, 0.0, 0.0, 0.0], []),
])
def test_the_first_and_the_last_sampled_step_can_be_peaks(share, expected):
    tables = small_tables(share, [1.0, 1.0, 1.0, 1.0])
    assert profile.peaks(profile.profile(tables, "feature", 0)) == expected
    assert profile.timesteps(tables, "feature", 0) == sorted({0, *expected})


def test_active_steps_strengths_and_time_steps():
    tables = small_tables([0.0, 0.5, 0.0, 0.0], [4.0, 3, 2, 1])
    strength = lambda when: profile.strength(tables, "feature", 0, when)
    active, everywhere, constant = (strength(when) for when in ("active", "all", "constant"))
    assert active.tolist() == profile.strength(tables, "feature", 0).tolist()
    assert (active[302:981] > 0).all() and not active[:302].any() and not active[981:].any()
    assert active[641] == 3 and active[471] == pytest.approx(2.5)
    assert everywhere[[981, 641, 471, 301, 1]].tolist() == pytest.approx([4, 3, 2.5, 2, 1])
    assert not everywhere[[0, 982, 1000]].any()
    assert constant.tolist() == [active.max()] * 1001
    assert profile.timesteps(tables, "feature", 0) == profile.timesteps(tables, "feature", 0, "active") == [0, 641]
    wide = small_tables([0.1, 0.5, 0.2, 0.0], [4.0, 3, 2, 1])
    assert profile.timesteps(wide, "feature", 0) == [0, 641]
    assert profile.timesteps(wide, "feature", 0, "active") == [0, 301, 641, 981]


def test_a_feature_that_is_never_among_the_strongest_has_no_peaks_and_is_not_steered():
    tables = small_tables([0.0, 0.0, 0.0, 0.0], [1.0, 2, 3, 4])
    assert not profile.profile(tables, "feature", 0).any() and not profile.strength(tables, "feature", 0).any()
    assert not profile.strength(tables, "feature", 0, "constant").any()
    assert profile.strength(tables, "feature", 0, "all")[1] == 4
    assert profile.timesteps(tables, "feature", 0) == profile.timesteps(tables, "feature", 0, "active") == [0]


def test_a_negative_largest_mean_is_no_strength():
    tables = small_tables([0.5, 0.5, 0.5, 0.5], [-1.0, 2.0, -3.0, -4.0], "channel")
    s = profile.strength(tables, "channel", 0, "all")
    assert s[641] == 2 and s[471] == 1 and not s[:302].any() and s[981] == 0 and s.min() == 0


@pytest.mark.parametrize("when, expected", [
    ("active", {601: 2, 401: 3}),
    ("all", {801: 1, 601: 2, 401: 3, 201: 4, 1: 5}),
    ("constant", dict.fromkeys((801, 601, 401, 201, 1), 3.995)),    # it is active until t = 202
])
def test_when_the_prior_is_steered(model, tmp_path, when, expected):
    """By hand: a run of the sampler to which the direction is added, five times the largest mean activation, where it
    should be."""
    share, maxima = torch.zeros(5, 64), torch.arange(1.0, 6.0)[:, None]
    share[1:3, 3] = 0.5
    save_file(
        {
            "timesteps": torch.tensor([801.0, 601, 401, 201, 1]),
            "max_feature": maxima.repeat(1, 64),
            "share_feature": share,
            "max_channel": maxima.repeat(1, 32),
            "share_channel": torch.zeros(5, 32),
        },
        tmp_path / "activity.safetensors",
    )
    model = profile.attach(model, tmp_path)
    config = configure({}, steer_scale=5.0, steer_steps=when, prior_sampler="ddim", prior_steps=5)
    _, ours = start(model, [Job(feature=3, seed=5)], config)
    noise, context = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5)), model.embed([""])
    push = lambda t: {HOOK: 5 * expected.get(t, 0) * model.sae.W_dec[3][None]}
    assert torch.allclose(ours, sample(model, noise, context, "ddim", 5, add=push), atol=1e-5)
    assert (ours - sample(model, noise, context, "ddim", 5)).abs().max() > 0.01


def test_examples_are_read_back(model, whole):
    model = profile.attach(model, whole)
    share = model.activity["share_feature"]
    n, f = divmod(int(share.argmax()), 64)
    t = int(model.activity["timesteps"][n])
    found = profile.examples(whole, "feature", f, t)
    values = [a for _, a in found]
    assert len(found) == round(9 * share[n, f].item()) and values == sorted(values, reverse=True)
    assert found[0][1] == pytest.approx(model.activity["max_feature"][n, f].item(), rel=1e-3)
    assert profile.examples(whole, "feature", f, t + 3) == found  # the nearest sampling step


# --- which capture is used, and the command lines ---------------------------------------------------------------------

def test_a_capture_of_other_weights_is_left_out(model, weights, whole, tmp_path, capsys):
    out = whole.parents[1]
    assert profile.find(model, out) == whole and profile.find(model, tmp_path) is None
    other = load(write_model(tmp_path / "tiny", seed=1, activity=None))
    assert profile.find(other, out) is None and "captured with other weights" in capsys.readouterr().err


SHORT = ["--num-steps", 1, "--prior-steps", 2, "--batch-size", 2, "--device", "cpu", "--seed", 1]


def times(out, target="feature_00003"):
    return sorted(int(p.name[1:5]) for p in (out / "tiny" / target).glob("t*"))


def test_auto_is_the_default_where_the_weights_name_no_time_step(model, weights, whole, tmp_path):
    out, weights = tmp_path / "out", shutil.copytree(weights, tmp_path / "tiny")
    edit_json(weights / "featviz.json", timestep=None)
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    assert run(featviz.main, "--weights", weights, "--out", out, *SHORT) == 0
    tables = profile.attach(model, whole).activity
    assert times(out) == profile.timesteps(tables, "feature", 3) and 0 in times(out)
    assert run(featviz.main, "--weights", weights, "--out", out, "--channel", 4, "--timestep", 7, "auto", *SHORT) == 0
    assert times(out, "channel_0004") == sorted({7, *profile.timesteps(tables, "channel", 4)})
    record = json.loads(next((out / "tiny/feature_00003").rglob("seed_1.json")).read_text())
    assert record["recipe"]["fingerprints"]["activity.safetensors"] and record["recipe"]["config"]["prior"] == "steer"


def test_every_active_sampling_step(weights, whole, model, tmp_path):
    out = tmp_path / "out"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    tables = profile.attach(model, whole).activity
    assert run(featviz.main, "--weights", weights, "--out", out, "--feature", 7, "--timestep", 7, "active", *SHORT) == 0
    active = tables["timesteps"][tables["share_feature"][:, 7] > 0].int().tolist()
    assert times(out, "feature_00007") == sorted({0, 7, *active}) and active


def test_another_hook_point_has_a_capture_of_its_own(weights, whole, tmp_path, capsys):
    """Recorded, found, analysed and steered there; the SAE's own capture is left alone."""
    out, here = tmp_path / "out", ("--hook-point", f"unet.{ELSEWHERE}")
    activity = command_of(weights, out)
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    assert run(activity_command.main, *command(weights, out)[2:], *here) == 0
    folder, model = out / "tiny" / f"activity_{ELSEWHERE}", profile.at(load(weights), ELSEWHERE)
    tables = load_file(folder / "activity.safetensors")
    assert tables["max_feature"].shape == (5, 0) and tables["max_channel"].shape == (5, 32)
    assert profile.find(model, out) == folder and profile.find(load(weights), out) == out / "tiny/activity"
    settings = capture.configure(model, prompts=PROMPTS, images_per_prompt=3, steps=5, batch_size=2)
    _, means = capture.observe(model, settings, [0, 1])
    assert (means["channel"].amax(0) <= tables["max_channel"]).all()
    assert not torch.allclose(tables["max_channel"], load_file(whole / "activity.safetensors")["max_channel"])
    made = json.loads((folder / "capture.json").read_text())["recipe"]
    assert made["hook_point"] == ELSEWHERE and not any(name.startswith("sae/") for name in made["fingerprints"])
    assert activity("analyse", "--channel", 4, *here) == 0
    assert (out / "tiny" / f"{ELSEWHERE}_channel_0004/activity.json").exists()
    assert run(featviz.main, "--weights", weights, "--out", out, "--channel", 4, "--timestep", "auto", *here,
               *SHORT) == 0                                     # steered
    expected = profile.timesteps(profile.attach(model, folder).activity, "channel", 4)
    assert times(out, f"{ELSEWHERE}_channel_0004") == expected and not (out / "tiny/probe").exists()
    record = json.loads(next((out / "tiny" / f"{ELSEWHERE}_channel_0004").rglob("seed_1.json")).read_text())
    assert record["recipe"]["config"]["prior"] == "steer" and record["recipe"]["hook_point"] == ELSEWHERE
    capsys.readouterr()
    refused(capsys, activity("analyse", "--feature", 4, *here), "sae")
    code = command_of(weights, tmp_path / "none")("analyse", "--channel", 4, *here)
    refused(capsys, code, f"run python -m activity capture --weights {weights} --hook-point {ELSEWHERE}")
    refused(capsys, activity("capture", "--hook-point", "mid"), "hook point 'mid'")


def test_a_probe_of_another_hook_point_lies_apart(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "PROBE_PROMPTS", 3)
    monkeypatch.setattr(capture, "PROBE_STEPS", 3)
    flags = ["--weights", weights, "--out", tmp_path, "--channel", 3, "--hook-point", ELSEWHERE, *SHORT]
    assert run(featviz.main, *flags) == 0
    assert (tmp_path / "tiny" / f"probe_{ELSEWHERE}/capture.json").exists() and not (tmp_path / "tiny/probe").exists()


def test_a_probe_stands_in_for_a_missing_capture(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(capture, "PROBE_PROMPTS", 4)
    monkeypatch.setattr(capture, "PROBE_STEPS", 4)
    flags = ["--weights", weights, "--out", tmp_path, "--timestep", "auto", *SHORT]
    assert run(featviz.main, *flags, "--check") == 0 and not any(tmp_path.iterdir())
    assert "a probe would come first" in capsys.readouterr().out
    assert run(featviz.main, *flags, "--shard", "0/2") == 2
    refused(capsys, 2, "has no capture, which several processes need: run python -m activity capture --weights")
    assert run(featviz.main, *flags) == 0
    said = capsys.readouterr().err
    assert "a probe of 4 prompts in 4 steps stands in" in said and "the probe took" in said
    assert "python -m activity capture --weights" in said
    assert (tmp_path / "tiny/probe/capture.json").exists() and 0 in times(tmp_path)
    assert run(featviz.main, *flags) == 0 and "the probe took" not in capsys.readouterr().err  # kept for the next run


def test_nothing_is_probed_where_the_time_steps_are_given(weights, tmp_path):
    assert run(featviz.main, "--weights", weights, "--out", tmp_path, "--prior", "noise", *SHORT) == 0
    assert times(tmp_path) == [300] and not (tmp_path / "tiny/probe").exists()                  # featviz.json's own


def test_without_an_sae_channels_are_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "PROBE_PROMPTS", 3)
    monkeypatch.setattr(capture, "PROBE_STEPS", 3)
    bare = write_model(tmp_path / "tiny", sae=None)
    flags = ["--weights", bare, "--out", tmp_path / "out", "--channel", 3, "--timestep", "auto", *SHORT]
    assert run(featviz.main, *flags) == 0
    assert load_file(tmp_path / "out/tiny/probe/activity.safetensors")["max_feature"].shape == (3, 0)
    assert 0 in times(tmp_path / "out", "channel_0003")


def test_analyse_and_sample(weights, whole, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    activity = command_of(weights, out)
    assert activity("analyse", "--feature", 3, 5) == 0
    record = json.loads((out / "tiny/feature_00003/activity.json").read_text())
    assert len(record["profile"]) == 1001 and record["feature"] == 3 and record["peaks"]
    assert "peaks at" in capsys.readouterr().out
    known = [e for found in record["examples"].values() for e in found]
    assert all((out.parent / e["file"]).exists() and e["prompt"] in PROMPTS for e in known)
    with Image.open(out / "tiny/feature_00005/activity.png") as figure:
        assert figure.width > 500
    assert activity("sample", "A Tree", "--steps", 2, "--steer", "3=2", "5=1") == 0
    with Image.open(out / "tiny/samples/a-tree_f3=2_f5=1_seed_1024.png") as picture:
        a, b = np.asarray(picture)[:, :32].astype(int), np.asarray(picture)[:, 32:].astype(int)
        assert picture.size == (64, 32) and np.abs(a - b).max() > 0
        assert json.loads(picture.text["featviz"])["prompt"] == "A Tree"


def test_the_numbers_of_the_analysis_are_flags(tmp_path, weights):
    """Four peaks, 280 apart; of equals the earlier."""
    folder, made = write_model(tmp_path / "tiny"), tmp_path / "out/tiny/feature_00003/activity.json"
    shares = torch.tensor([[4, 0, 3, 0, 2, 0, 1, 0.0]]).T.repeat(1, 64) / 8
    edit_tensors(folder / ACTIVITY, lambda t: t | {"share_feature": shares})
    analyse = ["analyse", "--weights", folder, "--out", tmp_path / "out", "--feature", 3]
    for flags, expected in (
        ((), [421, 701, 981]),
        (("--most-peaks", 9), [141, 421, 701, 981]),
        (("--most-peaks", 1), [981]),
        (("--distance", 281), [421, 981]),
    ):
        assert run(activity_command.main, *analyse, *flags) == 0
        assert json.loads(made.read_text())["peaks"] == expected
    assert int(TIMES[0]) == 981
    flags = command(weights, tmp_path / "five", "--top", "5", "--halves", "both")[2:]
    assert run(activity_command.main, *flags) == 0
    shares = load_file(tmp_path / "five/tiny/activity/activity.safetensors")["share_feature"]
    assert shares.sum(1).tolist() == pytest.approx([10] * 5)


def test_check_predicts_and_writes_nothing(weights, tmp_path, capsys):
    assert command_of(weights, tmp_path)("capture", "--batch-size", 2, "--check", "--shard", "0/4") == 0
    said = capsys.readouterr().out
    assert "6100 images of 1220 prompts" in said and "each of 4 processes" in said and not any(tmp_path.iterdir())


@pytest.mark.parametrize("argv, says", [
    (["capture", "--prompts", "absent.txt"], "absent.txt: cannot be read"),
    (["capture", "--steps", "0"], "--steps of a capture cannot be 0"),
    (["capture", "--guidance", "nan"], "--guidance of a capture cannot be nan"),
    (["capture", "--shard", "2/2"], "argument --shard: invalid shard value: '2/2'"),
    (["capture", "--steps", "1000"], "sampling steps must be between 1 and 999"),
    (["capture", "--top", "0"], "--top of a capture cannot be 0"),
    (["capture", "--halves", "first"], "argument --halves: invalid choice: 'first'"),
    (["analyse", "--feature", "64"], "--feature 64 is out of range"),
    (["analyse", "--distance", "0"], "--distance and --most-peaks must be at least 1"),
    (["analyse", "--most-peaks", "0"], "--distance and --most-peaks must be at least 1"),
    (["analyse"], "has no capture; run python -m activity capture --weights"),
    (["sample", "A Tree", "--steer", "12"], "argument --steer: invalid steering value: '12'"),
    (["sample", "A Tree", "--steer-channel", "99=1"], "--channel 99 is out of range"),
])
def test_bad_calls(argv, says, weights, tmp_path, capsys):
    refused(capsys, run(activity_command.main, *argv, "--weights", weights, "--out", tmp_path), says)
    assert not any(tmp_path.iterdir())


def test_merge_by_hand(model, settings, whole, tmp_path, capsys):
    """Shards that were computed on machines without a common disk, copied into one folder."""
    for rank in (0, 1):
        capture.capture(model, settings, tmp_path / str(rank), (rank, 2))
    code = run(activity_command.main, "merge", tmp_path / "0")
    refused(capsys, code, "shards are missing or unfinished: ['shard_0_of_2.safetensors']")
    for name, data in files(tmp_path / "1").items():
        (tmp_path / "0" / name).write_bytes(data)
    assert run(activity_command.main, "merge", tmp_path / "0") == 0 and files(tmp_path / "0") == files(whole)
    refused(capsys, run(activity_command.main, "merge", tmp_path / "absent"), "is no folder")


def test_a_damaged_table_says_so(model, whole, tmp_path):
    tables = load_file(whole / "activity.safetensors")
    tables["share_feature"] = tables["share_feature"][:, :5].contiguous()
    save_file(tables, tmp_path / "activity.safetensors")
    with pytest.raises(WeightsError, match="share_feature has shape"):
        profile.attach(model, tmp_path)
    (tmp_path / "capture.json").write_bytes((whole / "capture.json").read_bytes())
    (tmp_path / "examples.safetensors").write_bytes((whole / "examples.safetensors").read_bytes()[:-9])
    with pytest.raises(WeightsError, match="examples.safetensors: cannot be used"):
        profile.examples(tmp_path, "feature", 3, 1)


def test_the_gain_of_the_evaluation_is_a_ratio_of_means_with_its_interval():
    from toyworld.evaluate_activity import PAIR, gain
    ours = np.array([2.0, 4.0, 6.0, 8.0])
    same = gain(2 * ours, ours)
    assert same["ratio"] == 2 and same["interval"] == [2, 2] and same["higher"]["share"] == 1
    mixed = gain(np.array([1.0, 3.0]), np.array([2.0, 1.0]))
    assert mixed["ratio"] == pytest.approx(1.333) and mixed["interval"] == [0.5, 3.0]
    assert mixed["higher"]["share"] == 0.5
    assert len(PAIR) == 80 and PAIR["A Tree image in Winter style"] == (1, 3)


def test_features_without_a_profile_are_left_out_of_the_agreement_and_those_without_peaks_catch_nothing():
    from toyworld.evaluate_activity import agreement, by_chance
    some, none = [0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    times = torch.tensor([981.0, 641.0, 301.0, 1.0])
    tables = lambda *shares: {"timesteps": times, "share_feature": torch.tensor(shares).T}
    concepts = [{"feature": f} for f in range(3)]
    found = agreement(tables(some, some, none), tables(some, none, some), concepts)
    assert found["highest_peak_found"]["share"] == found["catch"] == 0.5 and found["highest_peak_found"]["n"] == 2
    assert by_chance(tables(some, none, none), concepts) == by_chance(tables(some), concepts[:1]) > 0.3


@pytest.mark.parametrize("held,expected", [
    ([0, 1, 2, 3], ["Tree"]),                                   # all twelve hold "image", which therefore says nothing
    ([0, 4], ["Winter"]),
    ([0, 0, 0, 0, 4], ["Tree", "Winter"]),                      # four of five are enough
    ([0, 0, 0, 4], ["Winter"]),                                 # three of four are not
    ([0, 5], []),
])
def test_the_concept_is_what_the_examples_prompts_share_and_others_lack(held, expected):
    prompts = [
        f"A {o} image in {s} style" for o in ("Tree", "Cat", "Boat") for s in ("Winter", "Neon", "Sunset", "Sketch")
    ]
    assert profile.shared_words([prompts[i] for i in held], prompts) == expected


def test_prompts_may_be_a_list(model):
    assert capture.configure(model, prompts=["A", "B"]).prompts == ("A", "B")
