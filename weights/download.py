"""One published file over HTTP, verified: redirects, ranges, retries, hashes. Standard library only.

A file goes to `<name>.partial`, is resumed there, and takes its name only when its hash is the pinned one, or the one
that the hub states: the SHA-256 of large files (X-Linked-Etag), the git object name of small ones (ETag). A token goes
to the hub alone. `listing.py` asks what there is to fetch, `hub.py` puts both together, `fetch.py` is the command.
"""
import errno
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urljoin, urlsplit

try:
    import fcntl                                # keeps two fetches from writing one file; not on Windows
except ImportError:
    fcntl = None

TIMEOUT, RETRIES, BACKOFF, REDIRECTS, MIB = 60, 6, 1.0, 5, 2 ** 20          # seconds, tries, seconds, hops, bytes
WEB_PAGE = "a web page came in place of the file (a quota, a login, a proxy?); look at this address in a browser"
ELSEWHERE = "use another HF_ENDPOINT, or none"
HASH_DIGITS = {40: "git", 64: "sha256"}         # length of a hash -> which it is


class FetchError(Exception):
    """What cannot be fetched; the text is the one line that a user sees."""


class Gone(FetchError):
    """Not in this repository: another source may have it."""


class Trouble(FetchError):
    """May pass: tried again after `wait` seconds (None: the usual back-off)."""

    def __init__(self, text, wait=None):
        super().__init__(text)
        self.wait = wait


class NoConnection(Trouble):
    """Nobody answered at all."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects alone: `connect` decides where the token goes."""

    def http_error_302(self, *_):
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


OPENER = urllib.request.build_opener(NoRedirect)


def host(url):
    """(scheme, host name, port): what a token is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def statement(reply):
    """{"size", "pin"} of the file by the hub's headers, where stated. A redirect's own ETag is not the file's."""
    out = {}
    tag = reply.headers.get("X-Linked-Etag") or (reply.headers.get("ETag", "") if reply.status < 300 else "")
    tag = tag.removeprefix("W/").strip('"').lower()
    if re.fullmatch("[0-9a-f]+", tag) and len(tag) in HASH_DIGITS:
        out["pin"] = f"{HASH_DIGITS[len(tag)]}:{tag}"
    if reply.headers.get("X-Linked-Size", "").isdigit():
        out["size"] = int(reply.headers["X-Linked-Size"])
    return out


def connect(url, token, offset=0):
    """GET from byte `offset` on -> (reply, what the hub states). Follows redirects; the token stays on the first host,
    whose word alone counts: a storage server's own ETag means nothing here."""
    first, home, at_home, stated = url, host(url), True, {}
    for _ in range(REDIRECTS + 1):
        headers = {"User-Agent": "featviz-fetch", **({"Range": f"bytes={offset}-"} if offset else {}),
                   **({"Authorization": f"Bearer {token}"} if token and at_home else {})}
        try:
            reply = OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as e:
            reply = e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise NoConnection(f"{urlsplit(url).hostname}: no connection ({getattr(e, 'reason', None) or e})") from e
        if at_home:
            stated = statement(reply) | stated
        if reply.status not in (301, 302, 303, 307, 308):
            return reply, stated
        reply.close()
        try:
            new = urljoin(url, reply.headers.get("Location", ""))
            place = host(new)
        except ValueError as e:
            raise FetchError(f"{first}: redirects to an address that is none; check HF_ENDPOINT") from e
        if place[0] not in ("https", urlsplit(url).scheme):
            raise FetchError(f"{first}: redirects to an unencrypted or foreign address; nothing was fetched from there")
        url, at_home = new, at_home and place == home
    raise FetchError(f"{first}: redirects without end; check HF_ENDPOINT")


