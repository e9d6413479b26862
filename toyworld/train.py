"""Make `weights/toy` from nothing: drawings -> autoencoder -> text encoder and UNet -> sparse autoencoder -> judge.

    python -m toyworld.train [--stage NAME ...] [--runs FOLDER] [--out weights/toy] [--device cuda]

Every stage resumes where it was killed (its state is kept in --runs) and writes its part of --out when it is done. Each
is one function below, from its data to its loss; the loop that they share is toyworld/fit.py.
"""
import argparse
import json
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from safetensors.torch import load_file
from weights.load import FILES, build, load
from clip import END, START, Tokenizer, byte_symbols, split_words
from dictionary.loss import init, normalize_decoder, training_loss
from sae import SAE
from schedule import Schedule, ddim, guided
from toyworld import drawings
from toyworld.denoiser import HOOK_POINT, NAME, TEXT_CONFIG, UNET_CONFIG, Denoiser, names, roughen, sizes
from toyworld.fit import atomic_save, fit
from toyworld.judge import Judge, lesson
from vae import VAE

COUNT = 16_000              # drawings to learn from, 200 of each of the 80 pairs
GUIDANCE = 3.0              # of the images from which the SAE learns
VAE_CONFIG = dict(block_out_channels=[32, 48, 64], layers_per_block=1, latent_channels=4, norm_num_groups=16,
                  sample_size=drawings.SIZE)
SAE_CONFIG = dict(d_in=UNET_CONFIG["block_out_channels"][2], expansion_factor=1.0, k=4, input_unit_norm=False)
SIGHT = 0.3                 # weight of what the hook point does not name
LR = {"unet": 1e-3, "sight": 5e-4}
STEPS = {"vae": 10_500, "unet": 12_000, "sight": 3_000, "sae": 2_000, "judge": 1_500}
BATCH = {"vae": 8, "unet": 32, "sight": 32, "sae": 1_024, "judge": 64}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


def export(args, part, net, config):
    """One part of the weights folder, as fp16 and in the layout that weights/load.py reads."""
    folder = args.out / part
    write_json(folder / "config.json", config)
    atomic_save({k: v.half() for k, v in net.state_dict().items()}, folder / FILES[part])


def make_drawings(runs, count=COUNT, seed=0):
    """(count, 3, 64, 64) uint8, cached in the runs folder."""
    path = runs / f"drawings_{seed}_{count}.npy"
    if not path.exists():
        runs.mkdir(parents=True, exist_ok=True)
        with Pool() as pool:
            images = np.stack(pool.starmap(drawings.drawing, [(i, seed) for i in range(count)], chunksize=100))
        np.save(path.with_suffix(".partial.npy"), images.transpose(0, 3, 1, 2))
        path.with_suffix(".partial.npy").rename(path)
    return torch.from_numpy(np.load(path))


# --- the autoencoder --------------------------------------------------------------------------------------------------

def train_vae(args):
    """L1 + 2 L1 of 4x4 averages + 0.25 L1 of neighbour differences + 3e-4 KL, each a mean over its values.

    The averages bring the colours, the differences the texture; the weak KL term keeps the latents near unit scale. The
    scaling factor then makes the deviation of all latents 1.
    """
    images = make_drawings(args.runs).to(args.device)
    torch.manual_seed(0)
    vae = VAE(**sizes(VAE_CONFIG, "vae"), scaling_factor=1.0).to(args.device)

    def loss(step, generator):
        batch = torch.randint(len(images), (BATCH["vae"],), generator=generator, device=args.device)
        x = images[batch].float() / 255
        mean, logvar = vae.moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=args.device)
        y = vae.decode_raw(mean + noise * (0.5 * logvar).exp()).float()
        d = y - (2 * x - 1)
        pixel, colour = d.abs().mean(), F.avg_pool2d(d, 4).abs().mean()
        edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).float().mean()
        return pixel + 2 * colour + 0.25 * edges + 3e-4 * kl, {"pixel": pixel, "colour": colour, "kl": kl}

    fit("vae", vae, loss, steps=args.steps["vae"], lr=1e-3, folder=args.runs, device=args.device, amp=True)
    z = encode_all(vae, images[:2000])
    export(args, "vae", vae, VAE_CONFIG | {"scaling_factor": round(1 / z.std().item(), 5)})


@torch.no_grad()
def encode_all(vae, images):
    """uint8 images (N, 3, 64, 64) -> scaled latents (N, 4, 16, 16), a hundred at a time."""
    return torch.cat([vae.encode(part.float() / 255) for part in images.split(100)])


# --- the text encoder and the UNet ------------------------------------------------------------------------------------

