"""Weights of Stable Diffusion 1.x, in any layout -> `Model`. Strict: every missing, unexpected or misshapen tensor is named.

    folder/unet/{config.json, diffusion_pytorch_model.safetensors}          required
    folder/vae/{config.json, diffusion_pytorch_model.safetensors}           what needs a missing part says so
    folder/text_encoder/{config.json, model.safetensors}
    folder/tokenizer/{vocab.json, merges.txt}
    folder/scheduler/scheduler_config.json                                  SD 1.x's numbers where it is missing
    folder/sae/<hook point>/{cfg.json, sae.safetensors}                     SAeUron's layout
    folder/featviz.json                                                     settings that suit these weights

or one file, `name.safetensors`, of the original layout ("LDM"): UNet, VAE and text encoder of SD 1.x's sizes; the tokenizer is made
from weights/clip, `sae/` and `featviz.json` are taken from beside the file. layouts.py lists the names of every layout.

First everything is found and matched by the files' headers (`find`), then the numbers are read (`load`): a file that does not
belong is refused before the first of four gigabytes. Sources: the published SD 1.4 and SD 1.5 folders and files; SAeUron's SAE folder.
"""
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from weights import layouts
from clip import END, START, TextEncoder, Tokenizer, number
from weights.configs import read_config, read_latent_size, read_sae_config, read_settings
from weights.fingerprints import sha256, signature
from weights.layouts import modern_name, squeezes
from sae import SAE
from schedule import Schedule
from config import HOOK_POINT
from weights.disk import AGAIN, WeightsError, open_regular, unreadable
from weights.tensorfile import match, read, read_header
from unet import UNet
from vae import VAE

BPE_FILE = Path(__file__).parent / "clip/bpe_simple_vocab_16e6.txt.gz"
PARTS = ("unet", "vae", "text_encoder")                         # the networks


@dataclass
class Source:
    """Tensors that were found in a file and fit, but were not read yet; `net` on the meta device is where they belong."""
    path: Path
    net: nn.Module
    entries: dict                                               # name -> tensorfile.Entry

    def read(self, dtype, device, names=None):
        """The network with the file's numbers, frozen; `names`: only these tensors, the others stay as they are."""
        shapes = {name: tuple(p.shape) for name, p in self.net.state_dict().items() if names is None or name in names}
        entries = {name: self.entries[name] for name in shapes}
        self.net.load_state_dict(read(self.path, entries, shapes, dtype, device), strict=names is None, assign=True)
        return self.net.requires_grad_(False).eval()


def skeleton(network, sizes, path):
    """A network without memory behind it; WeightsError blames `path` for sizes of which none can be built."""
    try:
        with torch.device("meta"):
            return network(**sizes)
    except (TypeError, ValueError, RuntimeError) as e:
        raise WeightsError(f"{path}: gives sizes of which no network can be built ({str(e).splitlines()[0]}); {AGAIN}") from e


def fit(net, path, header, part=None, there=lambda name: name, rename=lambda name: name):
    """Source of a network in the file `path`: there(name) is a tensor's name in the file, as far as rename() does not change it."""
    wanted = {name: there(name) for name in net.state_dict()}
    shapes = {wanted[name]: tuple(p.shape) for name, p in net.state_dict().items()}
    entries = match(path, header, shapes, rename, lambda name: squeezes(part, name))
    return Source(path, net, {name: entries[key] for name, key in wanted.items()})


def find_part(part, network, config_path, path):
    """Source of one part of a folder in diffusers layout, of any age."""
    net = skeleton(network, read_config(part, config_path), config_path)
    return fit(net, path, read_header(path), part, rename=lambda name: modern_name(part, name))


def build(part, network, config_path, weights_path, dtype, device):
    """One part of a folder, found and read."""
    return find_part(part, network, config_path, weights_path).read(dtype, device)


def find_single(path, ema):
    """(sources of the parts in a single file, which weights are taken), sizes those of SD 1.x."""
    parts, taken = layouts.split_ldm(path, read_header(path), ema)
    sources = {}
    for part, network in zip(PARTS, (UNet, VAE, TextEncoder)):
        if part in parts or part == "unet":
            net, start = skeleton(network, layouts.SIZES[part], path), layouts.PREFIX[part]
            names = dict(rename=lambda name: modern_name("text_encoder", name.removeprefix(start))) if part == "text_encoder" else \
                dict(there=lambda name: layouts.ldm_name(part, name, ema and part == "unet"))
            sources[part] = fit(net, path, parts.get(part, {}), part, **names)
    return sources, taken


