"""What a picture of a spectrogram model sounds like."""
