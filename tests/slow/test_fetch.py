"""Fetching weights from a hub on this machine that misbehaves on demand: what is kept is whole, errors are one line."""
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.seeded import pictures
from tests.test_checkpoint import networks
from tests.slow.test_interrupted import heeds_ctrl_c
from tests import clip_vocab, tiny
from weights import download, fetch, sources
from weights import hub as hubs_own
from weights.eyes import ROOT as EYES, load_eyes
from weights.layouts import LEGACY_ATTENTION
from weights.load import load
from weights.sources import Bundle, File, Piece, Source

ROOT = Path(__file__).parent.parent.parent
DATA = random.Random(0).randbytes(300_000)
HALF = random.Random(1).randbytes(150_000)
CARD, LICENCE, CONFIG = b"---\nlicense: x\n---\nA card.\n", b"You may.\n", b'{"in_channels": 4}\n'
BIG = "unet/diffusion_pytorch_model.safetensors"
BIG_HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
OTHERS = {name: name.encode() for name in (
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "scheduler/scheduler_config.json")}
REPO = "/pub/model/resolve/rev1/"
LARGE = (".safetensors", ".bin")
sha = lambda data: hashlib.sha256(data).hexdigest()

# One entry of a hub's `script` is how one request is answered: status, retry (seconds), code (X-Error-Code), cut (bytes
# sent), length (added to Content-Length), body, html, ignore_range, content_range, location, linked (headers to
# change), bare (no hash), chunked, hold (bytes sent before it falls silent), endless. For addresses that have `only`.


def listed(path, data):
    """A file as a hub lists it."""
    item = {"type": "file", "path": path, "size": len(data), "oid": clip_vocab.git_blob(data)}
    if path.endswith(LARGE):
        item |= {"oid": "0" * 40, "lfs": {"oid": sha(data), "size": len(data), "pointerSize": 135}, "xetHash": "f" * 64}
    return item


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server
        how = hub.script.pop(0) if hub.script and hub.only in self.path else {}
        hub.log.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        self.close_connection = True
        if self.path.startswith("/api/") and not {"status", "location", "html"} & how.keys():
            return self.list(how)
        if "status" in how or self.path not in hub.files and not {"location", "html"} & how.keys():
            code = {"X-Error-Code": how["code"]} if "code" in how else {}
            return self.head(how.get("status", 404), {"Content-Length": 0, "Retry-After": how.get("retry", "")} | code)
        data = hub.files.get(self.path, b"")
        linked = {} if "bare" in how else {"ETag": f'"{clip_vocab.git_blob(data)}"'}
        if self.path.endswith(LARGE) and "bare" not in how:
            linked = {"X-Linked-Etag": f'"{sha(data)}"', "X-Linked-Size": len(data), "ETag": '"storage"'}
        linked |= how.get("linked", {})
        if "location" in how:
            return self.head(302, {"Location": how["location"], "Content-Length": 0} | linked)
        if "html" in how:
            return self.send(200, b"<!DOCTYPE html><p>quota", {"Content-Type": how["html"]}, how)
        body = how.get("body", data)
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = 0 if not begin or "ignore_range" in how else int(begin[1])
        if begin and begin >= len(body):
            return self.head(416, {"Content-Length": 0} | linked)
        if begin:
            linked["Content-Range"] = how.get("content_range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send(206 if begin else 200, body[begin:], linked, how)

    def list(self, how):
        """The files below a folder, `hub.page` at a time; the next page is said to be at another host."""
        hub, (path, _, query) = self.server, self.path.partition("?")
        repo, _, rest = path.removeprefix("/api/models/").partition("/tree/")
        revision, _, folder = rest.partition("/")
        home = f"/{repo}/resolve/{revision}/"
        items = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f"{folder}/some".strip("/")}]
        items += [listed(name.removeprefix(home), data) for name, data in hub.files.items()
                  if name.startswith(home + (folder and folder + "/"))]
        if not hub.listing:
            return self.head(404, {"Content-Length": 0})
        if len(items) == 1 and "body" not in how:
            return self.head(404, {"Content-Length": 0, "X-Error-Code": "EntryNotFound"})
        assert "recursive=true" in query
        begin = int((re.search(r"cursor=(\d+)", query) or [0, 0])[1])
        end = begin + hub.page
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if end < len(items) or "endless" in how:
            headers["Link"] = f'<https://elsewhere.test{path}?limit=9&recursive=true&cursor={end}>; rel="next"'
        self.send(200, how.get("body", json.dumps(items[begin:end]).encode()), headers, how)

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def send(self, status, body, headers, how):
        if "chunked" in how:
            self.head(status, headers | {"Transfer-Encoding": "chunked"})
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.head(status, headers | {"Content-Length": len(body) + how.get("length", 0)})
        self.wfile.write(body[:how.get("cut", how.get("hold"))])
        if "hold" in how:                                       # stay silent until the test ends, or the client goes
            self.wfile.flush()
            self.server.release.wait(60)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.script, self.only, self.log, self.release = {}, [], BIG, [], threading.Event()
        self.listing, self.page = True, 1000
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_):                                 # a client that was killed
        pass

    def ranges(self):
        return [r for path, r, _ in self.log if BIG in path]


@pytest.fixture
def hubs(monkeypatch):
    made = []

    def make():
        made.append(Hub())
        return made[-1]

    monkeypatch.setattr(download, "BACKOFF", 0)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield make
    for hub in made:
        hub.release.set()
        hub.shutdown()
        hub.server_close()


PIECE = Piece("the model", (Source("pub/model", "rev1"),),
              (File("README.md", len(CARD), optional=True, at_root=True),
               File("unet/config.json", len(CONFIG), "git:" + clip_vocab.git_blob(CONFIG)[:12], sure=True),
               *(File(name, len(data)) for name, data in OTHERS.items())),
              (File(BIG, len(DATA), "sha256:" + sha(DATA)[:16], sure=True),),
              (File(BIG_HALF, len(HALF)),), rule="model")
TERMS = Piece("the licence's text", (Source("spaces/terms"),),
              (File("license.txt", 9, save_as="LICENSE", optional=True),))
TINY = Bundle("Tiny", "tiny", ("openrail",), (PIECE, TERMS), "Go on in {folder}.", "look elsewhere")


def of(*pieces):
    return Bundle("T", "t", ("apache",), pieces)


