"""Weights of Stable Diffusion 1.x, in any layout -> `Model`. Strict: what does not fit is named.

    folder/unet/{config.json, diffusion_pytorch_model.safetensors}          required
    folder/vae/{config.json, diffusion_pytorch_model.safetensors}           what needs a missing part says so
    folder/text_encoder/{config.json, model.safetensors}
    folder/tokenizer/{vocab.json, merges.txt}
    folder/scheduler/scheduler_config.json                                  SD 1.x's numbers where it is missing
    folder/sae/<hook point>/{cfg.json, sae.safetensors}                     SAeUron's layout
    folder/featviz.json                                                     settings that suit these weights

or one file, `name.safetensors`, of the original layout ("LDM"): UNet, VAE and text encoder of SD 1.x's sizes. The
tokenizer is then made from weights/clip; `sae/` and `featviz.json` are taken from beside the file. layouts.py lists the
names of every layout.

First everything is found and matched by the files' headers (`find`): a file that does not belong is refused before the
first of four gigabytes. The numbers then lie in the mapped files where type and device allow it, see tensors.py; where
they do not, a layer is converted when it first runs (`Source.read`). So what an ascent does not run takes no memory.
Sources: the published SD 1.4 and SD 1.5 folders and files; SAeUron's SAE folder.
"""
import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from clip import END, START, TextEncoder, Tokenizer, number
from config import HOOK_POINT
from sae import SAE
from schedule import Schedule
from unet import UNet
from vae import VAE
from weights import layouts
from weights.configs import read_config, read_latent_size, read_sae_config, read_scheduler, read_settings
from weights.disk import AGAIN, WeightsError, open_regular, unreadable
from weights.fingerprints import sha256_beside, signature
from weights.layouts import modern_name, squeezes
from weights.quick import quicken
from weights.tensors import lies_ready, match, read, read_header, read_one

BPE_FILE = Path(__file__).parent / "clip/bpe_simple_vocab_16e6.txt.gz"
PARTS = ("unet", "vae", "text_encoder")                         # the networks


@dataclass
class Source:
    """Tensors that were found in a file and fit, but were not read yet; `net`, on the meta device, takes them."""
    path: Path
    net: nn.Module
    entries: dict                                               # name -> tensors.Entry
    then: list                                                  # the file's signature when its header was read

    @cached_property
    def shapes(self):
        return {name: tuple(p.shape) for name, p in self.net.state_dict().items()}

    def tensors(self, names, dtype, device):
        check_unchanged(self.path, self.then)
        return read(self.path, {name: self.entries[name] for name in names}, self.shapes, dtype, device)

    def read(self, dtype, device, late=False):
        """The network, frozen. late: where numbers must be converted, each module takes its own when it first runs, the
        others stay on the meta device; an ascent runs 681 of the UNet's 860 million, and no VAE before its end."""
        net = copy.deepcopy(self.net).requires_grad_(False).eval()
        if isinstance(net, UNet):               # the ascent's time is spent there
            quicken(net)
        if not late or all(lies_ready(entry, dtype, device) for entry in self.entries.values()):
            net.load_state_dict(self.tensors(self.entries, dtype, device), assign=True)
            return net

        def first_run(module, _):
            at = f"{names[module]}."
            if missing := [name for name, p in module.named_parameters() if p.is_meta]:
                found = self.tensors([at + name for name in missing], dtype, device)
                module.load_state_dict({name: found[at + name] for name in missing}, strict=False, assign=True)
            hooks.pop(module).remove()

        net = net.to(dtype)
        names = {module: name for name, module in net.named_modules() if module is not net}
        hooks = {module: module.register_forward_pre_hook(first_run) for module in names}
        return net

    def check_numbers(self, dtype):
        """WeightsError for NaN or infinity in the file, as they are or as `dtype`; a tensor at a time is in memory."""
        for name, shape in self.shapes.items():
            read_one(self.path, name, self.entries[name], shape, dtype)


