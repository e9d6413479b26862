"""The command line, run in this process on the tiny model: files out, exit codes, and one line for whatever is wrong.
"""
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import featviz
from command import progress
from weights import disk
import ascent
import finish
from pages import files as results
from config import SEEDS, Config
from tests.tiny import HOOK, PATHS, QUICK, edit_json, write_model
from weights.quick import emulated

SHOWN = ("sheet.png", "index.html")
KINDS = ("png", "safetensors", "finished.png", "steps.jpg", "json")    # files of a result, in the order of writing
FLAGS = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(Config)]


pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")


def run(weights, out, *flags):
    """Exit code of `python featviz.py` with two steps of everything."""
    short = ["--num-steps", 2, "--prior-steps", 2, "--batch-size", 2, "--timestep", 300]
    argv = ["--weights", weights, "--out", out, "--device", "cpu", *short, *flags]
    try:
        return featviz.main([str(a) for a in argv])
    except SystemExit as e:                                     # argparse's own way out
        return e.code


@pytest.fixture(scope="module")
def once(weights, tmp_path_factory, one_thread, loaded_once):
    """Results of a run with --seed 5."""
    out = tmp_path_factory.mktemp("once") / "out"
    assert run(weights, out, "--seed", 5) == 0
    return out


@pytest.fixture
def made(once, out):
    """--out as that run left it, for a test to change."""
    return shutil.copytree(once, out)