@pytest.fixture
def hub(hubs, monkeypatch):
    """A hub that has the whole of TINY, which is "sd14" here, named by HF_ENDPOINT."""
    hub = hubs()
    names = {"README.md": CARD, "unet/config.json": CONFIG, BIG: DATA, BIG_HALF: HALF} | OTHERS
    hub.files = {REPO + name: data for name, data in names.items()}
    hub.files["/spaces/terms/resolve/main/license.txt"] = LICENCE
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setitem(sources.BUNDLES, "sd14", TINY)
    return hub


def run(folder, *flags):
    return fetch.main(["sd14", "--folder", str(folder), "--yes", *flags])


def asked_only(hub):
    """Whether the hub was asked what it has, and for nothing else."""
    return [path for path, *_ in hub.log] == ["/api/models/pub/model/tree/rev1?recursive=true"]


def check_whole(folder):
    assert (folder / BIG).read_bytes() == DATA and (folder / "unet/config.json").read_bytes() == CONFIG
    assert not list(folder.rglob("*.partial"))


def check_absent(folder, partial=None):
    assert not (folder / BIG).exists()
    path = folder / (BIG + ".partial")
    assert (path.stat().st_size if path.exists() else None) == partial


def one_line(capsys):
    """The line on stderr, without notes and progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note: ", "\r")) and line]
    assert len(lines) == 1 and lines[0].startswith("fetch: "), lines
    return lines[0]


def test_everything_arrives_verified_with_its_licence(hub, tmp_path, capsys):
    assert run(tmp_path / "new/sd") == 0
    check_whole(tmp_path / "new/sd")
    assert (tmp_path / "new/sd/README.md").read_bytes() == CARD
    assert (tmp_path / "new/sd/LICENSE").read_bytes() == LICENCE
    out = capsys.readouterr().out
    assert out.index("CreativeML OpenRAIL-M") < out.index("verified by git") < out.index("verified by sha256")
    assert out.endswith(f"complete, every file verified. Go on in {tmp_path / 'new/sd'}.\n")
    assert [path for path, *_ in hub.log][:2] == ["/api/models/pub/model/tree/rev1?recursive=true", REPO + "README.md"]


def test_a_second_run_verifies_and_fetches_nothing(hub, tmp_path, capsys):
    assert run(tmp_path) == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    hub.log.clear()
    assert run(tmp_path) == 0 and hub.ranges() == []            # pinned: no need to ask
    assert capsys.readouterr().out.count("was there, verified") == 11
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_half_precision_takes_other_files(hub, tmp_path):
    assert run(tmp_path, "--fp16") == 0
    assert (tmp_path / BIG_HALF).read_bytes() == HALF and not (tmp_path / BIG).exists()


def test_where_nobody_answers_the_plan_is_the_table(monkeypatch, tmp_path, capsys):
    def nobody(*_, **__):
        raise OSError("nobody")

    monkeypatch.setattr(hubs_own, "free_space", lambda _: 50e9)
    monkeypatch.setattr(download.OPENER, "open", nobody)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd/unet").mkdir(parents=True)
    (tmp_path / "sd/unet/config.json").write_bytes(b"x")
    (tmp_path / "sd/unet/diffusion_pytorch_model.safetensors.partial").write_bytes(bytes(1_000_000))
    assert fetch.main(["sd14", "--check", "--folder", "sd"]) == 0
    assert capsys.readouterr().out == """\
Stable Diffusion 1.4 and the SAE that was trained on it -> sd
the model, from https://huggingface.co/CompVis/stable-diffusion-v1-4 at 133a221b8aa7
  README.md                                           ~16 kB
  unet/config.json                                    ~743 B  there
  unet/diffusion_pytorch_model.safetensors            ~3.44 GB  goes on after 1 MB
  vae/config.json                                     ~550 B
  vae/diffusion_pytorch_model.safetensors              335 MB
  text_encoder/config.json                            ~600 B
  text_encoder/model.safetensors                      ~492 MB
  tokenizer/vocab.json                                ~1.06 MB
  tokenizer/merges.txt                                ~525 kB
  scheduler/scheduler_config.json                     ~310 B
  note: the hub lists nothing (huggingface.co: no connection (nobody)): names and sizes are those of weights/sources.py
the licence's text, from https://huggingface.co/spaces/CompVis/stable-diffusion-license at main
  LICENSE                                             ~14 kB
the SAE that was trained on Stable Diffusion 1.4, from https://huggingface.co/bcywinski/SAeUron_coco at main
  sae/README.md                                       ~831 B
  sae/unet.up_blocks.1.attentions.1/cfg.json          ~400 B
  sae/unet.up_blocks.1.attentions.1/sae.safetensors   ~210 MB
14 files, about 4.48 GB; to fetch: 4.48 GB, free there: 50 GB
Licence: CreativeML OpenRAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license
  Use and sharing are free, some uses are forbidden (its attachment A).
  Who passes the weights on, passes on the same limits and a copy of the licence.
