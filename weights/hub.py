"""Talk to a hub of published weights: list a repository's files, transfer one file. Needs the standard library only.

Transfers resume with `Range`, wait where the server asks for patience (HTTP 429), and refuse a web page or a git-lfs
pointer that comes in place of a file. HF_ENDPOINT names another hub with the same addresses. HF_TOKEN is sent to that
hub and not forwarded to the storage that it redirects to: `add_unredirected_header`.
Source: the hub's API, https://huggingface.co/docs/hub/api
"""
import hashlib
import http.client
import io
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

TIMEOUT, TRIES, PAUSE, LONGEST, MIB = 60, 6, 1.0, 300, 2 ** 20      # s, tries without progress, s, s, bytes
FOREIGN = {b"<!doctype": "a web page", b"<html": "a web page", b"version https://git-lfs": "a git-lfs pointer"}


@dataclass(frozen=True)
class Source:
    """A folder of a repository and the files to take from it, by their names in our model folder."""
    repo: str
    files: str                                  # a list of names in published.json
    licence: str
    revision: str = "main"
    folder: str = ""                            # inside the repository, ends in a slash
    base: str = ""                              # the source of files that this one lacks
    optional: bool = False                      # the model is of use without these files
    convert: dict | None = None                 # of an SAE of another family: what its own config may leave open


class FetchError(ValueError):
    """Weights that cannot be fetched; the text is one line for the user."""


class Gone(FetchError):
    """A repository or file that the hub does not have, or does not give."""


class Trouble(FetchError):
    """A failure that may pass, after `wait` seconds if the server names them."""
    wait = None


NETWORK = (Trouble, urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


def request(url, start):
    """Return the reply with the bytes of a URL from `start` on; FetchError says what to do, Trouble may pass."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and re.match(r"http://(?!localhost|127\.)", url):
        raise FetchError("HF_TOKEN: would travel unencrypted; give an https HF_ENDPOINT or unset HF_TOKEN")
    try:
        asked = urllib.request.Request(url, headers={"User-Agent": "featviz", "Range": f"bytes={start}-"})
        if token:
            asked.add_unredirected_header("Authorization", f"Bearer {token}")
        return urllib.request.urlopen(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code == 429 or e.code >= 500:
            trouble, after = Trouble(f"{url}: the server is busy (HTTP {e.code})"), e.headers.get("Retry-After", "")
            trouble.wait = min(int(after), LONGEST) if after.isdigit() else None
            raise trouble from e
        kind = Gone if e.code in (401, 403, 404) else FetchError
        raise kind(f"{url}: HTTP {e.code}; it is gone, or private (accept its terms, set HF_TOKEN), or HF_ENDPOINT is "
                   "no complete hub") from e
    except ValueError as e:                                     # its text may hold the token
        raise FetchError(f"{url}: cannot be requested; check HF_ENDPOINT and HF_TOKEN") from e


def receive(url, out, size, show):
    """Append the rest of a URL to the open file `out` over one connection; return the reply's headers."""
    have = out.seek(0, os.SEEK_END)
    with request(url, have) as reply:
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0                                            # the server sends the whole file
        while block := reply.read1(MIB if size is None else min(MIB, size - have)):
            if not have:
                for start, what in FOREIGN.items():
                    if block.lstrip().lower().startswith(start):
                        raise FetchError(f"{url}: {what} came instead of the file; open the address in a browser")
                out.truncate(0)
                out.seek(0)
            out.write(block)
            have += len(block)
            show(have)
    if size is not None and have < size:
        raise Trouble(f"{url}: the connection ended after {have} of {size} bytes")
    return reply.headers


def transfer(url, out, size=None, show=lambda have: None, tries=TRIES):
    """Append the rest of a URL to `out`, until `tries` connections in a row bring nothing; return the reply's headers.
    """
    left = tries
    while True:
        before = out.seek(0, os.SEEK_END)
        try:
            return receive(url, out, size, show)
        except NETWORK as e:
            left = tries if out.seek(0, os.SEEK_END) > before else left - 1
            if not left:
                why = e if isinstance(e, Trouble) else f"{url}: no connection ({getattr(e, 'reason', e)})"
                raise FetchError(f"{why}; gave up after {tries} tries; what arrived is kept, try again later") from e
            wait = getattr(e, "wait", None)
            time.sleep(PAUSE * 2 ** (tries - left) if wait is None else wait)


def url_of(source, kind, path):
    """Return an address of the hub: `kind` is "tree" for a listing and "resolve" for a file."""
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return f"{hub}/{'api/models/' * (kind == 'tree')}{source.repo}/{kind}/{source.revision}/{path}".rstrip("/")


def list_files(source):
    """Return {path: (size, hash)} of a repository's folder, as the hub lists it page by page."""
    url, query, files = url_of(source, "tree", source.folder), "recursive=true", {}
    try:
        while query:
            page = io.BytesIO()
            headers = transfer(f"{url}?{query}", page, tries=3)
            for entry in json.loads(page.getvalue()):
                if entry["type"] == "file":
                    large = entry.get("lfs") or entry
                    files[entry["path"]] = int(large["size"]), str(large["oid"])
            following = re.search(r'\?([^>]*)>\s*;\s*rel="?next', headers.get("Link", ""))
            query = following and following[1]                  # asked of this hub, whatever host the link names
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise FetchError(f"{url}: is no listing of files; check HF_ENDPOINT") from e
    return files


def mismatch(path, size, digits):
    """Return how a file differs from the listed one, "" if it does not: 64 digits are SHA-256, 40 are git's SHA-1."""
    if (found := path.stat().st_size) != size:
        return f"has {found} bytes, {size} are listed"
    digest = hashlib.sha256() if len(digits) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return "" if digest.hexdigest() == digits else f"has another hash than the listed one, {digits[:12]}..."


def spellings(source, name):
    """Paths under which a repository may publish one of our files: full precision first, then half, then pickles."""
    folder, _, file = name.rpartition("/")
    if folder.startswith("sae/"):
        hook = folder.removeprefix("sae/")
        other = {"cfg.json": "config.json", "sae.safetensors": "state_dict.pth"}[file]
        files = [file, other] if source.convert else [file]
        return [source.folder + place + each for place in (f"{hook}/", f"{hook[5:]}/", "") for each in files]
    stem, dot, _ = name.partition(".safetensors")
    pickle = stem.replace("text_encoder/model", "text_encoder/pytorch_model")
    names = [name, f"{stem}.fp16.safetensors", f"{pickle}.bin", f"{pickle}.fp16.bin"] if dot else [name]
    return [source.folder + each for each in names]
