"""The commands and their options; what they do lies in the modules they call."""

from typing import Annotated

import typer

from cryoprob.app import options as o
from cryoprob.app.guard import guarded

__all__ = ["app"]

_TAGLINE = "Cryo-EM single-particle reconstruction as probabilistic programming."

app = typer.Typer(
    name="cryoprob",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _example(*lines: str) -> str:
    """The end of a help text; each line is a command to copy."""
    return "\n\n".join(["[bold]Example[/bold]", *(f"  {line}" for line in lines)])


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"cryoprob {version('cryoprob')}")
        raise typer.Exit


@app.callback(help=_TAGLINE, epilog=_example("cryoprob demo"))
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print it and stop.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command(epilog=_example("cryoprob demo --out demo"))
@guarded
def demo(out: o.DemoOut = None, seed: o.Seed = None, threads: o.Threads = None) -> None:
    """A tour in a few minutes: simulate adenylate kinase, find its map from nothing, compare."""
    from cryoprob.app.demo import run_demo

    run_demo(out, seed, threads)


@app.command(epilog=_example("cryoprob info particles.star"))
@guarded
def info(
    particles: o.Particles,
    pixel_size: o.PixelSize = None,
    box: o.Crop = None,
    invert: o.Invert = None,
) -> None:
    """What is in a particle stack, what is wrong with it, and what a fit would take."""
    from cryoprob.app.info import show_info

    show_info(particles, pixel_size=pixel_size, box=box, invert=bool(invert))


@app.command(
    epilog=_example(
        "cryoprob simulate --phantom adk-open --box 32 --pixel-size 3 --out sim",
        "cryoprob simulate --structure 4ake.pdb --n 5000 --box 64 --pixel-size 2 --out sim",
    )
)
@guarded
def simulate(
    out: o.Out,
    n: o.Number = 1000,
    structure: o.Structure = None,
    map: o.MapFile = None,
    phantom: o.Phantom = None,
    box: o.Side = None,
    pixel_size: o.MadePixelSize = None,
    resolution: o.Detail = None,
    snr: o.Snr = 0.1,
    shift_sd: o.ShiftSd = None,
    no_ctf: o.NoCtf = False,
    defocus: o.Defocus = (10000.0, 25000.0),
    astigmatism: o.Astigmatism = 400.0,
    voltage: o.Voltage = 300.0,
    cs: o.Cs = 2.7,
    amplitude_contrast: o.AmplitudeContrast = 0.1,
    seed: o.Seed = None,
) -> None:
    """Draw a particle stack from the model: images, their tables, and the truth.

    Poses are uniform, noise is white and of variance 1. Writes particles.mrcs,
    particles.star (without poses), truth.star (with them) and truth.mrc.
    """
    from cryoprob.app.simulate import Source, run_simulate
    from cryoprob.models.simulate import Microscope

    lens = (defocus, astigmatism, voltage, cs, amplitude_contrast)
    source = Source(structure, map, phantom, box, pixel_size, resolution)
    run_simulate(source, out, n, snr, seed, shift_sd, None if no_ctf else Microscope(*lens))


@app.command(
    epilog=_example(
        "cryoprob fit particles.star --out run1",
        "cryoprob fit particles.star --out run2 --reference map.mrc --half-sets",
        "cryoprob fit particles.star --out run3 --preset relion-class3d --set classes=3",
        "cryoprob fit particles.star --out run4 --poses known --contrast 0.2 --defocus 300",
        "cryoprob fit --resume --out run1",
    )
)
@guarded
def fit(
    out: o.Out,
    particles: o.MaybeParticles = None,
    preset: o.PresetName = None,
    family: o.Family = None,
    reference: o.Reference = None,
    low_pass: o.LowPass = None,
    poses: o.PoseUse = None,
    mask: o.Mask = None,
    symmetry: o.Symmetry = None,
    box: o.Crop = None,
    pixel_size: o.PixelSize = None,
    invert: o.Invert = None,
    half_sets: o.HalfSets = None,
    contrast: o.ContrastSd = None,
    defocus: o.DefocusSd = None,
    defocus_nodes: o.DefocusNodes = None,
    resume: o.Resume = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    device: o.Device = None,
    double: o.Double = None,
    config: o.ConfigFile = None,
    settings: o.Settings = None,
) -> None:
    """Reconstruct a map from particles, with the posterior of every pose.

    Without --reference and without known poses it starts from nothing.
    Options override --config, and --set overrides both.
    """
    from cryoprob.app.fit import configure, run

    given = {
        "particles": particles,
        "preset": preset,
        "family": family,
        "reference": reference,
        "low_pass_A": low_pass,
        "poses": poses,
        "mask": mask,
        "symmetry": symmetry,
        "box": box,
        "pixel_size": pixel_size,
        "invert": invert,
        "half_sets": half_sets,
        "contrast_sd": contrast,
        "defocus_sd_A": defocus,
        "defocus_nodes": defocus_nodes,
        "seed": seed,
        "threads": threads,
        "device": device,
        "double": double,
    }
    run(configure(given, settings or [], config, out, resume), out, resume=resume)