def check_unchanged(path, then):
    if signature(path) != then:
        raise WeightsError(f"{path}: was changed while it was in use; start again")


def skeleton(network, sizes, path):
    """A network without memory behind it; WeightsError blames `path` for sizes of which none can be built."""
    try:
        with torch.device("meta"):
            return network(**sizes)
    except (TypeError, ValueError, RuntimeError) as e:
        why = str(e).splitlines()[0]
        raise WeightsError(f"{path}: gives sizes of which no network can be built ({why}); {AGAIN}") from e


def fit(net, path, header, part=None, there=lambda name: name, rename=lambda name: name):
    """Source of a network in the file `path`: there(name) is a tensor's name in the file, before rename()."""
    wanted = {name: there(name) for name in net.state_dict()}
    shapes = {wanted[name]: tuple(p.shape) for name, p in net.state_dict().items()}
    entries = match(path, header, shapes, rename, lambda name: squeezes(part, name))
    return Source(path, net, {name: entries[key] for name, key in wanted.items()}, signature(path))


def find_part(part, network, config_path, path):
    """Source of one part of a folder in diffusers layout, of any age."""
    net = skeleton(network, read_config(part, config_path), config_path)
    return fit(net, path, read_header(path), part, rename=lambda name: modern_name(part, name))


def build(part, network, config_path, weights_path, dtype, device):
    """One part of a folder, found and read."""
    return find_part(part, network, config_path, weights_path).read(dtype, device)


def find_single(path, ema):
    """(sources of the parts in a single file, which weights are taken); sizes are those of SD 1.x."""
    parts, taken = layouts.split_ldm(path, read_header(path), ema)
    sources = {}
    for part, network in zip(PARTS, (UNet, VAE, TextEncoder)):
        if part in parts or part == "unet":
            net, start = skeleton(network, layouts.SIZES[part], path), layouts.PREFIX[part]
            if part == "text_encoder":
                names = dict(rename=lambda name: modern_name("text_encoder", name.removeprefix(start)))
            else:
                names = dict(there=lambda name: layouts.ldm_name(part, name, ema and part == "unet"))
            sources[part] = fit(net, path, parts.get(part, {}), part, **names)
    return sources, taken


def choose_sae(folder, unet, wanted):
    """(hook point, cfg.json, how many there are) of the SAE that is meant; cfg.json None where there is none.

    wanted: its hook point; None is up1.1 if there is an SAE for it, else the only one.
    """
    there, last = {}, None
    for cfg in sorted(folder.glob("sae/*/cfg.json")):
        try:
            there[unet.hook_name(cfg.parent.name)] = cfg
        except ValueError as e:
            last = WeightsError(f"{cfg.parent}: {e}; the folder must be named after the SAE's hook point")
    if last and not there:
        raise last
    try:
        chosen = unet.hook_name(wanted) if wanted else HOOK_POINT if HOOK_POINT in there or not there else None
    except ValueError as e:
        raise WeightsError(f"{folder}: {e}") from e
    if there and chosen not in there:
        if wanted or len(there) > 1:
            problem = f"none for {wanted}" if wanted else "and which one is meant was not said"
            raise WeightsError(f"{folder / 'sae'}: has SAEs for {', '.join(there)}, {problem}; give one of these as "
                               "hook point")
        (chosen,) = there
    return chosen, there.get(chosen), len(there)


def find_sae(folder, unet, wanted=None):
    """(hook point, Source of the SAE there or None, one sentence on the choice where there was one)."""
    hook_point, cfg, count = choose_sae(folder, unet, wanted)
    if cfg is None:
        return hook_point, None, ""
    sizes, path = read_sae_config(cfg), cfg.with_name("sae.safetensors")
    if sizes["d_in"] != unet.width(hook_point):
        raise WeightsError(f"{cfg}: d_in is {sizes['d_in']}, but {hook_point} of {folder / 'unet'} has "
                           f"{unet.width(hook_point)} channels; give the SAE of this UNet")
    choice = f"the SAE of {hook_point}, one of {count}" if count > 1 else ""
    return hook_point, fit(skeleton(SAE, sizes, cfg), path, read_header(path)), choice


