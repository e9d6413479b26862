"""Turn spectrogram pictures of Riffusion into sound, and sound into such pictures.

    picture -> mel -> linear magnitudes -> phases -> samples

    mel      ((255 - pixel) / 255)^4, the lowest pitch in the last row; mono in R = G = B, stereo left in G, right in B
    linear   the magnitudes x >= 0 with the least |B x - mel|^2 for the mel filter bank B: multiplicative updates [2]
                 x <- x (B^T mel) / (B^T B x)
    phases   fast Griffin-Lim [3]: t <- c + 0.99 (c - c_before), c the spectrogram of what |x| e^(i arg t) sounds like

Sources
 [1] riffusion/riffusion-hobby, spectrogram_params.py, spectrogram_converter.py, image_util.py: every constant
 [2] Lee & Seung, "Algorithms for Non-negative Matrix Factorization", NeurIPS 2000
 [3] Perraudin, Balazs & Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013

Axes: C channels (1 or 2), M mel bands = rows of the picture (512), K = 8821 frequencies, W columns, L samples.
"""
import io
import wave

import numpy as np
import torch

RATE = 44_100               # samples a second [1]
HOP, WINDOW, FFT = 441, 4410, 17_640            # samples: 10 ms, 100 ms, 400 ms [1]
TOP = 10_000                # Hz, of the highest mel band [1]
POWER = 0.25                # of a magnitude in the picture [1]
UPDATES = 100               # of the magnitudes (ours)
ITERATIONS, MOMENTUM = 32, 0.99                 # of Griffin-Lim [1]
PEAK = 10 ** (-0.1 / 20)    # headroom of 0.1 dB [1]


def mel_filters(bands=512):
    """Build the filter bank B (M, K): triangles of height 1, even in mel = 2595 log10(1 + f / 700) [1: HTK]."""
    frequency = torch.linspace(0, RATE // 2, FFT // 2 + 1)                                      # (K,) Hz
    mels = torch.linspace(0, 2595 * np.log10(1 + TOP / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)                                                     # (M + 2,) Hz
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)).clamp(min=0)


def spectrum(samples):
    """Compute the complex spectrogram (C, K, W) of samples (C, L), W = 1 + L // HOP."""
    return torch.stft(samples, FFT, HOP, WINDOW, torch.hann_window(WINDOW), center=True, pad_mode="reflect",
                      return_complex=True)


def samples_of(spectrum, length):
    """Find the samples (C, L) whose spectrogram is nearest to (C, K, W)."""
    return torch.istft(spectrum, FFT, HOP, WINDOW, torch.hann_window(WINDOW), center=True, length=length)


def to_picture(samples):
    """Draw samples (C, L) in [-1, 1] as a picture (M, W, 3) uint8; C is 1 or 2."""
    mel = mel_filters() @ spectrum(samples).abs()                                               # (C, M, W)
    level = (mel / mel.max().clamp(min=1e-12)) ** POWER
    pixels = (255 - (255 * level).to(torch.uint8)).flip(1)
    planes = [pixels[0]] * 3 if len(pixels) == 1 else [torch.zeros_like(pixels[0]), *pixels]
    return torch.stack(planes, dim=-1)


def to_mel(picture, stereo=False):
    """Read mel magnitudes (C, M, W) in [0, 1] off a picture (M, W, 3) uint8."""
    planes = picture[..., 1:] if stereo else picture[..., :1]
    return ((255 - planes.permute(2, 0, 1).float()) / 255).flip(1) ** (1 / POWER)


def to_linear(mel):
    """Solve mel (C, M, W) for linear magnitudes: (x (C, K, W), |B x - mel| / |mel|)."""
    B = mel_filters(mel.shape[1]).to_sparse()                   # two bands a frequency at most
    Bt = B.T.coalesce()
    flat = mel.transpose(0, 1).flatten(1)                                                       # (M, C W)
    x = pull = Bt @ flat                                                                        # (K, C W)
    for _ in range(UPDATES):
        x = x * pull / (Bt @ (B @ x)).clamp(min=1e-12)
    left = (B @ x - flat).norm() / flat.norm().clamp(min=1e-12)
    return x.unflatten(1, (len(mel), -1)).transpose(0, 1), left.item()


def griffin_lim(magnitudes, seed):
    """Find samples (C, L), L = (W - 1) HOP, with these magnitudes (C, K, W); the first phases are random."""
    length = (magnitudes.shape[-1] - 1) * HOP
    phase = 2 * torch.pi * torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(seed))
    t, before = torch.polar(torch.ones_like(magnitudes), phase), 0
    for _ in range(ITERATIONS):
        c = spectrum(samples_of(magnitudes * t / t.abs().clamp(min=1e-16), length))
        t, before = c + MOMENTUM * (c - before), c
    return samples_of(magnitudes * t / t.abs().clamp(min=1e-16), length)


def to_sound(picture, seed=0, stereo=False):
    """Turn a picture (M, W, 3) uint8 into (samples (C, L) with their peak at -0.1 dBFS, the magnitudes' residual)."""
    magnitudes, left = to_linear(to_mel(picture, stereo))
    samples = griffin_lim(magnitudes, seed)
    return samples * (PEAK / samples.abs().max().clamp(min=1e-12)), left


def to_wav(samples):
    """Encode samples (C, L) in [-1, 1] as the bytes of a WAV file, 16 bits, 44,100 Hz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((len(samples), 2, RATE, samples.shape[1], "NONE", ""))
        wav.writeframes((samples.clamp(-1, 1) * 32767).round().to(torch.int16).T.numpy().astype("<i2").tobytes())
    return file.getvalue()


def read_wav(path):
    """Read a WAV file of 16 bits and 44,100 Hz: samples (C, L) in [-1, 1]; ValueError for another."""
    try:
        with wave.open(str(path), "rb") as wav:
            channels, width, rate, length = wav.getparams()[:4]
            if channels > 2 or (width, rate) != (2, RATE):
                raise wave.Error(f"{channels} channels, {8 * width} bits, {rate} Hz")
            data = np.frombuffer(wav.readframes(length), "<i2").reshape(-1, channels).T
    except (wave.Error, EOFError, ValueError) as e:
        raise ValueError(f"{path}: is no WAV file of 1 or 2 channels, 16 bits, {RATE} Hz ({e}); ffmpeg -i IN -ar "
                         f"{RATE} -sample_fmt s16 OUT.wav makes one") from e
    return torch.from_numpy(data / np.float32(32768))