def find_sae(folder, unet):
    """(hook point, Source of the SAE), or None where there is no SAE."""
    for cfg in sorted(folder.glob("sae/*/cfg.json"))[:1]:
        sizes = read_sae_config(cfg)
        try:
            hook_point = unet.hook_name(cfg.parent.name)
        except ValueError as e:
            raise WeightsError(f"{cfg.parent}: {e}; the folder must be named after the SAE's hook point") from e
        if sizes["d_in"] != unet.width(hook_point):
            raise WeightsError(f"{cfg}: d_in is {sizes['d_in']}, but {hook_point} of {folder / 'unet'} has "
                               f"{unet.width(hook_point)} channels; give the SAE of this UNet")
        path = cfg.with_name("sae.safetensors")
        return hook_point, fit(skeleton(SAE, sizes, cfg), path, read_header(path))
    return None


def read_tokenizer(folder):
    """The tokenizer of `folder`; WeightsError where its two files are not what CLIP's are: `clip.number` of one another."""
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
        raise WeightsError(f"{folder / 'vocab.json'}: is no map from tokens to ids 0, 1, 2, ... with {START} and {END}; {AGAIN}")
    if any(len(pair) != 2 for pair in merges):
        raise WeightsError(f"{folder / 'merges.txt'}: is no list of pairs; {AGAIN}")
    made = number(merges)
    if list(merges.values()) != list(range(len(merges))) or len(made) != len(merges) + len(number([])):
        raise WeightsError(f"{folder / 'merges.txt'}: makes the same token twice; {AGAIN}")
    if odd := sorted(token for token in made.keys() | vocab.keys() if made.get(token) != vocab.get(token)):
        raise WeightsError(f"{folder}: vocab.json and merges.txt disagree about {odd[0]!r}, and {len(odd) - 1} tokens more; fetch or "
                           "copy both again")
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
            raise WeightsError(f"{folder / part}: has {found} {what}, the UNet takes {expected}; give parts of one model")
    if text and tokenizer and len(tokenizer.vocab) != (known := text.embeddings.token_embedding.num_embeddings):
        raise WeightsError(f"{folder / 'tokenizer'}: has {len(tokenizer.vocab)} tokens, the text encoder knows {known}; give parts "
                           "of one model")


class Model:
    """The parts of one set of weights; axes as in unet.py and sae.py.

    unet, vae, sae, text_encoder, tokenizer, schedule; `hook_point` is the SAE's, or up1.1; `settings` is featviz.json;
    `latent_shape` is (4, H, W) of the size that the UNet was trained at; `note` says which of a single file's weights were taken.
    A part that is lacking raises WeightsError when it is used. `unread` holds those whose numbers are read when they are first used:
    names of tensors for each part, out of `pieces`.
    """

    def __init__(self, found, device, dtype, parts):
        self.folder, self.name, self.note, self.files = found.folder, found.name, found.note, found.files
        self.device, self.dtype, self.parts = torch.device(device), dtype, parts
        self.sources, self.unread, self.pieces = found.sources, {}, {}
        self.schedule, self.hook_point, self.settings = Schedule(**found.schedule, device=device), found.hook_point, found.settings
        self.captured = self.activity = None    # the folder of a capture and its tables, which activity.profile.attach adds
        self.latent_shape = (parts["unet"].conv_in.in_channels, *found.latent)

    def part(self, name, contents):
        if name not in self.parts:
            raise WeightsError(f"{self.folder / name}: not there, and this needs it; expected {contents} "
                               "(see weights/README.md for where they come from)")
        self.read(name)
        return self.parts[name]

    def read(self, name, part=None):
        """Read what is still unread under `name`, which are numbers of the part of that name or of `part`."""
        if name in self.unread:
            self.check_unchanged()
            self.sources[part or name].read(precision(part or name, self.dtype), self.device, self.unread[name])
            del self.unread[name]

    def let_go(self, name, part=None):
        """Give back the memory of what `read` reads, of a model that was loaded lazily; it is read again when it is used."""
        if name in self.pieces:
            net, names = self.parts[part or name], self.pieces[name]
            net.load_state_dict({key: p.to("meta") for key, p in net.state_dict().items() if key in names}, strict=False, assign=True)
            self.unread[name] = names

    def read_later(self):
        """Leave the networks' numbers unread, the UNet's in two: up to the hook point, and beyond it. Let go of the SAE's decoder."""
        self.pieces = {part: set(self.sources[part].entries) for part in PARTS if part in self.sources}
        unet, first = self.parts["unet"], self.parts["unet"].needed(self.hook_point)
        self.pieces |= {"unet": first, "unet beyond": self.pieces["unet"] - first}
        self.unread = dict(self.pieces)
        if "sae" in self.parts:
            self.pieces["decoder"] = {"W_dec"}
            self.let_go("decoder", "sae")
        for name in {name.rpartition(".")[0] for name in self.pieces["unet beyond"]}:
            unet.get_submodule(name).register_forward_pre_hook(lambda *_: self.read("unet beyond", "unet"))

    unet = property(lambda self: self.part("unet", "config.json and diffusion_pytorch_model.safetensors"))
    vae = property(lambda self: self.part("vae", "config.json and diffusion_pytorch_model.safetensors"))
    sae = property(lambda self: self.part("sae", "a folder named after its hook point with cfg.json and sae.safetensors"))
    whole_sae = property(lambda self: self.read("decoder", "sae") or self.sae, doc="The SAE, its decoder W_dec read as well: an ascent "
                         "needs it at the start and at the end alone, so lazily loaded it is let go of in between.")
    text_encoder = property(lambda self: self.part("text_encoder", "config.json and model.safetensors"))
    tokenizer = property(lambda self: self.part("tokenizer", "vocab.json and merges.txt"))
    def strength(self, kind, target, when="active"):
        """Largest mean activation at t = 0..1000, (1001,), `when` as in activity.profile.strength; known from a capture alone."""
        raise WeightsError(f"{self.folder}: no capture is attached, from which a steered prior takes its strength; see activity.profile.attach, "
                           "or start from noise (--prior noise)")

    def largest(self, kind, target, t):
        """Largest mean activation in any dataset image at t; None where no capture is attached (activity.profile.attach)."""

    @torch.no_grad()
    def embed(self, prompts):
        """Prompts (a list of B strings) -> text (B, 77, Dc) for the UNet's cross-attention."""
        return self.empty_prompt if prompts == [""] else self.text_encoder(self.tokenizer(prompts).to(self.device))

    @cached_property
    def empty_prompt(self):
        """The text (1, 77, Dc) of "", all that an ascent wants of the text encoder."""
        unread = "text_encoder" in self.unread
        text = self.text_encoder(self.tokenizer([""]).to(self.device))
        if unread:
            self.let_go("text_encoder")
        return text

    def encode(self, images):
        """Images (B, 3, 8H, 8W) in [0, 1] -> scaled latents (B, 4, H, W), float32."""
        return self.vae.encode(images.float())

    def decode(self, z):
        """Scaled latents (B, 4, H, W) -> images (B, 3, 8H, 8W) in [0, 1], float32: half precision overflows in SD's decoder."""
        return self.vae.decode(z.float())

    @cached_property
    def fingerprints(self):
        """{name: SHA-256} of every file that was read; WeightsError for one that is no longer what was loaded."""
        self.check_unchanged()
        hashes = sha256([path for path, _ in self.files.values()])
        return {name: hashes[path] for name, (path, _) in sorted(self.files.items())}

    def check_unchanged(self):
        for path, then in self.files.values():
            if signature(path) != then:
                raise WeightsError(f"{path}: was changed while it was in use; start again")


