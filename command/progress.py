"""What a long run says while it goes on: results on stdout; on stderr what is done, how well, and the time left."""
import os
import sys
import time

EVERY = 10                  # seconds between two lines where nobody watches


def say(text):
    """A line on stdout; where nobody reads it any more (`| head -1`), the run goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")    # noqa: SIM115: stays open as long as the run


class Line:
    """One line on stderr: rewritten in place on a terminal, elsewhere a new one every ten seconds and at the end."""

    def __init__(self):
        self.began = self.shown = time.monotonic()

    def show(self, text, last):
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if terminal:
            print(f"\r{text}   ", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self.shown >= EVERY:
            self.shown = now
            print(text, file=sys.stderr, flush=True)


class Progress(Line):
    """Steps of the courses of n jobs, `size` together, `length` steps each at most; a course may end early."""

    def __init__(self, n, size, length):
        super().__init__()
        self.size, self.length, self.done, self.results = size, length, 0, 0
        self.total = -(-n // size) * length

    def __call__(self, step):
        if not self.done:
            self.began = time.monotonic()                       # what came before is no step
        self.done += 1
        left = (time.monotonic() - self.began) / max(self.done - 1, 1) * (self.total - self.done)
        self.show(f"step {self.done}/{self.total}, mean activation {step.activation.mean():.4f}, {left:.0f} s left",
                  self.done == self.total)

    def finished(self, result):
        """A result is there: so its batch's course has ended, early or not."""
        self.results += 1
        self.done = max(self.done, (self.results - 1) // self.size * self.length + self.length)


class CaptureProgress(Line):
    """Images of a capture and their rate."""

    def __init__(self):
        super().__init__()
        self.first = None

    def __call__(self, done, total):
        if self.first is None:
            self.began, self.first = time.monotonic(), done
            if done:
                print(f"goes on after image {done} of {total}", file=sys.stderr)
            return
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        self.show(f"image {done}/{total}, {rate:.2f} images/s, {(total - done) / rate:.0f} s left", done == total)
