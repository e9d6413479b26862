"""How far a long run is, on stderr: done, rate or activation, time left."""
import sys
import time


class Progress:
    """Steps of the ascent: one line a batch, rewritten at each of its steps."""

    def __init__(self, total, steps):
        self.total, self.steps, self.done, self.began = total, steps, 0, None

    def __call__(self, step):
        self.began = self.began or time.time()
        self.done += 1
        left = (time.time() - self.began) / max(self.done - 1, 1) * (self.total - self.done)
        end = "\n" if step.index + 1 == self.steps else ""
        print(f"\rstep {self.done}/{self.total}, mean activation {step.activation.mean():.4f}, {left:.0f} s left   ", end=end,
              file=sys.stderr, flush=True)


class CaptureProgress:
    """Images of a capture, their rate and the time left."""

    def __init__(self):
        self.began = None

    def __call__(self, done, total):
        if self.began is None:
            self.began, self.first = time.time(), done
            if done:
                print(f"goes on after image {done} of {total}", file=sys.stderr)
            return
        rate = (done - self.first) / max(time.time() - self.began, 1e-9)
        print(f"\rimage {done}/{total}, {rate:.2f} images/s, {(total - done) / rate:.0f} s left   ", end="\n" if done == total else "",
              file=sys.stderr, flush=True)