Licence: Apache-2.0 by the model card of bcywinski/SAeUron; the model that the SAE reads has its own licence.
"""
    for flags in ("sd14 --fp16", "sd15", "sd15 --fp16", "sae", "sae-sd14", "clip", "style50 --mirror", "style50"):
        assert fetch.main([*flags.split(), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "config.json                                          4.52 kB\n" in out
    assert "model.safetensors                                    1.71 GB\n" in out
    assert "what is lacking there: Stable Diffusion 1.5's vae/, text_encoder/, tokenizer/, scheduler/, from" in out
    assert out.count("full.safetensors") == 1 and "unet/diffusion_pytorch_model.fp16.safetensors" in out
    assert [p.name for p in tmp_path.iterdir()] == ["sd"]


def test_the_tables_are_well_formed_and_the_tokenizers_are_clips():
    pieces = {piece for b in sources.BUNDLES.values() for piece in b.pieces} | {sources.SD15}
    files = {file for piece in pieces for file in (*piece.files, *piece.full, *piece.half)}
    for file in files:
        assert not file.pin or re.fullmatch("sha256:[0-9a-f]{12,64}|git:[0-9a-f]{12,40}", file.pin), file
        assert file.pin or not file.sure, file
        assert ".." not in file.name + file.save_as and not (file.save_as or file.name).startswith("/"), file
    for name, data in clip_vocab.files().items():
        for file in (f for f in files if f.name == "tokenizer/" + name):
            assert file.size == len(data) and file.pin == "sha256:" + sha(data)
    assert all(name in sources.LICENCES for b in sources.BUNDLES.values() for name in b.licences)


@pytest.mark.parametrize("answer, code", [("y\n", 0), ("Yes\n", 0), ("n\n", 2), ("\n", 2), (None, 2)])
def test_it_asks_first(hub, tmp_path, monkeypatch, capsys, answer, code):
    class Terminal:
        isatty = lambda self: True

    def reply(prompt):
        assert "licence" in prompt
        if answer is None:
            raise EOFError
        return answer.strip()

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", reply)
    assert fetch.main(["sd14", "--folder", str(tmp_path)]) == code
    assert code == 0 or one_line(capsys) == "fetch: nothing was fetched"
    assert code == 0 or asked_only(hub) and not list(tmp_path.iterdir())


def test_without_a_terminal_it_refuses(hub, tmp_path, capsys):
    assert fetch.main(["sd14", "--folder", str(tmp_path)]) == 2
    assert one_line(capsys).startswith("fetch: nothing was fetched: there is no terminal to ask on; --yes agrees")
    assert asked_only(hub) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("cuts", [[1], [100_000], [0, 0, 5, 299_990], [50_000] * 5])
def test_cut_connections_resume_where_they_ended(hub, tmp_path, cuts):
    hub.script = [{"cut": n} for n in cuts]
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    have, expected = 0, [None]
    for n in cuts:
        have += min(n, len(DATA) - have)
        expected.append(f"bytes={have}-" if have else None)
    assert hub.ranges() == expected


def test_it_gives_up_after_some_tries_and_keeps_what_came(hub, tmp_path, capsys):
    hub.script = [{"cut": 1000}] * 20
    assert run(tmp_path) == 2
    assert "gave up after 6 tries" in one_line(capsys) and len(hub.ranges()) == 6
    check_absent(tmp_path, partial=6000)
    hub.script = []
    assert run(tmp_path) == 0 and hub.ranges()[-1] == "bytes=6000-"
    check_whole(tmp_path)


OTHER = bytes(len(DATA))
FAILS = {   # answers to every request -> (what the line says, bytes that stay)
    "wrong hash": ({"body": OTHER}, "it was deleted, run again", None),
    "too short, length true": ({"body": DATA[:-1]}, "announces 299999 bytes in one place and 300000 in another", None),
    "too long, length true": ({"body": DATA + b"x"}, "announces 300001 bytes", None),
    "announces more": ({"length": 7}, "announces 300007 bytes", None),
    "announces less": ({"length": -7}, "announces 299993 bytes", None),
    "hub states less": ({"linked": {"X-Linked-Size": 10}}, "announces 300000 bytes in one place and 10 in ", None),
    "hub states far more": ({"linked": {"X-Linked-Size": 10 ** 12}}, "speaks of 1000000000000 bytes where about", None),
    "hub states another hash": ({"linked": {"X-Linked-Etag": f'"{sha(OTHER)}"'}}, "has another file", None),
    "page": ({"html": "text/html; charset=utf-8"}, "a web page came in place of the file", None),
    "page in disguise": ({"html": "application/octet-stream"}, "a web page came in place of the file", 0),
    "401": ({"status": 401}, "asks for a login: private or gone; set HF_TOKEN", None),
    "403": ({"status": 403}, "accept the terms at http", None),
    "404": ({"status": 404}, "the repository moved, or HF_ENDPOINT is no complete mirror (HTTP 404)", None),
    "418": ({"status": 418}, "an answer that means nothing here (HTTP 418)", None),
    "429": ({"status": 429, "retry": 0}, "too many requests, wait a while (HTTP 429); gave up", None),
    "503": ({"status": 503}, "the server is in trouble, try later (HTTP 503); gave up", None),
    "loop": ({"location": REPO + BIG}, "redirects without end", None),
    "file redirect": ({"location": "file:///etc/passwd"}, "unencrypted or foreign address", None),
    "no address": ({"location": "http://[oops/"}, "redirects to an address that is none", None),
    "bad port": ({"location": "http://127.0.0.1:99999999/"}, "redirects to an address that is none", None),
    "refused": ({"location": "http://127.0.0.1:1/x"}, "no connection", None),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_cannot_be_ends_in_one_line_and_never_takes_the_name(hub, tmp_path, capsys, name):
    how, text, stays = FAILS[name]
    hub.script = [how] * 50
    assert run(tmp_path) == 2
    assert text in one_line(capsys)
    check_absent(tmp_path, stays)
    assert len(hub.ranges()) <= 6
    hub.script = []
    assert run(tmp_path) == 0                                   # and nothing is spoilt for the next run
    check_whole(tmp_path)


@pytest.mark.parametrize("how", [{"status": 429, "retry": 0}, {"status": 503}, {"status": 500}, {"length": 5},
                                 {"body": DATA[:9]}, {"cut": 9}, {"location": "http://127.0.0.1:1/x"}])
def test_passing_trouble_passes(hub, tmp_path, how):
    hub.script = [how, how]
    assert run(tmp_path) == 0
    check_whole(tmp_path)


@pytest.mark.parametrize("how, then", [
    ({"ignore_range": True}, []),                               # 200 in place of 206: from the start
    ({"content_range": "bytes 7-299999/300000"}, [None]),
    ({"content_range": "bytes 1000-299999/999"}, [None]),
    ({"content_range": "nonsense"}, [None]),
    ({"status": 416}, [None]),
])
def test_odd_answers_to_a_range_start_over(hub, tmp_path, how, then):
    (tmp_path / "unet").mkdir()
    (tmp_path / (BIG + ".partial")).write_bytes(DATA[:1000])
    hub.script = [how]
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    assert hub.ranges() == ["bytes=1000-", *then]


@pytest.mark.parametrize("partial, how, requests", [
    (DATA, {}, 1), (DATA + b"more", {}, 2), (DATA + b"more", {"ignore_range": True}, 1), (OTHER[:1000], {}, 1)])
def test_partials_of_every_kind(hub, tmp_path, capsys, partial, how, requests):
    """Whole already, longer than the file, of another file: taken, started over, found out by the hash and deleted."""
    (tmp_path / "unet").mkdir()
    (tmp_path / (BIG + ".partial")).write_bytes(partial)
    hub.script = [how]
    assert run(tmp_path) == (0 if DATA in partial else 2)
    assert len(hub.ranges()) == requests
    if DATA not in partial:
        assert "it was deleted, run again" in one_line(capsys)
        check_absent(tmp_path)
        assert run(tmp_path) == 0
    check_whole(tmp_path)


def test_a_reply_of_unknown_length_is_held_against_the_hash(hub, tmp_path, capsys):
    hub.script = [{"bare": True, "chunked": True, "body": OTHER}]
    assert run(tmp_path) == 2 and "sha256" in one_line(capsys)
    check_absent(tmp_path)
    hub.script = [{"bare": True, "chunked": True}]
    assert run(tmp_path) == 0
    check_whole(tmp_path)


def test_without_a_hash_from_anyone_nothing_is_trusted(hub, tmp_path, capsys):
    hub.script, hub.only, hub.listing = [{"bare": True}], "vae/config.json", False
    assert run(tmp_path) == 2
    assert "vae/config.json: the server states no hash and none is known here" in one_line(capsys)
    assert not (tmp_path / "vae/config.json").exists()
    hub.script, hub.listing = [{"bare": True}], True
    assert run(tmp_path) == 0                                   # the listing states it
    check_whole(tmp_path)


@pytest.mark.parametrize("has_listing", [True, False])
def test_an_inferred_hash_yields_to_the_hubs(hub, tmp_path, monkeypatch, capsys, has_listing):
    inferred = replace(PIECE, full=(File(BIG, len(DATA), "sha256:" + sha(OTHER)[:16]),))
    monkeypatch.setitem(sources.BUNDLES, "sd14", of(inferred))
    hub.listing = has_listing
    assert run(tmp_path) == 0 and (tmp_path / BIG).read_bytes() == DATA
    assert ("the hub's word counts" if has_listing else "the server's word counts") in "".join(capsys.readouterr())


def test_a_file_that_is_there_and_differs_is_left_alone(hub, tmp_path, capsys):
    (tmp_path / "unet").mkdir()
    (tmp_path / BIG).write_bytes(b"mine")
    assert run(tmp_path) == 2
    assert "is there, but has 4 bytes, 300000 are expected; move it away or delete it" in one_line(capsys)
    assert (tmp_path / BIG).read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["relative", "absolute", "other host"])
def test_redirects_are_followed_and_the_token_stays_home(hub, hubs, tmp_path, monkeypatch, capsys, where):
    storage = hubs() if where == "other host" else hub
    storage.files = storage.files | {"/storage/blob": DATA}
    location = "/storage/blob" if where == "relative" else storage.url + "/storage/blob"
    hub.script = [{"location": location, "cut": 0}, {"location": location}]
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    tokens = {token for path, _, token in storage.log if path == "/storage/blob"}
    assert tokens == ({None} if where == "other host" else {"Bearer hf_secret"})
    assert {token for path, _, token in hub.log if path == REPO + BIG} == {"Bearer hf_secret"}
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_the_storage_servers_word_does_not_count(hub, hubs, tmp_path, monkeypatch, capsys):
    storage = hubs()
    storage.files["/x.safetensors"] = OTHER                     # states the hash and size of what it has
    hub.script = [{"location": storage.url + "/x.safetensors"}] * 9
    assert run(tmp_path) == 2 and "it was deleted" in one_line(capsys)
    check_absent(tmp_path)
    hub.script = [{"location": storage.url + "/x.safetensors", "bare": True}]
    hub.listing = False
    monkeypatch.setitem(sources.BUNDLES, "sd14", of(replace(PIECE, full=(File(BIG, len(DATA)),))))
    assert run(tmp_path) == 2 and "the server states no hash" in one_line(capsys)
    check_absent(tmp_path)


def test_an_https_hub_may_not_send_us_to_http(monkeypatch):
    class Reply:
        status, headers, close = 302, {"Location": "http://127.0.0.1/x"}, lambda self: None

    monkeypatch.setattr(download.OPENER, "open", lambda *_, **__: Reply())
    with pytest.raises(download.FetchError, match="unencrypted"):
        download.connect("https://hub.test/x", "")


@pytest.mark.parametrize("endpoint, token, text", [
    ("ftp://x", "", "HF_ENDPOINT must be"), ("huggingface.co", "", "HF_ENDPOINT must be"),
    ("http://[x", "", "HF_ENDPOINT must be"),
    ("https://me:hf_secret@x", "", "HF_ENDPOINT must be"), ("https://x?a=hf_secret", "", "HF_ENDPOINT must be"),
    ("http://hub.test", "hf_secret", "would travel unencrypted to hub.test"),
    ("https://x", "hf_secret\nX: y", "HF_TOKEN holds characters"),
])
def test_bad_environments_are_refused_without_showing_secrets(monkeypatch, tmp_path, capsys, endpoint, token, text):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", token)
    assert run(tmp_path) == 2
    line = one_line(capsys)
    assert text in line and "secret" not in line


def test_the_next_source_is_tried_and_two_are_never_mixed(hub, tmp_path, monkeypatch, capsys):
    both = replace(PIECE, sources=(Source("gone/model"), Source("pub/model", "rev1")))
    monkeypatch.setitem(sources.BUNDLES, "sd14", of(both))
    for name, has_listing in (("a", True), ("b", False)):
        hub.listing = has_listing
        assert run(tmp_path / name) == 0
        check_whole(tmp_path / name)
        out = capsys.readouterr().out
        assert "the model, from " + hub.url + "/pub/model at rev1" in out
        assert re.search("note: .*gone/model.* is not there", out)
    hub.files["/gone/model/resolve/main/unet/config.json"] = CONFIG     # has the first file, but no weights
    assert run(tmp_path / "c") == 2
    assert f"/gone/model/resolve/main/{BIG}: is not there" in one_line(capsys)
    hub.listing = True
    assert run(tmp_path / "d") == 0
    assert "note: gone/model: holds no UNet that can be read; expected " + BIG in capsys.readouterr().out


def test_a_missing_licence_text_is_told_and_does_not_stop(hub, tmp_path, capsys):
    del hub.files["/spaces/terms/resolve/main/license.txt"]
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    assert "note: license.txt could not be kept here" in capsys.readouterr().err and not (tmp_path / "LICENSE").exists()


def test_folders_that_cannot_be_used(hub, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file/below", "Not a directory")):
        assert run(folder) == 2
        assert one_line(capsys) == f"fetch: {folder}: cannot be used ({why}); give another --folder"
    (tmp_path / "d" / BIG).mkdir(parents=True)
    assert run(tmp_path / "d") == 2
    assert BIG + ": cannot be read (Is a directory)" in one_line(capsys)
    (tmp_path / "e" / (BIG + ".partial")).mkdir(parents=True)
    assert run(tmp_path / "e") == 2
    assert "cannot be written (Is a directory)" in one_line(capsys)


def test_a_folder_that_may_not_be_written_is_seen_before_anything_is_fetched(hub, tmp_path, monkeypatch, capsys):
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):                            # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    assert run(tmp_path) == 2
    assert one_line(capsys) == f"fetch: {tmp_path}: cannot be used (not writable); give another --folder"
    assert asked_only(hub)


def test_a_full_disk_is_seen_before_and_said_when_it_happens(hub, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(hubs_own, "free_space", lambda _: 1000)
        assert run(tmp_path) == 2
        assert "300 kB are needed and 1 kB are free; make room" in one_line(capsys) and asked_only(hub)

    class Full:
        """A file on a disk with room for 100,000 bytes of the weights."""

        def __init__(self, path, mode, **how):
            self.file, self.name = open(path, mode, **how), str(path)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            room = 100_000 - self.file.tell()
            if room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[:room])

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", Full, raising=False)
        assert run(tmp_path) == 2
        assert "the disk is full; make room; what has arrived stays" in one_line(capsys)
    check_absent(tmp_path, partial=100_000)
    assert run(tmp_path) == 0 and hub.ranges()[-1] == "bytes=100000-"
    check_whole(tmp_path)


def test_two_fetches_do_not_write_one_file(hub, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "unet").mkdir()
    with open(tmp_path / (BIG + ".partial"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(tmp_path) == 2
        assert "another fetch is writing this file" in one_line(capsys)
    assert run(tmp_path) == 0
    check_whole(tmp_path)


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_fetch_goes_on_where_it_ended(hub, tmp_path, number, code):
    hub.script = [{"hold": 123_456}]
    program = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
               "from weights import fetch\nfrom weights.sources import BUNDLES, Bundle, File, Piece, Source\n"
               f"BUNDLES['sd14'] = {TINY!r}\nsys.exit(fetch.main(sys.argv[1:]))")
    child = subprocess.Popen([sys.executable, "-c", program, "sd14", "--yes", "--folder", str(tmp_path)], text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heeds_ctrl_c)
    partial = tmp_path / (BIG + ".partial")
    until = time.monotonic() + 120
    arrived = lambda: partial.exists() and partial.stat().st_size == 123_456
    while not arrived() and time.monotonic() < until and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(number)
    error = child.communicate(timeout=120)[1]
    assert child.returncode == code and "Traceback" not in error
    assert number != signal.SIGINT or "fetch: interrupted; what has arrived stays" in error
    check_absent(tmp_path, partial=123_456)
    assert run(tmp_path) == 0 and hub.ranges() == [None, "bytes=123456-"]
    check_whole(tmp_path)


def test_progress_tells_amount_rate_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(hubs_own.time, "monotonic", lambda: now[0])
    show = hubs_own.Progress(4_000_000_000)
    now[0] = 40.0
    show("unet", 1_000_000_000, 1_000_000_000)
    assert capsys.readouterr().err.strip() == "unet: 1 GB of 4 GB, 25 MB/s, 2 min left"


@pytest.mark.parametrize("flags, text", [
    (["sd14", "--mirror"], "--mirror is for style50"), (["sae", "--fp16"], "sae is not published in float16"),
    (["sd16"], "invalid choice: 'sd16'"), ([], "required: what"),
    (["sd14", "--fast"], "unrecognized arguments: --fast"),
    (["style50", "--mirror", "--fp16"], "style50 --mirror is not published in float16")])
def test_flags_that_mean_nothing(capsys, flags, text):
    try:
        code = fetch.main(flags)
    except SystemExit as e:
        code = e.code
    assert code == 2 and text in one_line(capsys)


# --- what the hub lists -----------------------------------------------------------------------------------------------

API = "/api/models/pub/model/tree/rev1"
ITEM = listed("README.md", CARD)


def test_a_listing_of_many_pages_is_read_to_its_end_and_the_token_stays_home(hub, tmp_path, monkeypatch, capsys):
    """Each page names the next at another host, as a mirror's do that hands on the hub's own words."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.page = 2
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    pages = [(path, token) for path, _, token in hub.log if path.startswith("/api/")]
    assert pages == [(API + query, "Bearer hf_secret") for query in (
        "?recursive=true", *(f"?limit=9&recursive=true&cursor={n}" for n in (2, 4, 6, 8, 10)))]
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_a_repository_that_moved_is_followed_and_named(hub, tmp_path, capsys):
    for path in list(hub.files):
        if path.startswith(REPO):
            hub.files[path.replace("/pub/", "/new/")] = hub.files[path]
    hub.script, hub.only = [{"location": API.replace("/pub/", "/new/") + "?recursive=true"}], "/api/"
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    assert "note: pub/model has moved to new/model\n" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"status": 404}, {"status": 501}, {"html": "text/html"},
                                 {"location": "http://127.0.0.1:1/x"}])
