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
        cache, known, changed = None, {}, {}    # {path: [size, time of change, SHA-256]}
        with suppress(OSError, ValueError, RuntimeError):       # no cache, or no home folder for it
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featviz/fingerprints.json"
            known = json.loads(cache.read_text(encoding="utf-8"))
        try:
            for name, path in sorted(self.files.items()):
                stat, key = os.stat(path), os.path.abspath(path)
                size, time, self.found[name] = known.get(key, (0, 0, ""))
                if [size, time] != [stat.st_size, stat.st_mtime_ns]:
                    with open(path, "rb") as file:
                        self.found[name] = hashlib.file_digest(file, "sha256").hexdigest()
                    if stat.st_size >= LARGE:
                        changed[key] = [stat.st_size, stat.st_mtime_ns, self.found[name]]
        except OSError as e:
            self.error = e
        if cache and changed:
            with suppress(OSError):             # a cache that cannot be written costs time alone
                cache.parent.mkdir(parents=True, exist_ok=True)
                with replacing(cache) as file:
                    file.write(json.dumps(known | changed).encode())

    def result(self):
        """{name: SHA-256}; ValueError for a file that is gone."""
        self.thread.join()
        if self.error:
            raise ValueError(f"{self.error.filename}: cannot be read any more ({self.error.strerror})")
        return self.found
