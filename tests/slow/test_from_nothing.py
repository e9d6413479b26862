"""From a bare checkout to the page of feature 10204, in a terminal, killed twice on the way.

    python -m pytest tests/slow/test_from_nothing.py -s

A server on this machine plays the hub: Style50 and its autoencoder in the published layout, names, shapes and sizes
(4.5 GB), random numbers inside. Only the latents are small, 8 x 8, so that a CPU does the rest in 3 minutes of a core.
Takes 4.5 GB of disk.
"""
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from clip import TextEncoder
from sae import SAE
from tests import clip_vocab
from tests.seeded import shapes
from unet import UNet
from vae import VAE

ROOT = Path(__file__).parent.parent.parent
MODEL = "/NormalUhr/UnlearnCanvas-ckpts/resolve/main/"
SAES = "/bcywinski/SAeUron/resolve/main/"
HOOK = "unet.up_blocks.1.attentions.1/"
UNET = "unet/diffusion_pytorch_model.safetensors"
PERIOD = 2 ** 24 + 4                            # bytes after which a file's numbers repeat
CONFIGS = {
    "unet/config.json": dict(_class_name="UNet2DConditionModel", act_fn="silu", attention_head_dim=8, in_channels=4,
                             block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, out_channels=4,
                             sample_size=8),
    "vae/config.json": dict(_class_name="AutoencoderKL", act_fn="silu", block_out_channels=[128, 256, 512, 512],
                            in_channels=3, latent_channels=4, out_channels=3),
    "text_encoder/config.json": dict(hidden_act="quick_gelu", hidden_size=768, intermediate_size=3072,
                                     num_attention_heads=12, num_hidden_layers=12, vocab_size=49408),
    "scheduler/scheduler_config.json": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                            num_train_timesteps=1000)}
SAE_CONFIG = dict(d_in=1280, num_latents=20480, k=32, expansion_factor=16, input_unit_norm=False)
COMMAND = [sys.executable, "featviz.py", "--feature", "10204", "--timestep", "361", "--seed", "1024", "--num-steps",
           "2",
           "--prior-steps", "2", "--batch-size", "1", "--frames", "2", "--finish-steps", "2", "--finish-scale", "0.4",
           "--device", "cpu"]


class Made:
    """A file that lies nowhere: a start, then the same numbers again and again up to `size` bytes."""

    def __init__(self, start, size, period=b""):
        self.start, self.size, self.period = start, size, period
        digest = hashlib.sha256()
        for block in self.blocks(0):
            digest.update(block)
        self.sha256 = digest.hexdigest()

    def blocks(self, begin):
        if begin < len(self.start):
            yield self.start[begin:]
            begin = len(self.start)
        while begin < self.size:
            at = (begin - len(self.start)) % len(self.period)
            block = memoryview(self.period)[at:at + self.size - begin]
            yield block
            begin += len(block)


def tensors(net, period):
    """A safetensors file of a network's names and shapes."""
    header, at = {}, 0
    for name, shape in shapes(net).items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return Made(len(text).to_bytes(8, "little") + text, 8 + len(text) + at, period)


