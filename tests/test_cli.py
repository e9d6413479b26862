"""The command line, run in this process on the tiny model, from flag to page: files out, exit codes, and one line for
whatever is wrong. What is on disk: test_results.py; kills: slow/test_interrupted.py.
"""
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import featviz
import results
from command import progress
from config import SEEDS, Config, flag
from pages.__main__ import SCORES
from pages.sheet import GAP, TILE, tile
from tests.tiny import HOOK, PATHS, QUICK, edit_json, write_model
from weights import fetch

KINDS = ("png", "finished.png", "safetensors", "curves.json", "steps.jpg", "json")      # in the order of writing
GIVEN = dict(       # every setting with a value that is not the tiny model's
    num_steps=1, learning_rate=0.02, beta1=0.5, beta2=0.9, epsilon=1e-6, weight_decay=0.1, total_variation_weight=0.3,
    range_weight=0.2, range_threshold=2.0, moment_weight=0.1, gradient_smoothing_sigma_start=0.8,
    gradient_smoothing_sigma_end=0.2, gradient_smoothing_kernel_size=5, jitter_max=8, rotate_max=15.0, scale_max=1.2,
    spectral_filter=False, noise=False, silent_gradient=False, prompt="A tree", position=[1, 0],
    diverse=0.5, prior="guided", prior_steps=3, prior_sampler="ddim", steer_steps="all", steer_scale=7.0, finish=True,
    finish_from="auto", finish_scale=0.25, finish_steps=3)

QUICK_START = ("--prior", "noise", "--no-finish")

pytestmark = pytest.mark.usefixtures("loaded_once")


def short(weights, out, *flags):
    """The arguments of a command with two steps of everything at one time step."""
    argv = ["--weights", weights, "--out", out, "--device", "cpu", "--num-steps", 2, "--prior-steps", 2, "--batch-size",
            2, "--timestep", 300, *flags]
    return [str(a) for a in argv]


def run(weights, out, *flags):
    """Exit code of `python featviz.py`."""
    try:
        return featviz.main(short(weights, out, *flags))
    except SystemExit as e:                                     # argparse's own way out
        return e.code


@pytest.fixture(scope="module")
def once(weights, tmp_path_factory, loaded_once):
    """Results of a run with --seed 5."""
    out = tmp_path_factory.mktemp("once") / "out"
    assert run(weights, out, "--seed", 5) == 0
    return out