def test_a_hub_without_a_listing_falls_back_to_the_table(hub, tmp_path, capsys, how):
    hub.script, hub.only = [how] * 2, "/api/"
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    out = capsys.readouterr().out
    assert "note: the hub lists nothing (" in out and "names and sizes are those of weights/sources.py" in out
    assert "not fetched from there" not in out


LISTINGS = {    # answers to every question for the listing -> what the line says
    "gone": ({"status": 404, "code": "RepoNotFound"}, "is not there; the repository moved"),
    "private or gone": ({"status": 401, "code": "RepoNotFound"}, "asks for a login: private or gone; set HF_TOKEN"),
    "gated, no token": ({"status": 401, "code": "GatedRepo"}, "accept the terms at {hub}/pub/model, then set HF_TOKEN"),
    "gated": ({"status": 403, "code": "GatedRepo"}, "accept the terms at {hub}/pub/model, then set HF_TOKEN"),
    "too often": ({"status": 429, "retry": 0}, "too many requests, wait a while (HTTP 429); gave up after 6 tries"),
    "trouble": ({"status": 503}, "the server is in trouble, try later (HTTP 503); gave up after 6 tries"),
    "cut": ({"body": b'[{"type": "file", "pa'}, "the listing came incomplete (JSONDecodeError); gave up"),
    "deep": ({"body": b"[" * 100_000}, "the listing came incomplete (RecursionError); gave up"),
    "no list": ({"body": b'{"error": "busy"}'}, "the hub lists \"{'error': 'busy'}\"; use another HF_ENDPOINT"),
    "no items": ({"body": b"[7]"}, "the hub lists '7', which is no file below 'the repository'"),
    "empty": ({"body": b"[]"}, f"pub/model: holds no UNet that can be read; expected {BIG} or a .bin, found no folder"),
    "endless": ({"body": b"[]", "endless": True}, "the listing has no end"),
    **{name: ({"body": json.dumps([ITEM | change]).encode()}, "which is no file below") for name, change in {
        "size": {"size": -1}, "size is text": {"size": "9"}, "no hash": {"oid": "x" * 40}, "short hash": {"oid": "ab"},
        "hash of another kind": {"oid": "a" * 64}, "path": {"path": 7}, "odd lfs": {"lfs": [1]},
        "no SHA-256": {"lfs": {"oid": "a" * 40, "size": 3}}}.items()},
}


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_that_cannot_be_ends_in_one_line(hub, tmp_path, capsys, name):
    how, text = LISTINGS[name]
    hub.script, hub.only = [how] * 200, "/api/"
    assert run(tmp_path) == 2
    line = one_line(capsys)
    assert text.replace("{hub}", hub.url) in line and len(line) < 400, line
    assert not list(tmp_path.iterdir()) and all(path.startswith("/api/") for path, *_ in hub.log)