def check_status(reply, url, token):
    """Nothing for a file or a part of one; FetchError with what to do, Gone or Trouble for all other answers."""
    code = reply.status
    if code in (200, 206):
        if "text/html" in reply.headers.get("Content-Type", ""):
            raise FetchError(f"{url}: {WEB_PAGE}")
        return
    if code in (429, 500, 502, 503, 504):
        wait = reply.headers.get("Retry-After", "")
        why = "too many requests, wait a while" if code == 429 else "the server is in trouble, try later"
        raise Trouble(f"{url}: {why} (HTTP {code})", min(int(wait), 60) if wait.isdigit() else None)
    gated = code == 403 or reply.headers.get("X-Error-Code") == "GatedRepo"
    if code in (401, 404) and not gated:
        why = {401: "HF_TOKEN is not accepted" if token else
               "asks for a login: private or gone; set HF_TOKEN if you have access",
               404: "is not there; the repository moved, or HF_ENDPOINT is no complete mirror"}[code]
        raise Gone(f"{url}: {why} (HTTP {code})")
    why = "an answer that means nothing here"
    if gated:
        page = url.split("/resolve/")[0].split("/tree/")[0].replace("/api/models/", "/")
        why = f"access refused; accept the terms at {page}, then set HF_TOKEN"
    raise FetchError(f"{url}: {why} (HTTP {code})")


def most(file):
    """Bytes that a file may have whose size is known about."""
    return int(1.05 * file.size) + 2 ** 16


def other(pin, known):
    """Whether two hashes of one kind differ; `known` may be its leading digits."""
    return bool(known) and pin.partition(":")[0] == known.partition(":")[0] and not pin.startswith(known)


def settle(file, stated, length):
    """-> (size or None, pin) to hold the bytes against; FetchError for no hash, or for another file."""
    size, pin = stated.get("size", length), stated.get("pin", "")
    if other(pin, file.pin):
        if file.sure:
            raise FetchError(f"{file.name}: the server has another file ({pin}) than the published one ({file.pin}); "
                             f"{ELSEWHERE}")
        print(f"note: {file.name} is {pin} there, another revision has {file.pin}; the server's word counts",
              file=sys.stderr)
    elif file.pin and (file.sure or not pin):
        pin = file.pin
    if not pin:
        raise FetchError(f"{file.name}: the server states no hash and none is known here, so it cannot be verified; "
                         f"{ELSEWHERE}")
    if (size or 0) > most(file):
        raise FetchError(f"{file.name}: the server speaks of {size} bytes where about {file.size} are expected; "
                         f"{ELSEWHERE}")
    return size, pin


def mismatch(path, pin, size=None):
    """Why the file at `path` is not the one of `pin` (and `size`); "" where it is. git hashes more than bytes."""
    kind, _, digits = pin.partition(":")
    try:
        length = path.stat().st_size
        if size is not None and length != size:
            return f"has {length} bytes, {size} are expected"
        digest = hashlib.sha1(b"blob %d\0" % length) if kind == "git" else hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(MIB):
                digest.update(block)
    except OSError as e:
        raise FetchError(f"{path}: cannot be read ({e.strerror})") from e
    found = digest.hexdigest()
    return "" if found.startswith(digits) else f"has {kind} {found[:12]}..., {digits[:12]}... is expected"


def size_of(path):
    return path.stat().st_size if path.is_file() else 0


def start_of(reply, have, size):
    """The byte at which the reply begins: `have`, or 0 from a server that ignores ranges; -1 for any other part."""
    if reply.status == 200:
        return 0
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
    return have if match and int(match[1]) == have and match[2] in ("*", str(size)) else -1


