"""Capture, profile, peaks, examples and the small capture, on the tiny model: from prompts to files and back."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from activity import __main__ as command
from activity import analysis, capture, profile
from pages import thesis
from schedule import SAMPLERS
from tests.tiny import HOOK, write_model
from weights.load import WeightsError, load

PROMPTS = ("A Tree", "A Cat", "A Sun")
ELSEWHERE = "mid_block.attentions.0"                            # a hook point without an SAE
TABLES = ("activity.safetensors", "capture.json", "examples.safetensors", "prompts.safetensors")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny", activity=None)


@pytest.fixture(scope="module")
def model(weights):
    return load(weights, "cpu")


@pytest.fixture(scope="module")
def settings(model):
    return replace(capture.configure(model, images_per_prompt=2, steps=4, batch_size=2), prompts=PROMPTS)


@pytest.fixture(scope="module")
def whole(model, settings, tmp_path_factory):
    """A finished capture's folder, made in one go: 6 images in 3 batches."""
    folder = tmp_path_factory.mktemp("out") / "tiny/activity"
    capture.capture(model, settings, folder)
    return folder


@pytest.fixture(scope="module")
def batches(model, settings):
    """What `observe` returns for each batch of the capture."""
    return [capture.observe(model, settings, (i, i + 1))[1] for i in (0, 2, 4)]


def joined(batches, name, half=1):
    """All images of one half (0: empty prompt, 1: with prompt): (6, N, width)."""
    halves = [means[name].unflatten(0, (2, -1))[half] if name != "gated" else means[name] for means in batches]
    return torch.cat(halves).numpy()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(out, *argv):
    """python -m activity with these flags: the exit code."""
    try:
        return command.main([str(a) for a in (*argv, "--out", out, "--device", "cpu")])
    except SystemExit as e:
        return e.code


def linked(whole, out):
    """An output folder that holds this capture."""
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    return out


# --- prompts and settings ---------------------------------------------------------------------------------------------

def test_the_grids():
    for name, size, some in (("thesis", 20 * 61, "An Sea image in photo style"),
                             ("saemnesia", 20 * 51, "An image of Cats in Van Gogh style.")):
        assert len(set(capture.GRIDS[name])) == len(capture.GRIDS[name]) == size and some in capture.GRIDS[name]


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n\n  a caf\xc3\xa9 \na dog\n{x}\n")   # a byte-order mark
    assert capture.read_lines(tmp_path / "p.txt") == ("a dog", "a café", "{x}")
    for data in (b"\n", "a dog".encode("utf-16")):
        (tmp_path / "p.txt").write_bytes(data)
        with pytest.raises(ValueError, match="p.txt: .*give a text file in UTF-8"):
            capture.read_lines(tmp_path / "p.txt")


def test_settings_are_the_method_s_then_the_model_s_then_the_given_ones(tmp_path):
    made = load(write_model(tmp_path / "m"), "cpu")
    plain = capture.configure(made)
    assert (plain.steps, plain.sampler, plain.guidance, plain.images) == (50, "pndm", 7.5, 6100)
    assert (plain.top, plain.halves, plain.prompts) == (20, "conditional", capture.GRIDS["thesis"])
    (tmp_path / "m/p.txt").write_text("a dog\n")
    made.settings["capture"] = {"guidance": 3.0, "sampler": "ddim", "prompts": "p.txt"}
    own = capture.configure(made, sampler="pndm", steps=None)
    assert (own.guidance, own.sampler, own.prompts, own.steps) == (3.0, "pndm", ("a dog",), 50)
    assert capture.configure(made, "saemnesia").prompts == capture.GRIDS["saemnesia"]
    for wrong, says in (({"scale": 3.0}, "must hold some of"), ({"steps": "5"}, "--steps must be a whole number"),
                        ({"halves": "pndm"}, "--halves must be one of conditional, both, got 'pndm'")):
        made.settings["capture"] = wrong
        with pytest.raises(ValueError, match=says):
            capture.configure(made)


