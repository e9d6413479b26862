"""Capture, profile, peaks, examples, probe and shards, on the tiny model: the path from prompts to files and back."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from activity import profile
import profile.__main__ as activity_command
from activity import capture
import featviz
from command import flags as shared
from weights.disk import WeightsError
from weights.load import load
from config import Job
from schedule import SAMPLERS, guided
from steering import sample, steered_prior, strengths
from tests.tiny import HOOK, edit_json, write_model

PROMPTS = ("A Tree", "A Cat", "A Sun")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def model(weights):
    return load(weights)


@pytest.fixture(scope="module")
def settings(model):
    return capture.configure(model.settings, prompts=PROMPTS, images_per_prompt=3, steps=5, batch_size=2)


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


def refused(capsys, code, *fragments):
    """Exit code 2 and one line on stderr."""
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith(("activity: ", "featviz: ")), error
    for fragment in fragments:
        assert fragment in error, error


# --- prompts and settings --------------------------------------------------------------------------------------------------

def test_the_grid_of_unlearn_canvas():
    prompts = capture.grid()
    assert len(prompts) == len(set(prompts)) == 20 * 51
    assert {"An Architectures image in Van Gogh style", "A Trees image in Winter style", "A Sea image in photo style"} <= set(prompts)


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
    assert (plain.steps, plain.sampler, plain.guidance, plain.images) == (50, "pndm", 7.5, 5100) and plain.prompts == capture.grid()
    (folder / "p.txt").write_text("a dog\n")
    edit_json(folder / "featviz.json", capture={"guidance": 3.0, "sampler": "ddim", "prompts": "p.txt"})
    own = capture.configure(load(folder), sampler="pndm", steps=None)
    assert (own.guidance, own.sampler, own.prompts, own.steps) == (3.0, "pndm", ("a dog",), 50)
    for wrong, says in (({"scale": 3.0}, "must be an object with some of"), ({"prompts": []}, "must be a list of texts"),
                        ({"prompts": [1]}, "must be a list of texts"), ({"steps": "5"}, "--steps of a capture cannot be '5'")):
        edit_json(folder / "featviz.json", capture=wrong)
        with pytest.raises((WeightsError, ValueError), match=says):
            capture.configure(load(folder))


# --- what is captured ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_conditional_half_at_every_step_the_later_call_counting(model, settings, sampler):
    """Against a trajectory whose noise predictions and hook outputs are each computed on their own."""
    settings = dataclasses.replace(settings, sampler=sampler)
    images, means = capture.observe(model, settings, [4, 5])
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (4, 5)])
    context, null, seen = model.embed([PROMPTS[1], PROMPTS[2]]), model.embed([""]), {}
    plain = guided(model.unet, context, null, settings.guidance)

    @torch.no_grad()
    def predict(x, t):
        seen[t] = model.unet(x, torch.full((2,), t), context, until=HOOK)
        return plain(x, t)

    with torch.no_grad():
        for _, x in SAMPLERS[sampler](model.schedule, predict, noise, settings.steps):
            pass
    assert list(seen) == model.schedule.timesteps(5)
    h = torch.stack(list(seen.values()), dim=1)                                                 # (2, N, D, h, w)
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
            member = np.array([[v > 0 or kind == "channel" for v in row] & (row >= np.sort(row)[-20]) for row in values[:, n]])
            assert member.sum(1).max() == 20
            assert np.allclose(tables[f"share_{kind}"][n], member.mean(0))
            for f in range(width):
                expected = sorted(np.flatnonzero(member[:, f]), key=lambda i: (-values[i, n, f], i))
                image, value = examples[f"image_{kind}"][n, f], examples[f"activation_{kind}"][n, f]
                assert image.tolist() == [*expected, *[-1] * (10 - len(expected))]
                assert np.allclose(value[:len(expected)].float(), values[expected, n, f], rtol=1e-3)


def test_pictures_and_record(model, settings, whole):
    made = json.loads((whole / "capture.json").read_text())
    assert sorted(files(whole)) == ["activity.safetensors", "capture.json", "examples.safetensors", *(f"images/{i:05d}.jpg" for i in range(9))]
    assert made["images"] == 9 and made["recipe"]["settings"]["prompts"] == list(PROMPTS) and made["recipe"]["hook_point"] == HOOK
    assert not any("activity" in name or "featviz" in name for name in made["recipe"]["fingerprints"])
    images, _ = capture.observe(model, settings, [2, 3])
    with Image.open(capture.image_path(whole, 2)) as picture:
        assert np.abs(np.asarray(picture, np.float32) / 255 - images[0].permute(1, 2, 0).numpy()).mean() < 0.05


def random_stats(numbers, seed):
    """Statistics of images whose activations take few values, so that many are equal."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 6, (60, 3, 50), generator=g).float()
    means = {"feature": values, "channel": values[..., :30] - 2}
    return capture.combine(capture.empty(3, 50, 30), capture.summarize({k: v[numbers] for k, v in means.items()}, numbers))


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
    sd = lambda images: activity_command.costs(50, 20480, 1280, images, 512, 8)
    assert sd(5100)["memory"] == sd(100)["memory"] < 2 ** 30 and sd(5100)["running"] == 50 * 21760 * 88
    assert sd(10)["disk"] - 10 * 512 ** 2 * activity_command.JPEG_BYTES == pytest.approx(50 * 21760 * 48, abs=1)