def test_rate_limits_of_the_listing_are_waited_for(hub, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    hub.script, hub.only = [{"status": 429, "retry": 7}, {"status": 429, "retry": 900}, {"status": 503}], "/api/"
    assert run(tmp_path) == 0
    assert waited == [7, 60, 0]                                 # as the hub asks for, a minute at most; BACKOFF is 0
    check_whole(tmp_path)


def test_a_repository_that_is_gone_says_where_else_to_look(hub, tmp_path, capsys):
    hub.files, hub.listing = {}, False
    assert run(tmp_path) == 2
    assert re.search("unet/config.json: is not there; .* look elsewhere$", one_line(capsys))


def test_a_listed_hash_that_is_not_the_published_one_is_refused_before_anything(hub, tmp_path, capsys):
    hub.files[REPO + BIG] = OTHER
    assert run(tmp_path) == 2
    assert f"{BIG}: the hub lists another file (sha256:{sha(OTHER)}) than the published one" in one_line(capsys)
    assert asked_only(hub) and not list(tmp_path.iterdir())


def test_a_sure_hash_of_another_kind_than_the_listed_one_counts(hub, tmp_path, monkeypatch, capsys):
    """The hub lists git's name of a small file; of the tokenizer the SHA-256 is known."""
    for text, code in ((b"other", 2), (OTHERS["tokenizer/merges.txt"], 0)):
        pinned = tuple(replace(f, pin="sha256:" + sha(text), sure=True) if f.name == "tokenizer/merges.txt" else f
                       for f in PIECE.files)
        monkeypatch.setitem(sources.BUNDLES, "sd14", of(replace(PIECE, files=pinned)))
        assert run(tmp_path) == code
        assert code == 0 or "tokenizer/merges.txt: what came has sha256" in one_line(capsys)


def test_a_file_that_is_not_the_listed_one_is_refused(hub, tmp_path, capsys):
    hub.only, hub.script = "text_encoder/model.safetensors", [{"body": b"text_encoder/mmmmm.safetensors"}]
    assert run(tmp_path) == 2
    assert "text_encoder/model.safetensors: what came has sha256" in one_line(capsys)


def test_what_is_lacking_has_no_other_source(hub, tmp_path, capsys):
    for name in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "unet/config.json"):
        del hub.files[REPO + name]
    assert run(tmp_path) == 2
    assert "fetch: pub/model: lacks unet/config.json, vae/, tokenizer/merges.txt; look elsewhere" == one_line(capsys)


