"""Turn pickled weights into safetensors: `python weights/convert.py IN OUT`, a file or a folder in diffusers layout.

    python weights/convert.py sd-v1-4.ckpt weights/sd14.safetensors     then --weights weights/sd14.safetensors
    python weights/convert.py style50 weights/style50                   .bin in unet, vae, text_encoder; the rest copied

A pickle can run any code when it is read, so nothing else here reads one. `torch.load(weights_only=True)` runs none: it
knows tensors and plain containers alone. Checkpoints of the training framework also hold objects of its classes; each
is replaced by an empty stand-in, and dropped. Tensors keep their names and types, layouts.py knows them all; each is
compared after writing.
"""
import argparse
import json
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import torch

if __name__ == "__main__":                      # as a script: this folder is `weights` to Python, nothing else
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from weights.disk import WeightsError, replacing  # noqa: E402
from weights.layouts import PICKLES, STEM, VARIANTS  # noqa: E402
from weights.tensors import FLOATS, read_header, read_one  # noqa: E402

NAMES = {dtype: name for name, dtype in FLOATS.items()} | {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
PICKLE_STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
BROKEN = (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
          MemoryError, pickle.UnpicklingError, zipfile.BadZipFile)      # what a damaged pickle makes torch.load raise


class StandIn:
    """Takes the place of an object whose class is not loaded; keeps nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass


def unpickle(path):
    """Whatever the pickle holds, without running any of its code; WeightsError for a file that is none."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\3\4"                  # torch.save since 2020; only this kind can be mapped
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        with torch.serialization.safe_globals([(type("StandIn", (StandIn,), {}), name) for name in classes]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); expected a file of torch.save there") from e
    except BROKEN as e:
        if code := re.search(r"GLOBAL (\S+) whose module", str(e)):
            raise WeightsError(f"{path}: would call {code[1]} when it is read as a pickle; that is no file of weights, "
                               "do not use it") from e
        why = (str(e) or type(e).__name__).splitlines()[0]
        why = "torch.load does not accept it" if isinstance(e, pickle.UnpicklingError) else why
        raise WeightsError(f"{path}: is no whole file of torch.save ({why}); fetch or copy this file again") from e


def tensors_of(path):
    """{name: tensor} of a pickle: its own entries, or those of its `state_dict`; all else is left out."""
    found = unpickle(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name; expected a state_dict")
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsError(f"{path}: {name} holds {tensor.dtype}, which has no place in a safetensors file of "
                               "weights")
    return tensors


def write(path, tensors):
    """A safetensors file, tensor by tensor, so that no second copy of all is in memory."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        check(Path(file.name), tensors)


def check(path, tensors):
    """WeightsError unless the file holds these very tensors; NaN and infinity among them are refused here already."""
    header = read_header(path)
    for name, entry in header.items():
        if entry.dtype in FLOATS and not torch.equal(read_one(path, name, entry, entry.shape), tensors[name]):
            raise WeightsError(f"{path}: {name} is not what was written; is the disk sound?")
    assert header.keys() == tensors.keys()


def convert_file(source, target):
    tensors = tensors_of(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, tensors)
    print(f"{target}: {len(tensors)} tensors, {target.stat().st_size} bytes")


def convert_folder(source, target):
    """Every network's pickles become safetensors; JSON, text and safetensors files are copied."""
    jobs = {}
    for part, stem in PICKLE_STEM.items():
        for variant in VARIANTS:
            for suffix in PICKLES:
                goal = Path(part) / f"{STEM[part]}{variant}.safetensors"
                if (path := source / part / f"{stem}{variant}{suffix}").exists() and not (source / goal).exists():
                    jobs[path] = target / goal
    if not jobs:
        raise WeightsError(f"{source}: holds no pickled network (unet/diffusion_pytorch_model.bin and the like); "
                           "nothing to convert")
    for path in sorted(source.rglob("*")):
        if path.suffix in (".json", ".txt", ".safetensors") and path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for path, goal in jobs.items():
        convert_file(path, goal)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Turn pickled weights (.ckpt, .bin, .pt) into safetensors.")
    parser.add_argument("source", type=Path, metavar="IN",
                        help="a pickle, or a folder in diffusers layout with .bin files")
    parser.add_argument("target", type=Path, metavar="OUT", help="a .safetensors file, or a folder")
    args = parser.parse_args(argv)
    try:
        if args.target.exists():
            raise WeightsError(f"{args.target}: exists already; remove it or give another OUT")
        if args.source.is_dir():
            convert_folder(args.source, args.target)
        elif args.target.suffix != ".safetensors":
            raise WeightsError(f"{args.target}: give OUT the suffix .safetensors")
        else:
            convert_file(args.source, args.target)
    except (WeightsError, OSError) as e:
        print("convert: " + " ".join(str(e).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