def read_tokenizer(folder):
    """The tokenizer of `folder`; WeightsError where its vocabulary is not `clip.number` of its merges, as CLIP's is."""
    try:
        for path in (folder / "vocab.json", folder / "merges.txt"):
            open_regular(path).close()
        tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    except OSError as e:
        raise unreadable(path, e, "text") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{folder}: vocab.json or merges.txt cannot be used ({e}); fetch or copy both again") from e
    vocab, merges = tokenizer.vocab, tokenizer.ranks
    if not isinstance(vocab, dict) or not {START, END} <= vocab.keys() \
            or not all(type(i) is int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise WeightsError(f"{folder / 'vocab.json'}: is no map from tokens to ids 0, 1, 2, ... with {START} and "
                           f"{END}; {AGAIN}")
    if any(len(pair) != 2 for pair in merges):
        raise WeightsError(f"{folder / 'merges.txt'}: is no list of pairs; {AGAIN}")
    made = number(merges)
    if list(merges.values()) != list(range(len(merges))) or len(made) != len(merges) + len(number([])):
        raise WeightsError(f"{folder / 'merges.txt'}: makes the same token twice; {AGAIN}")
    if odd := sorted(token for token in made.keys() | vocab.keys() if made.get(token) != vocab.get(token)):
        raise WeightsError(f"{folder}: vocab.json and merges.txt disagree about {odd[0]!r}, and {len(odd) - 1} tokens "
                           "more; fetch or copy both again")
    return tokenizer


def check_fit(folder, sources, tokenizer):
    """WeightsError where two parts that work together differ in a width."""
    unet, vae, text = (sources[part].net if part in sources else None for part in PARTS)
    latent = unet.conv_in.in_channels
    context = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features
    fits = [("unet", "latent channels out", unet.conv_out.out_channels, latent)]
    if vae:
        fits.append(("vae", "latent channels", vae.post_quant_conv.in_channels, latent))
    if text:
        fits.append(("text_encoder", "wide text", text.final_layer_norm.normalized_shape[0], context))
    for part, what, found, expected in fits:
        if found != expected:
            raise WeightsError(f"{folder / part}: has {found} {what}, the UNet takes {expected}; give parts of one "
                               "model")
    if text and tokenizer and len(tokenizer.vocab) != (known := text.embeddings.token_embedding.num_embeddings):
        raise WeightsError(f"{folder / 'tokenizer'}: has {len(tokenizer.vocab)} tokens, the text encoder knows "
                           f"{known}; give parts of one model")


class Model:
    """The parts of one set of weights; axes as in unet.py and sae.py.

    unet, vae, sae, text_encoder, tokenizer, schedule; `sampler` is "pndm" or "ddim", whichever the scheduler's file
    names; `hook_point` is the SAE's, or up1.1; `settings` is featviz.json; `latent_shape` is (4, H, W) of the size that
    the UNet was trained at; `note` says which of several weights or SAEs were taken. A part that is lacking raises
    WeightsError when it is used.
    """

    def __init__(self, found, device, dtype):
        self.folder, self.name, self.note, self.files = found.folder, found.name, found.note, found.files
        self.device, self.dtype, self.sources = torch.device(device), dtype, found.sources
        self.check_unchanged()
        self.parts = {"tokenizer": found.tokenizer} if found.tokenizer else {}
        for part in self.sources.keys() - {"text_encoder"}:
            self.parts[part] = self.sources[part].read(precision(part, dtype), device, late=part in PARTS)
        self.schedule, self.sampler = Schedule(**found.schedule, device=device), found.sampler
        self.hook_point, self.settings = found.hook_point, found.settings
        if found.sampler != "pndm":             # what the scheduler's file says, unless featviz.json says otherwise
            own = {preset: {"prior_sampler": found.sampler} | self.settings.get("presets", {}).get(preset, {})
                   for preset in ("sae", "raw")}
            self.settings = self.settings | {"presets": self.settings.get("presets", {}) | own}
        self.captured = self.activity = None    # a capture's folder and its tables, which activity.profile.attach adds
        self.fit = None                         # preflight.fit_once
        self.latent_shape = (self.parts["unet"].conv_in.in_channels, *found.latent)

    def part(self, name, contents, parts=None):
        if name not in (parts or self.parts):
            raise WeightsError(f"{self.folder / name}: not there, and this needs it; expected {contents} "
                               "(see weights/README.md for where they come from)")
        return (parts or self.parts)[name]

    unet = property(lambda self: self.part("unet", "config.json and diffusion_pytorch_model.safetensors"))
    vae = property(lambda self: self.part("vae", "config.json and diffusion_pytorch_model.safetensors"))
    sae = property(lambda self: self.part("sae",
                                          "a folder named after its hook point with cfg.json and sae.safetensors"))
    tokenizer = property(lambda self: self.part("tokenizer", "vocab.json and merges.txt"))

    @property
    def text_encoder(self):
        """Read anew at each use and not kept: 0.5 GB that an ascent wants once, for the empty prompt."""
        source = self.part("text_encoder", "config.json and model.safetensors", self.sources)
        return source.read(precision("text_encoder", self.dtype), self.device)

    def strength(self, kind, target, when="active"):
        """Largest mean activation at t = 0..1000, (1001,), `when` as in activity.profile.strength.

        It is known from a capture alone; WeightsError where none is attached.
        """
        raise WeightsError(f"{self.folder}: no capture is attached, from which a steered prior takes its strength; see "
                           "activity.profile.attach, or start from noise (--prior noise)")

    def largest(self, kind, target, t):
        """Largest mean activation in any dataset image at t; None where no capture is attached
        (activity.profile.attach).
        """

    @torch.no_grad()
    def embed(self, prompts):
        """Prompts (a list of B strings) -> text (B, 77, Dc) for the UNet's cross-attention."""
        return self.empty_prompt if prompts == [""] else self.text_encoder(self.tokenizer(prompts).to(self.device))

    @cached_property
    def empty_prompt(self):
        """The text (1, 77, Dc) of "", all that an ascent wants of the text encoder."""
        return self.text_encoder(self.tokenizer([""]).to(self.device))

    def encode(self, images):
        """Images (B, 3, 8H, 8W) in [0, 1] -> scaled latents (B, 4, H, W), float32."""
        return self.vae.encode(images.float())

    def decode(self, z):
        """Scaled latents (B, 4, H, W) -> images (B, 3, 8H, 8W) in [0, 1].

        In float32, since half precision overflows in SD's decoder. WeightsError where a file was changed under the
        numbers, or where NaN in a picture comes from NaN in a file.
        """
        images = self.vae.decode(z.float())
        self.check_unchanged()
        if z.isfinite().all() and not images.isfinite().all():
            self.check_numbers()
        return images

    @cached_property
    def hashes(self):
        """A Future of {path: SHA-256} of every file; they are hashed beside what follows from when this is first asked
        for.
        """
        return sha256_beside([path for path, _ in self.files.values()])

    @cached_property
    def fingerprints(self):
        """{name: SHA-256} of every file that was read; WeightsError for one that is no longer what was loaded."""
        hashes = self.hashes.result()
        self.check_unchanged()
        return {name: hashes[path] for name, (path, _) in sorted(self.files.items())}

    def check_unchanged(self):
        for path, then in self.files.values():
            check_unchanged(path, then)

    def check_numbers(self):
        """WeightsError for a number that is NaN or infinite in this model's precision; all of them are looked at."""
        for part, source in self.sources.items():
            source.check_numbers(precision(part, self.dtype))


@dataclass
class Found:
    """What `find` found: everything checked that can be without reading the numbers."""
    folder: Path
    name: str                                                   # of the results' folder
    note: str = ""                                              # which of several weights or SAEs are taken
    latent: tuple = field(default_factory=lambda: (layouts.LATENT, layouts.LATENT))
    sources: dict = field(default_factory=dict)                 # part -> Source
    tokenizer: Tokenizer | None = None
    schedule: dict = field(default_factory=dict)                # what Schedule is built with
    sampler: str = "pndm"                                       # SD 1.x's own
    hook_point: str = HOOK_POINT
    settings: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)                   # name -> (path, signature) of all that is read

    def note_files(self, *paths, part=None):
        for path in paths:
            name = f"{part}/{path.name}" if part else path.relative_to(self.folder).as_posix()
            self.files[name] = (path, signature(path))