def test_weights_in_pieces_are_no_weights_that_can_be_read(hub, tmp_path, capsys):
    hub.files[REPO + BIG.replace(".safetensors", "-00001-of-00002.safetensors")] = hub.files.pop(REPO + BIG)
    del hub.files[REPO + BIG_HALF]
    assert run(tmp_path) == 2
    assert "found unet/config.json, unet/diffusion_pytorch_model-00001-of-00002.safetensors" in one_line(capsys)


def test_precision_by_name(hub, tmp_path, capsys):
    assert run(tmp_path / "half", "--fp16") == 0
    out = capsys.readouterr().out
    assert "note: vae, by its name, lies there in full precision alone" in out and "note: unet, by its name" not in out
    del hub.files[REPO + BIG]
    assert run(tmp_path / "full") == 0
    assert f"note: unet, by its name, lies there in half precision alone: {BIG_HALF}\n" in capsys.readouterr().out


def test_asking_needs_no_torch():
    code = "import sys; sys.path.insert(0, '.'); import weights.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


# --- Style50, in every shape that its folder could have ---------------------------------------------------------------

STYLE, BASE, SAE = "/NormalUhr/UnlearnCanvas-ckpts/resolve/", "/base/model/resolve/", "/bcywinski/SAeUron/resolve/"
BIN = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}


def publish(hub, folder, below):
    for path in folder.rglob("*"):
        if path.is_file():
            hub.files[below + path.relative_to(folder).as_posix()] = path.read_bytes()


def pickle(folder, part, change=lambda t: t, variant=""):
    """Replace a part's safetensors by a .bin."""
    path = folder / tiny.PATHS[part][1]
    torch.save({k: change(v.clone()) for k, v in load_file(path).items()}, path.with_name(f"{BIN[part]}{variant}.bin"))
    path.unlink()


def old_names(tensors):
    """The VAE's attention as it was called before 2023."""
    for new, old in ((v, k) for k, v in LEGACY_ATTENTION.items()):
        tensors = {k.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): v for k, v in tensors.items()}
    return tensors


def without(*names):
    def change(folder):
        for path in [path for name in names for path in sorted(folder.rglob(name), reverse=True)]:
            path.unlink() if path.is_file() else path.rmdir()
    return change


def with_ema(folder):
    (folder / "unet_ema").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / "unet_ema" / name).write_bytes(b"the moving average")


def bins_in_half(folder):
    tiny.edit_tensors(folder / tiny.PATHS["vae"][1], old_names)
    full = (folder / tiny.PATHS["unet"][1]).read_bytes()
    pickle(folder, "unet", torch.Tensor.half)
    (folder / tiny.PATHS["unet"][1]).write_bytes(full)          # beside it, as the card says
    pickle(folder, "vae", torch.Tensor.half)
    pickle(folder, "text_encoder", torch.Tensor.half, ".fp16")