# --- what is captured -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_halves_are_seen_at_every_step_and_the_later_call_counts(model, settings, sampler):
    """Against a trajectory whose noise predictions and hook outputs are each computed on their own."""
    settings = replace(settings, sampler=sampler)
    images, means = capture.observe(model, settings, [4, 5])
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (4, 5)])
    context, null, seen = model.embed([PROMPTS[1], PROMPTS[2]]), model.embed([""]), {}

    @torch.no_grad()
    def predict(x, t):
        texts = [null.expand(2, -1, -1), context]
        seen[t] = torch.cat([model.unet(x, torch.full((2,), t), text, until=HOOK) for text in texts])
        e_null, e_text = (model.unet(x, torch.full((2,), t), text) for text in texts)
        return e_null + settings.guidance * (e_text - e_null)

    with torch.no_grad():
        for _, x in SAMPLERS[sampler](model.schedule, predict, noise, settings.steps):
            pass
    assert list(seen) == model.schedule.timesteps(4)
    h = torch.stack(list(seen.values()), dim=1)                                                 # (4, N, D, h, w)
    position = h.flatten(3).transpose(2, 3)                                                     # (4, N, S, D)
    assert torch.allclose(means["channel"], h.mean((3, 4)), atol=1e-4)
    assert torch.allclose(means["feature"], model.sae.pre_acts(position).mean(2), atol=1e-4)
    assert torch.allclose(means["gated"], model.sae.encode(position[2:]).mean(2), atol=1e-3)
    assert (means["gated"] <= means["feature"][2:]).all() and (means["gated"] < means["feature"][2:]).any()
    assert torch.allclose(images, model.decode(x), atol=1e-3)


def test_the_files_are_what_all_activations_say(model, settings, whole, batches):
    """Shares, maxima, histograms and examples from the table of all images, one feature at a time; record, pictures."""
    tables, examples = load_file(whole / "activity.safetensors"), load_file(whole / "examples.safetensors")
    assert tables["timesteps"].tolist() == model.schedule.timesteps(4)
    assert np.array_equal(tables["max_gated"], joined(batches, "gated").max(0))
    for kind, width in (("feature", 64), ("channel", 32)):
        values = joined(batches, kind)
        assert values.shape == (6, 4, width)
        assert np.array_equal(tables[f"max_{kind}"], values.max(0))
        assert np.array_equal(tables[f"max_null_{kind}"], joined(batches, kind, 0).max(0))
        for n in range(4):
            member = np.array([[v > 0 or kind == "channel" for v in row] & (row >= np.sort(row)[-20])
                               for row in values[:, n]])
            assert member.sum(1).max() == 20
            assert np.allclose(tables[f"share_{kind}"][n], member.mean(0))
            for f in range(width):
                expected = sorted(np.flatnonzero(member[:, f]), key=lambda i: (-values[i, n, f], i))
                image, value = examples[f"image_{kind}"][n, f], examples[f"activation_{kind}"][n, f]
                assert image.tolist() == [*expected, *[-1] * (6 - len(expected))]
                assert np.array_equal(value[:len(expected)], values[expected, n, f])
        for f in range(width):
            most = values[:, :, f].max(1)
            bins = [0 if v <= 0 else int(np.clip(np.floor(np.log2(v)) + 13, 1, 23)) for v in most]
            assert tables[f"histogram_{kind}"][f].tolist() == np.bincount(bins, minlength=24).tolist()
    mean = load_file(whole / "prompts.safetensors")["mean_feature"]
    assert np.allclose(mean, joined(batches, "feature").reshape(2, 3, 4, 64).mean((0, 2)), atol=1e-5)
    made = json.loads((whole / "capture.json").read_text())
    assert sorted(files(whole)) == [*TABLES[:3], *(f"images/{i:05d}.jpg" for i in range(6)), TABLES[3]]
    assert made["images"] == 6 and made["recipe"]["settings"]["prompts"] == list(PROMPTS)
    assert not any("activity" in name or "featviz" in name for name in made["recipe"]["fingerprints"])
    images, _ = capture.observe(model, settings, [2, 3])
    with Image.open(profile.image_path(whole, 2)) as picture:
        assert np.abs(np.asarray(picture, np.float32) / 255 - images[0].permute(1, 2, 0).numpy()).mean() < 0.05


def test_without_guidance_there_is_one_half_and_no_empty_prompt(model, settings, tmp_path):
    capture.capture(model, replace(settings, guidance=1.0, steps=2, images_per_prompt=1), tmp_path)
    made = profile.read_capture(tmp_path)
    assert made.largest("feature", 3) is None and made.strength("feature", 3, "all").any()