def find_networks(path, ema):
    """`Found` with the networks and the tokenizer of a folder or of a single file."""
    if path.is_file():
        if path.suffix in layouts.PICKLES:
            raise layouts.pickled(path, path)
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path}: is no model folder and no .safetensors file; give --weights one of the two")
        found = Found(path.parent, path.stem + ("_ema" if ema else ""))
        found.sources, found.note = find_single(path, ema)
        found.note_files(path, part="unet/model_ema" if ema else "unet")
        if "text_encoder" in found.sources:
            found.tokenizer = Tokenizer.from_bpe(BPE_FILE)
            found.note_files(BPE_FILE, part="tokenizer")
        return found
    if not (path / "unet" / "config.json").exists():
        raise WeightsError(f"{path}: is no model folder: no unet/config.json in it; give --weights a folder in "
                           "diffusers layout, such as weights/toy, or a single .safetensors file (weights/README.md "
                           "says how to get Stable Diffusion's)")
    if ema:
        raise WeightsError(f"{path}: --ema chooses between two sets of weights in a single file; a folder has one, "
                           "leave it out")
    found = Found(path, path.resolve().name, latent=read_latent_size(path / "unet/config.json"))
    for part, network in zip(PARTS, (UNet, VAE, TextEncoder)):
        if (path / part).exists():
            config, weights = path / part / "config.json", layouts.weights_file(path, part)
            found.sources[part] = find_part(part, network, config, weights)
            found.note_files(config, weights)
    if (path / "tokenizer").exists():
        found.tokenizer = read_tokenizer(path / "tokenizer")
        found.note_files(path / "tokenizer/vocab.json", path / "tokenizer/merges.txt")
    if (scheduler := path / "scheduler/scheduler_config.json").exists():
        found.schedule, found.sampler = read_scheduler(scheduler)
        found.note_files(scheduler)
    return found


