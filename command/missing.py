"""Fetch now? What is said and asked where a command wants Stable Diffusion and its weights are not there.

    python featviz.py --feature 10204      the toy has no such feature: it is one of Stable Diffusion's autoencoder
    --weights weights/style50              a folder that weights/fetch.py fills, not there or not whole

Gigabytes are asked for only when nothing known makes them pointless: a flag that cannot be, too little memory or disk,
a card that torch cannot use. In a terminal comes a question, then the fetching (weights/hub.py), and the command goes
on. Elsewhere it ends in one line, with the command to type. `lacking` needs no torch, so that a folder that is not
there is told at once.
"""
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from command.flags import PROJECT
from config import SETTINGS, Job, check_config, configure, find_preset
from weights import hub
from weights.configs import read_sae_config
from weights.download import FetchError
from weights.layouts import PICKLES

TOY = PROJECT / "weights/toy"
SD = {"style50": 4.5, "sd14": 4.5, "sd15": 4.3}         # what weights/fetch.py knows: GB in float32, as in sources.py
SIZES = {"feature": 20_480, "channel": 1_280}           # of SAeUron's autoencoders at up1.1, arXiv 2501.18052
WEIGHTS = {2: 2.34, 4: 4.17}                            # bytes of a number -> GiB of model and autoencoder, and
ASCENT = 1.0                                            # GiB that a job adds: what preflight.predict says at SD's size
NVIDIA = Path("/proc/driver/nvidia")


# --- what is there ----------------------------------------------------------------------------------------------------

def home(name):
    """The folder of a bundle, seen from here."""
    return hub.home(hub.bundle(name))


def whole(folder, feature):
    """Whether all of a model lies in its folder, with an autoencoder where a `feature` is wanted. Unfinished files are
    named `.partial`."""
    weights = all(any(path.suffix in (".safetensors", *PICKLES) for path in (folder / part).glob("*"))
                  for part in ("unet", "vae", "text_encoder"))
    names = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json",
             "tokenizer/merges.txt")
    sae = any(path.with_name("cfg.json").exists() for path in folder.glob("sae/*/sae.safetensors"))
    return weights and all((folder / name).exists() for name in names) and (sae or not feature)


def wants(args):
    """(whether a feature is wanted, whether the thesis' five)."""
    thesis = getattr(args, "thesis", False)
    return bool(getattr(args, "feature", None) or thesis), thesis


def default_weights(args, wanted):
    """The first folder of Stable Diffusion that is whole, if a feature or channel is wanted; otherwise the toy."""
    feature, thesis = wants(args)
    names = ["style50"] if thesis else list(SD)
    found = [home(name) for name in names if whole(home(name), feature)]
    return found[0] if found and (wanted or thesis) else TOY


def beyond(args):
    """What the toy does not have and Stable Diffusion does, and how many the toy has: ("feature", 10204, 128); or
    None."""
    sizes = read_sae_config(next(TOY.glob("sae/*/cfg.json")))
    for kind, has in (("feature", sizes["num_latents"]), ("channel", sizes["d_in"])):
        for n in getattr(args, kind, None) or ():
            if n != "live" and has <= n < SIZES[kind] and not getattr(args, "hook_point", None):
                return kind, n, has
    return None


def lacking(args, wanted):
    """(name of the bundle that is lacking, why it is wanted); ("", "") where nothing is. ValueError for another path
    that is not there."""
    feature, thesis = wants(args)
    if args.weights:
        name = next((name for name in SD if args.weights.resolve() == home(name).resolve()), "")
        if not name and not args.weights.exists():
            raise ValueError(f"{args.weights}: is not there, so it is no model folder and no .safetensors file; give "
                             "--weights one that is, such as weights/toy, or fetch one (weights/README.md)")
        if not name or whole(args.weights, feature and name != "sd15"):
            return "", ""
        return name, f"{args.weights}: is not {'whole' if args.weights.exists() else 'there'}"
    if default_weights(args, wanted) != TOY:
        return "", ""
    if thesis:
        return "style50", ("--thesis: its five features are those of Style50, a Stable Diffusion with its autoencoder, "
                           "whose weights are not there")
    if found := beyond(args):
        kind, n, has = found
        return "style50", (f"--{kind} {n}: is one of the {SIZES[kind]} {kind}s of Style50, a Stable Diffusion with its "
                           f"autoencoder, whose weights are not there; the toy has {has}")
    return "", ""


# --- what would make it pointless -------------------------------------------------------------------------------------

