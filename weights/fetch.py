"""Fetch published weights: `python weights/fetch.py sd14|sd15|style50|sae|sae-sd14`. Standard library only.

Says what, from where, how large and under which licence, asks, fetches (`download.py`: resumed, verified) what `sources.py` lists.
HF_ENDPOINT names another hub with the same addresses, `{endpoint}/{repo}/resolve/{revision}/{path}`; HF_TOKEN is sent to that host
alone and never shown. Errors: one line on stderr, exit code 2.
"""
import argparse
import errno
import os
import re
import shutil
import sys
import time
from pathlib import Path

if __name__ == "__main__":                      # as a script: this folder is `weights` to Python, nothing else
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from weights.download import FetchError, Gone, check_present, fetch_file, host, size_of  # noqa: E402
from weights.sources import BUNDLES, LICENCES, STYLE50  # noqa: E402

ROOT = Path(__file__).resolve().parent


def settings():
    """(endpoint, token) of the environment; FetchError, which never shows the token, where they cannot be used."""
    endpoint, token = os.environ.get("HF_ENDPOINT") or "https://huggingface.co", os.environ.get("HF_TOKEN", "").strip()
    try:
        scheme, name, _ = host(endpoint)
    except ValueError:
        scheme = name = None
    if scheme not in ("http", "https") or not name or re.search(r"[\s?#@]", endpoint):
        raise FetchError("HF_ENDPOINT must be the address of a hub, like https://huggingface.co, without name, password or query")
    if not re.fullmatch(r"[!-~]*", token):
        raise FetchError("HF_TOKEN holds characters that no token has; copy it again or unset it")
    if token and scheme == "http" and name not in ("127.0.0.1", "localhost", "::1"):
        raise FetchError(f"HF_TOKEN would travel unencrypted to {name}; give an https HF_ENDPOINT or unset HF_TOKEN")
    return endpoint.rstrip("/"), token


def amount(n):
    """Bytes as people write them: 743 B, 14.5 kB, 3.44 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


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
        print(f"\r{name}: {amount(self.done + done)} of {amount(self.total)}, {amount(rate)}/s, {left / 60:.0f} min left   ",
              end="" if terminal else "\n", file=sys.stderr, flush=True)


def target_of(file, bundle, folder):
    return folder / (bundle.below + (file.save_as or file.name))


def url_of(file, source, endpoint):
    """The hub's address of a file; the model card lies at the root of its repository, wherever the weights are."""
    source = file.source or source
    return f"{endpoint}/{source.repo}/resolve/{source.revision}/" + (source.folder if "/" in file.name else "") + file.name


def still_to_come(files, bundle, folder):
    """Bytes of the files that are not there yet, less what their `.partial` holds."""
    targets = [(file, target_of(file, bundle, folder)) for file in files]
    return sum(max(file.size - size_of(t.with_name(t.name + ".partial")), 0) for file, t in targets if not t.exists())


def free_space(folder):
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def plan(bundle, files, folder, endpoint):
    """What would be fetched, from where, how large, under which licence: the text that is shown before anything happens."""
    lines = [f"{bundle.title} -> {folder}"]
    for i, source in enumerate(bundle.sources):
        lines.append(f"{'from' if i == 0 else ' or '} {endpoint}/{source.repo} at {source.revision[:12]}")
    for file in files:
        target = target_of(file, bundle, folder)
        have = size_of(target.with_name(target.name + ".partial"))
        state = "  there" if target.exists() else f"  goes on after {amount(have)}" if have else ""
        lines.append(f"  {bundle.below + (file.save_as or file.name):<52}{' ' if file.sure else '~'}{amount(file.size)}{state}")
    whole, need = sum(file.size for file in files), still_to_come(files, bundle, folder)
    lines.append(f"{len(files)} files, about {amount(whole)}; to fetch: {amount(need)}, free there: {amount(free_space(folder))}")
    lines.append(f"Licence: {LICENCES[bundle.licence]}")
    return "\n".join(lines)


def consent(args, need):
    """FetchError unless the user agrees, or has nothing to agree to."""
    if args.yes or need == 0:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise FetchError("nothing was fetched: there is no terminal to ask on; --yes agrees to the plan and the licence")
    try:
        answer = input("Fetch, and agree to the licence? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise FetchError("nothing was fetched")


def fetch(bundle, files, folder, endpoint, token):
    """All `files`, from the first source that has the first of them: files of two repositories are not mixed."""
    sources, chosen = list(bundle.sources), False
    show = Progress(sum(file.size for file in files if not target_of(file, bundle, folder).exists()))
    for file in files:
        target = target_of(file, bundle, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() and not os.access(target.parent, os.W_OK):   # before gigabytes are on their way
            raise PermissionError(errno.EACCES, "not writable", str(target.parent))
        while True:
            url, there = url_of(file, sources[0], endpoint), target.exists()
            try:
                how = check_present(file, url, token, target) if there else fetch_file(file, url, token, target, show)
                print(f"{target}: {'was there, verified' if there else 'verified by ' + how}", flush=True)
                chosen = chosen or not there
                break
            except FetchError as e:
                if file.optional:
                    print(f"note: {file.name} could not be kept here: {e}", file=sys.stderr)
                    break
                if not isinstance(e, Gone) or chosen or len(sources) == 1:
                    raise
                print(f"note: {e}; trying {sources[1].repo}", file=sys.stderr)
                del sources[0]
        show.done += 0 if there else file.size


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message):
        self.exit(2, f"fetch: {message} (python weights/fetch.py --help lists all flags)\n")


def parse(argv):
    parser = Parser(prog="weights/fetch.py", description="Fetch published weights, verified, into a weights folder.")
    parser.add_argument("what", choices=BUNDLES)
    parser.add_argument("--folder", type=Path, help="the model folder (default: the one of this model below weights/)")
    parser.add_argument("--fp16", action="store_true", help="the float16 files: half as large, good enough for CUDA")
    parser.add_argument("--mirror", action="store_true", help="style50 only: fetch a third party's copy")
    parser.add_argument("--check", "--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument("--yes", action="store_true", help="agree to the plan and the licence")
    return parser.parse_args(argv)


def run(args):
    """The exit code; FetchError or OSError for what cannot be."""
    bundle = BUNDLES[args.what]
    if args.mirror and args.what != "style50":
        raise FetchError(f"--mirror is for style50, {args.what} has its publisher")
    if args.what == "style50" and not args.mirror:
        print(STYLE50, flush=True)
        raise FetchError("style50: nothing was fetched, see above what can be done")
    if args.fp16 and not bundle.half:
        raise FetchError(f"{args.what} is not published in float16; leave --fp16 out")
    endpoint, token = settings()
    folder = args.folder or Path(os.path.relpath(ROOT / bundle.folder))
    files = bundle.files + (bundle.half if args.fp16 else bundle.full)
    need, free = still_to_come(files, bundle, folder), free_space(folder)
    print(plan(bundle, files, folder, endpoint), flush=True)
    if args.check:
        return 0
    if need > free:
        raise FetchError(f"{folder}: {amount(need)} are needed and {amount(free)} are free; make room or give another --folder")
    consent(args, need)
    fetch(bundle, files, folder, endpoint, token)
    print(f"{folder}: complete, every file verified. {bundle.then}".rstrip())
    return 0


def main(argv=None):
    try:
        return run(parse(argv))
    except FetchError as e:
        print("fetch: " + " ".join(str(e).split()), file=sys.stderr)
        return 2
    except OSError as e:
        print(f"fetch: {e.filename or 'output'}: cannot be used ({e.strerror}); give another --folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfetch: interrupted; what has arrived stays in *.partial, the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