def test_statistics_of_batches_combine_to_those_of_all_images():
    """Activations take few values, so that many are equal: of these the earlier images are the examples. Both halves,
    as in the original, count twice; a silent feature is never among the strongest."""
    values = torch.randint(0, 6, (2, 60, 3, 50), generator=torch.Generator().manual_seed(0)).float()

    def stats(numbers, halves="conditional"):
        some = values[:, numbers]
        means = {"feature": some.flatten(0, 1), "channel": some[..., :30].flatten(0, 1) - 2, "gated": some[1] / 2}
        settings = capture.Settings(PROMPTS, top=40, halves=halves)
        return capture.combine(capture.summarize(means, numbers, settings))
    whole, both, together = stats(range(60)), stats(range(60), "both"), stats(range(7))
    for part in (range(7, 8), range(8, 30), range(30, 60)):
        together = capture.combine(together, stats(part))
    assert together.keys() == whole.keys() and all(torch.equal(together[name], whole[name]) for name in whole)
    assert (whole["histogram_feature"].sum(-1) == 60).all() and (whole["max_gated"] == 2.5).all()
    assert torch.equal(whole["sum_feature"], values[1].sum(1).unflatten(0, (20, 3)).sum(0))
    for n, f in ((0, 0), (2, 49)):
        order = sorted(range(60), key=lambda i: (-values[1, i, n, f], i))[:10]
        assert whole["image_feature"][n, f].tolist() == both["image_feature"][n, f].tolist() == order
    least = values.topk(40).values[..., -1:]
    member = (values >= least) & (values > 0)
    assert torch.equal(whole["count_feature"], member[1].sum(0)) and (whole["count_channel"] == 60).all()
    assert torch.equal(both["count_feature"], member.sum((0, 1)))
    assert torch.equal(both["max_feature"], values.amax((0, 1)))


def test_bins_double():
    values = torch.tensor([-1.0, 0.0, 1e-9, 2**-11 * 0.99, 2**-11, 0.5, 0.999, 1.0, 1.5, 2.0, 1023.0, 1024.0, 1e9])
    assert capture.bins(values).tolist() == [0, 0, 1, 1, 2, 12, 12, 13, 13, 14, 22, 23, 23]


# --- kill and resume --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_capture_goes_on_at_the_same_image(after, model, settings, whole, tmp_path, monkeypatch):
    """In its folder another one is refused, before and after the end."""
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if len(calls) == after + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(capture, "Count", lambda unit: stop)
        capture.capture(model, settings, tmp_path)
    assert calls == [(done, 6) for done in (0, 2, 4)[:after + 1]] and not (tmp_path / "capture.json").exists()
    for changes, folder in ((dict(halves="both"), tmp_path), (dict(top=19), whole)) * bool(after):
        with pytest.raises(ValueError, match="holds a capture with other settings.*; give another --out"):
            capture.capture(model, replace(settings, **changes), folder)
    seen, observe = [], capture.observe
    monkeypatch.setattr(capture, "observe", lambda m, s, numbers: seen.append(numbers[0]) or observe(m, s, numbers))
    capture.capture(model, settings, tmp_path)
    assert seen == [0, 2, 4][after:] and files(tmp_path) == files(whole)
    (tmp_path / "state.safetensors").write_bytes(b"a kill came before it was deleted")
    capture.capture(model, settings, tmp_path)
    assert len(seen) == 3 - after and files(tmp_path) == files(whole)                           # nothing is done again


def test_activations_that_are_no_numbers_are_refused(model, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "observe", lambda *_: (None, {"feature": torch.tensor([float("nan")])}))
    with pytest.raises(ValueError, match="images 0 to 1: activations are NaN or infinite in torch.float32"):
        capture.capture(model, settings, tmp_path)


# --- profile and peaks ------------------------------------------------------------------------------------------------

def curve(*points):
    return np.interp(np.arange(1001), *zip(*points))


