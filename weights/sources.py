"""Which weights can be fetched: repositories, and what their listings cannot say, above all hashes that are known.

A bundle is one command's folder, made of pieces; a piece comes from one repository. Where a hub answers with a listing,
the rules of `listing.py` choose among the files there and the tables here are pins. Where it does not, the tables are
all there is. [V] verified: stated for this very revision by the hub's own pages or by public manifests. [I] inferred:
from a neighbouring revision, a copy or a description; there the server's statement decides. The tokenizer's two files
were also made anew from weights/clip, with the same hashes. Nothing here was tried on a real file of another's weights.
"""
from dataclasses import dataclass, replace

LICENCES = {
    "openrail": "CreativeML OpenRAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license\n"
                "  Use and sharing are free, some uses are forbidden (its attachment A).\n"
                "  Who passes the weights on, passes on the same limits and a copy of the licence.",
    "style50": "none is stated for Style50's weights; made of Stable Diffusion 1.5, they carry its one (inferred):",
    "openai": "MIT by OpenAI's repository of CLIP (weights/clip/LICENSE); that it holds for these files is inferred.",
    "apache": "Apache-2.0 by the model card of bcywinski/SAeUron; the model that the SAE reads has its own licence.",
}


@dataclass(frozen=True)
class Source:
    repo: str
    revision: str = "main"
    folder: str = ""                                            # of the weights in the repository, with its slash


@dataclass(frozen=True)
class File:
    name: str                                                   # below the source's folder
    size: int                                                   # bytes, for the plan
    pin: str = ""                                               # "sha256:" or "git:" and leading digits of the hash
    sure: bool = False                                          # a server that states another hash is refused
    save_as: str = ""                                           # below our folder, where not `name`
    optional: bool = False
    at_root: bool = False                                       # of the repository, wherever the weights are: the card
    becomes: str = ""                                           # of a pickle: the safetensors that are made of it


@dataclass(frozen=True)
class Piece:
    """What one repository gives, all of it: the first of `sources` that has it."""
    title: str
    sources: tuple
    files: tuple                                                # small ones, of every precision
    full: tuple = ()                                            # weights in float32
    half: tuple = ()                                            # the same in float16, where it is known that they exist
    rule: str = ""                                              # of listing.py; "": never mind a listing
    base: "Piece | None" = None                                 # whence parts come that are lacking
    optional: bool = False                                      # the bundle is of use without it

    def table(self, half):
        return self.files + (half and self.half or self.full)


@dataclass(frozen=True)
class Bundle:
    title: str
    folder: str                                                 # below weights/, unless told otherwise
    licences: tuple
    pieces: tuple
    then: str = ""                                              # what to do next; {folder} is the model folder
    otherwise: str = ""                                         # what to do where it is gone


CARD = File("README.md", 16_000, optional=True, at_root=True)                       # [I] size
LICENCE = Piece("the licence's text", (Source("spaces/CompVis/stable-diffusion-license"),),      # [V] address, [I] size
                (File("license.txt", 14_000, save_as="LICENSE", optional=True),))