def learn_bpe(words):
    """Byte-pair merges until each of `words` is one token, the most frequent pair first (ties: alphabetical)."""
    spelled = {w: [*(byte_symbols()[b] for b in w.encode())] for w in words}
    spelled = {w: [*s[:-1], s[-1] + "</w>"] for w, s in spelled.items()}
    merges = []
    while any(len(s) > 1 for s in spelled.values()):
        pairs = Counter((w, *pair) for w, s in spelled.items() for pair in zip(s, s[1:]))
        totals = Counter()
        for (w, a, b), n in pairs.items():
            totals[a, b] += n * words[w]
        merges.append(max(sorted(totals), key=totals.get))
        joined = Tokenizer({}, merges)
        spelled = {w: joined.bpe(w) for w in words}
    return merges


def make_tokenizer(args):
    """vocab.json and merges.txt in CLIP's format, small: the byte symbols, the merges that the
    captions need, start and end.
    """
    texts = [drawings.caption(o, s).lower() for o in drawings.OBJECTS for s in drawings.STYLES]
    merges = learn_bpe(Counter(word for text in texts for word in split_words(text)))
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    write_json(args.out / "tokenizer/vocab.json", {token: i for i, token in enumerate(tokens)})
    (args.out / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
                                                   encoding="utf-8")
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges)


def captioned(args, tokenizer):
    """The drawings' latents (N, 4, 16, 16), cached in the runs folder, their objects and styles (N,), and the tokens
    (11, 9, 77) of the captions of all objects and styles; the last of either is none.
    """
    images, path = make_drawings(args.runs), args.runs / "latents.safetensors"
    if not path.exists():
        files = (args.out / "vae" / name for name in ("config.json", FILES["vae"]))
        vae = build(VAE, sizes(VAE_CONFIG, "vae"), *files, torch.float32, args.device)
        atomic_save({"z": encode_all(vae, images.to(args.device))}, path)
    objects, styles = torch.tensor([drawings.labels(i) for i in range(len(images))], device=args.device).T
    table = [[drawings.caption(o, s) for s in (*drawings.STYLES, None)] for o in (*drawings.OBJECTS, None)]
    ids = torch.stack([tokenizer(texts) for texts in table]).to(args.device)
    return load_file(path, device=args.device)["z"], objects, styles, ids


def train_unet(args, stage="unet"):
    """min(min(SNR + 1, 5) / SNR, 30) / 3 times the squared error of the predicted noise, t uniform: the weight of Hang
    et al. (arXiv 2303.09556), but for SNR + 1, which lets high noise count, where a picture is decided, and the 30.

    25% of the captions are emptied, which makes guidance and the empty prompt of the ascent possible; another 10% lose
    their object or their style, so that the model learns each of them alone. The hook's output is `roughen`ed.

    Stage "sight" goes on from there: at each place p the hook's output h_p (D,) shall name the drawing's object and
    style, u_o + u_s of `names`, whether the caption says them or not. Of what noise hides the mean over what it may be
    is the best answer.

        loss + SIGHT * mean over rows and places of |h_p - u_o - u_s|^2 / (2 NAME^2)
    """
    tokenizer = make_tokenizer(args)
    z, objects, styles, ids = captioned(args, tokenizer)
    no_object, no_style = (n - 1 for n in ids.shape[:2])
    schedule = Schedule(device=args.device)
    torch.manual_seed(1)
    net = Denoiser(len(tokenizer.vocab)).to(args.device)
    if stage == "sight":
        for part in ("unet", "text_encoder"):
            net.get_submodule(part).load_state_dict(load_file(args.out / part / FILES[part]))
    kept = {}                                                   # this step's generator, and what it saw at the hook

    def at_hook(module, inputs, h):
        kept["h"] = h
        return roughen(h, kept["generator"])

    def loss(step, generator):
        B = BATCH["unet"]
        rows = torch.randint(len(z), (B,), generator=generator, device=args.device)
        t = torch.randint(len(schedule), (B,), generator=generator, device=args.device)
        eps = torch.randn(z[:B].shape, generator=generator, device=args.device)
        fate = torch.rand(B, generator=generator, device=args.device)
        o = torch.where(fate < 0.30, no_object, objects[rows])
        s = torch.where((fate < 0.25) | ((fate >= 0.30) & (fate < 0.35)), no_style, styles[rows])
        kept["generator"], x = generator, schedule.add_noise(z[rows], eps, t)
        guess = net(x, t, ids[o, s])
        error = (guess - eps).square().mean((1, 2, 3))
        abar = schedule.alphas_cumprod[t]
        snr = abar / (1 - abar)
        value = (error * ((snr + 1).clamp(max=5.0) / snr).clamp(max=30.0)).mean() / 3
        if stage == "unet":
            return value, {"eps": error.mean()}
        wanted = directions[objects[rows]] + directions[len(drawings.OBJECTS) + styles[rows]]          # (B, D)
        unseen = (kept["h"] - wanted[:, :, None, None]).square().mean((2, 3)).sum(1).mean() / (2 * NAME ** 2)
        return value + SIGHT * unseen, {"eps": error.mean(), "unseen": unseen}

    net.narrow()
    directions = names().to(args.device)
    handle = net.unet.get_submodule(HOOK_POINT).register_forward_hook(at_hook)
    fit(stage, net, loss, steps=args.steps[stage], lr=LR[stage], folder=args.runs, device=args.device, ema=0.9993,
        after=Denoiser.silence)
    handle.remove()
    export(args, "unet", net.unet, UNET_CONFIG)
    export(args, "text_encoder", net.text_encoder, TEXT_CONFIG | {"vocab_size": len(tokenizer.vocab)})
    write_json(args.out / "scheduler/scheduler_config.json", dict(beta_start=0.00085, beta_end=0.012,
                                                                  beta_schedule="scaled_linear",
               num_train_timesteps=1000, prediction_type="epsilon", steps_offset=1, set_alpha_to_one=False,
                                                                  clip_sample=False))