def files(folder):
    """{path below the folder: bytes}."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()} if folder.exists() else {}


def record(out, path="tiny/feature_00003/t0300*/seed_5"):
    """The only record of this name; of usual settings it lies in t0300."""
    found, = out.glob(f"{path}.json")
    return json.loads(found.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refused(capsys, code, *fragments):
    """Exit code 2 and exactly one line on stderr, which holds the fragments."""
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("featviz: ") and captured.err.count("\n") == 1 and captured.err.endswith("\n"), (
        captured.err
    )
    for fragment in fragments:
        assert fragment in captured.err, (fragment, captured.err)


# --- success ---------------------------------------------------------------------------------------------------------

def test_the_weights_own_feature_and_time_step_with_the_method_s_seeds(tmp_path, out, capsys):
    """Of weights without a capture."""
    weights = write_model(tmp_path / "tiny", activity=None)
    edit_json(weights / "featviz.json", presets={"sae": QUICK | {"prior": "noise"}})
    assert featviz.main([str(a) for a in ("--weights", weights, "--out", out)]) == 0
    stems = [f"tiny/feature_00003/t0300/seed_{seed}" for seed in SEEDS]
    expected = {f"{stem}.{kind}" for stem in stems for kind in KINDS}
    assert files(out).keys() == expected | {f"tiny/feature_00003/{name}" for name in ("sheet.png", "index.html")}
    stdout = capsys.readouterr().out
    assert (
        all(f"{out / stem}.png: " in stdout for stem in stems)
        and f"look at {out}/tiny/feature_00003/index.html, or print {out}/tiny/feature_00003/sheet.png" in stdout
    )
    latents = load_file(out / f"{stems[0]}.safetensors")
    assert latents.keys() == {"latent", "finished"}
    assert all(z.shape == (4, 8, 8) and z.dtype == torch.float32 for z in latents.values())
    with Image.open(out / f"{stems[0]}.png") as picture:
        assert picture.size == (32, 32) and picture.mode == "RGB"


def test_several_features_time_steps_and_seeds(weights, out):
    assert run(weights, out, "--feature", 0, 63, "--timestep", 0, 999, "--seed", 1, 2, "--batch-size", 3) == 0
    expected = {f"tiny/feature_{f:05d}/t{t:04d}/seed_{s}.json" for f in (0, 63) for t in (0, 999) for s in (1, 2)}
    assert {name for name in files(out) if name.endswith(".json")} == expected | {f"tiny/feature_{f:05d}/activity.json"
                                                                                  for f in (0, 63)}
    assert {name for name in files(out) if name.endswith("sheet.png")} == {f"tiny/feature_{f:05d}/sheet.png"
                                                                           for f in (0, 63)}


def test_raw_channels_take_the_raw_preset(weights, out):
    assert run(weights, out, "--channel", 31, "--seed", 5) == 0
    made = record(out, "tiny/channel_0031/t0300/seed_5")["recipe"]
    assert made["job"] == {"feature": None, "channel": 31, "timestep": 300, "seed": 5}
    assert made["config"]["total_variation_weight"] == 0.5 and made["config"]["moment_weight"] == 0.0
    assert made["config"]["steer_scale"] == 2.0                 # featviz.json's word over the preset's


def test_the_record_holds_recipe_fingerprints_scores_and_verdict(weights, out):
    """Every setting by name, also those nobody gave; the PNG carries the same recipe; no date anywhere."""
    assert run(weights, out, "--seed", 5, "--learning-rate", 0.125, "--no-noise") == 0
    made = record(out)
    assert made.keys() == {"recipe", "verdict", "scores", "history", "others", "nearest_channel", "heat",
                           "stored_steps", "finished",
                            "sha256", "bytes"}
    assert made["finished"].keys() == {"verdict", "scores", "history", "others", "heat"}
    assert made["finished"]["scores"]["finish_scale"] == 0.4 and len(made["finished"]["history"]["activation"]) == 2
    recipe = made["recipe"]
    assert recipe["job"] == {"feature": 3, "channel": None, "timestep": 300, "seed": 5}
    given = QUICK | dict(learning_rate=0.125, noise=False)
    assert recipe["differs"] == dict(learning_rate=0.125, noise=False) and recipe["code"] == results.method_code()
    assert recipe["config"] == dataclasses.asdict(Config(**given))
    assert recipe["hook_point"] == HOOK and recipe["weights"] == "tiny" and recipe["torch"] == torch.__version__
    assert (recipe["device"], recipe["dtype"]) == ("cpu", "float32")
    read = {name for name in files(weights) if not name.startswith("activity/")} | {"activity.safetensors"}
    assert recipe["fingerprints"].keys() == read and all(len(h) == 64 for h in recipe["fingerprints"].values())
    assert made["verdict"] in ("silent", "weak", "fragile", "raised", "excited")
    assert {"activation_start", "activation", "activation_no_noise", "activation_reencoded",
            "rank"} <= made["scores"].keys()
    assert all(len(curve) == 2 for curve in made["history"].values())
    assert {"activation", "range", "moment", "gradient_norm"} <= made["history"].keys()
    for name in ("seed_5.png", "seed_5.finished.png"):
        with Image.open(next(out.glob(f"tiny/feature_00003/t0300-*/{name}"))) as picture:
            assert json.loads(picture.text["featviz"]) == recipe


def test_a_second_run_computes_nothing_and_changes_nothing(weights, made, capsys, monkeypatch):
    before = files(made)
    with monkeypatch.context() as patch:
        patch.setattr(ascent, "run_batch", lambda *_: pytest.fail("an existing result was computed again"))
        assert run(weights, made, "--seed", 5) == 0
    assert files(made) == before and "1 of 1 results are there already" in capsys.readouterr().err


def test_the_same_settings_give_the_same_bytes_elsewhere(weights, once, out):
    assert run(weights, out, "--seed", 5) == 0
    assert files(out) == files(once)


def test_only_what_changed_is_computed_again(weights, made, out):
    first = files(made)
    assert run(weights, out, "--seed", 1, 5) == 0               # one seed more
    second = files(out)
    assert all(second[name] == data for name, data in first.items()
               if "seed_5." in name) and len(second) == len(first) + len(KINDS)
    assert run(weights, out, "--seed", 5, "--num-steps", 3) == 0
    third = files(out)
    made = record(out, "tiny/feature_00003/t0300-*/seed_5")
    assert made["recipe"]["config"]["num_steps"] == 3 and len(made["history"]["activation"]) == 3
    assert {name for name in second if third[name] != second[name]} == {f"tiny/feature_00003/{name}" for name in SHOWN}


def test_results_of_other_settings_have_a_folder_of_their_own_that_says_which(weights, made, out):
    """Nothing is overwritten, whatever runs after it; the same settings come to the same folder."""
    bare = ("--dtype", "bfloat16", "--no-finish", "--prior", "noise")           # half precision is slow on a CPU
    for flags in (("--num-steps", 3), ("--no-spectral-filter",), bare, ("--num-steps", 3)):
        assert run(weights, out, "--seed", 5, *flags) == 0
    folders = sorted((out / "tiny/feature_00003").glob("t0300*"))
    assert len(folders) == 4 and all((folder / "seed_5.json").exists() for folder in folders)
    assert {(f / "settings.txt").read_text() for f in folders if f.name != "t0300"} == {
        "num_steps: 3\n", "spectral_filter: False\n", "prior: noise\nfinish: False\ndtype: bfloat16\n"}


def test_a_precision_that_the_processor_only_emulates_is_told(weights, out, capsys, monkeypatch):
    for lacks in (False, True):
        monkeypatch.setattr("command.device.emulated", lambda dtype: lacks and dtype == torch.bfloat16)
        for dtype in ("bfloat16", "float32"):
            assert featviz.main(["--weights", str(weights), "--out", str(out), "--check", "--dtype", dtype]) == 0
            told = "--dtype bfloat16: this processor has no instructions for it" in capsys.readouterr().err
            assert told == (dtype == "bfloat16" and lacks)
    assert not emulated(torch.float32) and emulated(torch.bfloat16) != torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_what_pixels_gave_lies_beside_what_the_latent_gave(weights, made, out, capsys):
    """In a folder of its own; a second run takes it as it is; page and sheet show both, and the command of each."""
    before = files(made)
    assert run(weights, out, "--seed", 5, "--space", "pixel") == 0
    path, = out.glob("tiny/feature_00003/t0300-*/seed_5.json")
    assert (path.parent / "settings.txt").read_text() == "space: pixel\n"
    after, recipe = files(out), record(out, "tiny/feature_00003/t0300-*/seed_5")["recipe"]
    assert {name for name in before if after[name] != before[name]} == {f"tiny/feature_00003/{name}" for name in SHOWN}
    assert recipe["config"] == dataclasses.asdict(Config(**QUICK, space="pixel"))
    latents = load_file(path.with_suffix(".safetensors"))
    assert latents["latent"].shape == latents["finished"].shape == (4, 8, 8)
    page = (out / "tiny/feature_00003/index.html").read_text()
    assert page.count("<h3") and "--space pixel" in page and "--seed 5 --device cpu --space pixel" in page
    with Image.open(out / "tiny/feature_00003/sheet.png") as two, Image.open(made / "tiny/feature_00003/sheet.png"):
        assert two.height
    capsys.readouterr()
    assert run(weights, out, "--seed", 5, "--space", "pixel") == 0
    assert files(out) == after and "1 of 1 results are there already" in capsys.readouterr().err


def test_a_trace_is_of_the_latent(weights, out, capsys):
    refused(capsys, run(weights, out, "--space", "pixel", "--trace", 0), "--trace opens up steps of the latent; leave")
    assert files(out) == {}


def test_what_other_code_made_is_made_anew_or_kept(weights, made, out, capsys, monkeypatch):
    """Comments and docstrings are no other code. --again makes anew in any case."""
    before, stamps = files(out), lambda: (out / "tiny/feature_00003/t0300/seed_5.json").stat().st_mtime_ns
    then = stamps()
    monkeypatch.setattr(results, "method_code", lambda: "other")
    assert run(weights, out, "--seed", 5, "--keep") == 0 and stamps() == then
    assert run(weights, out, "--seed", 5) == 0 and stamps() > then
    assert "1 results were made with another code and are made anew; --keep takes" in capsys.readouterr().err
    assert record(out)["recipe"]["code"] == "other"
    monkeypatch.undo()
    then = stamps()
    assert run(weights, out, "--seed", 5, "--again") == 0 and stamps() > then and files(out) == before


def test_the_fingerprint_of_the_code_sees_code_alone(tmp_path, monkeypatch):
    for name in results.METHOD:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(results.PROJECT / f"{name}.py", tmp_path / f"{name}.py")
    text = (tmp_path / "ascent.py").read_text()
    monkeypatch.setattr(results, "PROJECT", tmp_path)
    prints = []
    for changed in (text, text + "\n# a comment\n", text.replace('"""AdamW', '"""The AdamW'),
                    text.replace("lerp(g, 1 -", "lerp(g, 2 -")):
        (tmp_path / "ascent.py").write_text(changed)
        results.method_code.cache_clear()
        prints.append(results.method_code())
    results.method_code.cache_clear()
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_other_frames_are_made_again_only_where_some_are_lacking(weights, out, capsys):
    """The result itself stays the same; without frames there is no strip, and fewer are part of more."""
    kept = out / "tiny/feature_00003/t0300/seed_5.steps.jpg"
    assert run(weights, out, "--seed", 5, "--frames", 0) == 0
    plain = files(out)
    assert record(out)["stored_steps"] == [] and not kept.exists()
    assert run(weights, out, "--seed", 5, "--num-steps", 2, "--frames", 2) == 0
    assert record(out)["stored_steps"] == [0, 2] and Image.open(kept).size == (64, 32)
    same = ("seed_5.png", "seed_5.safetensors", "seed_5.finished.png")
    assert all(files(out)[name] == data for name, data in plain.items() if name.endswith(same))
    assert run(weights, out, "--seed", 5) == 0                  # the default asks for step 1 as well
    assert record(out)["stored_steps"] == [0, 1, 2] and Image.open(kept).size == (96, 32)
    whole = files(out)
    for fewer in (0, 2):
        capsys.readouterr()
        assert run(weights, out, "--seed", 5, "--frames", fewer) == 0
        assert files(out) == whole and "1 of 1 results are there already" in capsys.readouterr().err
    assert run(weights, out, "--seed", 5, "--frames", 0, "--again") == 0
    assert not kept.exists()                                    # an older strip does not stay beside another result


def test_other_weights_under_the_same_name_are_computed_again(made, out, tmp_path):
    first = record(out)
    assert run(write_model(tmp_path / "tiny", seed=1), out, "--seed", 5) == 0
    assert record(out)["recipe"]["fingerprints"] != first["recipe"]["fingerprints"]
    assert record(out)["scores"] != first["scores"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_lost_a_file_is_computed_again(kind, weights, made, out):
    before = files(out)
    (out / f"tiny/feature_00003/t0300/seed_5.{kind}").unlink()
    assert run(weights, out, "--seed", 5) == 0
    assert files(out) == before


def test_a_file_that_was_not_touched_since_its_record_is_not_read(made, monkeypatch):
    """Any other is: of the same size and with its time set back, too; and one that is too short, however old."""
    stem = made / "tiny/feature_00003/t0300/seed_5"
    text, png, recipe = (stem.with_suffix(".json").read_text(), stem.with_suffix(".png").read_bytes(),
                         record(made)["recipe"])

    def last():                                                 # the record comes last, as in a run
        time.sleep(0.02)
        stem.with_suffix(".json").write_text(text)

    last()
    with monkeypatch.context() as patch:
        patch.setattr(results, "sha256", lambda data: pytest.fail("a file was read"))
        assert results.lacking(made, recipe) == ""
    times = stem.with_suffix(".png").stat()
    for changed, then, why in ((png[:-1] + b"?", lambda: None, "broken"), (png, lambda: None, ""),
                               (png[:-1], last, "broken")):
        stem.with_suffix(".png").write_bytes(changed)
        os.utime(stem.with_suffix(".png"), ns=(times.st_atime_ns, times.st_mtime_ns))
        then()
        assert results.lacking(made, recipe) == why


def test_a_record_is_read_without_its_curves(once, tmp_path):
    """They are cut out of the text that a run writes; of any other layout all is read."""
    path, changed = next(once.rglob("seed_5.json")), tmp_path / "changed.json"
    whole = json.loads(path.read_text())
    without = lambda made: {k: v for k, v in made.items() if k not in ("heat", "history")}
    assert results.read_without(path, results.CURVES) == without(whole) | {"finished": without(whole["finished"])}
    lone, empty = whole | {"finished": None}, whole | {"finished": None, "heat": [], "history": {}}
    for made, indent, expected in ((whole, None, whole), (lone, 1, without(lone)), (empty, 1, empty)):
        changed.write_text(json.dumps(made, indent=indent, sort_keys=True) + "\n")
        assert results.read_without(changed, results.CURVES) == expected


def test_files_appear_whole_and_the_record_last(weights, out, monkeypatch):
    """Each file is renamed into place; when the JSON is, the others lie there."""
    order, replace = [], os.replace

    def watch(source, target):
        order.append(os.path.basename(target))
        assert str(source) == f"{target}.partial"
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", watch)
    assert run(weights, out, "--seed", 5) == 0
    assert [name for name in order if "seed" in name] == [f"seed_5.{kind}" for kind in KINDS]


def test_foreign_files_among_the_results_do_no_harm(weights, made):
    """Neither a record that is no JSON nor one whose picture is gone keeps the sheet from being drawn."""
    (made / "tiny/feature_00003/t0300/seed_5.png").unlink()
    (made / "tiny/feature_00003/t0300/seed_9.json").write_text("{")
    (made / "tiny/feature_00003/t0300/seed_1.json").write_text("[]")
    assert run(weights, made, "--seed", 1) == 0


def test_check_measures_and_writes_nothing(weights, out, capsys):
    assert run(weights, out, "--check", "--seed", 5) == 0
    captured = capsys.readouterr()
    memory, measured, fit = captured.out.splitlines()
    assert measured.startswith("1 results at ") and str(weights) in measured and captured.err == ""
    assert memory.startswith("tiny: unet 0.6 M, vae 0.0 M") and "the weights take 3 MiB in float32" in memory
    assert fit.startswith("fit of UNet and SAE: ") and "do not belong together" in fit      # random numbers
    assert not out.exists()


def test_check_tells_what_quick_would_take(weights, out, capsys):
    for flags in (("--num-steps", 4000), ("--preset", "quick", "--num-steps", 40)):
        assert run(weights, out, "--check", "--seed", 5, *flags) == 0
    whole, fewer = (line for line in capsys.readouterr().out.splitlines() if line.startswith("1 results at "))
    own, quick = map(int, re.search(r"about (\d+) s \((\d+) s with --preset quick\)", whole).groups())
    assert own > 3 * quick and "--preset" not in fewer


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        featviz.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "SUPPRESS" not in text
    for flag in (*FLAGS, "--feature", "--channel", "--timestep", "--seed", "--weights", "--device", "--preset", "--out",
                 "--check"):
        assert f"  {flag} " in text or f"  {flag}," in text, flag


# --- what is wrong with the call -------------------------------------------------------------------------------------

BAD_FLAGS = {
    "--feature 64": "--feature 64 is out of range: ",
    "--feature -1": "--feature -1 is out of range: ",
    "--feature 3 64": "has 64 features, 0..63",
    "--feature x": "argument --feature: invalid whole number or 'live' value: 'x'",
    "--timestep all": "argument --timestep: invalid whole number or 'auto' or 'active' value: 'all'",
    "--channel 32": "--channel 32 is out of range: ",
    "--channel -1": "has 32 channels, 0..31",
    "--feature 1 --channel 1": "not allowed with argument",
    "--timestep 1000": "--timestep 1000 is out of range: time steps are 0..999",
    "--timestep -1": "--timestep -1 is out of range",
    "--seed -1": "--seed -1 is out of range",
    f"--seed {2 ** 63}": "is out of range: seeds are 0..",
    "--frames 1": "--frames must be 0 or between 2 and 50, got 1",
    "--frames 51": "--frames must be 0 or between 2 and 50, got 51",
    "--batch-size 0": "--batch-size must be at least 1, got 0",
    "--colour red": "unrecognized arguments: --colour red",
    "--preset best": "argument --preset: invalid choice: 'best'",
    "--dtype float8": "argument --dtype: invalid choice",
    "--device tpu": "--device tpu: ",
    "--num-steps 0": "--num-steps must be at least 1",
    "--num-steps 1.5": "argument --num-steps: invalid int value",
    "--learning-rate 0": "--learning-rate must be above 0",
    "--learning-rate nan": "--learning-rate must be a number of size 1e+06 at most",
    "--learning-rate 1e38": "--learning-rate must be a number of size 1e+06 at most",
    "--beta1 1": "--beta1 must be between 0 and 1",
    "--beta2 -0.5": "--beta2 must be between 0 and 1",
    "--epsilon 0": "--epsilon must be above 0",
    "--weight-decay -1": "--weight-decay must be at least 0",
    "--total-variation-weight -1": "--total-variation-weight must be at least 0",
    "--range-weight -0.1": "--range-weight must be at least 0",
    "--moment-weight -0.1": "--moment-weight must be at least 0",
    "--rotate-max -5": "--rotate-max must be at least 0",
    "--finish-from 1000": "--finish-from must be between 1 and 999",
    "--finish-steps 601": "--finish-steps must be between 1 and --finish-from, 600",
    "--finish-scale -1": "--finish-scale must be at least 0, or auto",
    "--finish-scale much": "argument --finish-scale: invalid number or 'auto' value: 'much'",
    "--range-weight inf": "--range-weight must be a number of size 1e+06 at most",
    "--gradient-smoothing-kernel-size 8": "--gradient-smoothing-kernel-size must be odd and below 16",
    "--gradient-smoothing-kernel-size 17": "--gradient-smoothing-kernel-size must be odd and below 16",
    "--gradient-smoothing-kernel-size -1": "--gradient-smoothing-kernel-size must be odd",
    "--jitter-max -1": "--jitter-max must be between 0 and 64",
    "--scale-max 0": "--scale-max must be above 0",
    "--space image": "argument --space: invalid choice: 'image'",
    "--prior dream": "argument --prior: invalid choice: 'dream'",
    "--prior-sampler euler": "argument --prior-sampler: invalid choice: 'euler'",
    "--prior-steps 0": "--prior-steps must be between 1 and 999",
    "--prior-steps 1001": "--prior-steps must be between 1 and 999",
    "--steer-scale nan": "--steer-scale must be a number of size 1e+06 at most",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(flags, weights, out, capsys):
    refused(capsys, run(weights, out, *flags.split()), BAD_FLAGS[flags])
    assert files(out) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(weights, out, capsys):
    refused(capsys, run(weights, out, "--device", "cuda"), "--device cuda: no CUDA device", "use --device cpu")
    assert files(out) == {}


def test_every_other_flag_is_accepted(weights, out):
    """Every setting at once with values of its own, and they arrive in the recipe."""
    given = dict(space="pixel", num_steps=1, learning_rate=0.02, beta1=0.5, beta2=0.9, epsilon=1e-6, weight_decay=0.1,
                 total_variation_weight=0.3,
                 range_weight=0.2, range_threshold=2.0, moment_weight=0.1, gradient_smoothing_sigma_start=0.8,
                 gradient_smoothing_sigma_end=0.2, gradient_smoothing_kernel_size=5, jitter_max=8, rotate_max=15.0,
                 scale_max=1.2,
                 spectral_filter=False, noise=False, silent_gradient=False, prior="noise", prior_steps=3,
                 prior_sampler="ddim",
                 steer_scale=7.0, steer_steps="all", finish=True, finish_from=500, finish_scale="auto", finish_steps=3)
    assert given.keys() == {field.name for field in dataclasses.fields(Config)}
    flags = [part for name, value in given.items() for part in (
        [f"--no-{name}".replace("_", "-")] if value is False else [f"--{name}".replace("_", "-"),
                                                                   value][:1 + (value is not True)])]
    assert run(weights, out, "--seed", 5, *flags) == 0
    assert record(out)["recipe"]["config"] == given


# --- what is wrong with the weights ----------------------------------------------------------------------------------

def cut(folder):
    path = folder / PATHS["unet"][1]
    path.write_bytes(path.read_bytes()[:-1000])


BAD_WEIGHTS = {     # name: (damage, flags, fragment)
    "no folder": (shutil.rmtree, [], "is no model folder"),
    "truncated": (cut, [], "is not a whole safetensors file"),
    "no SAE": (lambda f: shutil.rmtree(f / "sae"), ["--feature", "3"], "sae: not there, and this needs it"),
    "a setting that does not exist": (lambda f: edit_json(f / "featviz.json", presets={"sae": {"steer": 1}}),
                                      [], "sets 'steer', which"),
    "a setting of the wrong kind": (lambda f: edit_json(f / "featviz.json", presets={"sae": {"steer_scale": "1"}}), [],
                                    "--steer-scale must be a number of size 1e+06 at most, got '1'"),
    "a default feature that does not exist": (lambda f: edit_json(f / "featviz.json", feature=99),
                                              [], "--feature 99 is out of range"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name, weights, out, tmp_path, capsys):
    damage, flags, fragment = BAD_WEIGHTS[name]
    folder = shutil.copytree(weights, tmp_path / "tiny")
    damage(folder)
    refused(capsys, run(folder, out, *flags), fragment)
    assert files(out) == {}


# --- what is wrong with the disk -------------------------------------------------------------------------------------

def test_a_file_in_the_way_of_out(weights, out, capsys):
    out.write_text("mine")
    refused(capsys, run(weights, out), str(out), "give another --out")
    assert out.read_text() == "mine"


def full_disk_after(monkeypatch, writes):
    """The disk takes so many files, then no more."""
    left, fsync = [writes], os.fsync

    def limited(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(disk.os, "fsync", limited)


def test_full_disk_before_the_start(weights, out, capsys, monkeypatch):
    """Noticed before anything is computed."""
    full_disk_after(monkeypatch, 0)
    monkeypatch.setattr(ascent, "run_batch", lambda *_: pytest.fail("computed for nothing"))
    refused(capsys, run(weights, out), "No space left on device", str(out))
    assert files(out) == {}


@pytest.mark.parametrize("writes", [1, 2, 6, 8])
def test_full_disk_on_the_way(writes, weights, made, out, capsys, monkeypatch):
    """One file is the probe at the start, five are a result; whole results stay, the rest is as if it had not begun."""
    before = {name: data for name, data in files(made).items() if "seed_5." in name}
    with monkeypatch.context() as patch:
        full_disk_after(patch, writes)
        assert run(weights, out, "--seed", 5, 1, 6, "--batch-size", 1) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("featviz: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0] and "finished results stay" in errors[0]
    left = files(out)
    assert not any(name.endswith(".partial") for name in left) and before.items() <= left.items()
    assert sum("seed_1" in name or "seed_6" in name for name in left) == writes - 1
    assert ("tiny/feature_00003/t0300/seed_1.json" in left) == (writes >= 6) and not any("seed_6.json" in name
                                                                                         for name in left)


def test_after_room_was_made_the_same_command_finishes(weights, out, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk_after(patch, 7)
        assert run(weights, out, "--seed", 1, 5, "--batch-size", 1) == 2
    assert run(weights, out, "--seed", 1, 5, "--batch-size", 1) == 0
    assert run(weights, tmp_path / "b", "--seed", 1, 5, "--batch-size", 1) == 0
    assert files(out) == files(tmp_path / "b")


# --- what goes wrong on the way --------------------------------------------------------------------------------------

def test_an_ascent_that_leaves_the_numbers_says_so(weights, out, capsys):
    """A decay of 1e12 a step ends in infinities: the record says so, is still JSON, the latent is
    finite, the exit code is 2.
    """
    assert run(weights, out, "--seed", 5, "--learning-rate", 1e6, "--weight-decay", 1e6, "--num-steps", 4, "--prior",
               "noise") == 2
    assert record(out)["verdict"] == "non-finite at step 2"
    assert load_file(next(out.rglob("seed_5.safetensors")))["latent"].isfinite().all()
    assert capsys.readouterr().err.splitlines()[-1].startswith("featviz: 1 of 1 ascents met NaN or infinite values")


def test_an_interruption_leaves_finished_results_and_exit_code_130(weights, out, capsys, monkeypatch):
    save, saved = results.save, []

    def interrupt(*args):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*args))
        return saved[0]

    monkeypatch.setattr(results, "save", interrupt)
    assert run(weights, out, "--seed", 1, 5, "--batch-size", 1) == 130
    assert sorted(files(out)) == [f"tiny/feature_00003/t0300/seed_1.{kind}" for kind in sorted(KINDS)]
    assert "finished results stay" in capsys.readouterr().err


def test_a_channel_needs_no_sae_and_any_transformer_block_will_do(tmp_path, out):
    bare = write_model(tmp_path / "bare", sae=None)
    edit_json(bare / "featviz.json", presets={"raw": QUICK | {"prior": "noise"}})
    assert run(bare, out, "--channel", 1, "--seed", 1) == 0
    assert run(bare, out, "--channel", 1, "--seed", 1, "--hook-point", "unet.mid_block.attentions.0") == 0
    made = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.json"))
    assert made == ["bare/channel_0001/t0300/seed_1.json", "bare/mid_block.attentions.0_channel_0001/t0300/seed_1.json"]


@pytest.mark.parametrize("flags, says", [
    (["--hook-point", "up_blocks.1.attention.1"], "nearest: up_blocks.1.attentions.1"),
    (["--hook-point", "mid_block.attentions.0", "--feature", 3], "the features of")])
def test_a_hook_point_that_cannot_be(weights, out, capsys, flags, says):
    assert run(weights, out, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error and not out.exists()


# --- what people do --------------------------------------------------------------------------------------------------

def test_repeated_numbers_are_computed_once(weights, out, capsys):
    assert run(weights, out, "--feature", 12, 12, 12, "--seed", 5, 5, "--timestep", 300, 300) == 0
    assert capsys.readouterr().err.startswith("1 results, ")


def test_a_batch_of_one_is_not_filled_up_with_copies_that_nobody_asked_for(weights, out, monkeypatch):
    """Rows are those of the usual size; with more jobs twice as many, and so on up to --batch-size."""
    rows, run_batch = [], finish.ascent.run_batch
    monkeypatch.setattr(finish.ascent, "run_batch", lambda model, jobs, *a, **k: rows.append(len(jobs))
                        or run_batch(model, jobs, *a, **k))
    assert run(weights, out, "--batch-size", 100_000_000, "--seed", 5) == 0
    assert run(weights, out, "--batch-size", 32, "--seed", *range(9)) == 0
    assert rows == [8, 8] and [ascent.filled(n, 32, 8) for n in (1, 8, 9, 16, 17, 32)] == [8, 8, 16, 16, 32, 32]
    assert ascent.filled(3, 2, 8) == 2 and ascent.filled(5, 6, 1) == 6


def test_progress_where_nobody_watches_is_a_line_now_and_then(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    show = progress.Progress(1, 1, 100)
    for _ in range(100):
        show(SimpleNamespace(activation=torch.zeros(1)))
        clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 11 and all(line.startswith("step ")
                                         for line in lines) and lines[-1].startswith("step 100/100")


def test_without_torch_help_works_and_a_run_says_what_to_do(tmp_path, capsys, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    call = lambda *flags: subprocess.run([sys.executable, "featviz.py", *flags], cwd=results.PROJECT, env=env,
                                         text=True, capture_output=True)
    assert call("--help").returncode == 0 and call("--jitter", "x").returncode == 2
    for flags, text in ((("--num-steps", "0"), "--num-steps must be at least 1"),       # whatever the model
                        (("--finish-from", "1000"), "--finish-from must be between 1 and 999"),
                        (("--weights", "nowhere"), "nowhere: is not there")):
        assert call(*flags).stderr.startswith(f"featviz: {text}")
    made = call("--out", str(tmp_path / "out"))
    assert made.returncode == 2 and made.stderr == "featviz: torch is not installed; pip install -r requirements.txt\n"


def test_an_empty_out_does_not_write_into_the_current_folder(weights, capsys):
    refused(capsys, run(weights, ""), "argument --out: is empty")
