"""Fetch published weights: `python weights/fetch.py sd14|sd15|style50|sae|sae-sd14|clip`. Standard library.

Asks the hub what it has, says what, from where, how large and under which licence, asks, fetches (`hub.py`): model and
SAE into one folder. Errors: one line on stderr, exit code 2.
"""
import argparse
import sys
from pathlib import Path

if __name__ == "__main__":                      # as a script: this folder is `weights` to Python, nothing else
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from weights import hub  # noqa: E402
from weights.download import FetchError  # noqa: E402


class Parser(argparse.ArgumentParser):
    def error(self, message):                                   # on one line
        self.exit(2, f"fetch: {message} (python weights/fetch.py --help lists all flags)\n")


def parse(argv):
    parser = Parser(prog="weights/fetch.py", description="Fetch published weights, verified, into a weights folder.")
    parser.add_argument("what", choices=[name for name in hub.BUNDLES if not name.endswith("-mirror")])
    parser.add_argument("--folder", type=Path, help="the model folder (default: the one of this model below weights/)")
    parser.add_argument("--fp16", action="store_true", help="the float16 files: half as large, good enough for CUDA")
    parser.add_argument("--mirror", action="store_true", help="style50 only: fetch a third party's copy")
    parser.add_argument("--check", "--dry-run", action="store_true", help="ask the hub, show the plan and stop")
    parser.add_argument("--yes", action="store_true", help="agree to the plan and the licence")
    return parser.parse_args(argv)


def consent(args, size):
    """FetchError unless the user agrees, or has nothing to agree to."""
    if args.yes or size == 0:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise FetchError("nothing was fetched: there is no terminal to ask on; --yes agrees to plan and licence")
    try:
        answer = input("Fetch, and agree to the licence? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise FetchError("nothing was fetched")


def run(args):
    """The exit code; FetchError or OSError for what cannot be."""
    if args.mirror and args.what != "style50":
        raise FetchError(f"--mirror is for style50, {args.what} has its publisher")
    bundle = hub.bundle(args.what + "-mirror" * args.mirror)
    if args.fp16 and not any(piece.rule == "model" for piece in bundle.pieces):
        raise FetchError(f"{args.what}{' --mirror' * args.mirror} is not published in float16; leave --fp16 out")
    folder = args.folder or hub.home(bundle)
    found = hub.survey(bundle, args.fp16)
    print(hub.plan_text(found, folder), flush=True)
    if args.check:
        return 0
    hub.check_room(found, folder)
    consent(args, hub.need(found, folder))
    hub.fetch(found, folder)
    print(f"{folder}: complete, every file verified. {bundle.then.format(folder=folder)}".rstrip())
    return 0


def main(argv=None):
    try:
        return run(parse(argv))
    except FetchError as e:
        print("fetch: " + " ".join(str(e).split()), file=sys.stderr)
    except OSError as e:
        print(f"fetch: {e.filename or 'output'}: cannot be used ({e.strerror}); give another --folder", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nfetch: interrupted; what has arrived stays, the same command goes on from there", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
