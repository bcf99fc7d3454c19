"""RELION's relion_refine beside cryoprob: same images, start, sampling, bands, mask, threads.

Not a test: ``python tests/benchmarks/relion_refine.py --out FOLDER`` runs both and prints a table.
RELION 3.1 runs first; cryoprob then takes, iteration by iteration, the band that RELION chose
(``rlnCurrentImageSize / 2`` shells). What is left different is said under the table.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import starfile
import torch
from torch import Tensor

from cryoprob import masks
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import low_pass
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.m_step import power, solve_volume, update_noise, update_tau2
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles
from cryoprob.metrics import fsc, last_shell, pose_error
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "relion-70s"
START_A = 40.0
DIAMETER_A = 300.0
EDGE_PX = 5.0
COARSE_ORDER = 2
SHIFT_EXTENT_PX, SHIFT_STEP_PX = 6.0, 2.0
MASS = 0.999
SEED = 1

NOTES = """Same: images, truth low-passed to 40 A as start, HEALPix order 2 searched completely and
refined once where 99.9 % of the mass lies (29 shifts of 10 A, refined to 5 A), band of each
iteration, 300 A solvent ball of 5 px edge on the map, threads. No normalization and no scale
correction. Different: RELION masks the images too, takes an image's best pose (here: the mean
around the mode), updates the map by a Wiener filter (here: exact M-step), and has a band of its own
for the coarse pass."""


@dataclass(frozen=True)
class Row:
    """One iteration of one program."""

    program: str
    iteration: int
    radius: int
    seconds: float
    processor_seconds: float
    shell: int
    rotation_deg: float
    shift_A: float


@dataclass(frozen=True, eq=False)
class Truth:
    """What the images were made of."""

    volume: Tensor
    pixel_size: float
    rotation: Tensor
    shift: Tensor

    @classmethod
    def read(cls, folder: Path) -> "Truth":
        """From the map and the table of poses."""
        volume, pixel_size = read_map(folder / "truth.mrc")
        table = read_particles(folder / "truth.star")
        return cls(volume, pixel_size, table.rotation(), table.displacement())

    def row(self, head: tuple, volume: Tensor, rotation: Tensor, shift: Tensor) -> Row:
        """Errors of one iteration; the start fixes the frame, so nothing is aligned."""
        shell = last_shell(fsc(volume, self.volume), 0.5)
        error = pose_error(rotation, shift, self.rotation, self.shift)
        return Row(*head, shell, error.median_rotation_deg, error.median_shift_A)


def relion_command(out: Path, iterations: int, threads: int, tau2_fudge: float) -> list[str]:
    """The command line of a single-class refinement of the whole set."""
    settings = {
        "--i": "particles.star",
        "--o": out / "run",
        "--ref": "truth.mrc",
        "--ini_high": START_A,
        "--iter": iterations,
        "--K": 1,
        "--tau2_fudge": tau2_fudge,
        "--particle_diameter": DIAMETER_A,
        "--maskedge": EDGE_PX,
        "--healpix_order": COARSE_ORDER,
        "--oversampling": 1,
        "--offset_range": SHIFT_EXTENT_PX,
        "--offset_step": SHIFT_STEP_PX,
        "--adaptive_fraction": MASS,
        "--sym": "C1",
        "--pad": 2,
        "--pool": 8,
        "--j": threads,
        "--random_seed": SEED,
    }
    flags = ["--ctf", "--ctf_corrected_ref", "--flatten_solvent", "--zero_mask"]
    flags += ["--dont_check_norm", "--preread_images"]
    return ["relion_refine", *(str(word) for pair in settings.items() for word in pair), *flags]


def run_relion(
    data: Path, truth: Truth, out: Path, iterations: int, threads: int, tau2_fudge: float
) -> list[Row]:
    """Refine with RELION, unless the folder already holds its results; read them."""
    times = out / "seconds.csv"
    if not times.exists():
        command = relion_command(out, iterations, threads, tau2_fudge)
        run_watched(command, data, out, times)
    spent = [tuple(map(float, line.split(","))) for line in times.read_text().split()]
    return [relion_row(truth, out, i, *pair) for i, pair in enumerate(spent, 1)]


def run_watched(command: list[str], data: Path, out: Path, times: Path) -> None:
    """Run RELION; write wall and processor seconds between the appearance of each two models."""
    marks = []
    with open(out / "relion.log", "w") as log, open(times, "w", buffering=1) as table:
        running = subprocess.Popen(command, cwd=data, stdout=log, stderr=log)
        while running.poll() is None:
            if relion_file(out, len(marks), "model.star").exists():
                marks.append((time.perf_counter(), processor_seconds(running.pid)))
                if len(marks) > 1:
                    wall, cpu = (b - a for a, b in zip(*marks[-2:], strict=True))
                    table.write(f"{wall:.2f},{cpu:.2f}\n")
            time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"relion_refine ended with {running.returncode}: see {log.name}")


def processor_seconds(process: int) -> float:
    """User and system time of a running process so far."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def relion_file(out: Path, iteration: int, name: str) -> Path:
    """One of an iteration's files."""
    return out / f"run_it{iteration:03d}_{name}"