@pytest.mark.parametrize("y, expected", [
    (curve((0, 0), (400, 1), (1000, 0)), [400]),
    (curve((0, 0), (400, 1), (431, 1), (1000, 0)), [415]),      # a plateau once, its middle rounded down
    (curve((0, 1), (500, 0), (1000, 1)), []),                   # neither end is a maximum
    # 99 apart: the higher one; 100 apart: both; of three 90 apart the middle one is ruled out and rules nobody out
    (curve((0, 0), (100, 3), (150, 0), (199, 2), (400, 0), (600, 1), (1000, 0)), [100, 600]),
    (curve((0, 0), (100, 3), (150, 0), (200, 2), (400, 0), (600, 1), (1000, 0)), [100, 200, 600]),
    (curve((0, 0), (100, 1), (150, 0), (190, 2), (240, 0), (280, 3), (1000, 0)), [100, 280]),
    (curve((0, 0), (100, 1), (200, 0), (300, 1), (400, 0), (500, 2), (600, 0), (700, 1), (1000, 0)), [100, 300, 500]),
    (np.zeros(1001), []),
])
def test_the_three_highest_local_maxima(y, expected):
    assert profile.find_peaks(y) == expected


def small(share, most, kind="feature", null=(0.0, 0.0, 0.0, 0.0)):
    """A capture of one feature (or channel) at four sampling steps."""
    tables = {name: torch.tensor(values)[:, None] for name, values in (
        (f"share_{kind}", share), (f"max_{kind}", most), (f"max_null_{kind}", null))}
    return profile.Capture(None, tables | {"timesteps": torch.tensor([981.0, 641.0, 301.0, 1.0])}, {}, "")


@pytest.mark.parametrize("share, expected", [
    ([0.0, 0.1, 0.2, 0.4], [1]), ([0.4, 0.2, 0.1, 0.0], [981]), ([0.4, 0.1, 0.1, 0.3], [1, 981]),
    ([0.5, 0.5, 0.25, 0.0], [811]),                             # a plateau that begins with the first: its middle
    ([0.5, 0.5, 0.5, 0.5], [491]), ([0.0, 0.0, 0.0, 0.0], [])])
def test_the_first_and_the_last_sampled_step_can_be_peaks(share, expected):
    made = small(share, [1.0, 1.0, 1.0, 1.0])
    assert made.peaks("feature", 0) == expected and made.timesteps("feature", 0) == sorted({0, *expected})
    assert made.highest_peak("feature", 0) == (max(expected, key=lambda t: made.profile("feature", 0)[t], default=None))


def test_active_steps_strengths_and_time_steps():
    """A feature that is never among the strongest is not steered; a negative largest mean is no strength."""
    made = small([0.0, 0.5, 0.0, 0.0], [4.0, 3, 2, 1])
    active, everywhere = made.strength("feature", 0), made.strength("feature", 0, "all")
    assert active.dtype == torch.float32 and (active > 0).nonzero().flatten().tolist() == [*range(302, 981)]
    assert active[641] == 3 and active[471] == 2.5
    assert everywhere[[981, 641, 471, 301, 1]].tolist() == pytest.approx([4, 3, 2.5, 2, 1])
    assert not everywhere[[0, 982, 1000]].any()
    assert made.timesteps("feature", 0) == made.timesteps("feature", 0, "active") == [0, 641]
    assert small([0.1, 0.5, 0.2, 0.0], [4.0, 3, 2, 1]).timesteps("feature", 0, "active") == [0, 301, 641, 981]
    never = small([0.0, 0.0, 0.0, 0.0], [1.0, 2, 3, 4])
    assert not never.profile("feature", 0).any() and not never.strength("feature", 0).any()
    assert never.strength("feature", 0, "all")[1] == 4 and never.timesteps("feature", 0, "active") == [0]
    s = small([0.5, 0.5, 0.5, 0.5], [-1.0, 2.0, -3.0, -4.0], "channel").strength("channel", 0, "all")
    assert s[641] == 2 and s[471] == 1 and not s[:302].any() and s[981] == 0 and s.min() == 0
    # results are compared with the empty prompt; outside the sampled range with the last values
    made = small([0.5, 0.5, 0.5, 0.5], [4.0, 3, 2, 1], null=[2.0, 1.0, 0.5, 0.25])
    assert made.largest("feature", 0)[[1000, 981, 811, 641, 301, 1, 0]].tolist() == [2, 2, 1.5, 1, 0.5, 0.25, 0.25]


# --- which capture is used --------------------------------------------------------------------------------------------

