"""Make the sounds of a spectrogram model's pictures."""
import torch

from audio.sound import to_sound, to_wav
from command.progress import warn
from vae import to_uint8


def sounds(result):
    """Return {suffix: bytes of a WAV file} of a result's picture, its start and its finished picture."""
    found, pictures = {}, {".wav": result.image, ".start.wav": result.frames.get(0),
                           ".finished.wav": result.finished and result.finished.image}
    for suffix, image in pictures.items():
        if image is not None:
            samples, left = to_sound(torch.from_numpy(to_uint8(image)), result.job.seed)
            found[suffix] = to_wav(samples)
            warn(f"sound{suffix}: the linear magnitudes leave {left:.2%} of the mel ones unexplained")
    return found
