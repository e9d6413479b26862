"""Filter bank, spectrogram and inverse against librosa; torchaudio has no build for the torch that is tested with."""
import librosa
import numpy as np
import torch

from audio import sound


def test_filters_spectrogram_and_inverse_are_librosas():
    bank = librosa.filters.mel(sr=sound.RATE, n_fft=sound.FFT, n_mels=512, fmin=0, fmax=sound.TOP, htk=True, norm=None)
    assert np.allclose(sound.mel_filters().numpy(), bank, atol=2e-4)
    samples = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    theirs = librosa.stft(samples.numpy(), n_fft=sound.FFT, hop_length=sound.HOP, win_length=sound.WINDOW,
                          window="hann", center=True, pad_mode="reflect")
    ours = sound.spectrum(samples[None])
    assert np.abs(ours[0].numpy() - theirs).max() < 1e-3 * np.abs(theirs).max()
    # a fixed number of updates leaves little more than the L-BFGS of librosa
    few = sound.mel_filters(128)
    mel = few @ ours[..., ::20].abs()                                                           # (1, M, 4)
    x, residual = sound.to_linear(mel)
    exact = np.linalg.norm(few.numpy() @ librosa.util.nnls(few.numpy(), mel[0].numpy()) - mel[0].numpy())
    assert residual <= exact / mel.norm().item() + 0.01 and (x >= 0).all()