def check_flags(args):
    """ValueError for what cannot be with Stable Diffusion either."""
    from ascent import check_jobs
    from schedule import T
    kind = "channel" if getattr(args, "channel", None) else "feature"
    targets = [n for n in getattr(args, kind, None) or () if n != "live"] or [0]
    times = [t for t in getattr(args, "timestep", None) or () if isinstance(t, int)] or [0]
    sd = SimpleNamespace(sae=SimpleNamespace(features=SIZES["feature"]), schedule=range(T), folder="Stable Diffusion",
                         unet=SimpleNamespace(width=lambda hook: SIZES["channel"]), hook_point=None)
    check_jobs(sd, [Job(**{"feature": None, kind: n}, timestep=t, seed=s) for n in targets for t in times
                    for s in getattr(args, "seed", None) or [0]])
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    if hasattr(args, "preset"):
        preset, quick = find_preset(args.preset, args.channel)
        check_config(configure({}, preset, **quick | given))


def card():
    """The NVIDIA card that this system has, by name and without torch; "" for none, or for one that is hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    for path in sorted(NVIDIA.glob("gpus/*/information")):
        if model := re.search(r"Model:\s*(\S.*)", path.read_text(encoding="utf-8", errors="replace")):
            return model[1].strip()
    if command := shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run([command, "--query-gpu=name", "--format=csv,noheader"], check=True, timeout=20,
                                   capture_output=True, text=True)
            return asked.stdout.partition("\n")[0].strip()
    return ""


def driver():
    """The version of the card's driver, with a blank before it; "" where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r" \d+\.\d[\d.]*", (NVIDIA / "version").read_text(encoding="utf-8", errors="replace"))
        return found[0] if found else ""
    return ""


def check_card(args, device):
    """ValueError where there is a card and torch cannot use it, unless a --device was asked for."""
    import torch
    if args.device or device.type != "cpu" or not (name := card()):
        return
    without = "or add --device cpu to go on without the card, many times slower"
    if not torch.version.cuda:
        raise ValueError(f"torch {torch.__version__} is built without CUDA and cannot use the {name} of this machine; "
                         "pip uninstall torch, then install it with the command that pytorch.org/get-started shows for "
                         f"CUDA; {without}")
    try:
        torch.cuda.init()
        why = "no device is visible"
    except (RuntimeError, AssertionError) as e:
        why = re.split(r"\. |\n", str(e))[0]
    raise ValueError(f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use the {name} of this "
                     f"machine with its driver{driver()} ({why}); update the driver, or install a torch for an older "
                     f"CUDA (pytorch.org/get-started/previous-versions); {without}")


def check_memory(args, device):
    """A line on how many jobs go together, "" where all do; ValueError where not even one does."""
    from ascent import default_batch_size
    from weights.preflight import free_bytes
    width = 4 if (args.dtype or ("bfloat16" if device.type == "cuda" else "float32")) == "float32" else 2
    free, need = free_bytes(device), WEIGHTS[width] + ASCENT
    if free is None:
        return ""
    if free < need * 2 ** 30:
        less = "another --device" if width == 2 else "--dtype bfloat16, or another --device"
        raise ValueError(f"Stable Diffusion takes at least {need:.1f} GiB, {free / 2**30:.1f} are free on {device}; "
                         f"give {less}")
    size, most = args.batch_size or default_batch_size(device, (4, 64, 64)), int(free / 2**30 - WEIGHTS[width])
    return f"{free / 2**30:.1f} GiB are free on {device}: add --batch-size {most} later on" if size > most else ""


# --- the question -----------------------------------------------------------------------------------------------------

def offer(args, wanted, device, check=False):
    """Nothing where the weights that the flags want are there, or are once this returns; ValueError where they stay
    away. With `check` nothing is asked."""
    name, why = lacking(args, wanted)
    if not name:
        return
    check_flags(args)
    check_card(args, device)
    narrow = check_memory(args, device)
    if check or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(f"{why}; python weights/fetch.py {name} fetches it: {SD[name]} GB, licence CreativeML "
                         "OpenRAIL-M")
    print(f"{why}. This would fetch it:\n", file=sys.stderr)
    try:
        found = hub.survey(hub.bundle(name))
        if not hub.need(found, home(name)):     # all that the hub has; what uses the rest says so
            return
        print(hub.plan_text(found, home(name)), file=sys.stderr)
        hub.check_room(found, home(name))
        for line in filter(None, (narrow, device.type == "cpu" and "There is no CUDA card: on two cores a step of the "
                                  "ascent takes about 3 s (docs/measured.md).")):
            print(line, file=sys.stderr)
        print("Fetch now, and agree to the licence? What arrives stays, whenever you stop. [y/N] ", end="",
              file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise FetchError(f"nothing was fetched; python weights/fetch.py {name} does it later")
        with contextlib.redirect_stdout(sys.stderr):
            hub.fetch(found, home(name))
    except FetchError as e:
        raise ValueError(str(e)) from e
    print(f"{home(name)}: complete, every file verified", file=sys.stderr)
