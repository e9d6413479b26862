"""Memory is known before anything is loaded, weights are in it once, halves where halves do; and whether UNet and SAE
belong together.

tests/oracle/test_memory.py measures the loading of full-size Stable Diffusion.
"""
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weights import load as loading
import featviz
from command import device
from weights import preflight
from weights.load import PARTS, Found, Source, find, load
from weights.tensors import read_header
from tests.seeded import on_meta
from tests.test_checkpoint import networks
from tests.tiny import PATHS, edit_tensors, write_model


def sd14():
    """What `find` finds in SD 1.4's folder, without a folder."""
    found = Found(folder=None, name="sd14")
    found.sources = {part: Source(None, on_meta("clip_text" if part == "text_encoder" else part), {}, [])
                     for part in PARTS}
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_predicted_size_is_the_loaded_one(dtype, weights):
    predicted, _ = preflight.predict(find(weights), dtype, 1)
    nets = networks(load(weights, dtype=dtype)).values()
    assert predicted == sum(p.numel() * p.element_size() for net in nets for p in net.parameters())


def test_the_prediction_for_sd14():
    """UNet and text encoder in the run's precision, the VAE in float32; an ascent more costs as much as the one
    before."""
    unet, vae, text = 859_520_964, 83_653_863, 123_060_480
    full, half = (preflight.predict(sd14(), dtype, 1) for dtype in (torch.float32, torch.bfloat16))
    assert full[0] == 4 * (unet + vae + text) and half[0] == 2 * (unet + text) + 4 * vae
    one, two = (preflight.unet_bytes(sd14().sources["unet"].net, (4, 64, 64), loading.HOOK_POINT, n, torch.float32)
                for n in (1, 2))
    assert 2 ** 29 < one < 2 ** 31 and two == pytest.approx(2 * one, rel=0.02)
    frozen = preflight.unet_bytes(sd14().sources["unet"].net.requires_grad_(False), (4, 64, 64), loading.HOOK_POINT, 1,
                                  torch.float32)
    assert 2 ** 29 < frozen < one               # with the uppermost maps: 64 is an edge and a number of positions
    latent, pixel = (preflight.predict(sd14(), torch.bfloat16, 1, space)[1] for space in ("latent", "pixel"))
    assert pixel - latent > 3e9                 # the encoder's maps, in float32


