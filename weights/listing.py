"""What a repository holds, by the hub's own listing, and which of it is fetched. Standard library only.

    GET {endpoint}/api/models/{repo}/tree/{revision}/{folder}?recursive=true
    [{"type": "file", "path": "unet/config.json", "size": 743, "oid": git's name of the file},
     {"type": "file", "path": ..., "size": ..., "oid": of a pointer, "lfs": {"oid": SHA-256, "size": bytes}}, ...]

A long listing comes in pages; each names the next in its header `Link: <...>; rel="next"`. The rules choose what
weights/load.py and eyes.py read, safetensors before pickles, nothing else; by exact names, so no path of a listing is
ever used.
"""
import http.client
import json
import re
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from weights.download import ELSEWHERE, FetchError, Gone, NoConnection, Trouble, check_status, connect, other, patiently
from weights.layouts import STEM, VARIANTS
from weights.sources import HOOK, File

MOST_PAGES, MOST_BYTES = 100, 2 ** 24                           # a listing that goes on and on is none
PICKLE_STEM = STEM | {"text_encoder": "pytorch_model"}          # as diffusers and transformers name their .bin files
BESIDE = {"unet": ("config.json",), "vae": ("config.json",), "text_encoder": ("config.json",),
          "tokenizer": ("vocab.json", "merges.txt"), "scheduler": ("scheduler_config.json",)}


class NoListing(FetchError):
    """This hub does not say what it has: an old mirror, or nobody answers."""


@dataclass(frozen=True)
class Entry:
    size: int
    pin: str


def hail(url, token):
    """The reply; asked once more where nobody answers: a fetch is patient, a question is not."""
    try:
        return connect(url, token)[0]
    except NoConnection:
        try:
            return connect(url, token)[0]
        except NoConnection as e:
            raise NoListing(str(e)) from e


def read_page(url, token):
    """One page -> (its items, the query of the next page or "", the address that answered)."""
    reply = hail(url, token)
    with reply:
        known = "X-Error-Code" in reply.headers                 # a hub with this interface says what is missing
        if reply.status in (400, 404, 405, 410, 501) and not known:
            raise NoListing(f"{url}: HTTP {reply.status}")
        if reply.status == 200 and "json" not in reply.headers.get("Content-Type", ""):
            raise NoListing(f"{url}: something else than a listing came")
        check_status(reply, url, token)
        following = re.search(r'<([^>]*)>\s*;\s*rel="?next"?', reply.headers.get("Link", ""))
        try:
            items = json.loads(reply.read(MOST_BYTES))
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as e:
            raise Trouble(f"{url}: the listing came incomplete ({type(e).__name__})") from e
    return items, urlsplit(following[1]).query if following else "", reply.url


def read_item(item, folder):
    """An item -> (path below `folder`, Entry), or None for what is no file; FetchError for what means nothing."""
    if isinstance(item, dict) and item.get("type") != "file":
        return None
    try:
        large = item.get("lfs") or {}
        path, size, oid = item["path"], large.get("size", item["size"]), large.get("oid", item["oid"])
        pin = {40: "git:", 64: "sha256:"}[len(oid)] + re.fullmatch("[0-9a-f]+", oid)[0]
        if not path.startswith(folder) or type(size) is not int or size < 0 or bool(large) != pin.startswith("sha"):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise FetchError(f"the hub lists {str(item)[:80]!r}, which is no file below {folder or 'the repository'!r}; "
                         f"{ELSEWHERE}") from e
    return path.removeprefix(folder), Entry(size, pin)


def ask(endpoint, source, token):
    """({path below the source's folder: Entry}, notes); NoListing, Gone or FetchError where there is none.

    The next page is asked of the same address: of a link the query alone is taken, so that the token stays at home.
    """
    address = f"{endpoint}/api/models/{source.repo}/tree/{source.revision}/{source.folder}".rstrip("/")
    there, notes, query = {}, [], "recursive=true"
    for page in range(MOST_PAGES):
        url = f"{address}?{query}"
        items, query, final = patiently("the hub's listing", partial(read_page, url, token))
        if not isinstance(items, list):
            raise FetchError(f"{url}: the hub lists {str(items)[:80]!r}; {ELSEWHERE}")
        there |= dict(filter(None, (read_item(item, source.folder) for item in items)))
        moved = re.search(r"/api/models/(.+?)/tree/", final)
        if page == 0 and moved and moved[1] != source.repo:
            notes.append(f"{source.repo} has moved to {moved[1]}")
        if not query:
            return there, notes
    raise FetchError(f"{address}: the listing has no end; {ELSEWHERE}")