# --- kill, resume, shards --------------------------------------------------------------------------------------------------

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
    assert capture.capture(model, settings, tmp_path) and len(seen) == 5 - after              # finished: nothing is computed again


def command(weights, out, *flags):
    (out.parent / "p.txt").write_text("\n".join(PROMPTS))
    return ["activity.py", "capture", "--weights", str(weights), "--out", str(out), "--prompts", str(out.parent / "p.txt"),
            "--images-per-prompt", "3", "--steps", "5", "--batch-size", "2", "--device", "cpu", *flags]


def test_kill_9(weights, whole, tmp_path):
    """A real process, killed as soon as its first batch is on disk, then the same command again."""
    argv, state = [sys.executable, *command(weights, tmp_path / "out")], tmp_path / "out/tiny/activity/shard_0_of_1.safetensors"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    while not list((state.parent / "images").glob("00002.jpg")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/tiny/activity/capture.json").exists()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert "goes on after image" in done.stderr and files(tmp_path / "out/tiny/activity") == files(whole)


def test_two_processes_of_torchrun_write_what_one_writes(weights, whole, tmp_path):
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command(weights, tmp_path / "out")]
    subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    assert files(tmp_path / "out/tiny/activity") == files(whole)


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
    (tmp_path / "shard_0_of_2.safetensors").write_bytes(b"?")
    with pytest.raises(ValueError, match="no whole state of a capture"):
        capture.capture(model, settings, tmp_path, (0, 2))


def test_activations_that_are_no_numbers_are_refused(model, settings, tmp_path, monkeypatch):
    broken = lambda m, s, numbers: (torch.zeros(2, 3, 8, 8), {"feature": torch.full((2, 5, 64), float("nan")), "channel": torch.zeros(2, 5, 32)})
    monkeypatch.setattr(capture, "observe", broken)
    with pytest.raises(ValueError, match="images 0 to 1: activations are NaN or infinite in torch.float32"):
        capture.capture(model, settings, tmp_path)


# --- analysis --------------------------------------------------------------------------------------------------------------

def test_interpolation_is_linear_between_steps_and_constant_outside():
    y = profile.interpolate([21.0, 11.0, 1.0], [4.0, 2.0, 0.0])
    assert y.shape == (1001,) and y[:2].tolist() == [0, 0] and y[6] == 1 and y[16] == 3 and (y[21:] == 4).all()


def curve(*points):
    return np.interp(np.arange(1001), *zip(*points))