HALVED = ("vae", "text_encoder")
SHAPES = {  # what is done to the folder -> (parts in half precision, parts that come from the base, what the plan says)
    "safetensors": (lambda folder: None, (), (), ["not fetched from there: model_index.json"]),
    "VAE and text encoder .bin in float16, legacy names": (bins_in_half, HALVED, (), [
        "vae/diffusion_pytorch_model.bin is a pickle; after the download weights/convert.py makes "
        "vae/diffusion_pytorch_model.safetensors of it",
        "text_encoder/pytorch_model.fp16.bin is a pickle; after the download weights/convert.py makes "
        "text_encoder/model.fp16.safetensors of it",
        "not fetched from there: model_index.json, unet/diffusion_pytorch_model.bin"]),
    "legacy names": (lambda folder: tiny.edit_tensors(folder / tiny.PATHS["vae"][1], old_names), (), (), []),
    "UNet .bin": (lambda folder: pickle(folder, "unet"), (), (), ["unet/diffusion_pytorch_model.bin is a pickle"]),
    "unet_ema": (with_ema, (), (), ["unet/ is taken, not unet_ema/ (its moving average): from_pretrained reads unet/",
                                    "not fetched from there: model_index.json, unet_ema/"]),
    "no scheduler, no tokenizer": (without("scheduler/*", "tokenizer/*"), (), ("scheduler", "tokenizer"), [
        "what is lacking there: Stable Diffusion 1.5's tokenizer/, scheduler/, from {hub}/base/model at b1"]),
    "no VAE, no text encoder": (without("vae/*", "text_encoder/*.safetensors"), (), HALVED, [
        "what is lacking there: Stable Diffusion 1.5's vae/, text_encoder/, from {hub}/base/model at b1"]),
    "no configs": (without("config.json", "merges.txt"), (), (), [
        "Stable Diffusion 1.5's unet/config.json, vae/config.json, text_encoder/config.json, tokenizer/merges.txt, f"]),
}


@pytest.fixture
def style(hubs, monkeypatch, tmp_path):
    """(hub, folder): a hub with SAE, licence, a base of other numbers; the folder is Style50's, not yet published."""
    hub = hubs()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(hubs_own, "free_space", lambda _: 50e9)
    publish(hub, tiny.write_model(tmp_path / "base", seed=2, sae=None, featviz=None), BASE + "b1/")
    folder = tiny.write_model(tmp_path / "published", seed=1, featviz=None, activity=None)
    (folder / "model_index.json").write_text("{}")
    for path in list((folder / "sae").rglob("*.*")):
        if path.is_file():
            hub.files[SAE + "main/" + path.relative_to(folder / "sae").as_posix()] = path.read_bytes()
    without("sae/*/*", "sae/*", "sae")(folder)
    hub.files |= {SAE + "main/unet.up_blocks.1.attentions.2/cfg.json": b"{}", SAE + "main/README.md": CARD,
                  STYLE + "main/README.md": CARD,
                  "/spaces/CompVis/stable-diffusion-license/resolve/main/license.txt": LICENCE}
    base = replace(sources.SD15, sources=(Source("gone/base"), Source("base/model", "b1")), full=(), files=tuple(
        replace(file, pin="", sure=False) for file in sources.SD15.files + sources.SD15.full))
    bundle = sources.BUNDLES["style50"]
    pieces = (replace(bundle.pieces[0], base=base), *bundle.pieces[1:])
    monkeypatch.setitem(sources.BUNDLES, "style50", replace(bundle, pieces=pieces))
    return hub, folder


STYLE_FOLDER = STYLE + "main/diffusion/diffuser/style50/"


def fetch_style(folder, *flags):
    return fetch.main(["style50", "--folder", str(folder), "--yes", *flags])


@pytest.mark.parametrize("name", SHAPES)
def test_style50_in_every_shape_becomes_a_folder_that_loads(style, tmp_path, capsys, name):
    hub, published = style
    change, halved, from_base, says = SHAPES[name]
    change(published)
    publish(hub, published, STYLE_FOLDER)
    assert fetch_style(tmp_path / "got", "--check") == 0 and not (tmp_path / "got").exists()
    plan = capsys.readouterr().out
    assert fetch_style(tmp_path / "got") == 0
    out = capsys.readouterr().out
    assert out.startswith(plan) and all(text.replace("{hub}", hub.url) in plan for text in says), plan
    assert plan.count("moving average") == (name == "unet_ema")
    assert plan.count("is a pickle") == plan.count("to be converted") == out.count("weights only, compared after")
    model = load(tmp_path / "got")
    for part in ("unet", "vae", "text_encoder", "sae"):
        expected = tiny.tensors(part, tiny.CONFIGS[part], 2 if part in from_base else 1)
        for key, tensor in networks(model)[part].state_dict().items():
            assert torch.equal(tensor, expected[key].half().float() if part in halved else expected[key]), (part, key)
    assert model.hook_point == tiny.HOOK and len(model.tokenizer.vocab) == len(tiny.VOCAB)
    assert (tmp_path / "got/scheduler/scheduler_config.json").exists()
    assert (tmp_path / "got/LICENSE").read_bytes() == LICENCE
    assert not (tmp_path / "got/unet_ema").exists() and not list((tmp_path / "got").rglob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "got").rglob("*")}
    assert fetch_style(tmp_path / "got") == 0                   # verified again, nothing fetched or converted anew
    out = capsys.readouterr().out
    assert "verified by" not in out and "weights only, compared" not in out and "to fetch: 0 B, free" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "got").rglob("*")} == before


def test_style50_where_the_hub_lists_nothing(style, tmp_path, capsys):
    """The UNet under the name that its card suggests; all else is SD 1.5's."""
    hub, published = style
    publish(hub, published, STYLE_FOLDER)
    hub.listing = False
    assert fetch_style(tmp_path / "got") == 0
    model = load(tmp_path / "got")
    for part, seed in (("unet", 1), ("vae", 2), ("text_encoder", 2), ("sae", 1)):
        expected = tiny.tensors(part, tiny.CONFIGS[part], seed)
        assert all(torch.equal(t, expected[key]) for key, t in getattr(model, part).state_dict().items()), part
    assert capsys.readouterr().out.count("note: the hub lists nothing") == 3


@pytest.mark.parametrize("lacking, text", [
    (STYLE, "is not there; the repository moved, or HF_ENDPOINT is no complete mirror (HTTP 404); other ways to Style"),
    (BASE, "is not there"), (SAE, "is not there")])
