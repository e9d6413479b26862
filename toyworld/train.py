"""Make `weights/toy` from nothing: VAE, text encoder, UNet, and then dictionary, capture, judge and concepts.

    python -m toyworld.train --art FOLDER [--stage NAME ...] [--runs FOLDER] [--out weights/toy] [--device cuda]

FOLDER holds the unpacked packages that `toyworld/drawings.py` names. Every stage keeps its state in --runs, resumes
where it was killed, and writes its part of --out when it is done.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from activity.capture import Settings, capture as record_capture, configure, save_tensors
from config import HOOK_POINT
from dictionary.train import Recipe, export as export_sae, learn
from results import to_json, write
from schedule import Schedule
from toyworld import concepts, drawings, text
from toyworld.fit import fit
from toyworld.judge import Judge, lesson
from unet import Transformer, UNet
from vae import VAE
from weights.load import FILES, load, read_part, read_tokenizer

VAE_SIZES = dict(block_out_channels=[16, 32, 64], layers_per_block=1, latent_channels=4, norm_num_groups=8)
ATTENDING = "down_blocks.2.", "mid_block.", "up_blocks.1."  # levels whose transformers work; elsewhere they add nothing
BEHIND = "up_blocks.1.attentions.2"                         # works, but does not see the text
UNET = dict(block_out_channels=[16, 24, 128, 128], layers_per_block=2, cross_attention_dim=64, attention_head_dim=4,
            norm_num_groups=8, in_channels=4, out_channels=4, sample_size=16)
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                 prediction_type="epsilon", steps_offset=1, set_alpha_to_one=False, clip_sample=False)
HELD_OUT = 12               # every twelfth thing outside the world is kept from training, to measure the VAE
EMPTY, HOUSE_ONLY, NAME_ONLY = 0.40, 0.05, 0.10     # shares of captions that say nothing, or only a part
GUIDANCE = 3.0              # of the samples from which the dictionary learns
PROMPTS = 3_000             # of these samples, a third of them empty; from 540 images it learned them by heart
SAMPLE_STEPS = 25           # of each: many images say more than many steps of one
CAPTURED = 3                # the capture is of the caption of every third artwork: each thing, by changing houses
EXPANSION, ACTIVE = 8, 8    # features a channel, active features a place
# by eye on the pictures of 12 features drawn at random, of which none is in README's rows
SUITED = {"prior": "steer", "steer_scale": 5.0, "finish_from": 900, "finish_scale": 0.1, "finish_steps": 20}
SETTINGS = {"timestep": 500, "presets": {"sae": SUITED, "raw": SUITED},
            "capture": {"guidance": GUIDANCE, "sampler": "ddim", "prompts": "prompts.txt", "images_per_prompt": 1,
                        "top": 20}}
# beginnings of the subgroups of thesis' five
THESIS = ("plant-flower",), ("animal",), ("food", "drink"), ("face", "person", "monkey", "cat"), ("house",)
STEPS = {"vae": 12_000, "text": 1_300, "unet": 12_000, "dictionary": 4_000, "judge": 1_500}
BATCH = {"vae": 4, "text": 64, "unet": 48, "dictionary": 2_048, "judge": 64}


def write_json(path, value):
    write(path, to_json(value, indent=1, ensure_ascii=False))


def export(args, part, net, config):
    """Write one part of the weights folder, as fp16."""
    write_json(args.out / part / "config.json", config)
    save_tensors(args.out / part / FILES.get(part, "model.safetensors"),
                 {k: v.half() for k, v in net.state_dict().items()})


def train_vae(args):
    """Minimise L1 + 2 L1 and 10 squares of 4x4 averages + 0.25 L1 of neighbour differences + 3e-4 KL, all means. The
    averages bring the colours, the differences the texture. It learns from all things, with red, green and blue in any
    order: artwork is mostly yellow and red, and a green frog came out orange. The scaling factor makes the deviation of
    all latents 1."""
    seen = args.world + [thing for i, thing in enumerate(args.others) if i % HELD_OUT]
    artworks = drawings.read(args.art, seen).to(args.device)
    torch.manual_seed(0)
    vae = VAE(**VAE_SIZES, scaling_factor=1.0).to(args.device)

    def loss(step, generator):
        x = drawings.draw(artworks, generator, BATCH["vae"])[0]
        x = x[:, torch.randperm(3, generator=generator, device=args.device)]
        mean, logvar = vae.moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=args.device)
        y = vae.decode_raw(mean + noise * (0.5 * logvar).exp()).float()
        d = y - (2 * x - 1)
        averages = F.avg_pool2d(d, 4)
        pixel, colour = d.abs().mean(), 2 * averages.abs().mean() + 10 * averages.square().mean()
        edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).float().mean()
        numbers = {"pixel": pixel, "colour": colour, "kl": kl, "mse": d.square().mean()}
        return pixel + colour + 0.25 * edges + 3e-4 * kl, numbers

    fit("vae", vae, loss, steps=args.steps["vae"], lr=1e-3, folder=args.runs, device=args.device, amp=args.bf16)
    generator = torch.Generator(args.device).manual_seed(1)
    with torch.no_grad():
        z = vae.encode(drawings.draw(artworks[:len(args.artworks)], generator, 1000)[0])
    scale = round(1 / z.std().item(), 5)
    export(args, "vae", vae, VAE_SIZES | {"sample_size": drawings.SIZE, "scaling_factor": scale})


def cut(rows, things, generator, empty=EMPTY):
    """Draw what the captions of artworks `rows` (B,) say: indices of thing and house (B,), behind the last for none."""
    fate = torch.rand(len(rows), generator=generator, device=rows.device)
    house_only = empty + HOUSE_ONLY
    no_house = (fate < empty) | (fate >= house_only) & (fate < house_only + NAME_ONLY)
    return torch.where(fate < house_only, things, rows // 4), torch.where(no_house, len(drawings.HOUSES), rows % 4)


def train_text(args):
    """Make the tokenizer, then minimise `text.contrast` of captions, some of them partial, and their drawings."""
    artworks, tokenizer = args.artworks.to(args.device), text.make_tokenizer(args.world)
    write_json(args.out / "tokenizer/vocab.json", tokenizer.vocab)
    lines = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in tokenizer.ranks)
    (args.out / "tokenizer/merges.txt").write_text(lines, encoding="utf-8")
    ids = text.caption_table(tokenizer, args.world).to(args.device)
    torch.manual_seed(1)
    pair = text.Pair(len(tokenizer.vocab)).to(args.device)

    def loss(step, generator):
        images, rows = drawings.draw(artworks, generator, BATCH["text"])
        logits = pair(ids[cut(rows, len(args.world), generator, empty=0.0)], images)
        found = (logits.argmax(1) == torch.arange(len(rows), device=args.device)).float().mean()
        return text.contrast(logits), {"found": found}

    fit("text", pair, loss, steps=args.steps["text"], lr=2e-3, folder=args.runs, device=args.device, ema=0.99)
    export(args, "text_encoder", pair.text_encoder, text.CONFIG | {"vocab_size": len(tokenizer.vocab)})


def weigh(error, abar):
    """Weigh the squared error of the predicted noise by min(min(SNR + 1, 5) / SNR, 30) / 3, SNR = abar / (1 - abar). As
    Hang et al. (arXiv 2303.09556), but for the 30, and SNR + 1: high noise counts, where a picture is decided."""
    snr = abar / (1 - abar)
    return error * ((snr + 1).clamp(max=5.0) / snr).clamp(max=30.0) / 3


def silence(module, last, instead):
    """Let nothing of a module through: its last layer is 0, none of it is trained, and `instead` takes its place."""
    module.requires_grad_(False)
    module.forward = instead
    for p in last.parameters():
        p.data.zero_()


def denoiser():
    """Build a UNet of SD's structure, thin above, with text below alone: what a picture shows has to pass the hook
    point. What is silent is passed by in training, with the same result and in less time."""
    unet = UNet(UNET["block_out_channels"], UNET["cross_attention_dim"], UNET["attention_head_dim"],
                UNET["norm_num_groups"])
    for name, module in unet.named_modules():
        if isinstance(module, Transformer) and not name.startswith(ATTENDING):
            silence(module, module.proj_out, lambda x, context: x)
        elif name == BEHIND:
            block = module.transformer_blocks[0]
            block.norm2.requires_grad_(False)
            silence(block.attn2, block.attn2.to_out[0], lambda *_: 0)
    return unet


def train_unet(args):
    """Minimise `weigh` of the error of the predicted noise in a drawing's latent, t evenly spread, and no other loss.
    EMPTY of the captions say nothing: the model learns to recognise a thing by its looks, and guidance is possible."""
    vae, encoder = (read_part(args.out, part, torch.float32, args.device) for part in ("vae", "text_encoder"))
    which, schedule, z = torch.arange(drawings.DRAWINGS, device=args.device), Schedule(device=args.device), []
    for artwork in args.artworks.to(args.device):
        images = artwork.expand(drawings.DRAWINGS, -1, -1, -1)
        z.append(vae.encode(drawings.compose(images, which // len(drawings.SHIFTS), which % len(drawings.SHIFTS))))
    z = torch.cat(z).half().float()                                                                # (27 A, 4, 16, 16)
    ids = text.caption_table(read_tokenizer(args.out / "tokenizer"), args.world).to(args.device)
    context = torch.stack([encoder(of_thing) for of_thing in ids])                                 # (T + 1, 5, 77, 64)
    torch.manual_seed(2)
    unet = denoiser().to(args.device)
    B = BATCH["unet"]

    def loss(step, generator):
        rows = torch.randint(len(z), (B,), generator=generator, device=args.device)
        even = (torch.arange(B, device=args.device) + torch.rand(B, generator=generator, device=args.device)) / B
        t = (even * len(schedule.alphas_cumprod)).long()
        eps = torch.randn(z[rows].shape, generator=generator, device=args.device)
        thing, house = cut(rows // drawings.DRAWINGS, len(args.world), generator)
        guess = unet(schedule.add_noise(z[rows], eps, t), t, context[thing, house])
        error = (guess.float() - eps).square().mean((1, 2, 3))
        value = weigh(error, schedule.alphas_cumprod[t])
        captioned = (thing < len(args.world)).float()
        parts = {"captioned": captioned, "empty": 1 - captioned}
        return value.mean(), {k: (value * part).sum() / part.sum().clamp(min=1) for k, part in parts.items()}

    fit("unet", unet, loss, steps=args.steps["unet"], lr=1.5e-3, folder=args.runs, device=args.device, ema=0.9995,
        amp=args.bf16, beta2=0.99, muon=True, warmup=300)
    export(args, "unet", unet, UNET)
    write_json(args.out / "scheduler/scheduler_config.json", SCHEDULER)


def train_dictionary(args):
    """Train the SAE by dictionary/, on samples of captions and of none; write the capture's prompts."""
    captions = drawings.captions(args.world)
    picks = torch.randint(len(captions), (PROMPTS,), generator=torch.Generator().manual_seed(4)).tolist()
    prompts = tuple("" if i % 3 == 0 else captions[a] for i, a in enumerate(picks))
    settings = Settings(prompts, 1, SAMPLE_STEPS, "ddim", GUIDANCE, batch_size=64)
    recipe = Recipe(EXPANSION, ACTIVE, args.steps["dictionary"], BATCH["dictionary"], 1e-3)
    seeds = 0, 1                                                # the second tells which features are found again
    sae, about = learn(load(args.out, args.device), settings, recipe, seeds, args.runs / "dictionary")
    export_sae(sae, args.out / "sae" / f"unet.{HOOK_POINT}", about)
    (args.out / "prompts.txt").write_text("\n".join(captions[::CAPTURED]) + "\n", encoding="utf-8")