def train_sight(args):
    train_unet(args, "sight")


# --- the sparse autoencoder -------------------------------------------------------------------------------------------

@torch.no_grad()
def capture(model, prompts, generator, guidance=GUIDANCE, steps=50):
    """Sample one image a prompt; return its latents (B, 4, H, W) and the hook's output at all steps (steps, B, S, D).

    Only the half that saw the caption is kept, as in SAeUron's training.
    """
    seen, B = [], len(prompts)
    handle = model.unet.get_submodule(HOOK_POINT).register_forward_hook(
        lambda module, inputs, h: seen.append(h[-B:].flatten(2).transpose(1, 2).half().cpu()))
    try:
        x = torch.randn(B, *model.latent_shape, generator=generator, device=model.device)
        predict = guided(model.unet, model.embed(prompts), model.embed([""]), guidance)
        for _, x in ddim(model.schedule, predict, x, steps):
            pass
    finally:
        handle.remove()
    return x, torch.stack(seen)


def sae_data(args, model, images_per_pair=2, empty=120, images_per_word=4, batch=40):
    """Hook outputs of images sampled from captions, by the empty prompt, which the ascent uses, and from captions of an
    object or a style alone: (n, D) in the order batch, step, image, position. A file a batch, so that a killed capture
    goes on.
    """
    pairs = [drawings.caption(o, s) for o in drawings.OBJECTS for s in drawings.STYLES]
    alone = [drawings.caption(o, None) for o in drawings.OBJECTS] + [drawings.caption(None, s) for s in drawings.STYLES]
    prompts = pairs * images_per_pair + [""] * empty + alone * images_per_word
    width, parts = SAE_CONFIG["d_in"], []
    began = time.time()
    for i in range(0, len(prompts), batch):
        path = args.runs / f"hook_{i:05d}.safetensors"
        if not path.exists():
            _, h = capture(model, prompts[i:i + batch], torch.Generator(args.device).manual_seed(i))
            atomic_save({"h": h.reshape(-1, width)}, path)
            print(f"\rcapture: {i + batch} of {len(prompts)} images, {time.time() - began:.0f} s", end="", flush=True)
        parts.append(load_file(path, device=args.device)["h"])
    return torch.cat(parts)


def train_sae(args):
    """sae.py's loss, with batch top-k; a feature is dead when 100 batches did not wake it."""
    model = load(args.out, args.device)
    h = sae_data(args, model)
    latents = int(SAE_CONFIG["expansion_factor"] * SAE_CONFIG["d_in"])
    sae = SAE(SAE_CONFIG["d_in"], latents, SAE_CONFIG["k"]).to(args.device)
    init(sae, torch.Generator(args.device).manual_seed(2), h[::97].float())
    asleep = torch.zeros(latents, device=args.device)

    def loss(step, generator):
        rows = torch.randint(len(h), (BATCH["sae"],), generator=generator, device=args.device)
        value, fired, main = training_loss(sae, h[rows].float(), asleep > 100)
        asleep.add_(1).masked_fill_(fired, 0)
        return value, {"fvu": main, "dead": (asleep > 100).float().mean()}

    fit("sae", sae, loss, steps=args.steps["sae"], lr=1e-3, folder=args.runs, device=args.device, ema=0.99,
        after=normalize_decoder, weight_decay=0.0)
    normalize_decoder(sae)
    folder = args.out / "sae" / f"unet.{HOOK_POINT}"
    write_json(folder / "cfg.json", SAE_CONFIG | {"num_latents": latents, "normalize_decoder": True,
                                                  "batch_topk": True})
    atomic_save({k: v.half() for k, v in sae.state_dict().items()}, folder / "sae.safetensors")