def test_style50_or_what_it_needs_is_gone(style, tmp_path, capsys, lacking, text):
    hub, published = style
    without("vae/*")(published)
    publish(hub, published, STYLE_FOLDER)
    hub.files = {path: data for path, data in hub.files.items() if not path.startswith(lacking)}
    assert fetch_style(tmp_path / "got") == 2
    line = one_line(capsys)
    assert text in line and "weights/README.md" in line and not (tmp_path / "got").exists()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_that_would_run_code_is_refused(style, tmp_path, monkeypatch, capsys):
    hub, published = style
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, published / "vae/diffusion_pytorch_model.bin")
    without("vae/*.safetensors")(published)
    publish(hub, published, STYLE_FOLDER)
    assert fetch_style(tmp_path / "got") == 2
    assert "model.bin: could not be converted: " in (line := one_line(capsys)) and "would call posix.mkdir" in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "got/vae/diffusion_pytorch_model.safetensors").exists()


# --- the SAE that belongs to a model ----------------------------------------------------------------------------------

SAE_COCO = sources.BUNDLES["sd14"].pieces[-1]


def publish_coco(hub, repo, below):
    hub.files |= {f"/{repo}/resolve/main/{below}{name}": name.encode() for name in ("cfg.json", "sae.safetensors")}


@pytest.mark.parametrize("repo, below, says", [
    ("bcywinski/SAeUron_coco", "unet.up_blocks.1.attentions.1/", "/bcywinski/SAeUron_coco at main\n"),
    ("bcywinski/SAeUron", "coco/unet.up_blocks.1.attentions.1/", "/bcywinski/SAeUron at main, coco\n"),
    ("bcywinski/SAeUron", "coco/", "the folder does not name the SAE's hook point; unet.up_blocks.1.attentions.1 is")])
def test_sd14_brings_its_sae_from_wherever_it_lies(hub, tmp_path, monkeypatch, capsys, repo, below, says):
    monkeypatch.setitem(sources.BUNDLES, "sd14", of(PIECE, SAE_COCO))
    publish_coco(hub, repo, below)
    publish_coco(hub, "bcywinski/SAeUron", "unet.up_blocks.1.attentions.1/")         # Style50's
    hub.files["/bcywinski/SAeUron/resolve/main/unet.up_blocks.1.attentions.1/sae.safetensors"] = b"Style50's"
    assert run(tmp_path) == 0
    assert says in capsys.readouterr().out
    home = tmp_path / "sae/unet.up_blocks.1.attentions.1"
    assert (home / "sae.safetensors").read_bytes() == b"sae.safetensors" and (home / "cfg.json").exists()


def test_sd14_without_its_sae_is_the_model_alone_and_says_so(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sources.BUNDLES, "sd14", of(PIECE, SAE_COCO))
    hub.files["/bcywinski/SAeUron/resolve/main/coco/something.pt"] = b"?"
    assert run(tmp_path) == 0
    check_whole(tmp_path)
    out = capsys.readouterr().out
    assert "note: without the SAE that was trained on Stable Diffusion 1.4, so for raw channels alone: " in out
    assert "with cfg.json and sae.safetensors, found something.pt\n" in out and not (tmp_path / "sae").exists()


# --- CLIP -------------------------------------------------------------------------------------------------------------

CLIP = sources.BUNDLES["clip"].pieces[0]
CLIP_HOME = f"/{CLIP.sources[0].repo}/resolve/{CLIP.sources[0].revision}/"


@pytest.fixture
def clip(hubs, monkeypatch, tmp_path):
    """(hub, folder): a hub that has a tiny CLIP and the other files of the published repository; nothing is pinned."""
    hub, folder = hubs(), tiny.write_eyes(tmp_path / "published")
    hub.only = "model.safetensors"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    names = ("pytorch_model.bin", "tf_model.h5", "preprocessor_config.json", "vocab.json", "merges.txt")
    hub.files = {CLIP_HOME + name: name.encode() for name in names} | {CLIP_HOME + "README.md": CARD}
    hub.files |= {CLIP_HOME + name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    loose = lambda files: tuple(replace(file, pin="", sure=False) for file in files)
    monkeypatch.setitem(sources.BUNDLES, "clip", replace(sources.BUNDLES["clip"], pieces=(
        replace(CLIP, files=loose(CLIP.files), full=loose(CLIP.full)),)))
    return hub, folder


def fetch_clip(folder, *flags):
    return fetch.main(["clip", "--folder", str(folder), "--yes", *flags])


def test_clip_arrives_resumed_beside_what_is_there_and_sees(clip, tmp_path, capsys):
    hub, published = clip
    got = tmp_path / "got"
    shutil.copytree(published / "tokenizer", got / "tokenizer")
    hub.script = [{"cut": 2000}, {}]
    assert fetch_clip(got) == 0
    assert [r for path, r, _ in hub.log if "model.safetensors" in path] == [None, "bytes=2000-"]
    left = "merges.txt, preprocessor_config.json, pytorch_model.bin, tf_model.h5, vocab.json"
    assert f"not fetched from there: {left}\n" in capsys.readouterr().out
    assert sorted(p.name for p in got.iterdir()) == ["README.md", "config.json", "model.safetensors", "tokenizer"]
    assert torch.equal(load_eyes(got).images(pictures()), load_eyes(published).images(pictures()))
    hub.log.clear()
    assert fetch_clip(got) == 0 and "to fetch: 0 B, free" in capsys.readouterr().out
    assert [path for path, *_ in hub.log if "model.safetensors" in path] == []


def test_clip_lies_where_the_eyes_are_sought():
    assert hubs_own.home(sources.BUNDLES["clip"]).resolve() == EYES / "clip"


def test_another_file_than_the_published_clip_is_refused(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sources.BUNDLES, "clip", of(CLIP))
    assert fetch_clip(tmp_path / "got") == 2
    assert "model.safetensors: the hub lists another file (sha256:" in one_line(capsys)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_hub_without_all_of_clip(clip, tmp_path, capsys, name):
    hub, _ = clip
    del hub.files[CLIP_HOME + name]
    assert fetch_clip(tmp_path / "got") == 2
    assert f"openai/clip-vit-large-patch14: lacks {name}; found " in one_line(capsys)
    assert not (tmp_path / "got").exists()


def test_clip_has_no_float16(clip, tmp_path, capsys):
    assert fetch_clip(tmp_path / "got", "--fp16") == 2
    assert "clip is not published in float16; leave --fp16 out" in one_line(capsys)