def length_of(reply):
    """Bytes of the whole file by the reply's own headers; None where they do not tell."""
    text = reply.headers.get("Content-Length", "")
    if reply.status == 206:
        text = reply.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def receive(reply, file, partial, start, size, show):
    """Write the reply's bytes to `partial` from `start` on; Trouble when the connection ends before `size`.

    A reply of unknown length ends where it ends: the hash decides."""
    try:
        open(partial, "ab").close()
        with open(partial, "r+b", buffering=0) as out:
            if fcntl:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            out.truncate(start)
            have = out.seek(start)
            while have < (most(file) if size is None else size):
                try:
                    block = reply.read1(MIB if size is None else min(MIB, size - have))
                except (OSError, http.client.HTTPException) as e:
                    raise Trouble(f"the connection broke after {have} bytes ({type(e).__name__})") from e
                if not block and size is None:
                    break
                if not block:
                    raise Trouble(f"the connection ended after {have} of {size} bytes")
                if have == 0 and block[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    raise FetchError(f"{file.name}: {WEB_PAGE}")
                while block:                                    # an unbuffered file may take a part only
                    written = out.write(block)
                    block, have = block[written:], have + written
                    show(file.name, written, have)
            os.fsync(out.fileno())
    except OSError as e:
        known = {errno.ENOSPC: "the disk is full; make room",
                 errno.EAGAIN: "another fetch is writing this file; let it finish"}
        why = known.get(e.errno, f"cannot be written ({e.strerror})")
        raise FetchError(f"{partial}: {why}; what has arrived stays, the same command goes on from there") from e


def attempt(file, url, token, partial, show):
    """One connection -> (size, pin) of the file that now lies whole in `partial`; Trouble or FetchError otherwise."""
    have = size_of(partial)
    reply, stated = connect(url, token, have)
    with reply:
        if reply.status == 416 and have:
            if stated.get("size") == have:                      # nothing was missing
                return settle(file, stated, have)
            partial.unlink()
            raise Trouble(f"{url}: the server has nothing after byte {have}, starting over", wait=0)
        check_status(reply, url, token)
        size, pin = settle(file, stated, length_of(reply))
        start, length = start_of(reply, have, size), reply.headers.get("Content-Length", "")
        if start < 0:
            partial.unlink(missing_ok=True)                     # the next try asks for the whole file
            answer = reply.headers.get("Content-Range")
            raise Trouble(f"asked for the bytes from {have} on, the server answered {answer}", wait=0)
        if length.isdigit() and size is not None and start + int(length) != size:
            raise Trouble(f"the server announces {start + int(length)} bytes in one place and {size} in another")
        receive(reply, file, partial, start, size, show)
    return size, pin


def check_present(file, url, token, target):
    """FetchError where the file at `target` is not the published one; asks the server only where no pin settles it."""
    if file.pin and not mismatch(target, file.pin):
        return
    reply, stated = connect(url, token)
    with reply:
        check_status(reply, url, token)
        size, pin = settle(file, stated, length_of(reply))
    if why := mismatch(target, pin, size):
        raise FetchError(f"{target}: is there, but {why}; move it away or delete it, then run again")


def patiently(name, attempt, arrived=lambda: 0):
    """attempt(), again after Trouble: as long as bytes arrive, and RETRIES times without any. Then FetchError."""
    left = RETRIES
    while True:
        before = arrived()
        try:
            return attempt()
        except Trouble as e:
            left = RETRIES if arrived() - before >= MIB else left - 1
            if left == 0:
                raise FetchError(f"{name}: {e}; gave up after {RETRIES} tries without progress, what has arrived "
                                 "stays, the same command goes on from there") from e
            time.sleep(BACKOFF * 2 ** (RETRIES - left) if e.wait is None else e.wait)


def fetch_file(file, url, token, target, show):
    """`file` verified at `target` -> the kind of hash it was held against. FetchError where that cannot be."""
    partial = target.with_name(target.name + ".partial")
    size, pin = patiently(file.name, lambda: attempt(file, url, token, partial, show), lambda: size_of(partial))
    if why := mismatch(partial, pin, size):
        partial.unlink()
        raise FetchError(f"{file.name}: what came {why}; it was deleted, run again, and if that repeats, {ELSEWHERE}")
    os.replace(partial, target)
    return pin.partition(":")[0]
