"""Sound from spectrogram pictures: pitch, order, chords, silence, stereo, the file. The filters are in tests/oracle."""
import io
import math
import wave

import pytest
import torch

from audio import sound
from audio.sound import HOP, RATE, to_mel, to_picture, to_sound, to_wav

COLUMNS = 48                # of Riffusion's 512
SECONDS = (COLUMNS - 1) * HOP / RATE
T = torch.arange((COLUMNS - 1) * HOP) / RATE


def tone(f, begin=0.0, end=SECONDS):
    return torch.where((T >= begin) & (T < end), (2 * math.pi * f * T).sin(), torch.tensor(0.0))


def heard_as(samples, begin, end, expected):
    """Whether the strongest frequencies of a stretch are the expected ones, to a half-tone."""
    some = samples[int(begin * RATE):int(end * RATE)]
    power, found = torch.fft.rfft(some * torch.hann_window(len(some)), n=2 ** 17).abs(), []
    for _ in expected:
        k = power.argmax().item()
        found.append(k * RATE / 2 ** 17)
        power[max(k - 60, 0):k + 60] = 0
    return all(abs(12 * math.log2(a / b)) < 0.5 for a, b in zip(sorted(found), expected))


def test_a_scale_keeps_its_order_and_a_chord_its_tones_each_on_its_side():
    scale, chord, each = [262, 392, 523], [262, 392, 659], SECONDS / 3
    left = sum(tone(f, i * each, (i + 1) * each) for i, f in enumerate(scale))
    picture = to_picture(torch.stack([left, sum(map(tone, chord)) / 3]))
    heard, residual = to_sound(picture, stereo=True)
    assert picture.shape == (512, COLUMNS, 3) and not picture[..., 0].any()
    assert heard.shape == (2, (COLUMNS - 1) * HOP) and residual < 1e-3
    assert all(heard_as(heard[0], (i + 0.25) * each, (i + 0.75) * each, [f]) for i, f in enumerate(scale))
    assert heard_as(heard[1], 0.2, SECONDS - 0.2, chord)


def test_the_same_seed_gives_the_same_sound_and_silence_is_silent():
    picture = to_picture(tone(440)[None])[:, :24]
    assert torch.equal(picture[..., 0], picture[..., 2])
    one, same, other = (to_sound(picture, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.abs().max() == pytest.approx(10 ** (-0.1 / 20))
    quiet, residual = to_sound(to_picture(torch.zeros(1, len(T)))[:, :24])
    assert quiet.isfinite().all() and quiet.abs().max() < 1e-3 and residual < 1e-3


def test_eight_bits_cost_little():
    """A pixel is floor(255 s^(1/4)) of a magnitude s <= 1: at full loudness one step is 4 / 255 of it."""
    samples = tone(440)[None]
    mel = sound.mel_filters() @ sound.spectrum(samples).abs()
    error = (to_mel(to_picture(samples)) - mel / mel.max()).abs()
    assert 0 < error.max() <= 4 / 255 + 1e-4


def test_the_file_is_a_wav_of_the_right_length(tmp_path):
    samples = torch.stack([tone(440), tone(660)]) * 0.5
    with wave.open(io.BytesIO(to_wav(samples))) as wav:
        assert wav.getparams()[:4] == (2, 2, 44_100, samples.shape[1])
    (tmp_path / "x.wav").write_bytes(to_wav(samples))
    assert torch.allclose(sound.read_wav(tmp_path / "x.wav"), samples, atol=1e-4)
    assert (512 - 1) * HOP / RATE == pytest.approx(5.11)
    (tmp_path / "y.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(ValueError, match="y.wav: is no WAV file"):
        sound.read_wav(tmp_path / "y.wav")