@pytest.fixture
def own(weights, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(weights, tmp_path / "tiny")


def files(folder):
    """{path below the folder: bytes}."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stems(out):
    """The paths of all results below a folder, without suffix."""
    return sorted(name.removesuffix(".png") for name in files(out) if re.search(r"t\d{4}[^/]*/seed_\d+\.png$", name))


def record(out, stem="tiny/feature_00003/t0300*/seed_5"):
    found, = out.glob(f"{stem}.json")
    return json.loads(found.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refused(capsys, code, *fragments):
    """Exit code 2 and exactly one line on stderr, which holds the fragments."""
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and re.fullmatch(r"featviz: [^\n]+\n", captured.err), captured.err
    for fragment in fragments:
        assert fragment in captured.err, (fragment, captured.err)


# --- from flag to page ------------------------------------------------------------------------------------------------

def test_without_flags_the_weights_own_feature_and_time_step_with_the_methods_seeds(weights, out, capsys):
    assert featviz.main(["--weights", str(weights), "--out", str(out), "--device", "cpu"]) == 0
    expected = [f"tiny/feature_00003/t0300/seed_{seed}" for seed in SEEDS]
    beside = {f"tiny/feature_00003/{name}" for name in ("activity.json", "index.html")}
    assert files(out).keys() == {f"{stem}.{kind}" for stem in expected for kind in KINDS} | beside
    *lines, conclusion, last = capsys.readouterr().out.splitlines()
    made = record(out, expected[0])
    said = [f"{name} {one['verdict']}, activation {one['scores']['activation']:.4f}, rank {one['scores']['rank']}"
            for name, one in (("ascent", made), ("finished", made["finished"]))]         # two pictures, two verdicts
    assert f"{out / expected[0]}.png: start {made['scores']['activation_start']:.4f}; {'; '.join(said)}" in lines
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(f"{out / stem}.png" for stem in expected)
    assert "feature 3" in conclusion and last == f"look at {out}/tiny/feature_00003/index.html"
    latents = load_file(out / f"{expected[0]}.safetensors")
    assert {name: (z.shape, z.dtype) for name, z in latents.items()} == dict.fromkeys(
        ("latent", "finished"), ((4, 8, 8), torch.float32))
    with Image.open(out / f"{expected[0]}.finished.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_features_by_range_time_steps_and_seeds_end_in_one_line_and_the_atlas(weights, out, capsys):
    assert run(weights, out, "--feature", "0-1", 63, 1, "--timestep", 0, 999, "--seed", 1, 1, *QUICK_START) == 0
    folders = [f"tiny/feature_{f:05d}" for f in (0, 1, 63)]
    assert [re.sub("-[0-9a-f]{8}", "", stem) for stem in stems(out)] == [
        f"{folder}/t{t:04d}/seed_1" for folder in folders for t in (0, 999)]
    assert all((out / name / "index.html").exists() for name in ("tiny", *folders))
    console = capsys.readouterr().out
    assert console.endswith(f"\nlook at {out}/tiny/index.html\n") and console.count("look at") == 1


def test_features_by_their_label_and_all_that_are_live_in_shares(own, out, capsys):
    labels = {"7": "cat", "9": {"word": "Cat"}, "12": "dog"}
    (own / PATHS["sae"][0]).with_name("labels.json").write_text(json.dumps(labels))
    assert run(own, out, "--feature", "cat", "--seed", 5, *QUICK_START) == 0
    assert run(own, out, "--feature", "live", "--shard", "1/32", "--seed", 5, *QUICK_START) == 0
    assert {stem[:18] for stem in stems(out)} == {f"tiny/feature_{f:05d}" for f in (1, 7, 9, 33)}
    capsys.readouterr()
    refused(capsys, run(own, out, "--feature", "cot"), "--feature cot: ", "labels no feature so; nearest: cat, ")


def test_a_channel_needs_no_sae_and_any_attention_will_do(tmp_path, out):
    bare = write_model(tmp_path / "bare", sae=None)
    edit_json(bare / "featviz.json", presets={"raw": QUICK | {"prior": "noise"}})
    assert run(bare, out, "--channel", 31, "--seed", 5) == 0
    assert run(bare, out, "--channel", 1, "--seed", 5, "--hook-point", "unet.mid_block.attentions.0") == 0
    assert stems(out) == ["bare/channel_0031/t0300/seed_5", "bare/mid_block.attentions.0_channel_0001/t0300/seed_5"]
    made = record(out, "bare/channel_0031/t0300/seed_5")
    assert made["recipe"]["job"] == {"kind": "channel", "target": 31, "timestep": 300, "seed": 5} and made["fit"] == ""
    config = made["recipe"]["config"]
    assert (config["total_variation_weight"], config["moment_weight"]) == (0.5, 0.0)            # the preset raw's
    assert config["steer_scale"] == 2.0                         # featviz.json comes before the preset


def test_a_direction_from_a_file_is_kept_under_its_name(weights, tmp_path, out, capsys):
    file = tmp_path / "probe.safetensors"
    command = (weights, out, "--seed", 5, "--direction", file)
    vectors = {"cat": torch.randn(32, generator=torch.Generator().manual_seed(0)), "dog": torch.ones(32)}
    save_file(vectors, file)
    assert run(*command, "cat", *QUICK_START) == 0 and len(stems(out)) == 1
    assert record(out, "tiny/direction_cat/t0300*/seed_5")["recipe"]["job"]["target"] == "cat"
    assert run(*command, *QUICK_START) == 0 and len(stems(out)) == 2
    assert "1 of 2 results are there already" in capsys.readouterr().err
    save_file(vectors | {"cat": torch.ones(32)}, file)          # another vector under the same name
    assert run(*command, "cat", *QUICK_START) == 0
    assert "1 results were made with other weights or other code and are computed again" in capsys.readouterr().err
    refused(capsys, run(*command, "cow"), "holds no 'cow'; there are cat, dog")


def test_a_record_holds_recipe_scores_verdicts_and_the_fit_checks_warning(weights, out, capsys):
    """The PNG carries the same recipe; no date anywhere."""
    flags = [part for name, value in GIVEN.items() for part in (
        [flag("no_" * (value is False) + name)] if isinstance(value, bool) else
        [flag(name), *(value if isinstance(value, list) else [value])])]
    assert GIVEN.keys() == {field.name for field in dataclasses.fields(Config)}
    assert run(weights, out, "--seed", 5, *flags) == 0
    made, recipe = record(out), record(out)["recipe"]
    assert recipe["job"] == {"kind": "feature", "target": 3, "timestep": 300, "seed": 5}
    assert recipe["config"] == GIVEN and recipe["code"] == results.method_code()
    usual = dataclasses.asdict(Config()) | QUICK
    assert recipe["differs"] == {name: value for name, value in GIVEN.items() if usual[name] != value}
    assert [recipe[k] for k in ("hook_point", "weights", "device", "dtype")] == [HOOK, "tiny", "cpu", "float32"]
    read = {name for name in files(weights) if not name.startswith("activity/")} | {"activity.safetensors"}
    assert recipe["fingerprints"].keys() == read
    assert made["fit"].startswith("UNet and SAE do not belong together")                        # random numbers
    assert f"warning: {made['fit']}" in capsys.readouterr().err.splitlines()
    for part in (made, made["finished"]):
        assert set(SCORES) <= part["scores"].keys() and part["verdict"] and len(part["others"]) == 10
    curves = results.read_result(next(out.rglob("seed_5.json"))).curves()
    assert {len(values) for values in curves["history"].values()} == {1} and curves["history"].keys() >= {
        "activation", "gradient_norm", "update_norm", "total_variation", "range", "moment"}
    for path in out.rglob("seed_5*.png"):
        with Image.open(path) as picture:
            assert json.loads(picture.text["featviz"]) == recipe


def test_a_second_run_computes_nothing_and_other_settings_have_another_folder(weights, once, out, capsys, monkeypatch):
    before = files(shutil.copytree(once, out))
    with monkeypatch.context() as patch:
        patch.setattr("visualize.run", lambda *_: pytest.fail("an existing result was computed again"))
        for frames in (8, 2, 0):                                # fewer pictures of the course are part of more
            assert run(weights, out, "--seed", 5, "--frames", frames) == 0 and files(out) == before
    assert "1 of 1 results are there already" in capsys.readouterr().err
    for flags in (("--num-steps", 3), ("--dtype", "bfloat16", "--no-finish", "--prior", "noise")):
        assert run(weights, out, "--seed", 5, *flags) == 0
    after = files(out)
    assert {name for name in before if after[name] != before[name]} == {"tiny/feature_00003/index.html"}
    assert {str(record(out, stem)["recipe"]["differs"]) for stem in stems(out)} == {
        "{}", "{'num_steps': 3}", "{'dtype': 'bfloat16', 'finish': False, 'prior': 'noise'}"}
    assert run(weights, out, "--seed", 5, "--frames", 0, "--again") == 0
    assert "tiny/feature_00003/t0300/seed_5.steps.jpg" not in files(out)
    assert files(out)["tiny/feature_00003/t0300/seed_5.png"] == before["tiny/feature_00003/t0300/seed_5.png"]


def test_a_sweep_a_trace_and_a_check(weights, out, capsys):
    """A sweep's results are usual ones on a sheet; a trace has a page and no results; a check writes nothing."""
    assert run(weights, out, "--check", "--sweep", "range_weight=0,0.5") == 0 and not out.exists()
    size, fit = (captured := capsys.readouterr()).out.splitlines()
    assert size.startswith("2 results at ") and "GiB" in size and fit.startswith("fit of ") and captured.err == ""
    assert run(weights, out, "--sweep", "range_weight=0,0.5", "noise=on,off", *QUICK_START) == 0
    sheet = out / "tiny/feature_00003/sweep_range_weight_noise.png"
    assert len(stems(out)) == 4 and f"look at {sheet}\n" in capsys.readouterr().out
    with Image.open(sheet) as grid:
        cells = {grid.crop((x, y, x + TILE, y + TILE)).tobytes() for x in range(GAP, grid.width, TILE + GAP)
                 for y in range(GAP, grid.height)}
    pictures = [tile(path, "").crop((0, 0, TILE, TILE)) for path in out.rglob("seed_*.png")]
    assert all(picture.tobytes() in cells for picture in pictures)
    assert run(weights, out / "b", "--trace", 1, "--seed", 5, *QUICK_START) == 0
    page, = (out / "b").glob("tiny/feature_00003/t0300-*/seed_5_trace/trace.html")
    assert stems(out / "b") == [] and capsys.readouterr().out == f"look at {page}\n"


def test_the_notebooks_door(weights, tmp_path, capsys):
    """The same results as the command's; nothing is printed. Wrong names and numbers: test_visualize.py."""
    model = featviz.load(weights, "cpu")
    result, = featviz.visualize(model, features=[4], seeds=[1], num_steps=2)
    assert model.capture is not None and capsys.readouterr() == ("", "")
    assert run(weights, tmp_path, "--feature", 4, "--seed", 1) == 0
    made = load_file(tmp_path / "tiny/feature_00004/t0300/seed_1.safetensors")
    assert torch.equal(made["latent"], result.latent) and torch.equal(made["finished"], result.finished.latent)


# --- what is wrong with the call --------------------------------------------------------------------------------------

BAD_FLAGS = {       # settings out of range: test_visualize.py
    "--feature 3 64": "has 64 features, 0..63", "--feature 1 --channel 1": "not allowed with argument",
    "--feature 9-3": "'9-3' is no whole number and no range such as 0-199",
    "--timestep all": "argument --timestep: invalid step value: 'all'",
    "--seed -1": "--seed -1 is out of range: ", "--shard 4/4": "argument --shard: invalid shard value: '4/4'",
    "--frames 1": "--frames 0 or 2 to 50, got 2 and 1", "--batch-size 0": "--batch-size must be at least 1",
    "--colour red": "unrecognized arguments: --colour red", "--device tpu": "--device tpu: ",
    "--hook-point up_blocks.1.attention.1": "nearest: up_blocks.1.attentions.1",
    "--hook-point mid_block.attentions.0 --feature 3": "sae: is missing for mid_block.attentions.0",
    "--trace 2": "--trace: the ascent has steps 0..1", "--sweep steps=1": "--sweep: invalid axis value: 'steps=1'",
    "--sweep noise=maybe": "argument --sweep: invalid axis value: 'noise=maybe'",
    "--num-steps 1.5": "argument --num-steps: invalid int value", "--preset best": "--preset: invalid choice: 'best'",
    "--learning-rate nan": "--learning-rate must be a number of", "--prior dream": "--prior must be one of steer, ",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_a_wrong_flag_ends_in_one_line(flags, weights, out, capsys):
    refused(capsys, run(weights, out, *flags.split(" ")), BAD_FLAGS[flags])
    assert not out.exists()


@pytest.mark.parametrize("wrong, says", [(dict(feature=99), "--feature 99 is out of range"), (
    dict(presets={"sae": {"steer_scale": "1"}}), "--steer-scale must be a number")])
def test_wrong_settings_of_weights_end_in_one_line(wrong, says, own, out, capsys):
    edit_json(own / "featviz.json", **wrong)
    refused(capsys, run(own, out), says)
    assert not out.exists()


@pytest.mark.parametrize("asked", [False, True, None])
def test_the_toys_range_comes_first_then_the_fetch_where_the_number_fits(asked, weights, own, out, capsys, monkeypatch):
    """Only without --weights, and at a terminal as a question; None: the process has no stdin."""
    fetched = []

    def declined(bundle):
        fetched.append(bundle)
        raise ValueError("nothing was downloaded")

    monkeypatch.setattr(fetch, "ROOT", own.rename(own.with_name("toy")).parent)
    monkeypatch.setattr(fetch, "fetch", declined)
    monkeypatch.setattr(sys, "stdin", None if asked is None else SimpleNamespace(isatty=lambda: asked))
    call = lambda *more: featviz.main(["--out", str(out), "--device", "cpu", *more])
    assert call("--feature", "200") == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert "--feature 200: the toy has 64 features, 0..63; Stable Diffusion's SAE has 20480, 0..20479" in first
    assert ("python weights/fetch.py style50" in first) != bool(asked) and fetched == ["style50"] * bool(asked)
    refused(capsys, call("--feature", "20480"), "--feature 20480 is out of range: ", "toy has 64 features, 0..63")
    refused(capsys, call("--weights", str(weights), "--feature", "200"), "tiny has 64 features, 0..63")
    assert len(fetched) == bool(asked) and not out.exists()


def test_help_and_wrong_flags_need_no_torch(tmp_path):
    """So they are answered in a fraction of a second; a run says how to install it."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    call = lambda *flags: subprocess.run([sys.executable, "featviz.py", *flags], cwd=results.PROJECT, text=True,
                                         capture_output=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    shown = call("--help")
    assert (shown.returncode, shown.stderr) == (0, "") and "SUPPRESS" not in shown.stdout
    for name in (*map(flag, GIVEN), "--feature", "--channel", "--timestep", "--seed", "--weights", "--trace"):
        assert f"  {name} " in shown.stdout or f"  {name}," in shown.stdout, name
    for flags, says in ((("--jitter", "x"), "argument --jitter-max: "), (("--num-steps", "0"), "must be at least 1"),
                        ((), "torch is not installed; pip install -r requirements.txt")):
        refusal = call(*flags)
        assert refusal.returncode == 2 and says in refusal.stderr and refusal.stderr.count("\n") == 1, refusal.stderr


# --- on the way -------------------------------------------------------------------------------------------------------

def test_an_ascent_that_leaves_the_numbers_says_so(weights, out, capsys):
    """A decay of 1e12 a step ends in infinities: the record says so and is still JSON, the latent is finite."""
    assert run(weights, out, "--seed", 5, "--learning-rate", 1e6, "--weight-decay", 1e6, "--num-steps", 4, "--prior",
               "noise") == 2
    assert record(out)["verdict"] == "non-finite at step 2"
    assert load_file(next(out.rglob("seed_5.safetensors")))["latent"].isfinite().all()
    assert capsys.readouterr().err.splitlines()[-1].startswith("featviz: 1 of 1 ascents met NaN or infinite values")


def test_progress_is_a_line_a_phase_with_the_time_that_is_left(capsys, monkeypatch):
    """Two batches of 10 sampling steps, 100 of the ascent and none of the finish, where a step of the ascent takes two
    seconds: 210 s each. Without a terminal a line every ten seconds, and the last of each phase."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    show, step = progress.Progress({"sampling": 10, "ascent": 100, "finish": 0}, 2), SimpleNamespace(
        activation=torch.ones(2))
    for phase, seconds, n in (("sampling", 1, 10), ("ascent", 2, 100)):
        for _ in range(n):
            clock[0] += seconds
            show(phase, step if phase == "ascent" else None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "batch 1 of 2, sampling step 10 of 10, 410 s left" and len(lines) == 21
    assert lines[1] == "batch 1 of 2, ascent step 5 of 100, activation 1.000, 400 s left"
    assert lines[-1] == "batch 1 of 2, ascent step 100 of 100, activation 1.000, 210 s left"
    monkeypatch.setattr(sys, "stderr", None)                    # as where a program has no console
    show("sampling", None)
