"""Filter bank and inverse against librosa; torchaudio has no build for the torch that is tested with."""
import librosa
import numpy as np
import torch

from audio import sound


def test_the_filter_bank_is_librosas():
    theirs = librosa.filters.mel(sr=sound.RATE, n_fft=sound.FFT, n_mels=512, fmin=0, fmax=sound.TOP, htk=True,
                                 norm=None)
    assert np.allclose(sound.mel_filters().numpy(), theirs, atol=2e-4)


def test_the_spectrogram_is_librosas():
    samples = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    theirs = librosa.stft(samples.numpy(), n_fft=sound.FFT, hop_length=sound.HOP, win_length=sound.WINDOW,
                          window="hann",
                          center=True, pad_mode="reflect")
    ours = sound.spectrum(samples[None])[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_the_inverse_is_as_good_as_librosas():
    """Least squares of a spectrogram of noise: a fixed number of updates leaves little more than L-BFGS."""
    samples = torch.randn(1, 12_000, generator=torch.Generator().manual_seed(0))
    bank = sound.mel_filters(128)
    mel = bank @ sound.spectrum(samples).abs()[..., ::9]                                        # (1, M, 4)
    x, left = sound.to_linear(mel)
    theirs = librosa.util.nnls(bank.numpy(), mel[0].numpy())
    assert left <= np.linalg.norm(bank.numpy() @ theirs - mel[0].numpy()) / mel.norm().item() + 0.01
    assert (x >= 0).all()
