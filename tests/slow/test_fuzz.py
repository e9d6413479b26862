"""2,000 random mutations of the files of a tiny model, one at a time: each ends in the one line of a WeightsError, or
loads what the file still says.

Never another exception, never two lines, never a hang. What may load silently, because no reader can see it: bytes
within a tensor's finite numbers (then exactly these numbers differ; only a fingerprint tells), and changes that mean
the same (a space in a header, a config key that is not used, a size that another value of the same shape allows).
"""
import json
import random
import re
import signal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as library_load
from safetensors.torch import save

from clip import number
from tests.test_checkpoint import networks
from weights import load
from weights.disk import WeightsError
from weights.load import read_tokenizer
from weights.configs import read_config, read_latent_size, read_sae_config, read_scheduler, read_settings
from weights.tensors import read_tensors
from tests.tiny import CONFIGS, PATHS, write_model

TENSOR_CASES, CONFIG_CASES, TOKENIZER_CASES, PART_CASES = 1200, 500, 200, 100
LIMIT = 10                                      # seconds of computing for one case

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 2, 3, 3), "scale": ()}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_hang():
    """An endless case ends the test instead of the patience."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, lambda *_: pytest.fail(f"a case computed for more than {LIMIT} s"))
    yield
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)


def outcome(call, *case):
    """What call() returns, or None for a WeightsError of one line. Any other exception ends the test; the case is the
    last one printed."""
    print(*case)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        return call()
    except WeightsError as e:
        assert "\n" not in str(e) and len(str(e)) < 2000, str(e)[:3000]


# --- ways to damage bytes ---------------------------------------------------------------------------------------------

def flip(data, r):
    data = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8))):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return bytes(data)


def truncate(data, r):
    return data[:r.randrange(len(data))]


def insert(data, r):
    at = r.randrange(len(data) + 1)
    return data[:at] + r.randbytes(r.choice((1, 4, 64))) + data[at:]


def delete(data, r):
    at = r.randrange(len(data))
    return data[:at] + data[at + r.choice((1, 4, 64)):]


def overwrite(data, r):
    at, n = r.randrange(len(data)), r.choice((1, 2, 4, 16))
    return data[:at] + r.choice((bytes(n), b"\xff" * n, r.randbytes(n), b"9" * n)) + data[at + n:]


def double(data, r):
    at, end = sorted((r.randrange(len(data)), r.randrange(len(data))))
    return data[:end] + data[at:end] + data[end:]


def digits(data, r):
    """Another number in a header or a config."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    m = r.choice(found)
    new = r.choice((b"0", b"1", b"-1", b"3", b"7", b"2147483648", b"9" * 30, b"1e9", b"null", b"[]", b"NaN", b"0.5",
                    b'"8"', b"16"))
    return data[:m.start()] + new + data[m.end():]


def replace_by(data, r):
    return r.choice((b"", b"{}", b"[]", b"null", b"<html></html>" * 9, b"version https://git-lfs.github.com/spec/v1\n",
                     bytes(200),
                     b"\xff" * 200, b"[" * 5000, b'{"a":' * 5000, save({"x": torch.ones(3)}),
                     json.dumps(CONFIGS["vae"]).encode()))


MUTATIONS = (flip, flip, truncate, insert, delete, overwrite, overwrite, double, digits, replace_by)


def mutate(data, r):
    kind = r.choice(MUTATIONS)
    return kind.__name__, kind(data, r)


# --- the cases --------------------------------------------------------------------------------------------------------

def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k].to(ours[k].dtype)) for k in ours)


def test_tensors(tmp_path):
    """1,200: half of them aim at the header, where a byte can mean anything."""
    r, g = random.Random(0), torch.Generator().manual_seed(0)
    whole = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    data, path = save(whole, {"format": "pt"}), tmp_path / "x.safetensors"
    end = 8 + int.from_bytes(data[:8], "little")
    seen = {"refused": 0, "equal": 0, "other numbers": 0}
    for case in range(TENSOR_CASES):
        if case % 2:
            kind, head = mutate(data[:end], r)
            changed = head + data[end:]
            if case % 4 == 1 and len(head) > 8 and kind == "digits":        # the header's length made to fit again
                changed = (len(head) - 8).to_bytes(8, "little") + head[8:] + data[end:]
        else:
            kind, changed = mutate(data, r)
        path.write_bytes(changed)
        found = outcome(lambda: read_tensors(path, SHAPES, dtype=torch.float32), case, kind)
        if found is None:
            seen["refused"] += 1
            continue
        try:
            theirs = library_load(changed)
        except SafetensorError as e:
            pytest.fail(f"case {case}, {kind}: the library refuses what was loaded: {e}")
        assert same(found, theirs), (case, kind)
        assert all(t.isfinite().all() for t in found.values())
        equal = all(torch.equal(found[k], whole[k]) for k in whole)
        assert equal or changed[:end] == data[:end] and len(changed) == len(data), (case, kind)
        seen["equal" if equal else "other numbers"] += 1
    print(seen)
    assert seen["refused"] > TENSOR_CASES / 2 and seen["other numbers"] > 20 and sum(seen.values()) == TENSOR_CASES


