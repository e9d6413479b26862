"""Prompts of a capture: the grids of objects and styles, or a file of one's own."""
import json
from pathlib import Path

# Objects and styles of constants/const.py in UnlearnCanvas' code, Zhang et al., arXiv 2402.11846.
WORDS = json.loads(Path(__file__).with_name("unlearncanvas.json").read_text(encoding="utf-8"))
STYLES = (*sorted(WORDS["styles"] + WORDS["more_styles"]), "photo")
ENDINGS = (".", *(f" in {style} style." for style in WORDS["styles"]))
GRIDS = {
    # 20 x 61: all four example prompts of the thesis say "An", and one is in Pointillism style, which only the longer
    # list has. That the others are like these is inferred: the file that the original reads is not public.
    "thesis": tuple(f"An {thing} image in {style} style" for thing in WORDS["objects"] for style in STYLES),
    # 20 x 51: every object alone and in 50 styles, spelled as in EIDOSLAB/SAEmnesia.
    "saemnesia": tuple(f"An image of {thing}{ending}" for thing in WORDS["objects"] for ending in ENDINGS)}


def read_prompts(path):
    """Read a prompt or word from each line of a text file, or from `text` in each line of a .jsonl file, each once."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if Path(path).suffix == ".jsonl":
            lines = [json.loads(line)["text"] for line in lines]
        prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    except OSError as e:
        raise ValueError(f"{path}: cannot be read ({e.strerror}); give a text file with one entry a line") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: is not text in UTF-8 with one entry a line, or as .jsonl with one object a line and "
                         f"the key text ({e})") from e
    if not prompts:
        raise ValueError(f"{path}: holds no text; give a file with one entry a line")
    return prompts


def find_prompts(prompts):
    """Return the prompts that are meant by the name of a grid, a file, or a list of texts."""
    if str(prompts) in GRIDS:
        return GRIDS[str(prompts)]
    return read_prompts(prompts) if isinstance(prompts, (str, Path)) else tuple(prompts)
