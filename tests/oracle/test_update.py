"""The update of an attention, output minus input, against a forward hook on diffusers' block with the same weights."""
import pytest
import torch

from tests.oracle import record
from tests.seeded import TOY, TOY_HOOKS, compare, filled, gradient, unet_inputs


@pytest.mark.parametrize("hook", TOY_HOOKS)
def test_the_update_and_its_gradient(hook):
    ours, theirs, caught = filled("unet", TOY["unet"]), record.official("unet", TOY["unet"]), []
    theirs.get_submodule(hook).register_forward_hook(lambda _, args, out: caught.append(out[0] - args[0]))
    z, t, context = unet_inputs()
    found = []
    for leaf in (z.clone().requires_grad_(True), z.clone().requires_grad_(True)):
        if not found:
            h = ours(leaf, t, context, until=hook, update=True)
        else:
            theirs(leaf, t, encoder_hidden_states=context)
            (h,) = caught
        found.append({"update": h.detach(), "gradient": gradient(h, leaf)})
    assert not torch.allclose(found[0]["update"], ours(z, t, context, until=hook), atol=1e-2)
    compare(*found, hook)