def find(path, ema=False, hook_point=None):
    """All that a Model is made of, matched by names, shapes and types; only headers and JSON are read."""
    found = find_networks(Path(path), ema)
    check_fit(found.folder, found.sources, found.tokenizer)
    found.hook_point, sae, choice = find_sae(found.folder, found.sources["unet"].net, hook_point)
    if sae:
        found.sources["sae"] = sae
        found.note_files(sae.path.with_name("cfg.json"), sae.path)
    found.note = "; ".join(text for text in (found.note, choice) if text)
    if (settings := found.folder / "featviz.json").exists():
        found.settings = read_settings(settings)
        found.note_files(settings)
    return found


def precision(part, dtype):
    """The UNet and the text encoder take the run's dtype; the VAE and the SAE stay float32."""
    return dtype if part in ("unet", "text_encoder") else torch.float32


def load(path, device="cpu", dtype=torch.float32, ema=False, hook_point=None):
    """Load a weights folder or file (layouts above), or what `find` found of it, in `precision`.

    ema         of a single file that holds two sets of weights for the UNet, take the moving average.
    hook_point  of several SAEs, take the one of this hook point, written with or without `unet.`; None: up1.1 or the
                only one.

    Raises WeightsError, whose text is one line: the file, what was expected, what to do. Names, shapes and types are
    checked here; NaN and infinity are noticed when a number is converted, when a picture is decoded, in the fit check
    (preflight.py), and by Model.check_numbers, which looks at all.
    """
    return Model(path if isinstance(path, Found) else find(path, ema, hook_point), device, dtype)
