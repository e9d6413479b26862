"""Which weights `fetch.py` knows: tables of files with their sizes, hashes, sources and licences.

Taken from the hub's own pages of these repositories and from public manifests that list the files of these revisions. [V] verified:
stated for this very revision. [I] inferred: from a neighbouring revision or a copy; there the server's statement decides. The two
files of the tokenizer were also made anew from weights/clip, with the same hashes.
"""
from dataclasses import dataclass

LICENCES = {
    "openrail": "CreativeML OpenRAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license\n"
                "  Use and sharing are free, some uses are forbidden (its attachment A); who passes the weights on, passes on the\n"
                "  same limits and a copy of the licence.",
    "apache": "Apache-2.0 by the model card of bcywinski/SAeUron; the model that the SAE reads has its own licence.",
}


@dataclass(frozen=True)
class Source:
    repo: str
    revision: str = "main"
    folder: str = ""                                            # of the weights in the repository, with its slash


@dataclass(frozen=True)
class File:
    name: str                                                   # in the repository, and below our folder
    size: int                                                   # bytes, for the plan
    pin: str = ""                                               # "sha256:" or "git:" and leading digits of the hash
    sure: bool = False                                          # [V]: a server that states another hash is refused
    source: Source | None = None                                # where not the bundle's
    save_as: str = ""                                           # where not `name`
    optional: bool = False


@dataclass(frozen=True)
class Bundle:
    title: str
    folder: str                                                 # below weights/, unless --folder says otherwise
    licence: str
    sources: tuple                                              # the first that has the first file is taken
    files: tuple
    full: tuple                                                 # weights in float32
    half: tuple = ()                                            # the same in float16, if published
    below: str = ""                                             # in that folder
    then: str = ""                                              # what to do next


LICENCE_TEXT = File("license.txt", 14_000, source=Source("spaces/CompVis/stable-diffusion-license"), save_as="LICENSE",
                    optional=True)                                                                # [V] address, [I] size
TOKENIZER = (("tokenizer/merges.txt", 524_619, "sha256:9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
             ("tokenizer/vocab.json", 1_059_962, "sha256:e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"))
UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
VAE_FULL = File(VAE + ".safetensors", 334_643_276,
                "sha256:a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c", sure=True)
VAE_HALF = File(VAE + ".fp16.safetensors", 167_335_342,
                "sha256:4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c", sure=True)
TEXT_HALF = File(TEXT + ".fp16.safetensors", 246_144_864,
                 "sha256:77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e", sure=True)
SAE_FOLDER = "unet.up_blocks.1.attentions.1/"
SAE_FILES = (File(SAE_FOLDER + "cfg.json", 400), File("README.md", 900, optional=True))   # [V] names, [I] sizes
SAE_WEIGHTS = (File(SAE_FOLDER + "sae.safetensors", 209_802_570),)                        # [V] name, [I] size: float32

BUNDLES = {
    "sd14": Bundle(
        "Stable Diffusion 1.4", "sd14", "openrail",
        (Source("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),),   # [V]
        (File("README.md", 16_000), LICENCE_TEXT,                                                 # [V] names
         File("scheduler/scheduler_config.json", 310), File("text_encoder/config.json", 600),
         *(File(*row) for row in TOKENIZER),                                                      # [I] same as 1.5's
         File("unet/config.json", 743), File("vae/config.json", 550)),
        (File(UNET + ".safetensors", 3_438_167_540,                                               # [I] of an older main
              "sha256:145a07e0f05ec5bbe6e2e9faf608bdb311caf708895cac8c8ed713c59864e1e8"),
         VAE_FULL,                                                                                # [V]
         File(TEXT + ".safetensors", 492_265_879,                                                 # [I] of a copy
              "sha256:7b3a12df205cb3c74dd4eae4354d93f606ae6b3bc29d5d06fd97921c")),
        (File(UNET + ".fp16.safetensors", 1_719_125_304,                                          # [V] hash, [I] size
              "sha256:a35404d03ec8f977715a4d2a080ddf72e2144f2ee49bb1ee213258bc64f9cc87", sure=True), VAE_HALF, TEXT_HALF),
        then="python weights/fetch.py sae-sd14    fetches the SAE that was trained on this model"),
    "sd15": Bundle(                                             # [V] every size and hash; the first publisher's repository is gone
        "Stable Diffusion 1.5", "sd15", "openrail",
        (Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),         # [V] the copy
         Source("runwayml/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),    # [I] on mirrors
         Source("benjamin-paine/stable-diffusion-v1-5")),                                         # [I] another copy
        (File("README.md", 14_461), LICENCE_TEXT,
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
              "sha256:c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21", sure=True), VAE_HALF, TEXT_HALF)),
    "style50": Bundle(                                          # --mirror; [V] name, size, licence; [I] that it is Style50
        "UnlearnCanvas Style50, a third party's single-file copy", "style50", "openrail",
        (Source("sungjuncho/fade-unlearncanvas-full"),),
        (File("README.md", 2_000), LICENCE_TEXT), (File("full.safetensors", 7_703_324_308),)),
    "sae": Bundle(
        "SAeUron's SAE, trained on Style50", "style50", "apache",
        (Source("bcywinski/SAeUron"),),                                                          # [V]
        SAE_FILES, SAE_WEIGHTS, below="sae/"),
    "sae-sd14": Bundle(
        "SAeUron's SAE, trained on Stable Diffusion 1.4", "sd14", "apache",
        (Source("bcywinski/SAeUron_coco"), Source("bcywinski/SAeUron", folder="coco/")),         # [V] names
        SAE_FILES, SAE_WEIGHTS, below="sae/"),
}

STYLE50 = """\
Style50 (Stable Diffusion 1.5 fine-tuned on UnlearnCanvas) has no source that a program can rely on. Those that are known:
 1. its authors' cloud folder, drive.google.com/drive/folders/14iztBXs-GoBFVLePC2_psP00YUMK5-cy: diffusion/diffuser/style50 in it is
    the folder that is wanted; other projects link 18tN-7LuxQ89I-MDSjtB5to2dGHDMHyqb and 18x40pLBcfNFyxBWZBGncTjqJTs_75SLx;
    all of them were reported to answer 404. Open them in a browser; what you get, copy to weights/style50
 2. python weights/fetch.py style50 --mirror: a third party's file in the original single-file layout, 7.7 GB. It fits the authors'
    other training run, so these are probably not the weights that SAeUron's SAE has seen: look at what the fit check says
 3. ask the authors of UnlearnCanvas (github.com/OPTML-Group/UnlearnCanvas)
If all fail, this always works: Stable Diffusion 1.4 with the SAE that was trained on it; its feature numbers are its own:
    python weights/fetch.py sd14 && python weights/fetch.py sae-sd14"""