READERS = {
    "unet": lambda path: (read_config("unet", path), read_latent_size(path)),
    "vae": lambda path: read_config("vae", path),
    "text_encoder": lambda path: read_config("text_encoder", path), "scheduler": lambda path: read_scheduler(path)[0],
    "sae": read_sae_config, "featviz": read_settings,
}


def test_configs(tmp_path):
    """500; what is accepted builds a network or a schedule, or is refused by that."""
    r, networks = random.Random(1), {"unet": load.UNet, "vae": load.VAE, "text_encoder": load.TextEncoder,
                                     "sae": load.SAE}
    loaded = 0
    for case in range(CONFIG_CASES):
        part = r.choice(list(READERS))
        data = json.dumps(CONFIGS[part]).encode()
        kind, changed = ("digits", digits(data, r)) if case % 2 else mutate(data, r)
        path = tmp_path / "config.json"
        path.write_bytes(changed)
        sizes = outcome(lambda: READERS[part](path), case, kind, changed[:300])
        if sizes is None:
            continue
        loaded += 1
        sizes = sizes[0] if part == "unet" else sizes
        if part in networks and sizes != READERS[part](write(tmp_path / "whole.json", data)):
            outcome(lambda: load.skeleton(networks[part], sizes, path), case, kind, changed[:300])
        if part == "scheduler":
            assert 0 < load.Schedule(**sizes | {"num_train_timesteps": 10}).alphas_cumprod[0] < 1
    assert 50 < loaded < CONFIG_CASES * 0.9


def write(path, data):
    path.write_bytes(data)
    return path


def test_tokenizers(tmp_path):
    """200; a tokenizer that is accepted is the whole one: every merge and every id as it was."""
    r = random.Random(2)
    merges = ["t h", "th e</w>", "a n", "an d</w>"]
    vocab = number([m.split() for m in merges])
    whole = {"vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
             "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode()}
    refused = 0
    for case in range(TOKENIZER_CASES):
        name = r.choice(list(whole))
        kind, changed = mutate(whole[name], r)
        for other, data in whole.items():
            (tmp_path / other).write_bytes(changed if other == name else data)
        found = outcome(lambda: read_tokenizer(tmp_path), case, kind, name)
        refused += found is None
        expected = vocab, [tuple(m.split()) for m in merges]
        assert found is None or (found.vocab, list(found.ranks)) == expected, (case, kind, name)
    assert refused > TOKENIZER_CASES / 2


def test_whole_folders(tmp_path):
    """100: one file of a folder replaced by another of its files, or damaged, or gone; the model that loads is the old
    one but for numbers that a config holds."""
    r, folder = random.Random(3), write_model(tmp_path / "tiny")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    data = {path: path.read_bytes() for path in files}
    whole = state(load.load(folder))
    loaded = 0
    for case in range(PART_CASES):
        path, other = r.choice(files), r.choice(files)
        kind, changed = ("swapped", data[other]) if case % 3 else mutate(data[path], r) if case % 2 else ("gone", None)
        path.unlink()                                           # the old file lives on while it is mapped
        if changed is not None:
            path.write_bytes(changed)
        found = outcome(lambda: checked(load.load(folder)), case, kind, path.name)
        if found is not None and path.suffix == ".safetensors" and kind not in ("flip", "overwrite"):
            now = state(found)                                  # the part is gone, or as it was
            assert all(same(now[part], whole[part]) for part in now), (case, kind, path.name)
        loaded += found is not None
        path.unlink(missing_ok=True)
        path.write_bytes(data[path])
    assert 3 < loaded < PART_CASES / 2
    assert PATHS.keys() == READERS.keys() and TENSOR_CASES + CONFIG_CASES + TOKENIZER_CASES + PART_CASES == 2000


def checked(model):
    model.check_numbers()
    return model


def state(model):
    return {part: net.state_dict() for part, net in networks(model).items()}