@app.command(
    epilog=_example(
        "cryoprob compare particles.star --families exact-em,modal-em,svi --out families",
        "cryoprob compare sim/particles.star --truth sim --out families",
    )
)
@guarded
def compare(
    particles: o.Particles,
    out: o.Out,
    families: o.Families = None,
    reference: o.Reference = None,
    low_pass: o.LowPass = None,
    truth: o.MaybeTruth = None,
    images: o.Counted = 60,
    order: o.CountedOrder = 3,
    mask: o.Mask = None,
    symmetry: o.Symmetry = None,
    box: o.Crop = None,
    pixel_size: o.PixelSize = None,
    invert: o.Invert = None,
    seed: o.Seed = None,
    threads: o.Threads = None,
    device: o.Device = None,
    double: o.Double = None,
    config: o.ConfigFile = None,
    settings: o.Settings = None,
) -> None:
    """Families of inference on the same particles, and what each costs in nats per image.

    All start from one map and are fitted in folders of their own; then the gap of each is counted
    against exact posteriors on a grid, at a common volume and at its own. Writes families.csv,
    families.png and gaps.json. Run again, it goes on where it was.
    """
    from cryoprob.app.compare import run_compare as run
    from cryoprob.app.compare import setting

    given = {
        "particles": particles,
        "reference": reference,
        "low_pass_A": low_pass,
        "mask": mask,
        "symmetry": symmetry,
        "box": box,
        "pixel_size": pixel_size,
        "invert": invert,
        "seed": seed,
        "threads": threads,
        "device": device,
        "double": double,
    }
    run(setting(given, settings or [], config, out, families, images, order, truth), out)


@app.command(epilog=_example("cryoprob evaluate run1 --truth sim"))
@guarded
def evaluate(run: o.Run, truth: o.Truth) -> None:
    """Compare a fit with the truth: FSC and pose errors, whatever its rotation, shift and hand.

    Conformation errors, too, where truth.star has rlnClassNumber, for classes, or the progress
    along one motion as frameProgress or frameIndex. Writes evaluation.json into the fit's folder.
    """
    from cryoprob.app.evaluate import show_evaluation

    show_evaluation(run, truth)


@app.command(epilog=_example("cryoprob bench --threads 2"))
@guarded
def bench(threads: o.Threads = None) -> None:
    """Rates of the E-step and the M-step beside this machine's matrix product."""
    from cryoprob.app.bench import run_bench

    run_bench(threads)


@app.command(epilog=_example("cryoprob presets", "cryoprob presets relion-class3d"))
@guarded
def presets(name: o.MaybePreset = None) -> None:
    """Every published system as a row of one table, and what a preset keeps of its paper."""
    from cryoprob.app.presets import show_preset, show_presets

    show_preset(name) if name else show_presets()


@app.command(epilog=_example("cryoprob settings"))
@guarded
def settings() -> None:
    """What --set of a fit takes: every setting, its default and its meaning."""
    from cryoprob.app.settings import show_settings

    show_settings()


@app.command(
    epilog=_example("cryoprob latent run3 --centers 10", "cryoprob latent run3 --at 0.5,-1")
)
@guarded
def latent(
    run: o.Run,
    centers: o.Centers = None,
    steps: o.Steps = 10,
    axis: o.Axis = 1,
    at: o.At = None,
    umap: o.Umap = False,
    seed: o.LatentSeed = 0,
    price: o.Price = 0,
    order: o.PriceOrder = None,
    share: o.Share = 0.01,
) -> None:
    """Conformations of a fit: principal axes, clusters, a path of maps, particles of each region.

    Writes maps, STAR files with posterior weights, latent.csv and latent.png into DIR/latent.
    """
    from cryoprob.app.latent import show_latent

    show_latent(run, centers, steps, axis, at or [], umap, seed, price, order, share)
