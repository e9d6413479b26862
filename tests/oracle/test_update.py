"""The update of an attention, output minus input, against a forward hook on diffusers' block with the same weights."""
from types import SimpleNamespace

import pytest
import torch

from steering import read_hook
from tests.oracle import record
from tests.seeded import TOY, TOY_HOOKS, compare, filled, gradient, unet_inputs


@pytest.mark.parametrize("hook", TOY_HOOKS)
def test_the_update_and_its_gradient(hook):
    (z, t, context), caught = unet_inputs(), []
    model = SimpleNamespace(unet=filled("unet", TOY["unet"]), hook_point=hook, dtype=torch.float32,
                            sae=SimpleNamespace(reads="update"))
    theirs = record.official("unet", TOY["unet"])
    theirs.get_submodule(hook).register_forward_hook(lambda _, args, out: caught.append(out[0] - args[0]))
    found = []
    for run in (lambda leaf: read_hook(model, leaf, t, context),
                lambda leaf: theirs(leaf, t, encoder_hidden_states=context) and caught[0]):
        leaf = z.clone().requires_grad_(True)
        h = run(leaf)
        found.append({"update": h.detach(), "gradient": gradient(h, leaf)})
    assert not torch.allclose(found[0]["update"], model.unet(z, t, context, until=hook), atol=1e-2)
    compare(*found, hook)
