"""What ends a conversion: damaged pickles, a part that fails.

tests/slow/test_layouts.py converts models in every layout, tests/test_saes.py SAEs of every family.
"""
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import PATHS, write_model
from weights import convert
from weights.load import load


class Payload:
    def __reduce__(self):
        import os
        return os.mkdir, ("ran",)


BAD_PICKLES = {
    "a page": (b"<!DOCTYPE html><html>" * 100, "is a web page"),
    "cut": (lambda data: data[:-300], "is no whole file of torch.save"),
    "another kind": (b"GGUF" + bytes(100), "is not a whole safetensors file"),
    "code": (lambda data: Payload(), "would call posix.mkdir: do not use it"),
    "a list": (lambda data: [1, 2], "holds no tensors by name"),
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_bad_pickles_end_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damage, says = BAD_PICKLES[name]
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(100)}}, path)
    value = damage(path.read_bytes()) if callable(damage) else damage
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
    assert convert.main([str(path), str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt"]


def test_a_conversion_that_fails_can_be_repeated(tmp_path, capsys):
    """The VAE's pickle is cut; nothing is left of the UNet that was written before it."""
    folder, new = write_model(tmp_path / "sd"), tmp_path / "new"
    path = folder / PATHS["vae"][1]
    pickle = path.with_suffix(".bin")
    torch.save({k: v.clone() for k, v in load_file(path).items()}, pickle)
    path.unlink()
    good = pickle.read_bytes()
    pickle.write_bytes(good[:-400])
    assert convert.main([str(folder), str(new)]) == 2 and not new.exists()
    pickle.write_bytes(good)
    assert convert.main([str(folder), str(new)]) == 0
    made, expected = load(new, "cpu"), load(write_model(tmp_path / "whole"), "cpu")
    for part in ("unet", "vae", "text_encoder", "sae"):
        ours, theirs = getattr(made, part).state_dict(), getattr(expected, part).state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert convert.main([str(folder), str(new)]) == 2 and "exists already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "sd", "whole"]
