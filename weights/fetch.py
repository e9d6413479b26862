"""Download published weights into a model folder: `python weights/fetch.py style50`. Needs the standard library only.

published.json is the table: bundles, their sources (a repository's folder, a list of files in it; of an SAE of another
family what its config leaves open), and hashes from public manifests. A file is `<name>.partial` until its size and
hash are the listed ones. HF_ENDPOINT names another hub; HF_TOKEN is not sent to the hub's storage.

Source: the hub's API, https://huggingface.co/docs/hub/api
"""
import hashlib
import http.client
import json
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if __name__ == "__main__":                                      # as a script this folder is on the path, not the root
    sys.path.insert(0, str(ROOT.parent))
from command.flags import Parser, guarded  # noqa: E402
from command.progress import Count, say, warn  # noqa: E402

TABLE = json.loads((ROOT / "published.json").read_text(encoding="utf-8"))
BUNDLES, FILES = TABLE["bundles"], TABLE["files"]
SOURCES = {name: [TABLE["sources"][source] for source in bundle["sources"]] for name, bundle in BUNDLES.items()}
TIMEOUT, TRIES, PAUSE, MIB = 60, 6, 1.0, 2 ** 20                # s, connections without progress, s, bytes
NETWORK = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
OTHER_FAMILY = {"cfg.json": "config.json", "sae.safetensors": "state_dict.pth"}     # names of an SAE's files


@dataclass
class Item:
    """A file to download."""
    url: str
    size: int                                   # bytes
    hash: str                                   # SHA-256, or git's SHA-1
    target: Path

    def matches(self, path):
        """Return whether a file has the listed size and hash."""
        digest = hashlib.sha256() if len(self.hash) == 64 else hashlib.sha1(b"blob %d\0" % self.size)
        if path.stat().st_size != self.size:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: digest).hexdigest() == self.hash


def address(source, kind, path):
    """Return an address of the hub: `kind` is "tree" for a listing and "resolve" for a file."""
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/") + "/api/models" * (kind == "tree")
    return f"{hub}/{source['repo']}/{kind}/{source.get('revision', 'main')}/{path}".rstrip("/")