def relion_row(truth: Truth, out: Path, iteration: int, wall: float, cpu: float) -> Row:
    """One iteration, from its files."""
    general = starfile.read(relion_file(out, iteration, "model.star"))["model_general"]
    radius = int(general["rlnCurrentImageSize"]) // 2
    volume, _ = read_map(relion_file(out, iteration, "class001.mrc"), pixel_size=truth.pixel_size)
    table = read_particles(relion_file(out, iteration, "data.star"))
    head = ("RELION", iteration, radius, wall, cpu)
    return truth.row(head, volume, table.rotation(), table.displacement())


def start_model(stack: ParticleStack, start: Tensor) -> ParticleModel:
    """Noise starts at the mean power of the images, prior power at the start's own."""
    box, size = stack.box, stack.pixel_size
    rotation = UniformRotation().discretize(COARSE_ORDER + 1)
    extent, step = SHIFT_EXTENT_PX * size, SHIFT_STEP_PX * size
    shift = GaussianShift(10.0).discretize(extent, step, refine=1)
    band = full_band(box)
    mean = stack.batch(torch.arange(len(stack)), band).power.mean(0)
    noise = RadialNoise((mean / band.numbers_per_shell()).float())
    found = power(start)
    tau2 = found.clamp(min=1e-4 * float(found.max()))
    return ParticleModel(FourierVoxels(box, tau2), rotation, shift, noise, size)


def run_cryoprob(
    stack: ParticleStack, truth: Truth, radii: list[int], *, exact: bool
) -> list[Row]:
    """Exact EM with the band of each iteration given."""
    start = low_pass(truth.volume, truth.pixel_size, START_A)
    solvent = masks.sphere(stack.box, DIAMETER_A / stack.pixel_size / 2, EDGE_PX)
    model = start_model(stack, start)
    treatment = Exact(MASS, coarse_order=COARSE_ORDER)
    guide = Guide(rotation=treatment, shift=treatment, volume=Point(start))
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for number, radius in enumerate(radii, 1):
        begun, cpu = time.perf_counter(), time.process_time()
        summary = step(model, guide, stack, radius, solvent, generator, exact)
        spent = time.perf_counter() - begun, time.process_time() - cpu
        name = "cryoprob" if exact else "cryoprob, diagonal M-step"
        head = (name, number, radius, *spent)
        volume = guide.volume.coefficients.detach()
        rows.append(truth.row(head, volume, summary.rotation, summary.shift))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def step(model, guide, stack, radius, solvent, generator, exact):  # noqa: D103, ANN001, ANN201
    model.volume.set_band(radius)
    model.rotation.turn.copy_(random_rotations(1, generator, dtype=torch.float32)[0])
    statistics = e_step(model, guide, stack)
    volume, tau2 = guide.volume.coefficients.data, model.volume.tau2
    found = solve_volume(statistics.insertion.equations(), tau2, volume, exact=exact)
    update_noise(model, statistics)
    update_tau2(model, found)
    mean_square = statistics.shift_power / (2 * len(stack))
    model.shift.sigma.copy_(mean_square.sqrt())
    volume.copy_(found.volume * solvent)
    return statistics.summary


def table(rows: list[Row], box_A: float) -> str:
    """Markdown, one line an iteration."""
    names = "program", "iteration", "shells", "s", "CPU s", "FSC 0.5 to shell", "A"
    head = f"| {' | '.join(names)} | median error, deg | A |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        resolution = box_A / max(r.shell, 1)
        lines.append(
            f"| {r.program} | {r.iteration} | {r.radius} "
            f"| {r.seconds:.1f} | {r.processor_seconds:.1f} | {r.shell} "
            f"| {resolution:.1f} | {r.rotation_deg:.2f} | {r.shift_A:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="folder for RELION's files; kept and read again")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tau2-fudge", type=float, default=4.0, help="RELION's T")
    parser.add_argument("--diagonal", action="store_true", help="also with the diagonal M-step")
    options = parser.parse_args()
    if shutil.which("relion_refine") is None:
        print("relion_refine is not on the PATH: install RELION 3.1 (Debian: relion).")
        return 1
    out = options.out or Path(tempfile.mkdtemp(prefix="relion_refine_"))
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    truth = Truth.read(options.data)
    stack = ParticleStack.read(options.data / "particles.star")
    settings = (options.iterations, options.threads, options.tau2_fudge)
    rows = run_relion(options.data, truth, out.resolve(), *settings)
    radii = [row.radius for row in rows]
    for exact in (True, False)[: 1 + options.diagonal]:
        rows += run_cryoprob(stack, truth, radii, exact=exact)
    print(table(rows, stack.box * stack.pixel_size))
    print(f"\n{NOTES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
