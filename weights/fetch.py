"""Download published weights into a model folder: `python weights/fetch.py style50`. Needs the standard library only.

    python weights/fetch.py style50 --check     list files, sizes, licences and free space; download nothing
    python weights/fetch.py style50             ask, then download to weights/style50

published.json is the table: repositories, files, licences, and hashes that are known from public manifests. hub.py
lists what a repository has and transfers it. A file is named `<name>.partial` until its size and hash are the listed
ones; the same command resumes it. Pickles, and an SAE of another family, are converted by weights/convert.py. A file
that another model folder has already is linked. No published file could be reached where this was written: names come
from model cards, and what the hub lists decides.
"""
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if __name__ == "__main__":                                      # as a script this folder is on the path, not the root
    sys.path[:] = [str(ROOT.parent), *(path for path in sys.path if path != str(ROOT))]
from command.flags import Parser, guarded  # noqa: E402
from command.progress import Line, say  # noqa: E402
from weights.hub import MIB, FetchError, Gone, Source, list_files, mismatch, spellings, transfer, url_of  # noqa: E402

TABLE = json.loads((ROOT / "published.json").read_text(encoding="utf-8"))
BUNDLES, FILES = TABLE["bundles"], TABLE["files"]


@dataclass
class Item:
    """A file to download: `path` in the repository, `target` where it arrives, `final` what it is or becomes here."""
    source: Source
    path: str
    name: str
    size: int
    hash: str
    target: Path | None = None
    final: Path | None = None

    @property
    def partial(self):
        return self.target.with_name(self.target.name + ".partial")

    @property
    def arrived(self):
        """Bytes that are on the disk already."""
        if self.final.exists() or self.target.exists():
            return self.size
        return min(self.partial.stat().st_size, self.size) if self.partial.exists() else 0


# --- what is fetched --------------------------------------------------------------------------------------------------

def find(source, name, listed):
    """Return the Item of one of our files among the listed ones; None if it is not there."""
    path = next((path for path in spellings(source, name) if path in listed), None)
    if path is None:
        return None
    size, found = listed[path]
    known = TABLE["hashes"].get(source.repo, {}).get(path, found)
    if len(known) == len(found) and known != found:
        raise FetchError(f"{source.repo}/{path}: the hub lists another file than the published one; use another hub")
    return Item(source, path, name, size, known)


def choose(source):
    """Return the items of a source; those that it lacks, of its base."""
    base, gone, listed = TABLE["sources"].get(source.base), None, {}
    try:
        listed = list_files(source)
    except Gone as e:
        gone = e
    items = {name: find(source, name, listed) for name in FILES[source.files]}
    lacking = [name for name, item in items.items() if item is None]
    if lacking and base and set(lacking) <= set(FILES[base["files"]]):
        items |= {item.name: item for item in choose(Source(**base)) if item.name in lacking}
    elif lacking:
        raise gone or Gone(f"{source.repo}/{source.folder}: lacks {', '.join(lacking)}; holds {sorted(listed)[:6]}")
    return list(items.values())


def survey(bundle, folder, say=say):
    """Return the items of a bundle as this hub has them, with the places where they go."""
    found = []
    for source in sources_of(bundle):
        try:
            found += choose(source)
        except Gone as e:
            if not source.optional:
                raise
            say(f"note: without {source.files}: {e}")
    for item in found:
        item.target = item.final = folder / item.name
        if item.source.convert:
            item.target = folder / "published" / Path(item.path).name
        elif item.path.endswith(".bin"):
            item.target = item.final.with_name(Path(item.path).name)
    return found


# --- the plan ---------------------------------------------------------------------------------------------------------

def sources_of(bundle):
    return [Source(**TABLE["sources"][name]) for name in BUNDLES[bundle]["sources"]]


def describe(bundle):
    """Return one line: title, size and licences of a bundle."""
    licences = dict.fromkeys(source.licence for source in sources_of(bundle))
    return f"{BUNDLES[bundle]['title']}, {BUNDLES[bundle]['gigabytes']} GB, {', '.join(licences)}"


def home(bundle):
    """Return the folder of a bundle where none is given, as it is typed from here, whole from another drive."""
    try:
        return Path(os.path.relpath(ROOT / bundle))
    except ValueError:
        return ROOT / bundle


def amount(size):
    """Return bytes as people write them."""
    unit, n = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= pair[1]), ("B", 1))
    return f"{size / n:.3g} {unit}"