def request(url, start=0):
    """Return the reply with the bytes of a URL from `start` on."""
    try:
        asked = urllib.request.Request(url, headers={"User-Agent": "featviz", "Range": f"bytes={start}-"})
        if token := os.environ.get("HF_TOKEN"):
            asked.add_unredirected_header("Authorization", f"Bearer {token}")
        return urllib.request.urlopen(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code == 429 or e.code >= 500:
            raise
        raise ValueError(f"{url}: HTTP {e.code}; it is gone, or private (accept its terms, set HF_TOKEN)") from e
    except ValueError:                                          # its text may hold the token
        raise ValueError(f"{url}: cannot be requested; check HF_ENDPOINT and HF_TOKEN") from None


def transfer(url, out, size, show):
    """Append the rest of a URL to the open file `out`, until TRIES connections in a row bring nothing."""
    left = TRIES
    while (have := out.tell()) < size:
        why = "the connection ended"
        try:
            with request(url, have) as reply:
                if reply.status != 206:                         # the server sends the whole file
                    have = out.seek(0)
                    out.truncate()
                if (length := int(reply.headers.get("Content-Length", size - have))) != size - have:
                    raise ValueError(f"{url}: another file came, of {length} bytes; open the address in a browser")
                while block := reply.read1(MIB):
                    out.write(block)
                    show(out.tell())
        except NETWORK as e:
            why = e
        left = TRIES if out.tell() > have else left - 1
        if not left:
            raise ValueError(f"{url}: {why}; gave up after {TRIES} tries; what arrived is kept, try later")
        if out.tell() < size:
            time.sleep(PAUSE * 2 ** (TRIES - left))


def list_files(source):
    """Return {path: (size, hash)} of a source's folder, as the hub lists it."""
    url = address(source, "tree", source.get("folder", ""))
    try:
        with request(f"{url}?recursive=true") as reply:
            files = {entry["path"]: entry.get("lfs") or entry for entry in json.load(reply) if entry["type"] == "file"}
        return {path: (int(entry["size"]), entry["oid"]) for path, entry in files.items()}
    except (*NETWORK, KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{url}: is no listing of files; check HF_ENDPOINT, or try later ({e})") from e


def find(source, name, listed, folder):
    """Return the Item of one of our files among the listed ones; None if it is not there."""
    home, names = source.get("folder", ""), [name]
    if name.startswith("sae/"):
        hook, file = name.split("/")[1:]
        names = [place + each for place in (f"{hook}/", "") for each in (file, OTHER_FAMILY[file])]
    path = next((home + each for each in names if home + each in listed), None)
    if path is None:
        return None
    size, found = listed[path]
    known = TABLE["hashes"].get(source["repo"], {}).get(path, found)
    if known != found and len(known) == len(found):
        raise ValueError(f"{source['repo']}/{path}: the hub lists another file than the published one; use another hub")
    target = folder / ("published/" + Path(path).name if "convert" in source else name)
    return Item(address(source, "resolve", path), size, known, target)


def survey(bundle, folder):
    """Return {name: Item} of a bundle, each from the first of its sources that has it."""
    items = {}
    for source in SOURCES[bundle]:
        wanted = [name for name in FILES[source["files"]] if name not in items]
        listed = list_files(source) if wanted else {}
        items |= {name: item for name in wanted if (item := find(source, name, listed, folder))}
    for source in SOURCES[bundle]:
        if lacking := [name for name in FILES[source["files"]] if name not in items]:
            raise ValueError(f"{source['repo']}: lacks {', '.join(lacking)}")
    return items


def bring(name, item):
    """Put one file at its target, verified; return what was done."""
    if item.target.exists():
        if not item.matches(item.target):
            raise ValueError(f"{item.target}: is not the listed file; move it away or delete it, then run again")
        return "there, verified"
    item.target.parent.mkdir(parents=True, exist_ok=True)
    for twin in ROOT.glob(f"*/{name}"):
        if item.matches(twin):
            with suppress(OSError):                             # another drive
                os.link(twin, item.target)
                return f"the same as {twin}, verified"
    count, partial = Count("MB"), item.target.with_name(item.target.name + ".partial")
    with open(partial, "ab") as out:
        transfer(item.url, out, item.size, lambda have: count(have / 1e6, item.size / 1e6))
    if not item.matches(partial):
        partial.unlink()
        raise ValueError(f"{item.url}: what came has another hash than the listed one, and was deleted; run again")
    os.replace(partial, item.target)
    return "verified"


def fetch(bundle, folder=None, check=False, agreed=False):
    """Print what a bundle holds, stop there on `check`, ask unless `agreed`, and bring it into a model folder."""
    folder = folder or ROOT / bundle
    items = survey(bundle, folder)
    say(f"{BUNDLES[bundle]['title']} -> {folder}")
    for name, item in items.items():
        say(f"  {name}: {item.size / 1e6:.2f} MB from {item.url}")
    rest = sum(item.size for item in items.values() if not item.target.exists()) / 1e6
    rest -= sum(path.stat().st_size for path in folder.rglob("*.partial")) / 1e6
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free / 1e6
    say(f"{rest:.0f} MB to download, {free:.0f} MB free")
    if rest > free:
        raise ValueError(f"{folder}: {rest:.0f} MB are needed, {free:.0f} are free; make room or give a --folder")
    if check:
        return
    if not agreed:
        answer = input("Download, and accept the licences? [y/N] ") if sys.stdin and sys.stdin.isatty() else ""
        if answer.strip().lower() not in ("y", "yes"):
            raise ValueError(f"nothing was downloaded; python weights/fetch.py {bundle} --yes accepts the licences")
    for name, item in items.items():
        say(f"{item.target}: {bring(name, item)}")
    for source in SOURCES[bundle]:
        home = folder / Path(FILES[source["files"]][0]).parent
        if "convert" in source and not home.exists():
            from weights.convert import convert                 # here, for it needs torch
            say(convert(folder / "published", home, **source["convert"]))
    path, settings = folder / "featviz.json", BUNDLES[bundle].get("featviz")
    if settings and not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    say(f"{folder}: complete, every file verified")


def choose_weights(path, kind, targets):
    """Return the folder to load: `path`, Stable Diffusion's where it is and there are `targets`, else the toy. For a
    number that only Stable Diffusion has Style50 is fetched, or ValueError names the command."""
    if path:
        return path
    parts = ["unet", "vae", "text_encoder", *["sae/*"] * (kind == "feature")]
    for folder in (ROOT / name for name in ("style50", "saemnesia", "sd14", "sd15") if targets):
        if all(any(folder.glob(f"{part}/*.safetensors")) for part in parts):
            return folder
    toy = json.loads(next(ROOT.glob("toy/sae/*/cfg.json")).read_text(encoding="utf-8"))
    has = toy["num_latents" if kind == "feature" else "d_in"]
    most = {"feature": 20_480, "channel": 1_280}.get(kind, 0)   # SAeUron's SAEs at up1.1, arXiv 2501.18052
    n = next((n for n in targets if isinstance(n, int) and has <= n < most), None)
    if n is None:
        return ROOT / "toy"
    why = f"--{kind} {n}: the toy has {has} {kind}s, 0..{has - 1}; Stable Diffusion's SAE has {most}, 0..{most - 1}"
    if not (sys.stdin and sys.stdin.isatty()):
        raise ValueError(f"{why}; python weights/fetch.py style50 fetches {BUNDLES['style50']['title']}")
    warn(why)
    fetch("style50")
    return ROOT / "style50"


def main(argv=None):
    parser = Parser(prog="weights/fetch.py", description="Download published weights into a model folder.")
    parser.add_argument("bundle", choices=BUNDLES, help="what to download")
    parser.add_argument("--folder", type=Path, help="model folder (default: weights/<bundle>)")
    parser.add_argument("--check", action="store_true", help="show the plan and stop")
    parser.add_argument("--yes", action="store_true", help="accept plan and licences")
    return guarded("fetch", fetch, *vars(parser.parse_args(argv)).values())


if __name__ == "__main__":
    sys.exit(main())