def published():
    """{address: file} of the hub."""
    period = np.random.default_rng(0).normal(0, 0.02, PERIOD // 4).astype("<f4").tobytes()
    model = MODEL + "diffusion/diffuser/style50/"
    with torch.device("meta"):
        nets = {model + UNET: UNet(), model + "vae/diffusion_pytorch_model.safetensors": VAE(),
                model + "text_encoder/model.safetensors": TextEncoder(),
                SAES + HOOK + "sae.safetensors": SAE(d_in=1280, num_latents=20480, k=32, input_unit_norm=False)}
    small = {model + name: json.dumps(config) for name, config in CONFIGS.items()} | {
        model + "tokenizer/" + name: data for name, data in clip_vocab.files().items()}
    small |= {MODEL + "README.md": "A card.", SAES + "README.md": "A card.",
              SAES + HOOK + "cfg.json": json.dumps(SAE_CONFIG),
              "/spaces/CompVis/stable-diffusion-license/resolve/main/license.txt": "You may."}
    small = {name: text.encode() if isinstance(text, str) else text for name, text in small.items()}
    return {name: tensors(net, period) for name, net in nets.items()} | {
        name: Made(data, len(data)) for name, data in small.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.close_connection = True
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self.list(path.removeprefix("/api/models/"))
        file, asked = self.server.files.get(path), self.headers.get("Range", "")
        self.server.log.append((path, asked))
        if not file:
            return self.head(404, {"Content-Length": 0})
        begin = int((re.fullmatch(r"bytes=(\d+)-", asked) or [0, 0])[1])
        part = {"Content-Range": f"bytes {begin}-{file.size - 1}/{file.size}"} if begin else {}
        self.head(206 if begin else 200, part | {"Content-Length": file.size - begin, "X-Linked-Size": file.size,
                                                 "X-Linked-Etag": f'"{file.sha256}"'})
        for block in file.blocks(begin):
            self.wfile.write(block)

    def list(self, asked):
        repo, _, rest = asked.partition("/tree/")
        revision, _, folder = rest.partition("/")
        home = f"/{repo}/resolve/{revision}/"
        items = [{"type": "file", "path": path.removeprefix(home), "size": file.size, "oid": "0" * 40,
                  "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 135}}
                 for path, file in self.server.files.items() if path.startswith(home + folder)]
        body = json.dumps(items).encode()
        self.head(200 if items else 404, {"Content-Length": len(body), "Content-Type": "application/json"})
        self.wfile.write(body)

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log, self.url = published(), [], f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, *_):                                 # a client that was killed
        pass


class Terminal:
    """A command at work in a terminal of its own; `said` is all that it has shown."""

    def __init__(self, command, **settings):
        self.master, theirs = pty.openpty()
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                                        **settings)
        os.close(theirs)
        self.said = ""

    def until(self, there, seconds=1200):
        """Goes on reading until there() holds, or a text is shown."""
        end = time.monotonic() + seconds
        found = there if callable(there) else lambda: there in self.said
        while not found():
            assert time.monotonic() < end, f"waited {seconds} s for {there}:\n{self.said[-3000:]}"
            if select.select([self.master], [], [], 0.02)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:                                 # the other end is closed
                    data = b""
                self.said += data.decode(errors="replace")
                if not data:                                    # what closed may not have been waited for yet
                    self.process.wait(10)
                assert data or found(), f"ended before {there}:\n{self.said[-3000:]}"

    def type(self, text):
        os.write(self.master, text.encode())

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        os.close(self.master)

    def end(self, seconds=1200):
        """The exit code, once it has ended by itself."""
        self.until(lambda: self.process.poll() is not None, seconds)
        return self.process.returncode


@pytest.fixture
def project(tmp_path):
    """A bare checkout; its weights/style50 only says that the probe is to be small."""
    leave = shutil.ignore_patterns(".*", "out", "runs", "tests", "docs", "style50", "sd14", "sd15", "__pycache__")
    folder = shutil.copytree(ROOT, tmp_path / "project", ignore=leave)
    (folder / "weights/style50").mkdir()
    prompts = [f"An {name} image in Winter style" for name in ("Flowers", "Towers", "Sea")]
    (folder / "weights/style50/featviz.json").write_text(json.dumps({"capture": {"prompts": prompts, "steps": 2}}))
    yield folder
    shutil.rmtree(folder)


def test_from_the_question_to_the_page(project, tmp_path):
    began, hub = time.monotonic(), Hub()
    told = lambda what: print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)
    told("the hub is there")
    env = os.environ | {"HF_ENDPOINT": hub.url, "no_proxy": "*", "XDG_CACHE_HOME": str(tmp_path / "cache"),
                        "OMP_NUM_THREADS": "2"}
    env.pop("HF_TOKEN", None)
    begin = lambda: Terminal(COMMAND, cwd=project, env=env)
    home, out = project / "weights/style50", project / "out/style50"
    partial = home / (UNET + ".partial")
    arrived = lambda: partial.stat().st_size if partial.exists() else 0

    run = begin()
    run.until("[y/N] ")
    assert "--feature 10204: is one of the 20480 features of Style50" in run.said
    assert "3.44 GB" in run.said and "CreativeML OpenRAIL-M" in run.said and not partial.exists()
    told("asked")
    run.type("y\r")
    run.until(lambda: arrived() > 1e9)
    run.kill()
    had = arrived()
    told(f"killed after {had / 1e9:.2f} GB of the UNet")

    run = begin()
    run.until("[y/N] ")
    assert "goes on after" in run.said
    run.type("y\r")
    run.until("complete, every file verified")
    told("fetched")
    run.until("guided steps in about")
    assert "--prior noise --timestep 361" in run.said
    run.until("image 1/3")
    run.kill()
    told("killed in the probe")
    assert list(out.glob("probe/shard_*")) and not (out / "probe/capture.json").exists()

    run = begin()
    assert run.end() == 0, run.said[-3000:]
    told("ended by itself")
    assert "[y/N]" not in run.said and "goes on after image" in run.said
    assert "look at out/style50/feature_10204/index.html" in run.said
    records = [json.loads(path.read_text()) for path in out.glob("feature_10204/t*/seed_1024.json")]
    unet = next(file for path, file in hub.files.items() if path.endswith(UNET))
    assert records and all(r["recipe"]["fingerprints"][UNET] == unet.sha256 for r in records)
    assert (out / "feature_10204/index.html").stat().st_size > 10_000
    asked = [begin for path, begin in hub.log if path.endswith(UNET)]
    assert asked[0] == "" and len(asked) == 2 and int(asked[1][6:-1]) >= had         # never from the start again
    hub.shutdown()
    hub.server_close()
