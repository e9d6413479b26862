"""SHA-256 of files, computed in a thread and remembered for large files that did not change."""
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

from results import replacing

LARGE = 2 ** 20                                 # bytes; smaller files are hashed anew each time


class Fingerprints:
    """The SHA-256 of files {name: path}. The work begins at once; `result()` waits for it."""

    def __init__(self, files):
        self.files, self.found, self.error = files, {}, None
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        known = {}                              # path: [size, mtime, SHA-256]
        with suppress(OSError, ValueError, RuntimeError):       # no cache, or no home folder for it
            known = json.loads(cache_file().read_text(encoding="utf-8"))
        before = dict(known)
        try:
            self.found = {name: fingerprint(path, known) for name, path in sorted(self.files.items())}
        except OSError as e:
            self.error = e
        with suppress(OSError, RuntimeError):   # a cache that cannot be written costs time alone
            if known != before:
                cache_file().parent.mkdir(parents=True, exist_ok=True)
                with replacing(cache_file()) as file:
                    file.write(json.dumps(known).encode())

    def result(self):
        """{name: SHA-256}; ValueError for a file that is gone."""
        self.thread.join()
        if self.error:
            raise ValueError(f"{self.error.filename}: cannot be read any more ({self.error.strerror})")
        return self.found


def cache_file():
    """The file that remembers; RuntimeError where the user has no home folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(folder) / "featviz/fingerprints.json"


def fingerprint(path, known):
    """The SHA-256 of a file, from `known` where neither size nor time of change differ."""
    stat, key = os.stat(path), os.path.abspath(path)
    if known.get(key, ())[:2] == [stat.st_size, stat.st_mtime_ns]:
        return known[key][2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= LARGE:
        known[key] = [stat.st_size, stat.st_mtime_ns, found]
    return found