def capture(args):
    """Record when and on what every feature fires, on the captions of `prompts.txt`."""
    write_json(args.out / "featviz.json", SETTINGS)
    model = load(args.out, args.device)
    record_capture(model, configure(model), args.out / "activity")


def train_judge(args):
    """Minimise the cross-entropy of thing and house, on the pictures of `judge.lesson`."""
    artworks = args.artworks.to(args.device)
    torch.manual_seed(3)
    judge = Judge(len(args.world)).to(args.device)

    def loss(step, generator):
        rows = torch.randint(len(artworks), (BATCH["judge"],), generator=generator, device=args.device)
        things, houses = judge(lesson(artworks, rows, generator))
        both = F.cross_entropy(things, rows // 4) + F.cross_entropy(houses, rows % 4)
        return both, {"thing": (things.argmax(1) == rows // 4).float().mean(),
                      "house": (houses.argmax(1) == rows % 4).float().mean()}

    fit("judge", judge, loss, steps=args.steps["judge"], lr=2e-3, folder=args.runs, device=args.device, ema=0.99)
    export(args, "judge", judge, {"things": [thing.name for thing in args.world], "houses": list(drawings.HOUSES)})


def find_concepts(args):
    """Write `concepts.json`: the meaning of every feature, by the rule of toyworld/concepts.py."""
    write_json(args.out / "concepts.json", concepts.find(load(args.out, args.device), args.artworks, args.world))


def write_settings(args):
    """Write settings, default feature and thesis' five (`featviz.json`), the meanings as labels, the licences. The
    default is the feature of the largest surprise. The five are those of the largest surprise that mean a flower, an
    animal, a food, a face or person, and a house; what no feature means is left out."""
    rows = json.loads((args.out / "concepts.json").read_text(encoding="utf-8"))["rows"]
    rows = sorted((row for row in rows if row["meaning"]), key=lambda row: -row["surprise"])
    subgroups, thesis = {thing.name: thing.subgroup for thing in args.world}, {}
    for row in rows:
        (kind, word), (thing, house) = row["meaning"], row["strongest"][0].rsplit(", ", 1)
        about = "house" if "house" in kind else subgroups[thing] if kind in ("name", "subgroup") else ""
        entry = {"feature": row["feature"], "word": word, "prompt": drawings.caption(thing, house)}
        for beginnings in THESIS:
            if about.startswith(beginnings):
                thesis.setdefault(beginnings, entry)
    thesis = [thesis[beginnings] for beginnings in THESIS if beginnings in thesis]
    write_json(args.out / "featviz.json", SETTINGS | {"feature": rows[0]["feature"], "thesis": thesis})
    labels = {str(row["feature"]): row["meaning"][1] for row in sorted(rows, key=lambda row: row["feature"])}
    write_json(args.out / "sae" / f"unet.{HOOK_POINT}" / "labels.json", labels)
    (args.out / "LICENSES.md").write_bytes(Path(__file__).with_name("LICENSES.md").read_bytes())


STAGES = {"vae": train_vae, "text": train_text, "unet": train_unet, "dictionary": train_dictionary,
          "concepts": find_concepts, "capture": capture, "judge": train_judge, "settings": write_settings}


def record(args, stage):
    """Write `training.json`: the settings, and the last logged numbers of every stage that has run."""
    path = args.out / "training.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    log = args.runs / f"{stage}.jsonl"
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1]) if log.exists() else {}
    runs = stored.get("stages", {}) | {stage: last}
    write_json(path, {                                          # sizes of networks and SAE are in their own folders
        "artwork": drawings.PACKAGES, "things": len(args.world), "houses": list(drawings.HOUSES),
        "other_things_for_the_vae": len(args.others),
        "captions_cut": {"empty": EMPTY, "house_only": HOUSE_ONLY, "name_only": NAME_ONLY},
        "batch": BATCH, "steps": args.steps,
        "stages": {name: runs[name] for name in STAGES if name in runs}})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="folder of the unpacked artwork packages")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"), help="where killed stages keep their state")
    parser.add_argument("--out", type=Path, default=Path("weights/toy"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fp32", dest="bf16", action="store_false", help="train VAE and UNet without bfloat16")
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
    args = parser.parse_args(argv)
    args.steps = {stage: getattr(args, f"{stage}_steps") for stage in STEPS}
    args.world, args.others = drawings.things(args.art)
    args.artworks = drawings.read(args.art, args.world)
    for stage in args.stage:
        STAGES[stage](args)
        record(args, stage)


if __name__ == "__main__":
    main()
