"""Fetching weights from a hub on this machine that misbehaves on demand: what is kept is whole, errors are one line."""
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from weights import fetch
from weights.load import load

ROOT = Path(__file__).parent.parent.parent
UNET, VAE = tiny.PATHS["unet"][1], tiny.PATHS["vae"][1]
STYLE = "/NormalUhr/UnlearnCanvas-ckpts/resolve/main/diffusion/diffuser/style50/"
SD15 = "/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/451f4fe16113bff5a5d2269ed5ad43b0592e9a14/"
SAE = f"/bcywinski/SAeUron/resolve/main/unet.{tiny.HOOK}/"


class Handler(BaseHTTPRequestHandler):
    """One entry of `script` is how one request for an address that holds `only` is answered."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.log.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        how = server.script.pop(0) if server.script and server.only in self.path else {}
        body, headers = server.files.get(path), how.get("headers", {})
        if path.startswith("/api/models/"):
            body = self.listing(path.removeprefix("/api/models/"))
        body = b"x" * len(body) if "other" in how else how.get("body", body)
        begin = int(self.headers["Range"][6:-1]) if path in server.files and "whole" not in how else 0
        self.send_response(how.get("status", 404 if body is None else 206 if begin else 200))
        for name, value in (headers | {"Content-Length": len(body or b"") - begin}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write((body or b"")[begin:][:how.get("cut", how.get("hold"))])
        if "hold" in how:                                       # silent until the client has gone
            self.wfile.flush()
            server.release.wait(60)

    def listing(self, asked):
        """The files below a folder; None where there is none."""
        repo, _, rest = asked.partition("/tree/")
        revision, _, folder = rest.partition("/")
        home, items = f"/{repo}/resolve/{revision}/", []
        for name, data in self.server.files.items():
            if name.startswith(home + folder):
                git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                items.append({"type": "file", "path": name.removeprefix(home), "size": len(data), "oid": git})
                if name.endswith((".safetensors", ".bin")):     # of these the hub's git holds a pointer
                    items[-1] |= {"size": 135, "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}}
        return json.dumps([{"type": "directory", "path": "some"}, *items]).encode() if items else None


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.script, self.only, self.log = {}, [], UNET, []
        self.release, self.url = threading.Event(), f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_):                                 # a client that was killed
        pass

    def publish(self, folder, model=STYLE, sae=SAE):
        """Publish a model folder, its SAE elsewhere."""
        for path in (p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            self.files[sae + path.name if name.startswith("sae/") else model + name] = path.read_bytes()

    def ranges(self):
        return [asked for path, asked, _ in self.log if "/resolve/" in path and self.only in path]


@pytest.fixture
def hubs(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setattr(fetch, "ROOT", tmp_path / "weights")
    monkeypatch.setitem(fetch.TABLE, "hashes", {})              # of the real files
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield lambda: made.append(Hub()) or made[-1]
    for one in made:
        one.release.set()
        one.shutdown()
        one.server_close()


@pytest.fixture
def style(hubs, tmp_path, monkeypatch):
    """A hub that has a tiny Style50 and its SAE; `style.made` is the folder that was published."""
    server = hubs()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.made = tiny.write_model(tmp_path / "made", seed=1, featviz=None, activity=None)
    server.publish(server.made)
    return server


def run(folder, *flags, bundle="style50"):
    return fetch.main([bundle, "--folder", str(folder), "--yes", *flags])


def same(folder, other, *parts):
    return all((folder / tiny.PATHS[part][1]).read_bytes() == (other / tiny.PATHS[part][1]).read_bytes()
               for part in parts or ("unet", "vae", "text_encoder", "sae"))


def test_everything_arrives_verified_and_loads(style, tmp_path, capsys):
    assert run(tmp_path / "got", "--check") == 0 and not (tmp_path / "got").exists()
    plan = capsys.readouterr().out
    assert UNET in plan and "CreativeML OpenRAIL-M, Apache-2.0" in plan and "free" in plan
    assert run(tmp_path / "got") == 0 and same(tmp_path / "got", style.made)
    assert capsys.readouterr().out.startswith(plan) and not list(tmp_path.rglob("*.partial"))
    assert load(tmp_path / "got").sae is not None
    style.log.clear()
    assert run(tmp_path / "got") == 0 and not any("/resolve/" in path for path, *_ in style.log)
    assert capsys.readouterr().out.count("there, verified") == 11


def test_broken_connections_and_busy_servers_are_borne(style, tmp_path):
    busy = [{"status": 429}, {"status": 503}]
    style.script = [{"cut": 100}, {"cut": 0}, {"cut": 5000}, *busy, {"whole": True, "cut": 50}]
    assert run(tmp_path / "got") == 0 and same(tmp_path / "got", style.made)
    assert style.ranges() == [f"bytes={n}-" for n in (0, 100, 100, 5100, 5100, 5100, 50)]  # one ignored the range


def test_it_gives_up_without_progress_and_goes_on_later(style, tmp_path, capsys):
    style.script = [{"cut": 1000}] + fetch.TRIES * [{"cut": 0}]
    assert run(tmp_path / "got") == 2 and "gave up after 6 tries; what arrived is kept" in capsys.readouterr().err
    assert (tmp_path / "got" / f"{UNET}.partial").stat().st_size == 1000
    assert run(tmp_path / "got") == 0 and style.ranges()[-1] == "bytes=1000-" and same(tmp_path / "got", style.made)


REFUSED = {
    "another hash": ({"other": True}, UNET, "has another hash than the listed one"),
    "a web page": ({"body": b"<!DOCTYPE html><p>quota"}, UNET, "another file came, of 23 bytes; open the address"),
    "terms": ({"status": 403}, UNET, "HTTP 403; it is gone, or private (accept its terms, set HF_TOKEN)"),
    "no listing": ({"body": b"[{}]"}, "/tree/", "is no listing of files; check HF_ENDPOINT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_file_is_refused_in_one_line_and_not_kept(style, tmp_path, capsys, name):
    how, style.only, text = REFUSED[name]
    style.script = [how]
    assert run(tmp_path / "got") == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "got" / UNET).exists()
    assert sum(path.stat().st_size for path in tmp_path.glob(f"got/{UNET}*")) == 0
    assert run(tmp_path / "got") == 0


def test_another_file_than_the_published_one_or_than_was_there(style, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fetch.TABLE, "hashes", {"bcywinski/SAeUron": {f"unet.{tiny.HOOK}/sae.safetensors": "0" * 64}})
    assert run(tmp_path / "got") == 2 and "lists another file than the published one" in capsys.readouterr().err
    monkeypatch.setitem(fetch.TABLE, "hashes", {})
    (tmp_path / "got/unet").mkdir(parents=True)
    (tmp_path / "got" / UNET).write_bytes(b"mine")
    assert run(tmp_path / "got") == 2 and "move it away or delete it" in capsys.readouterr().err
    assert (tmp_path / "got" / UNET).read_bytes() == b"mine"


def test_the_token_goes_to_the_hub_and_not_to_its_storage(style, hubs, tmp_path, monkeypatch, capsys):
    storage, name = hubs(), STYLE + UNET
    storage.files[name] = style.files[name]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    style.script = [{"status": 302, "headers": {"Location": storage.url + name}}]
    assert run(tmp_path / "got") == 0 and same(tmp_path / "got", style.made)
    assert {token for *_, token in style.log} == {"Bearer hf_secret"}
    assert storage.log == [(name, "bytes=0-", None)]
    monkeypatch.setenv("HF_ENDPOINT", "hub.test")               # no address
    assert run(tmp_path / "got") == 2
    said = capsys.readouterr()
    assert "check HF_ENDPOINT" in said.err and "secret" not in "".join(said)


def test_a_full_disk(style, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert run(tmp_path / "got") == 2 and "make room or give a --folder" in capsys.readouterr().err


def test_parts_of_the_base(style, tmp_path):
    """VAE, tokenizer and a config from Stable Diffusion 1.5."""
    base = tiny.write_model(tmp_path / "base", seed=2, sae=None, featviz=None, activity=None)
    style.publish(base, SD15)
    for name in (VAE, "tokenizer/vocab.json", "vae/config.json"):
        del style.files[STYLE + name]
    assert run(tmp_path / "got") == 0 and same(tmp_path / "got", style.made, "unet", "text_encoder", "sae")
    assert same(tmp_path / "got", base, "vae")
    del style.files[STYLE + UNET]                               # no other UNet stands in for Style50's
    assert run(tmp_path / "other") == 2


def test_other_bundles(style, tmp_path):
    home = tmp_path / "weights"
    style.publish(style.made, "/riffusion/riffusion-model-v1/resolve/main/", "/leno3003/SAEmnesia/resolve/main/")
    sae = load_file(style.made / tiny.PATHS["sae"][1])          # as SAEmnesia's code may store it
    torch.save({"state_dict": {"encoder.weight": sae["encoder.weight"], "latent_bias": sae["encoder.bias"],
                               "decoder.weight": sae["W_dec"].T, "pre_bias": sae["b_dec"]}}, tmp_path / "sae.pth")
    del style.files["/leno3003/SAEmnesia/resolve/main/sae.safetensors"]
    style.files["/leno3003/SAEmnesia/resolve/main/state_dict.pth"] = (tmp_path / "sae.pth").read_bytes()
    style.files["/leno3003/SAEmnesia/resolve/main/cfg.json"] = b'{"d_model": 32, "n_dirs_local": 64, "k": 4}'
    revision = fetch.TABLE["sources"]["sd14"]["revision"]
    style.publish(style.made, f"/CompVis/stable-diffusion-v1-4/resolve/{revision}/",
                  f"/bcywinski/SAeUron_coco/resolve/main/unet.{tiny.HOOK}/")
    for bundle in ("style50", "saemnesia", "riffusion", "sd14"):
        assert fetch.main([bundle, "--yes"]) == 0
    assert (home / "saemnesia" / UNET).samefile(home / "style50" / UNET) and style.ranges() == ["bytes=0-"]
    got = load(home / "saemnesia").sae
    assert got.reads == "output" and all(torch.equal(got.state_dict()[name], sae[name]) for name in sae)
    assert json.loads((home / "riffusion/featviz.json").read_text()) == {"sound": True}
    assert load(home / "sd14").sae is not None
    style.log.clear()
    assert fetch.main(["saemnesia", "--yes"]) == 0 and not any("/resolve/" in path for path, *_ in style.log)


def test_it_asks_first_and_starts_without_torch(style, tmp_path, capsys):
    assert fetch.main(["style50", "--folder", str(tmp_path / "got")]) == 2
    assert "--yes accepts" in capsys.readouterr().err and not (tmp_path / "got").exists()
    assert fetch.BUNDLES["style50"]["title"] == "Style50 with SAeUron's SAE, 4.5 GB, CreativeML OpenRAIL-M, Apache-2.0"
    code = "import sys, weights.fetch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
