"""Files, handled so that nothing hangs, mixes or stays half-written; and the one error that bad weights end in."""
import os
import stat
from contextlib import contextmanager, suppress

try:
    import fcntl                                # locks; not on Windows
except ImportError:
    fcntl = None

from weights.load import AGAIN, WeightsError  # noqa: F401


def open_regular(path):
    """The file, opened for bytes; OSError for what is none, before a pipe could block or a device never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(0, "a folder" if stat.S_ISDIR(mode) else "no regular file")
    return open(path, "rb")


def unreadable(path, error, kind="safetensors"):
    return WeightsError(f"{path}: cannot be read ({error.strerror or error}); expected a {kind} file there, {AGAIN}")


@contextmanager
def alone(folder):
    """One process at a time, where the file system can lock; the lock of a killed one is gone with it."""
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(handle)


@contextmanager
def replacing(path, lasting=True):
    """A binary file to write; takes `path`'s place when all went well, leaves nothing behind when not.

    lasting  the file is on the disk by then, which takes milliseconds; else a power cut may leave an empty one
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        if e.errno and not e.filename:                          # a full disk does not say which file
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise
    finally:
        partial.unlink(missing_ok=True)