# --- the judge --------------------------------------------------------------------------------------------------------

def train_judge(args):
    """Cross-entropy of object and style, on drawings of which half are blurred or noisy."""
    images = make_drawings(args.runs).to(args.device)
    objects, styles = torch.tensor([drawings.labels(i) for i in range(len(images))], device=args.device).T
    torch.manual_seed(3)
    judge = Judge().to(args.device)

    def loss(step, generator):
        rows = torch.randint(len(images), (BATCH["judge"],), generator=generator, device=args.device)
        o, s = judge(lesson(images[rows].float() / 255, generator))
        both = F.cross_entropy(o, objects[rows]) + F.cross_entropy(s, styles[rows])
        return both, {"object": (o.argmax(1) == objects[rows]).float().mean(),
                      "style": (s.argmax(1) == styles[rows]).float().mean()}

    fit("judge", judge, loss, steps=args.steps["judge"], lr=1e-3, folder=args.runs, device=args.device, ema=0.99)
    (args.out / "judge").mkdir(parents=True, exist_ok=True)
    atomic_save({k: v.half() for k, v in judge.state_dict().items()}, args.out / "judge/model.safetensors")


def estimate(args):
    """Print how long every stage will take here: its forward and backward pass timed on random input, times its steps.
    """
    dev = args.device
    image, z = torch.rand(BATCH["vae"], 3, 64, 64, device=dev), torch.randn(BATCH["unet"], 4, 16, 16, device=dev)
    t, ids = torch.zeros(len(z), device=dev), torch.zeros(len(z), 77, dtype=torch.int64, device=dev)
    vae, net, judge = VAE(**sizes(VAE_CONFIG, "vae")).to(dev), Denoiser(600).to(dev), Judge().to(dev)
    net.narrow()
    width = SAE_CONFIG["d_in"]
    sae = SAE(width, int(SAE_CONFIG["expansion_factor"] * width), SAE_CONFIG["k"]).to(dev)
    h = torch.randn(BATCH["sae"], width, device=dev)
    init(sae, torch.Generator(dev).manual_seed(0), h)
    asleep = torch.ones(sae.features, dtype=torch.bool, device=dev)
    denoise = lambda: net(z, t, ids).sum()
    work = {"vae": lambda: vae.decode_raw(vae.moments(image)[0]).sum(), "unet": denoise, "sight": denoise,
            "sae": lambda: training_loss(sae, h, asleep)[0],
            "judge": lambda: sum(y.sum() for y in judge(torch.rand(BATCH["judge"], 3, 64, 64, device=dev)))}
    total = 0.0
    for stage in args.stage:
        work[stage]().backward()                                # the first pass also pays for allocation
        began = time.time()
        for _ in range(3):
            work[stage]().backward()
        work[stage]().item()                                    # waits for a GPU
        minutes = (time.time() - began) / 3 * args.steps[stage] / 60
        total += minutes
        print(f"{stage}: {args.steps[stage]} steps of {BATCH[stage]}, about {minutes:.0f} min")
    print(f"about {total:.0f} min in all on {dev}; a killed run goes on where it was", flush=True)


STAGES = {"vae": train_vae, "unet": train_unet, "sight": train_sight, "sae": train_sae, "judge": train_judge}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("weights/toy"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
    args = parser.parse_args(argv)
    args.steps = {stage: getattr(args, f"{stage}_steps") for stage in STEPS}
    estimate(args)
    for stage in args.stage:
        STAGES[stage](args)
        record(args)


def record(args):
    """Settings and the last logged numbers of every stage that has run, stored with the weights."""
    logs = {stage: args.runs / f"{stage}.jsonl" for stage in STAGES}
    write_json(args.out / "training.json", {
        "drawings": COUNT, "batch": BATCH, "vae": VAE_CONFIG, "unet": UNET_CONFIG, "text_encoder": TEXT_CONFIG,
        "sae": SAE_CONFIG,
        "guidance": GUIDANCE, "last": {stage: json.loads(log.read_text().splitlines()[-1]) for stage,
                                       log in logs.items() if log.exists()}})


if __name__ == "__main__":
    main()
