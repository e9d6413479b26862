"""Published weights in a model folder: what would be fetched, what it costs, and the fetching. Standard library only.

    found = survey(bundle("style50"))           asks the hub what there is
    print(plan_text(found, folder))             every file, its size, the licences: to be agreed to
    fetch(found, folder)                        resumed, verified, pickles converted

A bundle (sources.py) is a model with the SAE that belongs to it, or one of the two, or CLIP. HF_ENDPOINT names another
hub with the same addresses; HF_TOKEN is sent to that host alone and never shown. What cannot be raises FetchError,
whose text is one line.
"""
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from weights.download import FetchError, Gone, check_present, check_status, connect, fetch_file, host, size_of
from weights.listing import RULES, NoListing, ask, left_there, pinned
from weights.sources import BUNDLES, LICENCES, Bundle, Source

ROOT = Path(__file__).resolve().parent
CONVERT = ROOT / "convert.py"                                   # its own process: this one needs no torch


@dataclass
class Share:
    """What one repository gives: `files`, whose `save_as` is their place below the model folder."""
    title: str
    source: Source
    files: list
    notes: list


@dataclass
class Survey:
    """What a bundle is, on this hub."""
    bundle: Bundle
    shares: list
    notes: list                                                 # on what the bundle goes without
    endpoint: str
    token: str = field(repr=False)

    @property
    def files(self):
        return [file for share in self.shares for file in share.files]


def bundle(name):
    """The bundle of that name: sd14, sd15, style50 and others; FetchError for one that is not known."""
    if name not in BUNDLES:
        raise FetchError(f"{name}: no weights of this name are known; known are {', '.join(BUNDLES)}")
    return BUNDLES[name]


def home(bundle):
    """The model folder of a bundle where none is given: weights/style50, seen from here."""
    return Path(os.path.relpath(ROOT / bundle.folder))


def settings():
    """(endpoint, token) of the environment; FetchError, which never shows the token, where they cannot be used."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN", "").strip()
    try:
        scheme, name, _ = host(endpoint)
    except ValueError:
        scheme = name = None
    if scheme not in ("http", "https") or not name or re.search(r"[\s?#@]", endpoint):
        raise FetchError("HF_ENDPOINT must be the address of a hub, like https://huggingface.co, without name, "
                         "password or query")
    if not re.fullmatch(r"[!-~]*", token):
        raise FetchError("HF_TOKEN holds characters that no token has; copy it again or unset it")
    if token and scheme == "http" and name not in ("127.0.0.1", "localhost", "::1"):
        raise FetchError(f"HF_TOKEN would travel unencrypted to {name}; give an https HF_ENDPOINT or unset HF_TOKEN")
    return endpoint.rstrip("/"), token


# --- what there is ----------------------------------------------------------------------------------------------------

def url_of(file, source, endpoint):
    folder = "" if file.at_root else source.folder
    return f"{endpoint}/{source.repo}/resolve/{source.revision}/{folder}{file.name}"


def look(piece, source, half, endpoint, token):
    """({name: Entry or File}, notes, whether the hub lists them); Gone where repository or folder are not there."""
    table = piece.table(half)
    try:
        return *ask(endpoint, source, token), True
    except NoListing as e:
        probe = next(file for file in table if not file.optional)
        note = f"the hub lists nothing ({e}): names and sizes are those of weights/sources.py"
    url = url_of(probe, source, endpoint)
    try:
        reply, _ = connect(url, token)
        with reply:
            check_status(reply, url, token)
    except Gone:
        raise
    except FetchError:                                          # may pass until the fetch itself
        pass
    return {file.name: file for file in table if not file.at_root}, [note], False


def take(piece, source, half, endpoint, token):
    """Shares of a piece that is taken from `source`, and from the piece's base where something is lacking."""
    names, notes, listed = look(piece, source, half, endpoint, token)
    where = f"{source.repo}/{source.folder}".rstrip("/")
    chosen, lacking, more = RULES[piece.rule](names, half, where)
    notes, known = notes + more, {file.name: file for file in piece.files + piece.full + piece.half}
    files = [file for file in piece.files if file.at_root]
    for name, becomes in chosen.items():
        file, note = pinned(name, names[name], known.get(name)) if listed else (names[name], "")
        save_as = place(piece, name)
        files.append(replace(file, save_as=save_as, becomes=becomes))
        notes += [note] if note else []
    if listed and (left := left_there(names, [*chosen, "README.md", ".gitattributes"])):
        notes.append(f"not fetched from there: {left}")
    shares = [Share(piece.title, source, files, notes)]
    if lacking and not piece.base:
        raise Gone(f"{where}: lacks {', '.join(lacking)}")
    if lacking:
        base = cover(piece.base, half, endpoint, token)
        for share in base:
            share.files = [file for file in share.files if file.name.startswith(tuple(lacking))]
            share.title = "what is lacking there: Stable Diffusion 1.5's " + ", ".join(lacking)
            share.notes = [note for note in share.notes if not note.startswith("not fetched")]
        shares += base
    return shares


def place(piece, name):
    """Where a file of a listing goes, below the model folder."""
    if piece.rule != "sae":
        return name
    table = {file.name.rpartition("/")[2]: file.save_as for file in piece.files + piece.full if not file.at_root}
    return table[name.rpartition("/")[2]]


def cover(piece, half, endpoint, token):
    """Shares of a piece, from the first of its sources that is there: files of two are not mixed."""
    if not piece.rule:
        return [Share(piece.title, piece.sources[0], list(piece.table(half)), [])]
    gone = []
    for source in piece.sources:
        try:
            shares = take(piece, source, half, endpoint, token)
        except Gone as e:
            gone.append(str(e))
            continue
        shares[0].notes += gone
        return shares
    raise Gone("; ".join(gone))


