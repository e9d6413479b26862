"""Tensors of a safetensors file: read by the safetensors library, matched with what a network wants.

On a CPU, in the file's own type, a tensor lies in the mapped file: nothing is copied, loading takes no time, and what
is never used never takes memory. A conversion to another type or device opens the file anew for each large tensor. Its
pages of the mapping are given back at once, so that file and copy are never in memory together. Measured on Stable
Diffusion's UNet, 3.4 GB on one core: opening takes 0.6 ms, all 686 tensors as they lie 80 ms. An ascent's peak memory
at full size is 3.84 GB in float32 and 2.12 GB in bfloat16; with a reader by hand it was 3.90 and 2.20.

A file that is replaced by another lives on while it is mapped. One that is cut short in place ends the process
(SIGBUS), which no Python can catch. So load.py compares size and times with those at loading before it reads and after
each decoding, and everything here writes to a temporary name and renames.
"""
import json
import os
from contextlib import nullcontext
from math import prod
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from weights.disk import AGAIN, WeightsError, open_regular, unreadable

FOREIGN = "the file does not belong to its config, fetch or copy both again"
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
INSTEAD = {                                     # what lies where weights should be, by its first bytes
    b"version https://git-lfs": "a pointer that git left in its place, git lfs pull fetches the file itself",
    b"<": "a web page", b"{": "JSON",
    b"PK\3\4": "a pickle of torch.save, python weights/convert.py IN OUT turns it into safetensors",
    b"\x80": "a pickle, python weights/convert.py IN OUT turns it into safetensors",
}
LARGE = 2 ** 20                                 # numbers of a tensor; for fewer, opening costs more than it gives back


class Entry(NamedTuple):
    """What the header says of one tensor; `key` is its name in the file."""
    key: str
    dtype: str
    shape: tuple


def opened(path):
    """The library's view of a file, for a `with`; WeightsError where it is no whole safetensors file."""
    try:
        with open_regular(path) as file:        # before a pipe could block
            first, size = file.read(32), os.fstat(file.fileno()).st_size
        return safe_open(path, framework="pt")
    except OSError as e:
        raise unreadable(path, e) from e
    except (SafetensorError, ValueError) as e:
        raise broken(path, e, first if int.from_bytes(first[:8], "little") > size - 8 or size < 8 else b"") from e
    except RuntimeError as e:
        why = str(e).splitlines()[0]
        raise WeightsError(f"{path}: cannot be mapped ({why}); allow this process more memory") from e


def broken(path, error, first=b""):
    """WeightsError for a file of another format; `first`: its first bytes, where they are no length of a header."""
    instead = next((f"it is {what}" for begin, what in INSTEAD.items() if first.startswith(begin)), None)
    why = instead or " ".join(str(error).split())[:200]         # an error may quote a broken header at length
    return WeightsError(f"{path}: is not a whole safetensors file ({why}); {AGAIN}")


def unique(pairs):
    """A JSON object whose names all differ; the library would keep the last of two."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def read_header(path):
    """{name: Entry} of a file. WeightsError also for what the library passes over: a name twice, an unknown word."""
    with opened(path) as file, open_regular(path) as raw:
        slices = {name: file.get_slice(name) for name in file.keys()}
        try:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")), object_pairs_hook=unique)
            if odd := [name for name in slices if header[name].keys() != {"dtype", "shape", "data_offsets"}]:
                raise ValueError(f"{odd[0]!r} is not described by dtype, shape and data_offsets")
        except (ValueError, KeyError, RecursionError) as e:
            raise broken(path, e) from e
        return {name: Entry(name, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def match(path, header, expected, rename=lambda name: name, squeezes=lambda name: False):
    """{name: Entry} for `expected` {name: shape}; WeightsError names a tensor that does not fit.

    It may be missing, unexpected, doubled, misshapen, or hold no floats.

    rename    a name in the file -> the name in `expected`; None for what carries nothing.
    squeezes  whether [C, C, 1, 1] in the file may stand for [C, C].
    """
    origin = {}
    for old in header:
        new = rename(old)
        if new in origin:
            raise WeightsError(f"{path}: holds {new!r} twice, as {origin[new]!r} and as {old!r}; which one is meant "
                               f"cannot be known, {AGAIN}")
        if new is not None:
            origin[new] = old
    missing, extra = sorted(expected.keys() - origin.keys()), sorted(origin.keys() - expected.keys())
    if missing or extra:
        kind, first = ("lacks", missing) if missing else ("has an unexpected", extra)
        more = f" and {len(missing) + len(extra) - 1} more mismatches" if len(missing) + len(extra) > 1 else ""
        raise WeightsError(f"{path}: {kind} tensor {first[0]!r}{more}; {FOREIGN}")
    for name, shape in expected.items():
        entry = header[origin[name]]
        if entry.shape != shape and not (squeezes(name) and entry.shape == (*shape, 1, 1)):
            raise WeightsError(f"{path}: {name} has shape {list(entry.shape)}, expected {list(shape)}; {FOREIGN}")
        if entry.dtype not in FLOATS:
            raise WeightsError(f"{path}: {name} holds {entry.dtype}, expected 16-, 32- or 64-bit floats; {AGAIN}")
    return {name: header[origin[name]] for name in expected}


def lies_ready(entry, dtype, device):
    """Whether a tensor can be used as it lies in the file; dtype None is the file's own."""
    return torch.device(device).type == "cpu" and dtype in (None, FLOATS[entry.dtype])


def read(path, entries, shapes, dtype=None, device="cpu"):
    """{name: tensor of shapes[name]}: in the mapped file where it lies ready, otherwise converted by `read_one`."""
    with opened(path) as file:
        return {name: file.get_tensor(entry.key).reshape(shapes[name]) if lies_ready(entry, dtype, device)
                else read_one(path, name, entry, shapes[name], dtype, device,
                              None if prod(entry.shape) >= LARGE else file) for name, entry in entries.items()}


def read_one(path, name, entry, shape, dtype=None, device="cpu", file=None):
    """One tensor, looked at number by number, from `file` or a mapping of its own; WeightsError for NaN and infinity.
    """
    try:
        with nullcontext(file) if file else opened(path) as file:
            tensor = file.get_tensor(entry.key).reshape(shape).to(device, dtype or FLOATS[entry.dtype])
        finite = not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())
    except (RuntimeError, MemoryError) as e:                    # torch's words for a full memory differ by device
        raise WeightsError(f"{path}: {name} {list(shape)} finds no room on {device} ({str(e).splitlines()[0]}); "
                           "--dtype bfloat16 takes half of float32, --check says how much before it reads") from e
    if not finite:
        raise WeightsError(f"{path}: {name} holds NaN or infinite values as {tensor.dtype}; {AGAIN}")
    return tensor


def read_tensors(path, expected, dtype=None, device="cpu"):
    """Tables of numbers, {name: tensor} for `expected` {name: shape}: names, shapes, types and every number checked."""
    entries = match(path, read_header(path), expected)
    return {name: read_one(path, name, entry, expected[name], dtype, device) for name, entry in entries.items()}
