"""Rates of the E-step, of EM and of Pyro's enumeration beside bare matrix products.

Not a test: ``python tests/benchmarks/e_step.py`` prints Markdown; minutes on two cores. Times are
the least of several, the package and the bare products in turn. Nothing else should run.
"""

import argparse

import torch

from cryoprob.app.bench import Pair, enumeration, full_step, m_step, made_up, scoring

IMAGES, BOX, RADIUS, ORDER = 2000, 64, 16, 2
BLOCKS = (4, 8, 16, 32, 64, 128)


def line(pair: Pair) -> str:
    """One line of the table."""
    rates = pair.rate / 1e9, pair.operations / pair.bare_seconds / 1e9
    times = f"{pair.seconds:.3f} | {pair.bare_seconds:.3f}"
    return f"| {pair.name} | {times} | {rates[0]:.0f} | {rates[1]:.0f} | {pair.ratio:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = made_up(options.images, BOX, RADIUS, ORDER)
    rotations, shifts, numbers = problem.shapes
    print(f"{BOX} x {BOX}, {rotations} rotations x {shifts} shifts, {numbers} numbers")
    print("\n| | s | bare products, s | GFLOP/s | bare, GFLOP/s | part of bare |")
    print("|---|---|---|---|---|---|")
    for count in BLOCKS:
        print(line(scoring(problem, count)), flush=True)
    pair, apart = enumeration(problem)
    print(line(pair), flush=True)
    print(line(full_step(problem)), flush=True)
    seconds, iterations = m_step(problem)
    print(f"\nM-step: {seconds:.2f} s, {iterations} conjugate-gradient iterations.")
    print(f"Enumeration and the sum by hand differ by {apart:.1e} nats per image.")


if __name__ == "__main__":
    main()
