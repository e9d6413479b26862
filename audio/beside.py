"""Make the sounds that are kept beside a result's pictures."""
import torch

from audio.sound import to_sound, to_wav
from command.progress import warn
from vae import to_uint8


def sounds(result):
    """Turn a result's pictures into sounds: {suffix: bytes of a WAV file} of the start, the ascent and the finish."""
    pictures = {".wav": result.image}
    if result.frames:
        pictures[".start.wav"] = result.frames[0]
    if result.finished:
        pictures[".finished.wav"] = result.finished.image
    found = {}
    for suffix, image in pictures.items():
        samples, left = to_sound(torch.from_numpy(to_uint8(image)), result.job.seed)
        found[suffix] = to_wav(samples)
        warn(f"sound{suffix}: the linear magnitudes leave {left:.2%} of the mel ones unexplained")
    return found
