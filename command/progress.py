"""Report a long run while it goes on: results on stdout; on stderr the phase, its step and the time left."""
import os
import sys
import time

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


class Line:
    """One line on stderr: rewritten in place on a terminal, elsewhere a new one every ten seconds and at the end."""

    def __init__(self):
        self.began = self.shown = time.monotonic()

    def show(self, text, last):
        now = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r{text:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self.shown >= EVERY:
            self.shown = now
            warn(text)


class Progress(Line):
    """Report the batches of a run: one line a phase (sampling, ascent, finish), with the time left from the first step.

    lengths  {phase: steps of one batch at most}; batches  how many there are
    """

    def __init__(self, lengths, batches):
        super().__init__()
        self.lengths, self.batches, self.batch, self.steps = lengths, batches, 0, {}
        self.whole = sum(COST[phase] * n for phase, n in lengths.items())               # cost of a batch

    def __call__(self, phase, step=None):
        """Count a step of this phase; `step` holds its data where the phase has some."""
        n = self.steps[phase] = self.steps.get(phase, 0) + 1
        done = self.batch * self.whole + sum(COST[name] * count for name, count in self.steps.items())
        left = (time.monotonic() - self.began) / done * max(self.batches * self.whole - done, 0)
        value = "" if step is None else f", activation {step.activation.mean():.3f}"
        length = max(self.lengths[phase], n)
        self.show(f"batch {self.batch + 1} of {self.batches}, {phase} step {n} of {length}{value}, {left:.0f} s left",
                  last=n == length)

    def next_batch(self):
        """Count a batch as done, even if it ended early."""
        self.batch, self.steps = self.batch + 1, {}


class Count(Line):
    """Report how many of something are done, their rate and the time left."""

    def __init__(self, unit):
        super().__init__()
        self.unit, self.first = unit, None

    def __call__(self, done, total):
        """Report `done` of `total`; the first call says how many there were before."""
        if self.first is None:
            self.began, self.first = time.monotonic(), done
            if done >= 1:
                warn(f"goes on after {done:.0f} of {total:.0f} {self.unit}")
            return
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        left = (total - done) / rate
        self.show(f"{done:.0f} of {total:.0f} {self.unit}, {rate:.2f} {self.unit}/s, {left:.0f} s left", done == total)