@dataclass
class Found:
    """What `find` found: everything checked that can be without reading the numbers."""
    folder: Path
    name: str                                                   # of the results' folder
    note: str = ""                                              # which of a single file's weights are taken
    latent: tuple = field(default_factory=lambda: (layouts.LATENT, layouts.LATENT))
    sources: dict = field(default_factory=dict)                 # part -> Source
    tokenizer: Tokenizer | None = None
    schedule: dict = field(default_factory=dict)
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
        raise WeightsError(f"{path}: is no model folder: no unet/config.json in it; give --weights a folder in diffusers layout, such "
                           "as weights/toy, or a single .safetensors file (weights/README.md says how to get Stable Diffusion's)")
    if ema:
        raise WeightsError(f"{path}: --ema chooses between two sets of weights in a single file; a folder has one, leave it out")
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
        found.schedule = read_config("scheduler", scheduler)
        found.note_files(scheduler)
    return found


def find(path, ema=False):
    """All of a folder or file that a Model is made of, matched by names, shapes and types; only headers and JSON are read."""
    found = find_networks(Path(path), ema)
    check_fit(found.folder, found.sources, found.tokenizer)
    if sae := find_sae(found.folder, found.sources["unet"].net):
        found.hook_point, found.sources["sae"] = sae
        source = found.sources["sae"]
        found.note_files(source.path.with_name("cfg.json"), source.path)
    if (settings := found.folder / "featviz.json").exists():
        found.settings = read_settings(settings)
        found.note_files(settings)
    return found


def precision(part, dtype):
    """The UNet and the text encoder take the run's dtype; the VAE and the SAE stay float32."""
    return dtype if part in ("unet", "text_encoder") else torch.float32


def load(path, device="cpu", dtype=torch.float32, ema=False, lazily=False):
    """Load a weights folder or file (layouts above), in `precision`.

    ema: of a single file that holds two sets of weights for the UNet, take the moving average.
    lazily: read a network's numbers when they are first used, so that an ascent holds no more of the UNet than it runs; names, shapes
    and types of all are checked here all the same.
    Raises WeightsError, whose text is one line: the file, what was expected, what to do.
    """
    found = path if isinstance(path, Found) else find(path, ema)
    later = PARTS if lazily else ()
    parts = {part: source.net if part in later else source.read(precision(part, dtype), device) for part, source in found.sources.items()}
    if found.tokenizer:
        parts["tokenizer"] = found.tokenizer
    model = Model(found, device, dtype, parts)
    if lazily:
        model.read_later()
    return model
