"""Fetch now? What a command says, asks and does where Stable Diffusion's weights are not there."""
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import featviz
from activity import times
from ascent import default_batch_size
from clip import TextEncoder
from command import missing
from config import HOOK_POINT
from sae import SAE
from tests.slow.test_fetch import Hub
from tests.tiny import VOCAB, write_model
from unet import UNet
from vae import VAE
from weights import download, hub, preflight
from weights.sources import BUNDLES

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SHORT = ["--num-steps", "2", "--prior-steps", "2", "--seed", "5", "--frames", "0", "--no-finish"]


class Terminal(io.StringIO):
    """A stream that somebody sits in front of."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A checkout without Stable Diffusion, no card, a lot of memory."""
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "ROOT", tmp_path / "weights")
    monkeypatch.setattr(missing, "NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 64 * 2 ** 30)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def run(*flags):
    try:
        return featviz.main([str(flag) for flag in flags])
    except SystemExit as e:
        return e.code


def said(capsys, code):
    """The one line on stderr of a command that could not be."""
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1, captured
    return captured.err


# --- not in a terminal ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, why", [
    (["--feature", 10204], "--feature 10204: is one of the 20480 features of Style50"),
    (["--feature", 3, 1792], "--feature 1792: is one of the 20480 features of Style50"),
    (["--channel", 1279], "--channel 1279: is one of the 1280 channels of Style50"),
    (["--thesis"], "--thesis: its five features are those of Style50"),
    (["--weights", "weights/style50"], "weights/style50: is not there"),
    (["--feature", 10204, "--check"], "--feature 10204: is one of")])
def test_one_line_with_the_command_to_type(flags, why, capsys):
    line = said(capsys, run(*flags))
    assert why in line and "; python weights/fetch.py style50 fetches it: 4.5 GB, licence CreativeML OpenRAIL-M" in line


@pytest.mark.parametrize("name", ["sd14", "sd15"])
def test_other_published_weights_likewise(name, bare, capsys):
    for path in (f"weights/{name}", bare / "weights" / name):
        assert f"python weights/fetch.py {name} fetches it" in said(capsys, run("--weights", path, "--channel", 3))


def test_a_path_that_is_nobody_s(capsys):
    line = said(capsys, run("--weights", "weights/whatever", "--feature", 10204))
    assert "weights/whatever: is not there" in line and "OpenRAIL" not in line


@pytest.mark.parametrize("flags, why", [
    (["--feature", 20480], "--feature 20480 is out of range: "),
    (["--feature", -1], "--feature -1 is out of range: "),
    (["--feature", 3, "--timestep", -1], "--timestep -1 is out of range: time steps are 0..999"),
    (["--feature", 3, "--seed", -1], "--seed -1 is out of range"),
    (["--feature", 10204, "--timestep", -1], "--timestep -1 is out of range: time steps are 0..999"),
    (["--feature", 10204, "--timestep", 0, 1000], "--timestep 1000 is out of range"),
    (["--feature", 10204, "--seed", -1], "--seed -1 is out of range"),
    (["--feature", 10204, 20480], "--feature 20480 is out of range: Stable Diffusion has 20480 features"),
    (["--feature", 10204, "--num-steps", 0], "--num-steps must be at least 1"),
    (["--channel", 900, "--learning-rate", 0], "--learning-rate must be above 0")])
def test_what_stable_diffusion_would_not_help(flags, why, capsys):
    line = said(capsys, run(*flags))
    assert why in line and "Style50" not in line and "fetch.py" not in line


def test_what_the_toy_has_needs_nothing_else():
    for flags in ([], ["--feature", "127"], ["--channel", "127"], ["--feature", "live"]):
        assert missing.lacking(featviz.parse(flags), bool(flags)) == ("", "")
        assert missing.default_weights(featviz.parse(flags), bool(flags)) == missing.TOY


# --- what is there ----------------------------------------------------------------------------------------------------

def test_whole_folders_are_found_by_themselves(bare):
    args = lambda *flags: featviz.parse([str(flag) for flag in flags])
    write_model(bare / "weights/sd14", sae=None)
    assert missing.default_weights(args("--channel", 3), [3]) == Path("weights/sd14")
    assert missing.default_weights(args("--feature", 3), [3]) == missing.TOY            # it has no autoencoder
    assert missing.default_weights(args(), None) == missing.TOY
    write_model(bare / "weights/style50")
    assert missing.default_weights(args("--feature", 3), [3]) == Path("weights/style50")
    assert missing.default_weights(args("--thesis"), True) == Path("weights/style50")
    assert missing.lacking(args("--feature", 10204), [10204]) == ("", "")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/merges.txt",
                                  "sae/unet.up_blocks.1.attentions.1/sae.safetensors"])