def test_a_capture_is_read_back(model, whole):
    made = profile.find_capture(model, whole.parents[1])
    assert (made.folder, made.images, made.top, made.prompts) == (whole, 6, 20, list(PROMPTS))
    n, f = divmod(int(made.tables["share_feature"].argmax()), 64)
    examples = made.examples("feature", f, int(made.tables["timesteps"][n]) + 3)                # of the nearest step
    images = load_file(whole / "examples.safetensors")["image_feature"][n, f]
    assert [i for i, _ in examples] == images[images >= 0].tolist()
    assert examples[0][1] == made.tables["max_feature"][n, f].item()
    assert made.live() == (made.tables["max_feature"].amax(0) > 0).nonzero().flatten().tolist()
    assert made.prompt(7) == "A Cat"


def test_the_user_s_capture_comes_before_the_one_that_came_with_the_weights(whole, tmp_path, capsys):
    out, model = whole.parents[1], load(write_model(tmp_path / "tiny"), "cpu")
    assert profile.find_capture(model, out).folder == whole
    assert profile.find_capture(model, tmp_path / "none").folder == tmp_path / "tiny/activity"
    other = load(write_model(tmp_path / "other/tiny", seed=1, activity=None), "cpu")
    assert profile.find_capture(other, out) is None and "captured with other weights" in capsys.readouterr().err


def test_a_probe_stands_in_for_a_missing_capture(model, tmp_path, capsys, monkeypatch):
    """It is kept for the next time; one of other weights is refused; without an SAE it has channels alone."""
    monkeypatch.setattr(capture, "PROBE", 2)
    monkeypatch.setattr(capture, "PROBE_STEPS", 2)
    made = capture.probe(model, tmp_path)
    assert "for the full one run python -m activity capture --weights" in capsys.readouterr().err
    assert made.folder == tmp_path / "tiny/probe" and made.images == 2 and len(set(made.prompts)) == 2
    assert capture.probe(model, tmp_path).sha256 == made.sha256 and "images/s" not in capsys.readouterr().err
    other = load(write_model(tmp_path / "other/tiny", sae=None), "cpu")
    with pytest.raises(ValueError, match="holds a capture with other settings, weights"):
        capture.probe(other, tmp_path)
    made = capture.probe(other, tmp_path / "out")
    assert made.tables["max_feature"].shape == (2, 0) and 0 in made.timesteps("channel", 3)


# --- the command line -------------------------------------------------------------------------------------------------

def flags(weights, out):
    """The flags that make the capture `whole`."""
    (out.parent / "p.txt").write_text("\n".join(PROMPTS))
    return ["capture", "--weights", weights, "--prompts", out.parent / "p.txt", "--images-per-prompt", "2", "--steps",
            "4", "--batch-size", "2"]


def test_another_hook_point_has_a_capture_of_its_own(weights, whole, tmp_path):
    """Recorded with flags for its numbers, both halves as in the original, found and analysed there."""
    out, here = linked(whole, tmp_path / "out"), ("--hook-point", f"unet.{ELSEWHERE}")
    given = "--images-per-prompt", 1, "--steps", 1, "--top", 5, "--halves", "both"
    assert run(out, *flags(weights, out), *given, *here) == 0
    folder = out / "tiny" / f"activity_{ELSEWHERE}"
    tables, made = load_file(folder / "activity.safetensors"), json.loads((folder / "capture.json").read_text())
    assert tables["max_feature"].shape == (1, 0) and tables["share_channel"].sum().item() == pytest.approx(10)
    assert profile.find_capture(load(weights, "cpu", hook_point=ELSEWHERE), out).folder == folder
    assert profile.find_capture(load(weights, "cpu"), out).folder == out / "tiny/activity"
    assert not any(name.startswith("sae/") for name in made["recipe"]["fingerprints"])
    assert run(out, "analyse", "--weights", weights, "--channel", 4, *here) == 0
    assert (out / "tiny" / f"{ELSEWHERE}_channel_0004/activity.json").exists()


def test_analyse_and_show(weights, whole, tmp_path, capsys):
    """`show` prints the cards and writes nothing."""
    out = linked(whole, tmp_path / "out")
    assert run(out, "show", "--weights", weights, 5, "3") == 0
    said = capsys.readouterr().out
    assert said.count("nearest decoder rows: ") == 2 and "feature 5\n" in said and "active in 6 of 6 images" in said
    assert not (out / "tiny/feature_00005").exists()
    assert run(out, "analyse", "--weights", weights, "--feature", 3, "5-6") == 0
    assert (out / "tiny/feature_00005/activity.json").exists()
    record = json.loads((out / "tiny/feature_00003/activity.json").read_text())
    assert len(record["card"]["nearest"]) == 5 and record["label"] == "" and record["peaks"]
    assert (record["top"], record["images"], len(record["profile"]), len(record["strength"])) == (20, 6, 1001, 1001)
    known = [e for found in record["examples"].values() for e in found]
    assert all((out.parent / e["file"]).exists() and e["prompt"] in PROMPTS for e in known)


