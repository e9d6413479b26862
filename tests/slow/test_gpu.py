"""bench/gpu.sh on the CPU at a tiny size: every step runs, one that fails stops no other and is named at the end."""
import json
import os
import subprocess
import sys

from tests.tiny import write_model

STEPS = ["weights", "parity", "speed", "batches", "picture", "check", "torchrun", "both", "capture", "probe"]


def gpu(folder, out):
    """(exit code, lines, what was written)"""
    env = os.environ | {"DEVICE": "cpu", "WEIGHTS": str(folder), "OUT": str(out), "PYTHON": sys.executable,
                        "MINUTE": "15", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "bench/gpu.sh"], env=env, capture_output=True, text=True)
    found = json.loads((out / "gpu_cpu.json").read_text())
    assert list(found["steps"]) == STEPS
    return done.returncode, done.stdout.splitlines(), found


def test_all_of_it(tmp_path):
    code, lines, found = gpu(write_model(tmp_path / "tiny", activity=None), tmp_path / "out")
    assert (code, lines[-1]) == (0, "gpu.sh: all 10 steps passed"), lines
    assert {step["code"] for step in found["steps"].values()} == {0}
    assert found["parity"]["float32"] == [0, 0] and 0 < found["parity"]["bfloat16"][0] < 0.05
    assert [row["batch"] for row in found["batches"]] == [1, 2] and all(row["seconds"] > 0 for row in found["batches"])
    assert {"original", "ours"} <= {row["way"] for row in found["speed"]["rows"]}
    assert ".png: " in found["said"]["picture"] and "GiB" in found["said"]["check"]
    assert any(line.startswith("| 1 | ours | float32 |") for line in lines)


def test_what_fails_is_named_and_stops_nothing(tmp_path):
    """A model without an autoencoder has no features to climb; its UNet is as good as any."""
    code, lines, found = gpu(write_model(tmp_path / "tiny", sae=None), tmp_path / "out")
    failed = [name for name, step in found["steps"].items() if step["code"]]
    assert code == 1 and lines[-1].startswith(f"gpu.sh: failed: {', '.join(failed)}; logs in ")
    assert {"picture", "both"} <= set(failed) and not {"weights", "parity"} & set(failed)