def test_a_folder_that_a_fetch_was_killed_in_is_not_whole(name, bare, capsys):
    folder = write_model(bare / "weights/style50")
    (folder / name).rename(folder / (name + ".partial"))
    line = said(capsys, run("--feature", 3, "--weights", "weights/style50"))
    assert "weights/style50: is not whole; python weights/fetch.py style50 fetches it" in line
    assert "--feature 10204: is one of" in said(capsys, run("--feature", 10204))


# --- what would make it pointless -------------------------------------------------------------------------------------

def test_the_numbers_of_stable_diffusion():
    """Memory, by the prediction for its sizes; gigabytes and what fetch.py knows, by the tables of sources.py."""
    with torch.device("meta"):
        nets = {"unet": UNet(), "vae": VAE(), "text_encoder": TextEncoder(),
                "sae": SAE(d_in=1280, num_latents=20480, k=32, input_unit_norm=False)}
    found = SimpleNamespace(sources={part: SimpleNamespace(net=net) for part, net in nets.items()}, latent=(64, 64),
                            hook_point=HOOK_POINT)
    for dtype in (torch.float32, torch.bfloat16):
        model, ascent = preflight.predict(found, dtype, 1)
        assert model / 2 ** 30 == pytest.approx(missing.WEIGHTS[dtype.itemsize], abs=0.01)
        assert ascent / 2 ** 30 == pytest.approx(missing.ASCENT, abs=0.01)
    assert {"feature": nets["sae"].features, "channel": nets["unet"].width(HOOK_POINT)} == missing.SIZES
    base = sum(file.size for file in BUNDLES["sd15"].pieces[0].table(False))     # Style50's parts have the same sizes
    sae = sum(file.size for file in BUNDLES["sae"].pieces[0].table(False))
    assert {"style50": round((base + sae) / 1e9, 1), "sd14": round((base + sae) / 1e9, 1),
                          "sd15": round(base / 1e9, 1)} == missing.SD


def test_too_little_memory(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 4 * 2 ** 30)
    line = said(capsys, run("--feature", 10204, "--device", "cpu"))
    assert "takes at least 5.2 GiB, 4.0 are free on cpu; give --dtype bfloat16, or another --device" in line
    assert "python weights/fetch.py style50" in said(capsys, run("--feature", 10204, "--dtype", "bfloat16"))
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 2 ** 30)
    assert "3.3 GiB" in said(capsys, run("--feature", 10204, "--dtype", "bfloat16"))


def test_a_card_that_holds_few_jobs(monkeypatch):
    """A CUDA device takes 8 by itself."""
    cuda, args = torch.device("cuda"), featviz.parse(["--feature", "10204"])
    assert default_batch_size(cuda, (4, 64, 64)) == 8 and missing.check_memory(args, cuda) == ""
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 6 * 2 ** 30)
    assert missing.check_memory(args, cuda) == "6.0 GiB are free on cuda: add --batch-size 3 later on"
    monkeypatch.setattr(preflight, "free_bytes", lambda device: None)
    assert missing.check_memory(args, cuda) == ""


