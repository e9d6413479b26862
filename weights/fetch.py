"""Download published weights into a model folder: `python weights/fetch.py style50`. Needs the standard library only.

    python weights/fetch.py style50 --check     list files, sizes, licences and free space; download nothing
    python weights/fetch.py style50             ask, then download to weights/style50

published.json is the table: bundles, their sources (a repository's folder, a list of files in it; of an SAE of another
family what its config leaves open), and hashes that are known from public manifests. A file is `<name>.partial` until
its size and hash are the listed ones; the same command resumes it. What another model folder has is linked. HF_ENDPOINT
names another hub, whose storage does not get HF_TOKEN. Source: the hub's API, https://huggingface.co/docs/hub/api
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
PUBLISHED = ("style50", "saemnesia", "sd14", "sd15")            # model folders that are looked for, in this order
SIZES = {"feature": 20_480, "channel": 1_280}                   # of SAeUron's SAEs at up1.1, arXiv 2501.18052


@dataclass
class Item:
    """A file to download."""
    repo: str
    url: str
    size: int
    hash: str                                   # SHA-256, or git's SHA-1
    final: Path                                 # the file that the model folder needs
    target: Path                                # where it arrives: `final`, or a place from which it is converted

    def mismatch(self, path):
        """Return how a file differs from the listed one, "" if it does not."""
        if (found := path.stat().st_size) != self.size:
            return f"has {found} bytes, {self.size} are listed"
        digest = hashlib.sha256() if len(self.hash) == 64 else hashlib.sha1(b"blob %d\0" % self.size)
        with open(path, "rb") as file:
            same = hashlib.file_digest(file, lambda: digest).hexdigest() == self.hash
        return "" if same else "has another hash than the listed one"


# --- the hub ----------------------------------------------------------------------------------------------------------

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
            files = [entry for entry in json.load(reply) if entry["type"] == "file"]
        large = {entry["path"]: entry.get("lfs") or entry for entry in files}
        return {path: (int(entry["size"]), entry["oid"]) for path, entry in large.items()}
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
    return Item(source["repo"], address(source, "resolve", path), size, known, folder / name, target)


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


def plan(bundle, items, folder):
    """Return the lines that name every file, the licences and the space; ValueError where the disk is too small."""
    lines = [f"  {name}: {item.size / 1e6:.2f} MB from {item.repo}" for name, item in items.items()]
    lines.insert(0, f"{BUNDLES[bundle]['title']} -> {folder}")
    rest = sum(item.size for item in items.values() if not item.final.exists() and not item.target.exists()) / 1e6
    rest -= sum(path.stat().st_size for path in folder.rglob("*.partial")) / 1e6
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free / 1e6
    if rest > free:
        raise ValueError(f"{folder}: {rest:.0f} MB are needed, {free:.0f} are free; make room or give a --folder")
    return "\n".join([*lines, f"{rest:.0f} MB to download, {free:.0f} MB free"])


# --- downloading ------------------------------------------------------------------------------------------------------

def bring(name, item):
    """Put one file at its target, verified; return what was done."""
    if item.final.exists() and item.final != item.target:
        return "converted before"
    if item.target.exists():
        if why := item.mismatch(item.target):
            raise ValueError(f"{item.target}: {why}; move it away or delete it, then run again")
        return "there, verified"
    item.target.parent.mkdir(parents=True, exist_ok=True)
    for twin in ROOT.glob(f"*/{name}"):
        if not item.mismatch(twin):
            with suppress(OSError):                             # another drive
                os.link(twin, item.target)
                return f"the same as {twin}, verified"
    count, partial = Count("MB"), item.target.with_name(item.target.name + ".partial")
    with open(partial, "ab") as out:
        transfer(item.url, out, item.size, lambda have: count(have / 1e6, item.size / 1e6))
    if why := item.mismatch(partial):
        partial.unlink()
        raise ValueError(f"{item.url}: what came {why}; it was deleted: run again, or use another HF_ENDPOINT")
    os.replace(partial, item.target)
    return "verified"


def fetch(bundle, folder=None, check=False, agreed=False):
    """Print what a bundle holds, stop there on `check`, ask unless `agreed`, and bring it into a model folder."""
    folder = folder or ROOT / bundle
    items = survey(bundle, folder)
    say(plan(bundle, items, folder))
    if check:
        return
    if not agreed:
        answer = input("Download, and accept the licences? [y/N] ") if sys.stdin and sys.stdin.isatty() else ""
        if answer.strip().lower() not in ("y", "yes"):
            raise ValueError(f"nothing was downloaded; python weights/fetch.py {bundle} --yes accepts plan and "
                             "licences without a question")
    for name, item in items.items():
        say(f"{item.target}: {bring(name, item)}")
    if foreign := [item for item in items.values() if not item.final.exists()]:
        from weights.convert import convert     # here, for it needs torch
        changes = next(source["convert"] for source in SOURCES[bundle] if "convert" in source)
        say(convert(foreign[0].target.parent, foreign[0].final.parent, **changes))
        shutil.rmtree(foreign[0].target.parent)
    path, settings = folder / "featviz.json", BUNDLES[bundle].get("featviz")
    if settings and not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    say(f"{folder}: complete, every file verified")


def choose_weights(path, kind, targets):
    """Return the folder to load: `path`, or for a feature or channel Stable Diffusion's where it is, else the toy.

    Where one of the `targets` is a number that only Stable Diffusion has, Style50 is fetched if somebody at a terminal
    agrees; else ValueError with the command.
    """
    if path:
        return path
    parts = ["unet", "vae", "text_encoder", *["sae/*"] * (kind == "feature")]
    for folder in (ROOT / name for name in PUBLISHED if targets):
        if all(any(folder.glob(f"{part}/*.safetensors")) for part in parts):
            return folder
    toy = json.loads(next(ROOT.glob("toy/sae/*/cfg.json")).read_text(encoding="utf-8"))
    has, most = toy["num_latents" if kind == "feature" else "d_in"], SIZES.get(kind, 0)
    beyond = [n for n in targets if isinstance(n, int) and has <= n < most]
    if not beyond:
        return ROOT / "toy"
    why = (f"--{kind} {beyond[0]}: the toy has {has} {kind}s, 0..{has - 1}; Stable Diffusion's SAE has {most}, "
           f"0..{most - 1}")
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
    args = parser.parse_args(argv)
    return guarded("fetch", fetch, args.bundle, args.folder, args.check, args.yes)


if __name__ == "__main__":
    sys.exit(main())