def survey(bundle, half=False):
    """What of `bundle` this hub has and which of it is fetched; `half`: weights in float16 where they are published."""
    endpoint, token = settings()
    shares, notes = [], []
    for piece in bundle.pieces:
        try:
            shares += cover(piece, half, endpoint, token)
        except Gone as e:
            if not piece.optional:
                raise Gone(f"{e}; {bundle.otherwise}" if bundle.otherwise else str(e)) from e
            notes.append(f"without {piece.title}, so for raw channels alone: {e}")
    return Survey(bundle, shares, notes, endpoint, token)


# --- what it costs ----------------------------------------------------------------------------------------------------

def amount(n):
    """Bytes as people write them: 743 B, 14.5 kB, 3.44 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def target_of(file, folder):
    return folder / (file.save_as or file.name)


def partial_of(file, folder):
    target = target_of(file, folder)
    return target.with_name(target.name + ".partial")


def to_fetch(found, folder):
    """Bytes that are still to come: of files that are not there yet, less what has arrived of them."""
    return sum(max(file.size - size_of(partial_of(file, folder)), 0)
               for file in found.files if not target_of(file, folder).exists())


def need(found, folder):
    """Bytes of disk that it will take: what is to come, and what will be made of pickles."""
    return to_fetch(found, folder) + sum(file.size for file in found.files
                                         if file.becomes and not (folder / file.becomes).exists())


def free_space(folder):
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def plan_text(found, folder):
    """What would be fetched, from where, how large, under which licences: to be shown before anything happens."""
    lines = [f"{found.bundle.title} -> {folder}"]
    for share in found.shares:
        source = share.source
        lines.append(f"{share.title}, from {found.endpoint}/{source.repo} at {source.revision[:12]}"
                     + (f", {source.folder.rstrip('/')}" if source.folder else ""))
        for file in share.files:
            have = size_of(partial_of(file, folder))
            state = "  there" if target_of(file, folder).exists() else f"  goes on after {amount(have)}" if have else ""
            lines.append(f"  {file.save_as or file.name:<52}{' ' if file.sure else '~'}{amount(file.size)}{state}"
                         + ("  to be converted" if file.becomes and not (folder / file.becomes).exists() else ""))
        lines += [line for note in share.notes if (line := f"  note: {note}") not in lines]
    lines += [f"note: {note}" for note in found.notes]
    whole, room, free = sum(file.size for file in found.files), need(found, folder), free_space(folder)
    extra = room - to_fetch(found, folder)
    lines.append(f"{len(found.files)} files, about {amount(whole)}; to fetch: {amount(to_fetch(found, folder))}, "
                 + (f"to convert: {amount(extra)}, " if extra else "") + f"free there: {amount(free)}")
    return "\n".join(lines + [f"Licence: {LICENCES[name]}" for name in found.bundle.licences])


# --- fetching ---------------------------------------------------------------------------------------------------------

class Progress:
    """Bytes, rate and time left on stderr: one line, rewritten, on a terminal; else a line each half minute."""

    def __init__(self, total):
        self.total, self.done, self.new = total, 0, 0
        self.began = self.shown = time.monotonic()

    def __call__(self, name, new, done):
        self.new, now, terminal = self.new + new, time.monotonic(), sys.stderr.isatty()
        if now - self.shown < (0.5 if terminal else 30) or not new:
            return
        self.shown = now
        rate = self.new / max(now - self.began, 1e-3)
        left = max(self.total - self.done - done, 0) / max(rate, 1)
        text = f"{amount(self.done + done)} of {amount(self.total)}, {amount(rate)}/s, {left / 60:.0f} min left"
        print(f"\r{name}: {text}   ", end="" if terminal else "\n", file=sys.stderr, flush=True)


def convert(file, folder):
    """Make safetensors of a pickle that was fetched; it stays, so that the next run can verify it."""
    source, target = target_of(file, folder), folder / file.becomes
    if target.exists():
        return
    command = [sys.executable, str(CONVERT), str(source), str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("convert: ")
        raise FetchError(f"{source}: could not be converted: {why}")
    print(f"{target}: made of {source.name}, weights only, compared after writing", flush=True)


def check_room(found, folder):
    """FetchError where the disk is too small, before anything is asked or fetched."""
    if (room := need(found, folder)) > (free := free_space(folder)):
        raise FetchError(f"{folder}: {amount(room)} are needed and {amount(free)} are free; make room or give another "
                         "folder")


def fetch(found, folder):
    """All files of a survey into `folder`: FetchError or OSError where that cannot be; what has arrived stays."""
    check_room(found, folder)
    show = Progress(sum(file.size for file in found.files if not target_of(file, folder).exists()))
    for share in found.shares:
        for file in share.files:
            target, url = target_of(file, folder), url_of(file, share.source, found.endpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            there = target.exists()
            if not there and not os.access(target.parent, os.W_OK):     # before gigabytes are on their way
                raise PermissionError(errno.EACCES, "not writable", str(target.parent))
            try:
                how = check_present(file, url, found.token, target) if there else \
                    fetch_file(file, url, found.token, target, show)
                print(f"{target}: {'was there, verified' if there else 'verified by ' + how}", flush=True)
            except FetchError as e:
                if not file.optional:
                    raise
                print(f"note: {file.name} could not be kept here: {e}", file=sys.stderr)
            show.done += 0 if there else file.size
    for file in found.files:
        if file.becomes:
            convert(file, folder)
