"""Peak memory of a fit of 20,000 and of 40,000 images of 128 x 128: it must not grow.

Not a test: ``python tests/benchmarks/memory.py`` draws the images block by block onto disk (1.3
and 2.6 GB in a temporary folder), fits each set in a process of its own and prints its peaks.

Anonymous memory (``RssAnon`` of /proc/self/status, looked at every 20 ms by a thread) is what the
program asked for. Pages of the memory-mapped stack are the kernel's: they count in ``VmHWM``, and
are given back whenever someone needs the memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from cryoprob.inference.config import FitConfig
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.models.simulate import simulate
from cryoprob.phantoms import bead_walk

BOX, PIXEL_SIZE, SNR = 128, 3.0, 0.1
COUNTS = (20_000, 40_000)
QUICK = Schedule(
    max_iterations=2,
    coarse_order=1,
    max_order=2,
    max_radius=12,
    shift_extent=4.0,
    shift_step=2.0,
)
"""Memory is set by images and bands, not by how fine the search is."""
WHOLE = Schedule(max_iterations=2)
"""For known poses: the whole band, where the sums over slices take most."""


class Peak(threading.Thread):
    """The largest anonymous resident memory seen so far, bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        """Look every 20 ms."""
        while True:
            self.bytes = max(self.bytes, status("RssAnon"))
            time.sleep(0.02)


def status(name: str) -> int:
    """A line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"no {name} in /proc/self/status: this needs Linux")


def fit(folder: Path, threads: int, known: bool) -> None:
    """Fit the stack of a folder and print the peaks as JSON; the process's only work."""
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    before = status("RssAnon")
    config = FitConfig(
        str(folder / ("truth.star" if known else "particles.star")),
        poses="known" if known else "ignore",
        reference=None if known else str(folder / "truth.mrc"),
        mask="sphere",
        seed=0,
        threads=threads,
        schedule=WHOLE if known else QUICK,
    )
    run_fit(config, folder / "fit")
    found = {
        "before": before,
        "anonymous": peak.bytes,
        "resident": status("VmHWM"),
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(found))


def measure(count: int, threads: int, known: bool) -> str:
    """Draw ``count`` images, fit them in a new process; a line of the table."""
    with tempfile.TemporaryDirectory(prefix="memory_") as name:
        generator = torch.Generator().manual_seed(1)
        volume = bead_walk(30, BOX, PIXEL_SIZE, generator)
        simulate(volume, PIXEL_SIZE, count, SNR, generator, out=name)
        disk = (Path(name) / "particles.mrcs").stat().st_size
        command = [sys.executable, __file__, "--fit", name, "--threads", str(threads)]
        command += ["--known"] if known else []
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(printed.splitlines()[-1])
    sizes = [
        f"{b / 2**30:.2f}" for b in (disk, found["before"], found["anonymous"], found["resident"])
    ]
    poses = "known, all shells" if known else "searched, 12 shells"
    return f"| {count} | {poses} | {' | '.join(sizes)} | {found['seconds']:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--known", action="store_true", help="known poses only")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.fit:
        fit(options.fit, options.threads, options.known)
        return
    names = "images", "poses", "on disk, GiB", "before the fit", "peak, anonymous"
    print(f"| {' | '.join(names)} | peak, with pages | s |\n|---|---|---|---|---|---|---|")
    for count in options.counts:
        for known in (False, True) if not options.known else (True,):
            print(measure(count, options.threads, known), flush=True)


if __name__ == "__main__":
    main()
