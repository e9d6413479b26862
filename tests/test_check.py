"""Right model, right SAE: where the fit check looks, what it tells apart, and an SAE that reads the update."""
import math

import pytest
import torch
from safetensors.torch import save_file

from dictionary.train import init, normalize_decoder
from sae import SAE, fvu
from steering import predict, read_hook
from tests.seeded import randn
from tests.tiny import HOOK, PATHS, edit_json, write_model
from weights import check
from weights.load import load


def activations(model, update=False):
    """Rows (n, D) of the hook at the time steps of the fit check, by forward hooks on the module itself."""
    seen, rows = [], []
    module = model.unet.get_submodule(HOOK)
    handle = module.register_forward_hook(lambda _, args, out: seen.append(out - args[0] if update else out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "describe", lambda sae, h: rows.append(h) or (0.0, 0.0))
        check.measure(model)
    handle.remove()
    found = torch.cat([h.flatten(2).transpose(1, 2).flatten(0, 1) for h in seen])
    assert torch.allclose(torch.cat(rows[::2]), found, atol=1e-5)
    return found


def trained(h, steps=150):
    """An SAE of these activations."""
    sae = SAE(32, 64, k=8)
    init(sae, torch.Generator().manual_seed(0), h.mean(dim=0))
    optimizer = torch.optim.Adam(sae.parameters(), 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        fvu(h, sae.decode(sae.encode(h))).backward()
        optimizer.step()
        normalize_decoder(sae)
    return {k: v.detach().clone() for k, v in sae.state_dict().items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random UNet with an SAE of its activations, and another random UNet of the same sizes with that SAE."""
    folders = [write_model(tmp_path_factory.mktemp("fit") / name, seed=seed, sae=dict(k=8), activity=None)
               for name, seed in (("right", 0), ("other", 5))]
    sae = trained(activations(load(folders[0], "cpu")))
    for folder in folders:
        save_file(sae, folder / PATHS["sae"][1])
    return folders


def test_a_wrong_unet_of_the_same_sizes_is_told_by_the_fit_alone(folders):
    """As an SAE of SDXL-Turbo on SD 1.4: the widths are the same, nothing else complains."""
    right, wrong = (load(folder, "cpu") for folder in folders)
    text = check.check_fit(right)
    print(text, check.check_fit(wrong), sep="\n")
    assert check.verdict(right.sae, check.fit(right)) == "" and text.endswith("they belong together")
    assert all(row.unexplained < check.FVU_FITS for row in right.fit)
    assert check.verdict(wrong.sae, check.fit(wrong)).startswith("UNet and SAE do not belong together: ")
    assert all(row.unexplained > check.FVU_WRONG for row in wrong.fit)
    for part in ("t 981: ", "t 501: ", "t 21: ", "|mean of h|", "|b_dec|", " active"):
        assert part in text
    for timesteps, looked in (((25,), [25]), ((1, 981, 721, 501, 241), [981, 501, 1]), ((600, 300), [600, 300])):
        right.sae.timesteps = timesteps         # first, middle and last of the SAE's list
        assert looked == [row.t for row in check.measure(right)]


def test_the_toys_sae_fits_its_hook_point_and_its_weights():
    model = load("weights/toy", "cpu")
    row = check.fit(model)
    assert row.unexplained == pytest.approx(0.375, abs=0.01) and row.active == pytest.approx(6.5, abs=0.1)
    model.hook_point, model.fit = "mid_block.attentions.0", None
    assert check.fit(model).unexplained > 1.5


@pytest.mark.parametrize("k, unexplained, active, says", [
    (8, 0.2, 8.0, ""), (8, 0.6, 8.0, "may not belong"), (8, 0.9, 8.0, "do not belong"), (8, 0.2, 1.0, "do not belong"),
    (8, math.nan, 8.0, "do not belong"), (0, 0.2, 1.0, "")])
def test_verdicts(k, unexplained, active, says):
    text = check.verdict(SAE(2, 8, k), check.Row(981, unexplained, active))
    assert says in text and bool(text) == bool(says)


def test_what_an_sae_of_the_update_reads(tmp_path):
    """Everywhere the same: until the hook, on the way through, in the fit check. Steering adds to the output."""
    folder = write_model(tmp_path / "update", sae=dict(k=8, reads="update"), activity=None)
    model = load(folder, "cpu")
    save_file(trained(activations(model, update=True)), folder / PATHS["sae"][1])
    model, caught = load(folder, "cpu"), []
    model.unet.get_submodule(HOOK).register_forward_hook(lambda _, args, out: caught.append((args[0], out)))
    x, t, context = randn(2, 4, 8, 8, seed=1), torch.tensor([300, 20]), model.embed(["", "a"])
    h = read_hook(model, x, t, context)
    before, output = caught[0]
    assert torch.equal(h, output - before) and not torch.allclose(h, output)
    (plain, seen), (pushed, still) = (predict(model, x, t, context, push) for push in (None, torch.ones(2, 32)))
    assert torch.equal(seen, h) and torch.equal(still, h) and not torch.allclose(plain, pushed)
    assert check.verdict(model.sae, check.fit(model)) == ""
    edit_json(folder / PATHS["sae"][0], reads="output")
    wrong = load(folder, "cpu")
    said = check.verdict(wrong.sae, check.fit(wrong))
    print(said)
    assert "reads the update? That leaves" in said and "--reads update" in said
