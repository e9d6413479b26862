"""One safetensors file: its header read and checked by hand, its numbers read straight into the memory where they stay.

    8 bytes   n, little-endian
    n bytes   JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {text: text}}
    the rest  the numbers, each tensor where its offsets say, without gaps or overlaps

The safetensors library maps a file into memory. That is quick, but a conversion then holds file and copy together, and a file
that shrinks while it is mapped kills the process. Here at most BLOCK numbers are held beside their destination, and whatever is
wrong is one line: the file, what was expected, what to do. tests/test_fuzz.py holds this reader against the library's.
"""
import json
import math
import os
from reprlib import repr as short                               # a value out of a broken file may be megabytes long
from typing import NamedTuple

import torch

from weights.disk import AGAIN, WeightsError, open_regular, unreadable

FOREIGN = "the file does not belong to its config, fetch or copy both again"
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
         "F32": 4, "I64": 8, "U64": 8, "F64": 8}
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
LARGEST_HEADER = 100_000_000                    # the library's own limit
BLOCK = 2 ** 22                                 # numbers that are read at once
INSTEAD = {                                     # what lies where weights should be, by its first bytes
    b"version https://git-lfs": "a pointer that git left in its place, git lfs pull fetches the file itself", b"<": "a web page",
    b"{": "JSON", b"PK\3\4": "a pickle of torch.save, python weights/convert.py IN OUT turns it into safetensors",
    b"\x80": "a pickle, python weights/convert.py IN OUT turns it into safetensors",
}


class Entry(NamedTuple):
    """Where a tensor lies: bytes begin..end of the file."""
    dtype: str
    shape: tuple
    begin: int
    end: int


def read_header(path):
    """{name: Entry} of a safetensors file; WeightsError where header and file are not exactly what the format says."""
    try:
        with open_regular(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= min(size - 8, LARGEST_HEADER) else b""
            file.seek(0)
            first = file.read(32)
    except OSError as e:
        raise unreadable(path, e) from e
    try:
        if len(start) < 8 or length > size - 8:
            instead = next((f"it is {what}" for bytes, what in INSTEAD.items() if first.startswith(bytes)), None)
            raise ValueError(instead or f"its header should have {length} bytes, the file has {size}")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header should have {length} bytes, more than the format allows")
        return parse_header(text, size)
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: is not a whole safetensors file ({e}); {AGAIN}") from e


def unique(pairs):
    """A JSON object whose names all differ; json alone would keep the last of two."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def parse_header(text, size):
    """The header's bytes, the file's size -> {name: Entry}; ValueError says what is wrong."""
    header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise ValueError("its metadata are no texts")
    entries = {name: parse_entry(name, value, 8 + len(text)) for name, value in header.items()}
    at = 8 + len(text)
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != at:
            raise ValueError(f"{name!r} begins at byte {entry.begin}, expected {at}: a gap or an overlap")
        at = entry.end
    if at != size:
        raise ValueError(f"its tensors end at byte {at}, the file at {size}")
    return entries


def parse_entry(name, value, body):
    """One entry of the header; `body` is where the numbers begin. ValueError says what is wrong."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"{name!r} is of unknown type {short(dtype)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{name!r} has shape {short(shape)} at {short(offsets)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != BYTES[dtype] * math.prod(shape):
        raise ValueError(f"{name!r} has shape {short(shape)} of {dtype}, which does not fill the bytes {short(offsets)}")
    return Entry(dtype, tuple(shape), body + offsets[0], body + offsets[1])


def match(path, header, expected, rename=lambda name: name, squeezes=lambda name: False):
    """{name: Entry} for `expected` {name: shape}; WeightsError names what is missing, unexpected, doubled, misshapen, no float.

    rename    a name in the file -> the name in `expected`; None for what carries nothing.
    squeezes  whether [C, C, 1, 1] in the file may stand for [C, C].
    """
    origin = {}
    for old in header:
        new = rename(old)
        if new in origin:
            raise WeightsError(f"{path}: holds {new!r} twice, as {origin[new]!r} and as {old!r}; which one is meant cannot be known, "
                               f"{AGAIN}")
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


def read(path, entries, shapes, dtype=None, device="cpu"):
    """{name: tensor of shapes[name]}, in the file's own type or in `dtype`; WeightsError for NaN and infinity."""
    tensors = {}
    try:
        with open_regular(path) as file:
            for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):         # disks like it in order
                out = torch.empty(shapes[name], dtype=dtype or FLOATS[entry.dtype], device=device)
                if not fill(file, entry, out.view(-1)):
                    raise WeightsError(f"{path}: {name} holds NaN or infinite values as {out.dtype}; {AGAIN}")
                tensors[name] = out
    except OSError as e:
        raise unreadable(path, e) from e
    except EOFError as e:
        raise WeightsError(f"{path}: became shorter while it was read; {AGAIN}") from e
    except (RuntimeError, MemoryError) as e:                        # torch's words for a full memory differ by device
        raise WeightsError(f"{path}: {name} {list(shapes[name])} finds no room on {device} ({str(e).splitlines()[0]}); "
                           "--dtype bfloat16 takes half of float32, --check says how much before it reads") from e
    return tensors


def fill(file, entry, out):
    """Read one tensor into out (n,), block by block; whether all is finite there. EOFError where the file ends early."""
    stored, width = FLOATS[entry.dtype], BYTES[entry.dtype]
    buffer = torch.empty(min(BLOCK, len(out)), dtype=stored)
    raw = memoryview(buffer.view(torch.uint8).numpy())
    file.seek(entry.begin)
    finite = True
    for start in range(0, len(out), BLOCK):
        n = min(BLOCK, len(out) - start)
        if file.readinto(raw[:n * width]) < n * width:
            raise EOFError
        part = out[start:start + n].copy_(buffer[:n])
        finite &= all(bound.isfinite() for bound in part.aminmax())
    return finite


def read_tensors(path, expected, rename=lambda name: name, dtype=None, device="cpu"):
    """Tensors of a file under the names of `expected` {name: shape}: header, match, read."""
    return read(path, match(path, read_header(path), expected, rename), expected, dtype, device)