TOKENIZER = (
    ("tokenizer/merges.txt", 524_619, "sha256:9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
    ("tokenizer/vocab.json", 1_059_962, "sha256:e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"))
UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
VAE_FULL = File(VAE + ".safetensors", 334_643_276,
                "sha256:a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c", sure=True)
VAE_HALF = File(VAE + ".fp16.safetensors", 167_335_342,
                "sha256:4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c", sure=True)
TEXT_HALF = File(TEXT + ".fp16.safetensors", 246_144_864,
                 "sha256:77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e", sure=True)

SD14 = Piece(
    "the model",
    (Source("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),),                  # [V]
    (CARD, File("scheduler/scheduler_config.json", 310), File("text_encoder/config.json", 600),              # [V] names
     *(File(*row) for row in TOKENIZER),                                                                     # [I] 1.5's
     File("unet/config.json", 743), File("vae/config.json", 550)),
    (File(UNET + ".safetensors", 3_438_167_540,                                                # [I] of an older main
          "sha256:145a07e0f05ec5bbe6e2e9faf608bdb311caf708895cac8c8ed713c59864e1e8"),
     VAE_FULL,                                                                                               # [V]
     File(TEXT + ".safetensors", 492_265_879,                                                               # [I] a copy
          "sha256:7b3a12df205cb3c74dd4eae4354d93f606ae6b3bc29d5d06fd97921c")),
    (File(UNET + ".fp16.safetensors", 1_719_125_304,                                           # [V] hash, [I] size
          "sha256:a35404d03ec8f977715a4d2a080ddf72e2144f2ee49bb1ee213258bc64f9cc87", sure=True), VAE_HALF, TEXT_HALF),
    rule="model")

SD15 = Piece(                                                                                  # [V] every size and hash
    "the model",
    (Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),    # [V] a copy:
     Source("runwayml/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),     # the first one's is gone
     Source("benjamin-paine/stable-diffusion-v1-5")),                                                       # [I] a copy
    (CARD,
     File("scheduler/scheduler_config.json", 308, "git:82d05b0e688d7ea94675678646c427907419346e", True),
     File("text_encoder/config.json", 617, "git:4d3e873ab5086ad989f407abd50fdce66db8d657", True),
     *(File(*row, True) for row in TOKENIZER),
     File("unet/config.json", 743, "git:1a02ee8abc93e840ffbcb2d68b66ccbcb74b3ab3", True),
     File("vae/config.json", 547, "git:55d78924fee13e4220f24320127c5f16284e13b9", True)),
    (File(UNET + ".safetensors", 3_438_167_540,
          "sha256:19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1", sure=True),
     VAE_FULL,
     File(TEXT + ".safetensors", 492_265_874,
          "sha256:d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334", sure=True)),
    (File(UNET + ".fp16.safetensors", 1_719_125_304,
          "sha256:c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21", sure=True), VAE_HALF, TEXT_HALF),
    rule="model")

# Of this folder the card alone was read [V]: the fine-tuned model in diffusers' format; unet/ with float32 safetensors
# and a float16 .bin, unet_ema/ beside it. Which files vae/ and text_encoder/ hold is unknown, so is any size or hash.
# The training changed the UNet alone [V: its script], so without a listing SD 1.5's own files stand for the rest [I].
STYLE50 = Piece(
    "the model", (Source("NormalUhr/UnlearnCanvas-ckpts", folder="diffusion/diffuser/style50/"),),
    (CARD, File("unet/config.json", 900)),                                                     # [I] name, size
    (File(UNET + ".safetensors", 3_438_167_540),),                                            # [V] kind, [I] name, size
    rule="model", base=SD15)
MIRROR = Piece(                                                                                # [I] that it is Style50
    "the model, a third party's single-file copy", (Source("sungjuncho/fade-unlearncanvas-full"),),
    (CARD,), (File("full.safetensors", 7_703_324_308),))                                       # [V] name, size, licence

HOOK = "unet.up_blocks.1.attentions.1"
SAE_TABLE = {
    "files": (File("README.md", 831, save_as="sae/README.md", optional=True, at_root=True),       # [V] size
              File(f"{HOOK}/cfg.json", 400, save_as=f"sae/{HOOK}/cfg.json")),                     # [V] name, [I] size
    "full": (File(f"{HOOK}/sae.safetensors", 209_802_570, save_as=f"sae/{HOOK}/sae.safetensors"),),     # [V], [I] size
    "rule": "sae"}
SAE = Piece("the SAE that was trained on Style50", (Source("bcywinski/SAeUron"),), **SAE_TABLE)              # [V]
# coco/ holds a folder of that hook point, which came with the commit "Upload 2 files" [V: the hub's file list, a stored
# copy]. That the two are cfg.json and sae.safetensors and the same as SAeUron_coco's is [I]: its listing will tell.
SAE_COCO = Piece("the SAE that was trained on Stable Diffusion 1.4",
                 (Source("bcywinski/SAeUron_coco"), Source("bcywinski/SAeUron", folder="coco/")),            # [V] names
                 **SAE_TABLE)

CLIP = Piece(                                                                                  # [V] every size and hash
    "CLIP ViT-L/14", (Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),),
    (CARD, File("config.json", 4_519, "sha256:8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a", True)),
    (File("model.safetensors", 1_710_540_580,
          "sha256:a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", sure=True),),
    rule="clip")

CHECK = "python featviz.py --weights {folder} --check    reads every file and says what it found"
BUNDLES = {
    "sd14": Bundle("Stable Diffusion 1.4 and the SAE that was trained on it", "sd14", ("openrail", "apache"),
                   (SD14, LICENCE, replace(SAE_COCO, optional=True)), CHECK),
    "sd15": Bundle("Stable Diffusion 1.5, for which no SAE is known", "sd15", ("openrail",), (SD15, LICENCE), CHECK),
    "style50": Bundle(
        "Stable Diffusion 1.5 fine-tuned on UnlearnCanvas (Style50) and the SAE that was trained on it", "style50",
        ("style50", "openrail", "apache"), (STYLE50, LICENCE, SAE), CHECK,
        "other ways to Style50: weights/README.md"),
    "style50-mirror": Bundle(
        "Stable Diffusion 1.5 fine-tuned on UnlearnCanvas, a third party's copy, and Style50's SAE", "style50",
        ("openrail", "apache"), (MIRROR, LICENCE, SAE), CHECK.replace("{folder}", "{folder}/full.safetensors"),
        "other ways to Style50: weights/README.md"),
    "sae": Bundle("SAeUron's SAE, trained on Style50", "style50", ("apache",), (SAE,)),
    "clip": Bundle("CLIP ViT-L/14, which says how well pictures and words fit", "clip", ("openai",), (CLIP,)),
    "sae-sd14": Bundle("SAeUron's SAE, trained on Stable Diffusion 1.4", "sd14", ("apache",), (SAE_COCO,)),
}