def test_check_says_memory_before_it_loads_and_refuses_what_does_not_fit(weights, monkeypatch, capsys):
    monkeypatch.setattr(device, "load", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 2 ** 20)
    assert featviz.main(["--weights", str(weights), "--device", "cpu", "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("tiny: unet 0.6 M") and captured.out.count("\n") == 1
    assert "1 MiB are free" in captured.out and captured.err.count("\n") == 1
    assert "are free on cpu; give a smaller --batch-size, --dtype bfloat16" in captured.err


def memory(kind):
    """Bytes of this process, from Linux: VmRSS all, RssFile what lies in mapped files."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not tell")
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(kind))


@pytest.fixture
def large(tmp_path):
    """A layer of 64 MB and one of 16 in a file: (path, Source)."""
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(4096, 4096, bias=False),
                               "b": torch.nn.Linear(2048, 2048, bias=False)})
    save_file(net.state_dict(), path := tmp_path / "x.safetensors")
    with torch.device("meta"):
        meta = torch.nn.ModuleDict({"a": torch.nn.Linear(4096, 4096, bias=False),
                                    "b": torch.nn.Linear(2048, 2048, bias=False)})
    return path, loading.fit(meta, path, read_header(path)), net


def test_numbers_that_are_not_used_take_no_memory(large):
    _, source, whole = large
    before = memory("VmRSS")
    net = source.read(torch.float32, "cpu")
    assert memory("VmRSS") - before < 2 ** 23
    assert torch.equal(net["a"].weight, whole["a"].weight)
    assert 2 ** 26 <= memory("VmRSS") - before < 2 ** 26 + 2 ** 23


@pytest.mark.parametrize("late", [True, False])
def test_a_conversion_gives_its_pages_of_the_file_back(late, large):
    """And late, a layer that does not run stays in the file."""
    _, source, whole = large
    before = memory("RssFile")
    net = source.read(torch.bfloat16, "cpu", late)
    y = net["a"](torch.ones(1, 4096, dtype=torch.bfloat16))
    assert memory("RssFile") - before < 2 ** 23 and net["b"].weight.is_meta == late
    assert torch.equal(net["a"].weight, whole["a"].weight.bfloat16()) and y.shape == (1, 4096)
    assert not net["a"].weight.requires_grad and not net["a"]._forward_pre_hooks


def test_loaded_weights_outlive_their_file(tmp_path):
    folder = write_model(tmp_path / "tiny")
    model = load(folder)
    (folder / PATHS["unet"][1]).unlink()
    whole = load(write_model(tmp_path / "again")).unet.conv_in.weight
    assert torch.equal(model.unet.conv_in.weight, whole)


def test_half_precision_on_cuda_unless_told_otherwise(weights, monkeypatch):
    """And float32 elsewhere; played, there may be no such device."""
    asked = []
    monkeypatch.setattr(device, "load", lambda path, device, dtype, *_: asked.append(dtype) or load(path))
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    zeros = torch.zeros
    monkeypatch.setattr(device.torch, "zeros",
                        lambda *size, **kw: zeros(*size, **kw | {"device": None} if kw.get("device") == "cuda" else kw))
    for flags in (["--device", "cuda"], ["--device", "cuda", "--dtype", "float16"], ["--device", "cpu"]):
        device.open_model(featviz.parse(["--weights", str(weights), *flags]), True)
    assert asked == [torch.bfloat16, torch.float16, torch.float32]


def test_the_decoder_does_not_overflow_in_half_precision(tmp_path):
    """Activations beyond 65504, float16's largest, as SD's decoder has them: decoded in float32 whatever the run's
    precision."""
    folder = write_model(tmp_path / "tiny")
    edit_tensors(folder / PATHS["vae"][1], lambda x: x | {"decoder.conv_in.weight": x["decoder.conv_in.weight"] * 1e6})
    model = load(folder, dtype=torch.float16)
    z = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).half()
    assert model.vae.decoder.conv_in(model.vae.post_quant_conv(z.float())).abs().max() > 65504
    image = model.decode(z)
    assert image.dtype == torch.float32 and image.isfinite().all() and image.std() > 0.01


# --- right model, right SAE -------------------------------------------------------------------------------------------

def trained(model, steps=300):
    """An SAE of the model's own activations: a few hundred steps of Adam on the inputs of the fit check."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "fvu", lambda h, h_hat: seen.append(h) or torch.zeros(()))
        preflight.fit(model)
    h, sae = seen[0], loading.SAE(32, 64, k=8)
    sae.init(torch.Generator().manual_seed(0), h)
    optimizer = torch.optim.Adam(sae.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        preflight.fvu(h, sae.decode(sae.encode(h))).backward()
        optimizer.step()
        sae.normalize_decoder()
    return {k: v.detach().clone() for k, v in sae.state_dict().items()}


def test_the_fit_check_tells_the_own_sae_from_another_s(tmp_path):
    folder, stranger = write_model(tmp_path / "own",
                                   sae=dict(k=8)), write_model(tmp_path / "other", seed=5, sae=dict(k=8))
    sae = trained(load(folder))
    for path in (folder, stranger):
        save_file(sae, path / PATHS["sae"][1])
    (own, active), (other, _) = preflight.fit(load(folder)), preflight.fit(load(stranger))
    print(f"variance unexplained: {own:.3f} of the own model's activations, {other:.3f} of another's")
    assert own < preflight.FVU_FITS and preflight.verdict(8, own, active) == ""
    assert other > preflight.FVU_WRONG
    assert preflight.verdict(8, other, active).startswith("UNet and SAE do not belong together: ")
    assert preflight.fit(load(folder)) == (own, active)         # known inputs: the same numbers each time


def test_the_fit_check_tells_the_toys_hook_point_and_weights():
    model = load("weights/toy")
    home, width = model.hook_point, model.unet.width(model.hook_point)
    own, active = preflight.fit(model)
    assert own == pytest.approx(0.02, abs=0.01) and active == pytest.approx(4, abs=0.05)
    others = []
    attentions = [name for name in model.unet.hook_points if ".attentions." in name and name != home]
    for model.hook_point in [name for name in attentions if model.unet.width(name) == width]:
        others.append(preflight.fit(model)[0])
    assert len(others) == 5
    assert min(others) == pytest.approx(2.02, abs=0.02) and max(others) == pytest.approx(8.25, abs=0.1)
    for seed in range(3):
        noisy, generator = load("weights/toy"), torch.Generator().manual_seed(seed)
        noisy.parts["unet"] = networks(noisy)["unet"]
        for p in noisy.unet.parameters():
            p.add_(p.std(correction=0) * torch.randn(p.shape, generator=generator))
        assert preflight.fit(noisy)[0] == pytest.approx(0.68, abs=0.06)                        # they may not belong


@pytest.mark.parametrize("unexplained, active, says",
                         [(0.2, 8.0, ""), (0.6, 8.0, "may not belong"), (0.9, 8.0, "do not belong"),
                          (0.2, 1.0, "do not belong"),
                          (float("nan"), 8.0, "do not belong")])
def test_verdicts(unexplained, active, says):
    text = preflight.verdict(8, unexplained, active)
    assert says in text and bool(text) == bool(says)


def test_a_run_warns_of_an_sae_that_does_not_fit(weights, tmp_path, capsys):
    flags = ["--weights", weights, "--out", tmp_path, "--device", "cpu", "--feature", 3, "--seed", 1, "--num-steps", 1,
             "--prior", "noise"]
    assert featviz.main([str(a) for a in flags]) == 0
    assert "warning: UNet and SAE do not belong together: of the activations' variance" in capsys.readouterr().err
    assert featviz.main([str(a) for a in flags]) == 0               # nothing to do: nothing is measured
    assert "warning" not in capsys.readouterr().err


def test_no_memory_free_is_known_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(preflight, "open", lambda *_, **__: (_ for _ in ()).throw(OSError()), raising=False)
    assert preflight.free_bytes("cpu") is None
