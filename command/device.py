"""The model that the flags name, on the device that they name; how much memory was taken."""
import os
import sys
from pathlib import Path

import torch

from ascent import default_batch_size
from command.missing import default_weights, offer
from weights.load import find, load
from weights.preflight import check_memory, free_bytes, predict
from weights.quick import emulated

try:
    import resource                             # peak memory; not on Windows
except ImportError:
    resource = None


def choose_device(name):
    """--device, checked; under torchrun each process takes its own GPU."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device is visible to torch {torch.__version__}; use --device cpu")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"--device {name}: {str(e).splitlines()[0]}; use --device cpu") from e
    return torch.device(device)


def open_model(args, wanted, check=False):
    """The model of --weights on --device in --dtype, fetched first where that is agreed to. With `check` every number
    is looked at, after a line on memory."""
    device = choose_device(args.device)
    offer(args, wanted, device, check)
    path = args.weights or default_weights(args, wanted)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if device.type == "cpu" and emulated(dtype):
        print(f"--dtype {args.dtype}: this processor has no instructions for it; float32 is many times faster",
              file=sys.stderr)
    hook_point = own_sae(path, getattr(args, "hook_point", None))
    if check:
        found = find(path, args.ema, hook_point)
        check_memory(found, device, dtype, args.batch_size or default_batch_size(device, found.latent), space(args))
    model = load(path, device, dtype, args.ema, hook_point)
    model.hashes                                # are worked out beside what follows
    if check:
        model.check_numbers()
    if model.note:
        print(f"{path}: takes {model.note}", file=sys.stderr)
    return model


def own_sae(path, hook_point):
    """--hook-point where an SAE lies for it, so that of several this one is taken; else None."""
    names = {folder.name.removeprefix("unet.") for folder in Path(path).glob("sae/*")}
    return hook_point if hook_point and hook_point.removeprefix("unet.") in names else None


def space(args):
    """What the ascent moves; where --sweep tries both, what takes more memory."""
    given = (getattr(args, "space", None), *dict(getattr(args, "sweep", ())).get("space", ()))
    return "pixel" if "pixel" in given else "latent"


def choose_size(args, wanted, model):
    """How many jobs go together: as suits the device, or as --batch-size says; fewer, aloud, where memory is short."""
    usual = default_batch_size(model.device, model.latent_shape)
    size = asked = args.batch_size or usual
    if size > usual and (free := free_bytes(model.device)):
        found = find(args.weights or default_weights(args, wanted), args.ema)
        size = max(usual, min(size, int(free * usual / predict(found, model.dtype, usual, space(args))[1])))
        if size < asked:
            print(f"--batch-size {asked} takes more memory than is free on {model.device}: {size} jobs at a time",
                  file=sys.stderr)
    return size


def peak_memory(device):
    """Bytes: of the GPU, or of the process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024         # the same field counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale if resource else 0
