"""Arguments and options of the command line, each written once."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

__all__ = [
    "LatentSeed",
    "Price",
    "Umap",
    "At",
    "Axis",
    "Steps",
    "Centers",
    "AmplitudeContrast",
    "Astigmatism",
    "ConfigFile",
    "ContrastSd",
    "Crop",
    "Cs",
    "Defocus",
    "DefocusNodes",
    "DefocusSd",
    "DemoOut",
    "Detail",
    "Device",
    "Double",
    "Family",
    "HalfSets",
    "Invert",
    "LowPass",
    "MadePixelSize",
    "MapFile",
    "Mask",
    "MaybeParticles",
    "MaybePreset",
    "NoCtf",
    "Number",
    "Out",
    "Particles",
    "Phantom",
    "PixelSize",
    "PoseUse",
    "PresetName",
    "Reference",
    "Resume",
    "Run",
    "Seed",
    "Settings",
    "ShiftSd",
    "Side",
    "Snr",
    "Structure",
    "Symmetry",
    "Threads",
    "Truth",
    "Voltage",
]

Particles = Annotated[Path, Argument(metavar="PARTICLES", help="STAR file of RELION 1.4 to 5.")]
MaybeParticles = Annotated[
    Path | None,
    Argument(metavar="PARTICLES", help="STAR file of RELION 1.4 to 5; may come from --config."),
]
Out = Annotated[Path, Option("--out", metavar="DIR", help="Folder to write to.")]
DemoOut = Annotated[
    Path | None, Option("--out", metavar="DIR", help="Folder to write to; a new one if left out.")
]
Seed = Annotated[
    int | None,
    Option("--seed", metavar="N", help="Of every random choice; drawn and told if left out."),
]
Threads = Annotated[
    int | None,
    Option("--threads", metavar="N", min=1, help="CPU threads; what torch takes if left out."),
]
PixelSize = Annotated[
    float | None,
    Option(
        "--pixel-size", metavar="A", help="Angstrom, where the file does not say it or is wrong."
    ),
]
Invert = Annotated[bool | None, Option("--invert", help="Particles are dark on white.")]
Crop = Annotated[
    int | None,
    Option("--box", metavar="D", help="Crop images to this box in Fourier space: faster."),
]

# fit

Family = Annotated[
    str | None,
    Option(
        "--family",
        metavar="NAME",
        help="Inference: exact-em (default), modal-em, amortized-modal, svi, amortized-vi,"
        " amortized-local.",
    ),
]
PresetName = Annotated[
    str | None,
    Option("--preset", metavar="NAME", help="A published system; `cryoprob presets` lists them."),
]
Reference = Annotated[
    list[Path] | None,
    Option(
        "--reference",
        metavar="MAP",
        help="Map to start from (one for each class, or one for all); without it, from nothing.",
    ),
]
LowPass = Annotated[
    float | None,
    Option("--low-pass", metavar="A", help="Filter of the reference, Angstrom; default 40."),
]
PoseUse = Annotated[
    str | None,
    Option(
        "--poses",
        metavar="HOW",
        help="Poses of the STAR file: ignore (default), known, or local (search near them).",
    ),
]
Mask = Annotated[
    str | None,
    Option("--mask", metavar="WHAT", help="auto (default), sphere, none, or a map in [0, 1]."),
]
Symmetry = Annotated[
    str | None, Option("--symmetry", metavar="GROUP", help="C1 (default), C4, D2, T, O, I.")
]
HalfSets = Annotated[
    bool | None, Option("--half-sets", help="Two independent halves, and their FSC.")
]
ContrastSd = Annotated[
    float | None,
    Option(
        "--contrast",
        metavar="SD",
        help="Contrasts differ from image to image by SD around 1, and are summed out (exact-em,"
        " and presets that train by gradients; not e2gmm, whose score sees no contrast).",
    ),
]
DefocusSd = Annotated[
    float | None,
    Option(
        "--defocus",
        metavar="SD_A",
        help="Defoci of the file are off by SD_A Angstrom, and are summed out on nodes, as"
        " contrasts are; a search by exact-em takes as many times longer, one of a preset that"
        " trains by gradients takes them and contrasts as given.",
    ),
]
DefocusNodes = Annotated[
    int | None,
    Option("--defocus-nodes", metavar="N", help="Errors of the defocus summed over; default 13."),
]
Resume = Annotated[bool, Option("--resume", help="Go on from the checkpoint in --out.")]
Device = Annotated[str | None, Option("--device", metavar="NAME", help="cpu (default) or cuda.")]
Double = Annotated[bool | None, Option("--double", help="Compute in float64.")]
ConfigFile = Annotated[
    Path | None,
    Option("--config", metavar="FILE", help="A config.toml; its settings become the defaults."),
]
Settings = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the schedule (`cryoprob settings` lists them); may be repeated.",
    ),
]

# latent

Centers = Annotated[
    int | None,
    Option(
        "--centers",
        metavar="N",
        min=1,
        help="Clusters (k-means); default 10, or as many as there are particles.",
    ),
]
Steps = Annotated[int, Option("--steps", min=2, help="Maps along the path.")]
Axis = Annotated[
    int,
    Option(
        "--axis",
        min=1,
        help="Principal axis that the path follows, from 5 to 95 % of the images; a map is at the"
        " mean of images near there that lie close together.",
    ),
]
At = Annotated[
    list[str] | None,
    Option("--at", metavar="Z1,Z2,...", help="A point to make a map of; may be repeated."),
]
Umap = Annotated[
    bool, Option("--umap", help="Lay out the particles by UMAP (pip install umap-learn).")
]
LatentSeed = Annotated[
    int, Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Of k-means and UMAP.")
]
Price = Annotated[
    int,
    Option(
        "--price",
        metavar="N",
        min=0,
        help="Also what one pose an image and its law of z cost, in nats, for N images.",
    ),
]

Share = Annotated[
    float,
    Option(
        "--share",
        metavar="P",
        min=0,
        max=1,
        help="Least posterior share in a region for a particle to be in its STAR file.",
    ),
]

PriceOrder = Annotated[
    int | None,
    Option(
        "--order",
        metavar="K",
        min=1,
        max=4,
        help="With --price: grid of rotations, 60 / 2^K degrees apart. Default: as the band asks.",
    ),
]

# presets

MaybePreset = Annotated[
    str | None, Argument(metavar="NAME", help="One of them; the table of all if left out.")
]

# simulate

Structure = Annotated[
    Path | None, Option("--structure", metavar="FILE", help="PDB or mmCIF file.")
]
MapFile = Annotated[Path | None, Option("--map", metavar="MAP", help="MRC map.")]
Phantom = Annotated[
    str | None,
    Option("--phantom", metavar="NAME", help="bead-walk, blobs, adk-closed or adk-open."),
]
Number = Annotated[int, Option("--n", metavar="N", min=1, help="Images.")]
Side = Annotated[
    int | None,
    Option("--box", metavar="D", help="Pixels along a side, even; by default that of --map."),
]
MadePixelSize = Annotated[
    float | None, Option("--pixel-size", metavar="A", help="Angstrom; by default that of --map.")
]
Detail = Annotated[
    float | None,
    Option(
        "--resolution",
        metavar="A",
        help="Of the map of --structure, Angstrom; by default 4 pixels.",
    ),
]
Snr = Annotated[
    float,
    Option(
        "--snr", metavar="S", help="Mean variance of the noiseless images over that of the noise."
    ),
]
ShiftSd = Annotated[
    float | None,
    Option(
        "--shift-sd",
        metavar="A",
        help="Of the shifts along x and y, Angstrom; by default 0.03 boxes.",
    ),
]
NoCtf = Annotated[bool, Option("--no-ctf", help="Perfect optics.")]
Defocus = Annotated[
    tuple[float, float], Option("--defocus", metavar="A A", help="Least and greatest, Angstrom.")
]
Astigmatism = Annotated[
    float,
    Option("--astigmatism", metavar="A", help="Greatest difference of the two defoci, Angstrom."),
]
Voltage = Annotated[float, Option("--voltage", metavar="KV", help="Acceleration voltage.")]
Cs = Annotated[float, Option("--cs", metavar="MM", help="Spherical aberration.")]
AmplitudeContrast = Annotated[
    float, Option("--amplitude-contrast", metavar="W", help="A fraction.")
]

# evaluate

Run = Annotated[Path, Argument(metavar="DIR", help="Folder that `cryoprob fit` wrote.")]
Truth = Annotated[
    Path,
    Option(
        "--truth", metavar="DIR_OR_MAP", help="Folder with truth.mrc and truth.star, or a map."
    ),
]

# compare

Families = Annotated[
    str | None,
    Option("--families", metavar="A,B,...", help="Which; by default all, exact-em first."),
]
MaybeTruth = Annotated[
    Path | None,
    Option("--truth", metavar="DIR", help="Folder with truth.mrc and truth.star, to score by."),
]
Counted = Annotated[int, Option("--images", min=1, help="Images on which gaps are counted.")]
CountedOrder = Annotated[
    int, Option("--order", min=0, max=4, help="Rotation grid of the gaps: 60 / 2^order degrees.")
]