@pytest.mark.parametrize("y, expected", [
    (curve((0, 0), (400, 1), (1000, 0)), [400]),
    (curve((0, 0), (400, 1), (431, 1), (1000, 0)), [415]),                                      # a plateau once, its middle rounded down
    (curve((0, 1), (500, 0), (1000, 1)), []),                                                   # neither end is a maximum
    (curve((0, 0), (100, 3), (150, 0), (199, 2), (400, 0), (600, 1), (1000, 0)), [100, 600]),   # 99 apart: the higher one
    (curve((0, 0), (100, 3), (150, 0), (200, 2), (400, 0), (600, 1), (1000, 0)), [100, 200, 600]),
    (curve((0, 0), (100, 1), (150, 0), (190, 2), (240, 0), (280, 3), (1000, 0)), [100, 280]),   # who is ruled out rules nobody out
    (np.zeros(1001), []),
])
def test_local_maxima(y, expected):
    assert profile.find_peaks(y).tolist() == expected


def test_three_highest_peaks_and_what_stands_in():
    y = curve((0, 0), (100, 1), (200, 0), (300, 2), (400, 0), (500, 3), (600, 0), (700, 4), (1000, 0))
    assert profile.peaks(y) == [300, 500, 700]
    assert profile.peaks(curve((0, 0), (1000, 1))) == [999] and profile.peaks(np.zeros(1001)) == []


def test_active_steps_strengths_and_time_steps():
    tables = {"timesteps": torch.tensor([981.0, 641.0, 301.0, 1.0]), "max_feature": torch.tensor([[4.0, 1], [3, 2], [2, 0], [1, 0]]),
              "share_feature": torch.tensor([[0.0, 0], [0.5, 0], [0, 0], [0, 0]]), "max_channel": torch.tensor([[-1.0], [2], [-3], [-4]]),
              "share_channel": torch.zeros(4, 1)}
    s = profile.strength(tables, "feature", 0)
    assert (s[302:981] > 0).all() and (s[:302] == 0).all() and (s[981:] == 0).all() and s[641] == 3 and s[471] == pytest.approx(2.5)
    assert profile.timesteps(tables, "feature", 0) == [0, 641]
    assert profile.timesteps(tables, "feature", 1) == [0, 641]                                 # never among the strongest: its maximum
    assert (profile.strength(tables, "channel", 0)[:301] == 0).all() and profile.strength(tables, "channel", 0)[641] == 2


def test_the_prior_is_steered_at_the_active_steps_only(model):
    """By hand: a run of the sampler to which the direction is added where the profile is above 0."""
    job = Job(feature=3)
    model = copy.copy(model)
    share = torch.zeros(5, 64)
    share[1:3, 3] = 0.5
    maxima = torch.arange(1.0, 6.0)[:, None].expand(5, 64).contiguous()
    model.parts = model.parts | {profile.TABLES: {"timesteps": torch.tensor([801.0, 601, 401, 201, 1]), "max_feature": maxima,
                                                  "share_feature": share}}
    s = strengths(model, [job], "feature")
    assert s.shape == (1, 1001) and s[0, [801, 601, 401, 201, 1]].tolist() == [0, 2, 3, 0, 0]
    noise, context = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5)), model.embed([""])
    by_hand = sample(model, noise, context, "ddim", 5, add=lambda t: {HOOK: 10 * {601: 2, 401: 3}.get(t, 0) * model.sae.W_dec[3][None]})
    ours = steered_prior(model, [job], "feature", noise, 10.0, "ddim", 5)
    assert torch.allclose(ours, by_hand, atol=1e-5) and (ours - sample(model, noise, context, "ddim", 5)).abs().max() > 0.01


def test_examples_are_read_back(model, whole):
    model = profile.attach(model, whole)
    share = model.activity["share_feature"]
    n, f = divmod(int(share.argmax()), 64)
    t = int(model.activity["timesteps"][n])
    found = profile.examples(whole, "feature", f, t)
    assert len(found) == round(9 * share[n, f].item()) and [a for _, a in found] == sorted((a for _, a in found), reverse=True)
    assert found[0][1] == pytest.approx(model.activity["max_feature"][n, f].item(), rel=1e-3)
    assert profile.examples(whole, "feature", f, t + 3) == found                               # the nearest sampling step


# --- which capture is used, and the command lines --------------------------------------------------------------------------

def test_a_capture_of_other_weights_is_left_out(model, weights, whole, tmp_path, capsys):
    out = whole.parents[1]
    assert profile.find(model, out) == whole and profile.find(model, tmp_path) is None
    other = load(write_model(tmp_path / "tiny", seed=1))
    assert profile.find(other, out) is None and "captured with other weights" in capsys.readouterr().err


