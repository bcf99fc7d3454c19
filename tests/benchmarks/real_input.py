"""The 70S ribosome set of RELION, refined from a 40 A reference and found from nothing.

    python tests/benchmarks/real_input.py [--data FOLDER] [--threads N] [--seeds 1,2,3,4,5] [--order N]

Prints one row per run: the last shell at which the map's FSC with the truth stays above 0.5 (after
alignment over rotation, shift and hand), median pose error, time, and the verdict in words.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from cryoprob.inference.config import FitConfig
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.metrics.pose_error import pose_error


def run(data: Path, seed: int, from_nothing: bool, threads: int, order: int) -> str:
    """One fit, judged."""
    truth, pixel_size = read_map(data / "truth.mrc")
    config = FitConfig(
        str(data / "particles.star"),
        reference=None if from_nothing else str(data / "truth.mrc"),
        seed=seed,
        threads=threads,
        schedule=Schedule(max_order=order),
    )
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        result = run_fit(config, folder)
    seconds = time.time() - began
    found = align_maps(result.volume, truth, pixel_size=pixel_size)
    curve = fsc(found.move_map(result.volume, pixel_size), truth)
    table = read_particles(data / "truth.star", need=("rotation", "shift"))
    posterior = result.posterior
    error = pose_error(
        posterior.rotation.double(),
        posterior.shift.double(),
        table.rotation(),
        table.displacement(),
        found,
    )
    start = "nothing" if from_nothing else "40 A"
    evidence = float(posterior.bound.mean())
    return (
        f"{start:8} {seed:4} {last_shell(curve, 0.5):6} {error.median_rotation_deg:9.2f}"
        f" {error.median_shift_A / pixel_size:9.2f} {found.mirrored!s:>7} {evidence:10.2f}"
        f" {len(result.history):5} {seconds:7.0f}  {result.trust}"
    )


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "relion-70s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--order", type=int, default=Schedule().max_order)
    parser.add_argument("--skip-reference", action="store_true")
    given = parser.parse_args()
    print("start    seed  shell  rotation   shift/px  mirror   evidence steps seconds", flush=True)
    if not given.skip_reference:
        print(run(given.data, 1, False, given.threads, given.order), flush=True)
    for seed in given.seeds.split(","):
        print(run(given.data, int(seed), True, given.threads, given.order), flush=True)


if __name__ == "__main__":
    main()
