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
        sys.stdout = open(os.devnull, "w", encoding="utf-8")    # noqa: SIM115: stays open as long as the run
    except UnicodeEncodeError:                  # a console that lacks a letter
        code = sys.stdout.encoding or "ascii"
        print(text.encode(code, "replace").decode(code), flush=True)


def warn(text):
    """Print a line on stderr; where there is none, or it is closed, the work goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError, UnicodeEncodeError):
        return


class Line:
    """One line on stderr: rewritten in place on a terminal, elsewhere a new one every ten seconds and at the end."""

    def __init__(self):
        self.began = self.shown = time.monotonic()
        self.terminal = bool(sys.stderr) and sys.stderr.isatty()

    def show(self, text, last):
        now = time.monotonic()
        if self.terminal:
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
        batch = f"batch {self.batch + 1} of {self.batches}, " if self.batches > 1 else ""
        value = "" if step is None else f", activation {step.activation.mean():.3f}"
        length = max(self.lengths.get(phase, 0), n)
        self.show(f"{batch}{phase} step {n} of {length}{value}, {left:.0f} s left", n == length)

    def next_batch(self):
        """Count a batch as done, even if it ended early."""
        self.batch, self.steps = self.batch + 1, {}


class CaptureProgress(Line):
    """Report the images of a capture, their rate and the time left."""
    first = None                                # images that were there before

    def __call__(self, done, total):
        if self.first is None:
            self.began, self.first = time.monotonic(), done
            if done:
                warn(f"goes on after image {done} of {total}")
            return
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        self.show(f"image {done} of {total}, {rate:.2f} images/s, {(total - done) / rate:.0f} s left", done == total)