def plan(bundle, items, folder):
    """Return the lines that name every file, the licences and the space; FetchError where the disk is too small."""
    lines = [f"{describe(bundle)} -> {folder}"]
    for item in items:
        becomes = f", converted from {item.target.name}" if item.target != item.final else ""
        state = f", {amount(item.arrived)} are there" if item.arrived else ""
        lines.append(f"  {item.name}: {amount(item.size)} from {item.source.repo}{becomes}{state}")
    rest = sum(item.size - item.arrived for item in items)
    need = rest + sum(item.size for item in items if item.target != item.final and not item.final.exists())
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free
    if need > free:
        raise FetchError(f"{folder}: {amount(need)} are needed and {amount(free)} free; make room or give a --folder")
    return lines + [f"{amount(rest)} to download, {amount(free)} free"]


# --- downloading ------------------------------------------------------------------------------------------------------

class Download(Line):
    """Report bytes, rate and time left on one line; `before` is what was there when it began."""

    def __init__(self, items):
        super().__init__()
        self.items, self.before, self.next = items, sum(item.arrived for item in items), 0
        self.total = sum(item.size for item in items)

    def __call__(self, item, have):
        if item.size < MIB or have < item.size and time.monotonic() < self.next:
            return
        self.next = time.monotonic() + 0.5
        done = have + sum(other.arrived for other in self.items if other is not item)
        rate = max(done - self.before, 1) / (time.monotonic() - self.began)
        left = (self.total - done) / rate / 60
        self.show(f"{amount(done)} of {amount(self.total)}, {amount(rate)}/s, {left:.0f} min left", have == item.size)


def bring(item, progress):
    """Put one file at its target, verified; return what was done."""
    if item.final != item.target and item.final.exists():
        return "converted before"
    if item.target.exists():
        if why := mismatch(item.target, item.size, item.hash):
            raise FetchError(f"{item.target}: {why}; move it away or delete it, then run again")
        return "there, verified"
    item.target.parent.mkdir(parents=True, exist_ok=True)
    for twin in ROOT.glob(f"*/{item.name}") if item.size > MIB else ():
        if not mismatch(twin, item.size, item.hash):
            try:
                os.link(twin, item.target)
            except OSError:                                     # another drive
                shutil.copyfile(twin, item.partial)
                os.replace(item.partial, item.target)
            return f"the same as {twin}, verified"
    with open(item.partial, "ab") as out:
        if out.tell() < item.size:
            transfer(url_of(item.source, "resolve", item.path), out, item.size, partial(progress, item))
    if why := mismatch(item.partial, item.size, item.hash):
        item.partial.unlink()
        raise FetchError(f"{item.path}: what came {why}; it was deleted: run again, or use another HF_ENDPOINT")
    os.replace(item.partial, item.target)
    return "verified"


def convert_arrived(items, say):
    """Make our files of pickles and of an SAE of another family, none of whose code runs; delete what was converted."""
    from weights.convert import convert, read_file, write_tensors           # here, for it needs torch
    for item in items:
        if item.final.exists():
            continue
        if item.source.convert:
            say(convert(item.target.parent, item.final.parent, changes=item.source.convert))
            shutil.rmtree(item.target.parent)
        else:
            tensors = {k: tensor for k, tensor in read_file(item.target)[0].items() if tensor.is_floating_point()}
            write_tensors(item.partial, tensors)
            os.replace(item.partial, item.final)
            item.target.unlink()
            say(f"{item.final}: {len(tensors)} tensors, converted from {item.target.name}")


def fetch(bundle, folder=None, say=say):
    """Bring all files of a bundle into a model folder; FetchError or OSError where that fails. What arrived is kept."""
    folder = Path(folder or home(bundle))
    items = survey(bundle, folder, say)
    plan(bundle, items, folder)                                 # for its check of the disk
    progress = Download(items)
    for item in items:
        say(f"{item.target}: {bring(item, progress)}")
    if any(item.target != item.final and not item.final.exists() for item in items):
        convert_arrived([item for item in items if item.target != item.final], say)
    settings = BUNDLES[bundle].get("featviz")
    if settings and not (folder / "featviz.json").exists():
        (folder / "featviz.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    say(f"{folder}: complete, every file verified")


def run(args):
    folder = args.folder or home(args.bundle)
    say("\n".join(plan(args.bundle, survey(args.bundle, folder), folder)))
    if args.check:
        return 0
    if not args.yes:
        answer = input("Download, and accept the licences? [y/N] ") if sys.stdin and sys.stdin.isatty() else ""
        if answer.strip().lower() not in ("y", "yes"):
            raise FetchError("nothing was downloaded; --yes accepts plan and licences without a question")
    fetch(args.bundle, folder)
    return 0


def main(argv=None):
    parser = Parser(prog="weights/fetch.py", description="Download published weights into a model folder.")
    parser.add_argument("bundle", choices=BUNDLES, help="what to download")
    parser.add_argument("--folder", type=Path, help="model folder (default: weights/<bundle>)")
    parser.add_argument("--check", action="store_true", help="show the plan and stop")
    parser.add_argument("--yes", action="store_true", help="accept plan and licences")
    return guarded("fetch", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