def test_sample(weights, whole, tmp_path):
    out = linked(whole, tmp_path / "out")
    assert run(out, "sample", "--weights", weights, "A Tree", "--steps", 1, "--steer", "3=2", "5=1") == 0
    with Image.open(out / "tiny/samples/a-tree_f3=2_f5=1_seed_1024.png") as picture:
        plain, steered = np.split(np.asarray(picture), 2, axis=1)
        assert picture.size == (64, 32) and not np.array_equal(plain, steered)
        assert json.loads(picture.text["featviz"])["prompt"] == "A Tree"


@pytest.mark.parametrize("argv, says", [
    (["capture", "--prompts", "absent.txt"], "absent.txt: cannot be read"),
    (["capture", "--steps", "1000"], "--steps must be at most 999, got 1000"),
    (["capture", "--halves", "first"], "argument --halves: invalid choice: 'first'"),
    (["show", "64"], "--feature 64 is out of range"),
    (["analyse", "--feature", "4", "--hook-point", ELSEWHERE], "/sae: is missing for"),
    (["analyse"], "has no capture; run python -m activity capture --weights"),
    (["sample", "A Tree", "--steer", "12"], "argument --steer: invalid steering value: '12'")])
def test_bad_calls(argv, says, weights, tmp_path, capsys):
    """Exit code 2, one line on stderr and no file."""
    assert run(tmp_path, *argv, "--weights", weights) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("activity: ") and says in error
    assert not any(tmp_path.iterdir())


# --- concepts, labels and cards ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("held,expected", [
    ([0, 1, 2, 3], ["Tree"]),                                   # all twelve hold "image", which therefore says nothing
    ([0, 0, 0, 0, 4], ["Tree", "Winter"]),                      # four of five are enough
    ([0, 0, 0, 4], ["Winter"]),                                 # three of four are not
    ([0, 5], []),
    ([0, 0], []),                                               # two images say nothing of a feature
])
def test_the_concept_is_what_the_examples_prompts_share_and_others_lack(held, expected):
    listed = [f"A {o} image in {s} style" for o in ("Tree", "Cat", "Boat") for s in ("Winter", "Neon", "Sun", "Sketch")]
    assert analysis.shared_words([listed[i] for i in held], listed) == expected


def planted(folder, mean, prompts):
    """A capture that holds only prompts and their mean activations (P, F)."""
    save_file({"mean_feature": torch.tensor(mean)}, folder / "prompts.safetensors")
    return profile.Capture(folder, {}, {"recipe": {"settings": {"prompts": prompts}}}, "")


def test_a_word_s_feature_is_the_one_with_more_of_the_activation_on_its_images(tmp_path):
    """Feature 3 is strong everywhere, 1 on cats, 2 on dogs, 0 on winters; the numbers by hand."""
    mean = [[0.0, 4.0, 0.0, 6.0], [3.0, 3.0, 0.0, 4.0], [0.0, 0.0, 5.0, 5.0], [2.0, 0.0, 2.0, 6.0], [9.0] * 4]
    made = planted(tmp_path, mean, ["A Cat", "a cat in Warm Winter", "A dog.", "dog, Warm Winter", "catdog"])
    cat, dog = analysis.find_labels(made, ["cat", "Dog"])
    assert [cat[name] for name in ("word", "feature", "runner_up", "prompts")] == ["cat", 1, 0, 2]
    assert cat["score"] == pytest.approx(7 / 20) and cat["runner_up_score"] == pytest.approx(1 / 20)
    assert (dog["feature"], dog["runner_up"]) == (2, 3)
    # an image of a cat in winter is a cat's: it does not count among the others
    cat, winter, _ = analysis.find_labels(made, ["cat", "warm winter", "dog"])
    assert cat["score"] == pytest.approx(7 / 20) and (winter["feature"], winter["score"]) == (0, pytest.approx(5 / 20))
    for words, says in ((["dog", "cats"], "cats: a word needs .*capture's 'A Cat'"), (["dog"], "at least two")):
        with pytest.raises(ValueError, match=says):
            analysis.find_labels(made, words)


