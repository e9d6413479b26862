"""The toy's own eyes: a small CLIP that learned which captions belong to which drawings, for legibility.py.

    python -m toyworld.eyes [--runs FOLDER] [--out weights/toy] [--device cuda]

For B drawings and B captions, one of each drawing, with picture embeddings e_i, text embeddings c_j, scale s:

    p_ij = softmax over j of s e_i . c_j            q_ij = softmax over i of s e_i . c_j
    loss = - mean_i mean_{j true of i} log p_ij / 2 - mean_j mean_{i of which j is true} log q_ij / 2

A third of the captions name the object alone and a third the style alone, so that single words find pictures. Many
captions are therefore true of one drawing; all of these count alike, where CLIP counts one. As the judge, the eyes see
drawings alone, half of them blurred and all noisy (judge.lesson), and never what the model makes; they share no weight
with the judge, whose verdicts they must not know.

It resumes where it was killed (its state is kept in --runs), and writes weights/toy/clip: the layout of weights/eyes.py
and words.txt, the 18 words.

Sources
 [1] Radford et al., arXiv 2103.00020: the two networks and the contrast of pictures and texts, the scale at most 100
 [2] Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362: the mean over several that are true
"""
import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from torch import nn

from clip import CLIP, LENGTH, MEAN, STD
from toyworld import drawings
from toyworld.drawings import OBJECTS, STYLES
from toyworld.fit import atomic_save, fit
from toyworld.judge import lesson
from toyworld.train import COUNT, make_drawings, write_json
from weights.load import read_tokenizer

TEXT = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            hidden_act="quick_gelu", max_position_embeddings=LENGTH)
VISION = dict(image_size=drawings.SIZE, patch_size=8, hidden_size=96, intermediate_size=384, num_hidden_layers=3,
              num_attention_heads=3, hidden_act="quick_gelu")
WIDTH = 64                  # E, of the space in which pictures and texts meet
BATCH, STEPS = 64, 1_500
CAPTIONS = [(o, s) for o in (*OBJECTS, None) for s in (*STYLES, None)]                          # the last says nothing
TOKENS = 8                  # of the longest caption with start and end; later ones cannot be seen by those before


def pixels(images):
    """Images (B, 3, 64, 64) in [0, 1] -> what the vision network takes, as clip.preprocess."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def contrast(logits, true):
    """The loss above: logits s e_i . c_j and whether caption j is true of drawing i, both (B, B)."""
    share = lambda dim: (logits.log_softmax(dim) * true).sum(dim) / true.sum(dim)
    return -(share(0).mean() + share(1).mean()) / 2


def build(vocab_size):
    """The networks before training; embeddings begin small, so that what is seen outweighs where."""
    torch.manual_seed(4)
    sizes = lambda config: {k: v for k, v in config.items() if k not in ("hidden_act", "max_position_embeddings")}
    net = CLIP(sizes(TEXT) | {"vocab_size": vocab_size}, sizes(VISION), WIDTH)
    for part in net.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
    nn.init.normal_(net.vision_model.embeddings.class_embedding, std=0.02)
    return net


def train(args):
    tokenizer = read_tokenizer(args.out / "tokenizer")
    images = make_drawings(args.runs)
    objects, styles = torch.tensor([drawings.labels(i) for i in range(len(images))], device=args.device).T
    ids = tokenizer([drawings.caption(*c) for c in CAPTIONS])[:, :TOKENS].to(args.device)       # (99, 8)
    net = build(len(tokenizer.vocab)).to(args.device)

    def loss(step, generator):
        draw = lambda high: torch.randint(high, (BATCH,), generator=generator, device=args.device)
        rows, kind = draw(len(images)), draw(3)
        o, s = objects[rows], styles[rows]
        said_o, said_s = torch.where(kind == 1, len(OBJECTS), o), torch.where(kind == 2, len(STYLES), s)
        seen = lesson(images[rows.cpu()].to(args.device).float() / 255, generator)
        said = net.embed_texts(ids)[said_o * (len(STYLES) + 1) + said_s]                        # (B, E)
        logits = net.logit_scale.exp() * net.embed_images(pixels(seen)) @ said.T                # (B, B)
        fits = lambda said, shown, none: (said == shown[:, None]) | (said == none)
        true = fits(said_o, o, len(OBJECTS)) & fits(said_s, s, len(STYLES))                     # (B, B)
        best = logits.detach().argmax(1)
        return contrast(logits, true), {"right": true[torch.arange(BATCH), best].float().mean()}

    def bound(net):
        with torch.no_grad():
            net.logit_scale.clamp_(max=math.log(100))

    began = time.time()
    for step in range(3):
        loss(step, torch.Generator(args.device).manual_seed(step))[0].backward()
    print(f"eyes: {args.steps} steps of {BATCH}, about {(time.time() - began) / 3 * args.steps / 60:.0f} min on "
          f"{args.device}; a killed run goes on where it was", flush=True)
    fit("eyes", net, loss, steps=args.steps, lr=1e-3, folder=args.runs, device=args.device, ema=0.995, after=bound)
    return net, tokenizer


def export(net, tokenizer, args):
    """The folder in the layout of weights/eyes.py, numbers in fp16."""
    folder = args.out / "clip"
    text = TEXT | {"vocab_size": len(tokenizer.vocab), "eos_token_id": len(tokenizer.vocab) - 1}
    write_json(folder / "config.json", {"text_config": text, "vision_config": VISION, "projection_dim": WIDTH})
    shutil.copytree(args.out / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    groups = (("objects", drawings.caption("{}", None), OBJECTS), ("styles", drawings.caption(None, "{}"), STYLES))
    text = "\n".join("".join(f"{line}\n" for line in (f"# {name}: {template}", *sorted(words)))
                     for name, template, words in groups)
    (folder / "words.txt").write_text(text, encoding="utf-8")
    last = json.loads((args.runs / "eyes.jsonl").read_text().splitlines()[-1])
    write_json(folder / "training.json", {"drawings": COUNT, "batch": BATCH, "last": last})
    atomic_save({k: v.half() for k, v in net.state_dict().items()}, folder / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("weights/toy"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    export(*train(args), args)


if __name__ == "__main__":
    main()