def test_tables_without_shares_still_serve(tmp_path):
    """The three tables of an older file: strengths as before, all steps active, and --timestep auto asks for more."""
    model = load(write_model(tmp_path / "m"))
    assert model.activity.keys() == {"timesteps", "max_feature", "max_channel"}
    assert torch.allclose(strengths(model, [Job(feature=3)], "feature")[0, 841], model.activity["max_feature"][1, 3])


SHORT = ["--num-steps", 1, "--prior-steps", 2, "--batch-size", 2, "--device", "cpu", "--seed", 1]


def times(out, target="feature_00003"):
    return sorted(int(p.name[1:]) for p in (out / "tiny" / target).glob("t*"))


def test_auto_is_the_default_where_there_is_a_capture(model, weights, whole, tmp_path):
    out = tmp_path / "out"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    assert run(featviz.main, "--weights", weights, "--out", out, *SHORT) == 0
    tables = profile.attach(model, whole).activity
    assert times(out) == profile.timesteps(tables, "feature", 3) and 0 in times(out)
    assert run(featviz.main, "--weights", weights, "--out", out, "--channel", 4, "--timestep", 7, "auto", *SHORT) == 0
    assert times(out, "channel_0004") == sorted({7, *profile.timesteps(tables, "channel", 4)})
    record = json.loads(next((out / "tiny/feature_00003").rglob("seed_1.json")).read_text())
    assert record["recipe"]["fingerprints"]["activity.safetensors"] and record["recipe"]["config"]["prior"] == "steer"


def test_a_probe_stands_in_for_a_missing_capture(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(capture, "PROBE_PROMPTS", 4)
    monkeypatch.setattr(capture, "PROBE_STEPS", 4)
    flags = ["--weights", weights, "--out", tmp_path, "--timestep", "auto", *SHORT]
    assert run(featviz.main, *flags, "--check") == 0 and not any(tmp_path.iterdir()) and "a probe would come first" in capsys.readouterr().out
    assert run(featviz.main, *flags, "--shard", "0/2") == 2
    refused(capsys, 2, "has no capture, which several processes need: run python -m activity capture --weights")
    assert run(featviz.main, *flags) == 0
    said = capsys.readouterr().err
    assert "a probe of 4 prompts in 4 steps stands in" in said and "python -m activity capture --weights" in said and "the probe took" in said
    assert (tmp_path / "tiny/probe/capture.json").exists() and 0 in times(tmp_path)
    assert run(featviz.main, *flags) == 0 and "the probe took" not in capsys.readouterr().err      # kept for the next run


def test_nothing_is_probed_where_the_time_steps_are_given(weights, tmp_path):
    assert run(featviz.main, "--weights", weights, "--out", tmp_path, *SHORT) == 0                  # featviz.json's own, and its table
    assert times(tmp_path) == [300] and not (tmp_path / "tiny/probe").exists()


def test_without_an_sae_channels_are_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "PROBE_PROMPTS", 3)
    bare = write_model(tmp_path / "tiny", sae=None)
    assert run(featviz.main, "--weights", bare, "--out", tmp_path / "out", "--channel", 3, "--timestep", "auto", *SHORT) == 0
    assert load_file(tmp_path / "out/tiny/probe/activity.safetensors")["max_feature"].shape == (20, 0)
    assert 0 in times(tmp_path / "out", "channel_0003")