def test_label_writes_what_the_loader_reads(whole, tmp_path, capsys):
    """Of two words with one feature the one with the higher score keeps it."""
    out, weights = linked(whole, tmp_path / "out"), write_model(tmp_path / "tiny", activity=None)
    words = ["tree", "cat", "sun"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    assert run(out, "label", "--weights", weights, "--words", tmp_path / "words.txt") == 0
    table, best = capsys.readouterr().out, {}
    for one in analysis.find_labels(profile.read_capture(whole), words):
        assert f"{one['word']:<24} {one['feature']:7d} {one['score']:8.4f}" in table
        best[one["feature"]] = max(best.get(one["feature"], one), one, key=lambda label: label["score"])
    assert load(weights, "cpu").labels == {n: label["word"] for n, label in best.items()}
    labels = [{"word": word, "feature": n, "score": x} for word, n, x in (("a", 3, 0.1), ("b", 3, 0.2), ("c", 4, 0.1))]
    analysis.save_labels(tmp_path / "labels.json", labels)
    assert {n: e["word"] for n, e in json.loads((tmp_path / "labels.json").read_text()).items()} == {"3": "b", "4": "c"}


def test_which_five_the_thesis_page_shows(model):
    """Those of featviz.json, else an SAE's first five labels in SAEmnesia's spelling, else the thesis' own, if it has
    so many features."""
    with pytest.raises(WeightsError, match="has 64 features, the thesis' are those of Style50"):
        thesis.features(model)
    rows = thesis.features(replace(model, labels={n: f"thing {n}" for n in (9, 2, 7, 4, 1, 3)}))
    assert [row["feature"] for row in rows] == [1, 2, 3, 4, 7]
    assert rows[0] == {"feature": 1, "word": "thing 1", "prompt": "An image of thing 1."}
    listed = [{"feature": 7, "word": "knot", "prompt": None}]
    assert thesis.features(replace(model, settings={"thesis": listed})) == listed


def test_the_card_is_what_all_activations_say(model, whole, batches):
    here = replace(model, capture=profile.read_capture(whole), labels={5: "knot"})
    values, gated = joined(batches, "feature"), joined(batches, "gated")
    made = analysis.card(here, "feature", 5)
    row = values.max(0)[:, 5].argmax()
    assert made["images"] == 6 and made["alive"] and analysis.analysis(here, "feature", 5)["label"] == "knot"
    assert made["active"] == (values[:, :, 5].max(1) > 0).sum() and sum(count for _, _, count in made["histogram"]) == 6
    for low, high, count in made["histogram"][1:]:
        assert count == ((values[:, :, 5].max(1) >= low) & (values[:, :, 5].max(1) < high)).sum()
    assert made["largest"] == values[:, row, 5].max() and made["gated"] == gated[:, row, 5].max()
    rows = model.sae.W_dec.numpy()
    cosine = rows @ rows[5] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[5])
    assert [n for n, _ in made["nearest"]] == np.argsort(-cosine)[1:6].tolist()
    assert [c for _, c in made["nearest"]] == pytest.approx(np.sort(cosine)[::-1][1:6].tolist(), abs=1e-5)
    shown = lambda n: {i for i, _ in here.capture.examples("feature", n, made["timestep"])}
    shared = [(-len(shown(n) & shown(5)), n) for n in range(64) if n != 5]
    assert made["together"] == [(n, -count) for count, n in sorted(shared)[:5] if count]
    assert made["examples"] == len(shown(5))


def test_a_dead_feature_and_a_channel_s_card(model, whole):
    here = replace(model, capture=profile.read_capture(whole))
    here.capture.tables["max_feature"][:, 7] = 0
    here.capture.tables["histogram_feature"][7] = torch.tensor([6.0] + [0.0] * 23)
    made = analysis.card(here, "feature", 7)
    assert not made["alive"] and made["active"] == 0 and made["histogram"] == [(0, 0, 6)]
    assert "dead: feature 7, " in analysis.dead_line(here.capture, "feature", [6, 7])
    assert analysis.dead_line(here.capture, "feature", [6]) == analysis.dead_line(here.capture, "channel", [3]) == ""
    other = analysis.card(here, "channel", 3)
    assert other["nearest"] == [] and other["gated"] is None and sum(count for _, _, count in other["histogram"]) == 6
