"""SHA-256 of files, remembered: a large file is hashed again only when something about it has changed.

The memory is one JSON file in the user's cache folder, never among the weights: {path: [size, mtime, ctime, inode,
SHA-256]}, times in nanoseconds. Losing it costs a minute of hashing; a cache folder that cannot be written costs the
same at each start. The fit check (preflight.py) keeps its numbers in a file beside it.
"""
import hashlib
import json
import os
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from weights.disk import unreadable

SMALL = 2 ** 20                                 # bytes; below, hashing is cheaper than remembering
SETTLED = 2.0                   # seconds; a file younger than this may change again within one tick of its clock


def cache_path(name="fingerprints.json"):
    """Where the memory lies: XDG_CACHE_HOME, Windows' LOCALAPPDATA, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "featviz" / name


def recall(name="fingerprints.json"):
    """{path: [signature, SHA-256]}; empty where there is none or it is no use."""
    try:
        found = json.loads(cache_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(new, name="fingerprints.json", still=os.path.exists):
    """Add entries, drop those that are not `still` of use, as those of files that are gone; replaced in one step, so
    that two runs cannot mix halves."""
    path = cache_path(name)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({k: v for k, v in (recall(name) | new).items() if still(k)}), encoding="utf-8")
        os.replace(partial, path)
    except OSError:                             # a full or read-only home folder is no reason to stop
        return


def signature(path):
    """What changes when a file does: [size, mtime, ctime, inode]."""
    try:
        s = os.stat(path)
    except OSError as e:
        raise unreadable(path, e, "weights") from e
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]


def settled(path, then):
    """Whether a file is as it was, and old enough that its signature tells the next change."""
    return time.time() - max(then[1:3]) / 1e9 > SETTLED and signature(path) == then


def sha256(paths):
    """{path: SHA-256 of the file's bytes}."""
    known, new, out = recall(), {}, {}
    for path in paths:
        key, now = os.path.abspath(path), signature(path)
        entry = known.get(key)
        if isinstance(entry, list) and entry[:-1] == now and isinstance(entry[-1], str) and now[0] >= SMALL:
            out[path] = entry[-1]
            continue
        try:
            with open(path, "rb") as file:
                out[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise unreadable(path, e, "weights") from e
        if now[0] >= SMALL and settled(path, now):
            new[key] = [*now, out[path]]
    if new:
        remember(new)
    return out


def sha256_beside(paths):
    """A Future of `sha256`, from a thread that the end of the program does not wait for."""
    future = Future()

    def work():
        try:
            future.set_result(sha256(paths))
        except BaseException as e:              # any: what is not handed on would be waited for without end
            future.set_exception(e)
    Thread(target=work, daemon=True).start()
    return future
