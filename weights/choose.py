"""Choose the folder of weights that a command without --weights means, and offer to fetch what is missing."""
import json
import sys
from pathlib import Path

from command.progress import warn
from weights import fetch

FOLDER = Path(__file__).resolve().parent
PUBLISHED = ("style50", "saemnesia", "sd14", "sd15")            # folders that are looked for, in this order
SIZES = {"feature": 20_480, "channel": 1_280}                   # of SAeUron's SAEs at up1.1, arXiv 2501.18052


def choose_weights(path, kind, targets):
    """Return the folder to load: `path`, or for a feature or channel Stable Diffusion's where it is, else the toy.

    targets  numbers and words that were asked for
    Where Stable Diffusion is wanted and missing, a terminal is asked whether to fetch it; elsewhere ValueError with the
    command.
    """
    if path:
        name = path.name if path.resolve().parent == FOLDER and path.name in fetch.BUNDLES else None
        if name and not is_whole(path, kind):
            return offer(name, f"{path}: is {'not whole' if path.exists() else 'not there'}")
        return path
    for name in PUBLISHED if targets else ():
        if is_whole(FOLDER / name, kind):
            return FOLDER / name
    toy = json.loads(next((FOLDER / "toy").glob("sae/*/cfg.json")).read_text(encoding="utf-8"))
    has, most = toy["num_latents" if kind == "feature" else "d_in"], SIZES.get(kind, 0)
    if beyond := [n for n in targets if isinstance(n, int) and has <= n < most]:
        return offer("style50", f"--{kind} {beyond[0]}: the toy has {has} {kind}s, 0..{has - 1}; Stable Diffusion's "
                     f"SAE has {most}, 0..{most - 1}")
    return FOLDER / "toy"


def is_whole(path, kind):
    """Tell whether a folder holds a model, with an SAE where a feature is wanted."""
    parts = all(any((path / part).glob("*.safetensors")) for part in ("unet", "vae", "text_encoder"))
    return parts and (kind != "feature" or any(path.glob("sae/*/sae.safetensors")))


def offer(bundle, why):
    """Fetch a bundle where somebody at a terminal agrees, and return its folder; else ValueError with the command."""
    if sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty():
        warn(why)
        print(f"Fetch {fetch.describe(bundle)}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            fetch.fetch(bundle, agreed=True)
            return FOLDER / bundle
    raise ValueError(f"{why}; python weights/fetch.py {bundle} fetches {fetch.describe(bundle)}")