# --- rules: names -> what is fetched ----------------------------------------------------------------------------------

def candidates(part, half):
    """(a file with a network's weights, the safetensors that are to be made of it or ""): the best first."""
    variants = VARIANTS[1:] + VARIANTS[:1] if half else VARIANTS
    ours = [f"{part}/{STEM[part]}{variant}.safetensors" for variant in variants]
    return [(name, "") for name in ours] + \
           [(f"{part}/{PICKLE_STEM[part]}{variant}.bin", name) for variant, name in zip(variants, ours)]


def choose_model(names, half, where):
    """Names in a folder of diffusers' layout -> ({name: what it becomes or ""}, what is lacking, notes).

    Lacking: `part/` where weights or all of a part are, else a file's name. Gone where no UNet can be read.
    """
    chosen, lacking, notes = {}, [], []
    for part, beside in BESIDE.items():
        options = candidates(part, half) if part in STEM else []
        name, becomes = next((option for option in options if option[0] in names), ("", ""))
        if part == "unet" and not name:
            found = sorted(n for n in names if n.startswith("unet"))[:4]
            raise Gone(f"{where}: holds no UNet that can be read; expected {options[0][0]} or a .bin, found "
                       f"{', '.join(found) or 'no folder unet'}")
        missing = [f"{part}/{n}" for n in beside if f"{part}/{n}" not in names]
        if (part in STEM and not name) or len(missing) == len(beside) > 1 or part == "scheduler" and missing:
            lacking.append(part + "/")
            continue
        lacking += missing
        chosen |= {f"{part}/{n}": "" for n in beside if f"{part}/{n}" in names}
        if name:
            chosen[name] = becomes
        if becomes:
            notes.append(f"{name} is a pickle; after the download weights/convert.py makes {becomes} of it, "
                         "weights only: no code in it runs")
        if name and half == (name in (option[0] for option in candidates(part, half=False)[::len(VARIANTS)])):
            notes.append(f"{part}, by its name, lies there in {'full' if half else 'half'} precision alone: {name}")
    if any(n.startswith("unet_ema/") for n in names):
        notes.append("unet/ is taken, not unet_ema/ (its moving average): from_pretrained reads unet/, and so does "
                     "SAeUron, whose SAE it is that is used")
    return chosen, lacking, notes


def choose_sae(names, half, where):
    """Names where an SAE lies -> ({name: ""}, [], notes): in the hook point's folder, or with nothing around it."""
    folders = {f"{HOOK}/": "", HOOK.removeprefix("unet.") + "/": "",
               "": f"the folder does not name the SAE's hook point; {HOOK} is inferred, see what the fit check says"}
    for folder, note in folders.items():
        if {folder + "cfg.json", folder + "sae.safetensors"} <= set(names):
            return {folder + "cfg.json": "", folder + "sae.safetensors": ""}, [], [note] if note else []
    raise Gone(f"{where}: holds no SAE that can be read; expected {HOOK}/ with cfg.json and sae.safetensors, found "
               f"{', '.join(sorted(names)[:6]) or 'nothing'}")


def choose_clip(names, half, where):
    """Names of the hub's CLIP -> ({name: ""}, [], []): what weights/eyes.py reads, the weights last."""
    wanted = {"config.json": "", "model.safetensors": ""}
    if missing := [name for name in wanted if name not in names]:
        raise Gone(f"{where}: lacks {', '.join(missing)}; found {', '.join(sorted(names)[:6]) or 'nothing'}")
    return wanted, [], []


RULES = {"model": choose_model, "sae": choose_sae, "clip": choose_clip}


def pinned(name, entry, known):
    """(File of a listed file, note or ""): held against the listing, and against the table where its hash is known."""
    file, note = File(name, entry.size, entry.pin, sure=True), ""
    if known and other(entry.pin, known.pin):
        if known.sure:
            raise FetchError(f"{name}: the hub lists another file ({entry.pin}) than the published one ({known.pin}); "
                             f"{ELSEWHERE}")
        note = f"{name} is {entry.pin[:19]} there, another revision has {known.pin[:19]}; the hub's word counts"
    elif known and known.sure and known.pin.partition(":")[0] != entry.pin.partition(":")[0]:
        file = replace(file, pin=known.pin)
    return file, note


def left_there(names, chosen):
    """What of a repository is not fetched, in one line: folders of which nothing is, else files."""
    used = {name.partition("/")[0] for name in chosen if "/" in name}
    groups = {name if name.partition("/")[0] in used or "/" not in name else name.partition("/")[0] + "/"
              for name in names if name not in chosen}
    some = sorted(groups)
    return ", ".join(some[:8]) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