def card(bare, monkeypatch, cuda):
    """A card that the kernel knows of, and a torch that was built for this version of CUDA, or for none."""
    about = bare / "nvidia/gpus/0000:01:00.0/information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t NVIDIA GeForce RTX 3060\nIRQ: 33\n")
    (bare / "nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 2021\n")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_torch_without_cuda_beside_a_card(bare, monkeypatch, capsys):
    card(bare, monkeypatch, None)
    line = said(capsys, run("--feature", 10204))
    assert f"torch {torch.__version__} is built without CUDA and cannot use the NVIDIA GeForce RTX 3060" in line
    assert "pip uninstall torch" in line and "pytorch.org/get-started" in line and "--device cpu" in line
    assert "python weights/fetch.py style50" in said(capsys, run("--feature", 10204, "--device", "cpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")              # hidden on purpose
    assert "python weights/fetch.py style50" in said(capsys, run("--feature", 10204))


def test_a_driver_that_is_too_old(bare, monkeypatch, capsys):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")

    card(bare, monkeypatch, "12.8")
    monkeypatch.setattr(torch.cuda, "init", init)
    line = said(capsys, run("--feature", 10204))
    assert "built for CUDA 12.8" in line and "driver 470.57.02" in line and "too old (found version 11040)" in line
    assert "update the driver" in line and "--device cpu" in line


def test_a_card_that_only_its_own_command_knows(bare, monkeypatch):
    assert missing.card() == ""
    command = bare / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA A100'\n")
    command.chmod(0o755)
    assert missing.card() == "NVIDIA A100"
    command.write_text("#!/bin/sh\nexit 9\n")                   # installed, and no card there
    assert missing.card() == ""


# --- in a terminal ----------------------------------------------------------------------------------------------------

REPO, SAES = "/NormalUhr/UnlearnCanvas-ckpts/resolve/main/", "/bcywinski/SAeUron/resolve/main/"


@pytest.fixture
def published(bare, monkeypatch):
    """A hub that has a tiny Style50, and somebody in front of the terminal: ask(answer, flags) -> (code, stderr)."""
    made = write_model(bare / "made", activity=None, featviz=None, sae=dict(num_latents=2000))
    there = Hub()
    for path in (p for p in made.rglob("*") if p.is_file()):
        name = path.relative_to(made).as_posix()
        home = SAES if name.startswith("sae/") else REPO + "diffusion/diffuser/style50/"
        there.files[home + name.removeprefix("sae/")] = path.read_bytes()
    there.files[SAES + "README.md"] = there.files[REPO + "README.md"] = b"A card."
    monkeypatch.setattr(download, "BACKOFF", 0)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", there.url)

    def ask(answer, *flags):
        err = Terminal()
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        monkeypatch.setattr("sys.stderr", err)
        return run(*flags), err.getvalue()

    yield SimpleNamespace(ask=ask, hub=there, home=bare / "weights/style50")
    there.shutdown()
    there.server_close()


def test_asked_fetched_and_on_to_the_page(published, bare, capsys):
    code, err = published.ask("y\n", "--feature", 1999, "--out", "out", "--timestep", 300, "--prior", "noise", *SHORT)
    assert code == 0, err
    order = ["--feature 1999: is one of the 20480 features of Style50", "unet/diffusion_pytorch_model.safetensors",
             "Licence: ", "Fetch now, and agree to the licence?", "verified by sha256", "complete, every file verified",
             "1 results, 2 steps"]
    assert sorted(order, key=err.index) == order and len(VOCAB) > 500
    out = capsys.readouterr().out
    assert "verified" not in out and "look at out/style50/feature_01999/index.html" in out
    assert (bare / "out/style50/feature_01999/t0300").parent.joinpath("index.html").exists()


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "maybe\n"])
def test_no_other_answer_fetches(answer, published, capsys):
    code, err = published.ask(answer, "--feature", 1999)
    assert code == 2 and "nothing was fetched; python weights/fetch.py style50 does it later" in err
    assert not published.home.exists() and all(path.startswith("/api/") for path, *_ in published.hub.log)


def test_no_room_on_the_disk(published, monkeypatch):
    monkeypatch.setattr(hub, "free_space", lambda folder: 1000)
    code, err = published.ask("y\n", "--feature", 1999)
    assert code == 2 and "are needed and 1 kB are free; make room" in err and "[y/N]" not in err


def test_nothing_is_asked_where_the_hub_has_no_more(published, bare, monkeypatch):
    write_model(bare / "weights/style50", sae=None)
    monkeypatch.setattr(hub, "need", lambda found, folder: 0)
    code, err = published.ask("y\n", "--feature", 3, "--weights", "weights/style50")
    assert code == 2 and "[y/N]" not in err and "sae: not there, and this needs it" in err.splitlines()[-1]


def test_a_hub_without_these_weights(published):
    published.hub.files.clear()
    code, err = published.ask("y\n", "--feature", 1999)
    assert code == 2 and err.splitlines()[-1].startswith("featviz: ") and "weights/README.md" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_check_asks_nothing(published):
    code, err = published.ask("y\n", "--feature", 1999, "--check")
    assert code == 2 and "[y/N]" not in err and published.hub.log == [] and os.listdir("weights") == []


# --- what comes first -------------------------------------------------------------------------------------------------

def test_the_probe_is_told_with_its_duration_and_how_to_do_without(bare, monkeypatch, capsys):
    """A step that takes an hour by the clock: 80 prompts, 8 at a time, in 20 steps, and PNDM's one more."""
    folder, clock = write_model(bare / "tiny", activity=None), iter(range(10 ** 6))
    monkeypatch.setattr(times, "capture", lambda *_, **__: pytest.fail("began before it was told"))
    monkeypatch.setattr(times.time, "time", lambda: 3600.0 * next(clock))
    with pytest.raises(pytest.fail.Exception):
        run("--weights", folder, "--out", "out", "--device", "cpu", *SHORT)
    line = next(line for line in capsys.readouterr().err.splitlines() if "stands in" in line)
    assert f"1600 guided steps in about {3600 * 10 * 21} s on cpu" in line
    assert line.endswith("or do without: --prior noise --timestep 300")


def test_a_probe_of_weights_that_name_no_time_step(bare, monkeypatch, capsys):
    folder = write_model(bare / "tiny", activity=None, featviz=None)
    monkeypatch.setattr(times, "capture", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(pytest.fail.Exception):
        run("--weights", folder, "--out", "out", "--device", "cpu", "--feature", 3, *SHORT)
    assert "or do without: --prior noise --timestep 361" in capsys.readouterr().err
    assert run("--weights", folder, "--out", "out", "--device", "cpu", "--feature", 3, "--prior", "noise", "--timestep",
               361, *SHORT) == 0