def test_two_processes_of_featviz_write_what_one_writes(weights, tmp_path):
    """At the same moment, as torchrun starts them; a third share of two features is empty."""
    flags = ["--weights", weights, "--timestep", 0, "--feature", 1, 2, *SHORT]
    argv = [sys.executable, "featviz.py", *(str(f) for f in flags), "--out", str(tmp_path / "two")]
    started = [subprocess.Popen(argv, env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
                                stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for rank in (0, 1)]
    assert [process.wait() for process in started] == [0, 0]
    assert run(featviz.main, *flags, "--out", tmp_path / "one") == 0
    assert files(tmp_path / "two") == files(tmp_path / "one") and len(files(tmp_path / "one")) == 12
    assert run(featviz.main, *flags, "--out", tmp_path / "none", "--shard", "2/3") == 0 and not (tmp_path / "none").exists()


def test_analyse_and_sample(weights, whole, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny/activity").symlink_to(whole)
    assert run(activity_command.main, "analyse", "--weights", weights, "--out", out, "--feature", 3, 5) == 0
    record = json.loads((out / "tiny/feature_00003/activity.json").read_text())
    assert len(record["profile"]) == 1001 and record["feature"] == 3 and record["peaks"] and "peaks at" in capsys.readouterr().out
    assert all((out.parent / e["file"]).exists() and e["prompt"] in PROMPTS for es in record["examples"].values() for e in es)
    with Image.open(out / "tiny/feature_00005/activity.png") as figure:
        assert figure.width > 500
    assert run(activity_command.main, "sample", "A Tree", "--weights", weights, "--out", out, "--steps", 2, "--steer", "3=2", "5=1") == 0
    with Image.open(out / "tiny/samples/a-tree_f3=2_f5=1_seed_1024.png") as picture:
        a, b = np.asarray(picture)[:, :32].astype(int), np.asarray(picture)[:, 32:].astype(int)
        assert picture.size == (64, 32) and np.abs(a - b).max() > 0 and json.loads(picture.text["featviz"])["prompt"] == "A Tree"


def test_check_predicts_and_writes_nothing(weights, tmp_path, capsys):
    assert run(activity_command.main, "capture", "--weights", weights, "--out", tmp_path, "--batch-size", 2, "--check", "--shard", "0/4") == 0
    said = capsys.readouterr().out
    assert "5100 images of 1020 prompts" in said and "each of 4 processes" in said and not any(tmp_path.iterdir())


@pytest.mark.parametrize("argv, says", [
    (["capture", "--prompts", "absent.txt"], "absent.txt: cannot be read"),
    (["capture", "--steps", "0"], "--steps of a capture cannot be 0"),
    (["capture", "--guidance", "nan"], "--guidance of a capture cannot be nan"),
    (["capture", "--shard", "2/2"], "argument --shard: invalid shard value: '2/2'"),
    (["capture", "--steps", "1000"], "sampling steps must be between 1 and 999"),
    (["analyse", "--feature", "64"], "--feature 64 is out of range"),
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
    refused(capsys, run(activity_command.main, "merge", tmp_path / "0"), "shards are missing or unfinished: ['shard_0_of_2.safetensors']")
    for name, data in files(tmp_path / "1").items():
        (tmp_path / "0" / name).write_bytes(data)
    assert run(activity_command.main, "merge", tmp_path / "0") == 0 and files(tmp_path / "0") == files(whole)
    refused(capsys, run(activity_command.main, "merge", tmp_path / "absent"), "is no folder")


def test_a_damaged_table_says_so(model, whole, tmp_path):
    tables = load_file(whole / "activity.safetensors")
    save_file(tables | {"share_feature": tables["share_feature"][:, :5].contiguous()}, tmp_path / "activity.safetensors")
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
    assert mixed["ratio"] == pytest.approx(1.333) and mixed["interval"] == [0.5, 3.0] and mixed["higher"]["share"] == 0.5
    assert len(PAIR) == 80 and PAIR["A Tree image in Winter style"] == (1, 3)


@pytest.mark.parametrize("held,expected", [
    ([0, 1, 2, 3], ["Tree"]),                                   # all twelve hold "image", which therefore says nothing
    ([0, 4], ["Winter"]),
    ([0, 0, 0, 0, 4], ["Tree", "Winter"]),                      # four of five are enough
    ([0, 0, 0, 4], ["Winter"]),                                 # three of four are not
    ([0, 5], []),
])
def test_the_concept_is_what_the_examples_prompts_share_and_others_lack(held, expected):
    prompts = [f"A {o} image in {s} style" for o in ("Tree", "Cat", "Boat") for s in ("Winter", "Neon", "Sunset", "Sketch")]
    assert profile.shared_words([prompts[i] for i in held], prompts) == expected


def test_prompts_may_be_a_list(model):
    assert capture.configure(model.settings, prompts=["A", "B"]).prompts == ("A", "B")
