"""What the commands share, and no part of the method: flags, the device, progress, errors on one line."""
