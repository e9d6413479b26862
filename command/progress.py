"""Report a long run while it goes on: results on stdout; on stderr the phase, its step and the time left."""
import os
import sys
import time
from itertools import accumulate

EVERY = 10                                      # seconds between two lines where stderr is no terminal
COST = {"sampling": 1, "ascent": 2, "finish": 2}        # of a step, about: a gradient costs a second pass


def say(text):
    """Print a line on stdout; go on in silence where nobody reads it any more (`| head -1`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")    # open as long as the run


def warn(text):
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Count:
    """Report how many are done, their rate and the time left: on a terminal one line that is rewritten, elsewhere a new
    one every ten seconds and at the end."""

    def __init__(self, unit):
        self.unit, self.first = unit, None
        self.began = self.shown = time.monotonic()

    def __call__(self, done, total):
        """Report `done` of `total`; the first call says how many there were before."""
        if self.first is None:
            self.began, self.first = time.monotonic(), done
            if done >= 1:
                warn(f"goes on after {done:.0f} of {total:.0f} {self.unit}")
            return
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        self.show(f"{done:.0f} of {total:.0f} {self.unit}, {rate:.2f} {self.unit}/s", (total - done) / rate,
                  done == total)

    def show(self, text, left, last):
        text, now = f"{text}, {left:.0f} s left", time.monotonic()
        if sys.stderr and sys.stderr.isatty():
            print(f"\r{text:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self.shown >= EVERY:
            self.shown = now
            warn(text)


class Progress(Count):
    """Report steps by batch and phase, with the time left; lengths: {phase: steps of one batch at most}, in order."""

    def __init__(self, lengths, batches):
        super().__init__("steps")
        self.lengths, self.batches, self.batch, self.step = lengths, batches, 0, 0
        *starts, self.whole = accumulate((COST[phase] * n for phase, n in lengths.items()), initial=0)
        self.starts = dict(zip(lengths, starts))                # cost of what comes before a phase in a batch

    def __call__(self, phase, step):
        """Count a step of this phase."""
        n, length = self.step + 1, self.lengths[phase]
        done = self.batch * self.whole + self.starts[phase] + COST[phase] * n
        left = (time.monotonic() - self.began) / done * (self.batches * self.whole - done)
        value = f", activation {step.activation.mean():.3f}" if hasattr(step, "activation") else ""
        self.show(f"batch {self.batch + 1} of {self.batches}, {phase} step {n} of {length}{value}", left, n == length)
        self.step, self.batch = n % length, done // self.whole
