"""Arguments and options of the command line, each written once."""

from pathlib import Path
from typing import Annotated, TypeAlias

from typer import Argument, Option

__all__: list[str] = []

Particles: TypeAlias = Annotated[Path, Argument(help="STAR file of RELION 1.4 to 5.")]
MaybeParticles: TypeAlias = Annotated[
    Path | None, Argument(help="STAR file of RELION 1.4 to 5 (may come from --config).")
]
Out: TypeAlias = Annotated[Path, Option("--out", help="Folder to write to.")]
DemoOut: TypeAlias = Annotated[
    Path | None, Option("--out", help="Folder to write to; a new one if left out.")
]
Seed: TypeAlias = Annotated[
    int | None,
    Option("--seed", help="Of every random choice; one is drawn and told if left out."),
]
Threads: TypeAlias = Annotated[
    int | None, Option("--threads", min=1, help="CPU threads; what torch takes if left out.")
]
PixelSize: TypeAlias = Annotated[
    float | None,
    Option("--pixel-size", help="Angstrom, for files that do not say it (or say it wrong)."),
]
Invert: TypeAlias = Annotated[
    bool | None, Option("--invert/--no-invert", help="For particles that are dark on white.")
]
Crop: TypeAlias = Annotated[
    int | None, Option("--box", help="Crop images to this box in Fourier space: faster.")
]

# fit
Family: TypeAlias = Annotated[str | None, Option("--family", help="Inference: exact-em.")]
Reference: TypeAlias = Annotated[
    Path | None, Option("--reference", help="Map to start from; without it, from nothing.")
]
LowPass: TypeAlias = Annotated[
    float | None, Option("--low-pass", help="Angstrom; filter of the reference (default 40).")
]
PoseUse: TypeAlias = Annotated[
    str | None,
    Option(
        "--poses", help="Poses of the STAR file: ignore (default), known, local (search nearby)."
    ),
]
Mask: TypeAlias = Annotated[
    str | None, Option("--mask", help="auto (default), none, sphere, or a map in [0, 1].")
]
Symmetry: TypeAlias = Annotated[
    str | None, Option("--symmetry", help="Point group: C1 (default), C4, D2, T, O, I.")
]
HalfSets: TypeAlias = Annotated[
    bool | None,
    Option("--half-sets/--no-half-sets", help="Two independent halves and their FSC."),
]
Resume: TypeAlias = Annotated[
    bool, Option("--resume", help="Go on from the last checkpoint in --out.")
]
Device: TypeAlias = Annotated[str | None, Option("--device", help="cpu (default) or cuda.")]
Double: TypeAlias = Annotated[
    bool | None, Option("--double/--single", help="Compute in float64 (default: float32).")
]
ConfigFile: TypeAlias = Annotated[
    Path | None, Option("--config", help="A config.toml whose settings are the defaults.")
]
Settings: TypeAlias = Annotated[
    list[str] | None, Option("--set", help="A setting of the schedule, key=value; repeatable.")
]

# simulate
Structure: TypeAlias = Annotated[
    Path | None, Option("--structure", help="PDB or mmCIF file.", rich_help_panel="What to image")
]
MapFile: TypeAlias = Annotated[
    Path | None, Option("--map", help="MRC map.", rich_help_panel="What to image")
]
Phantom: TypeAlias = Annotated[
    str | None,
    Option(
        "--phantom",
        help="bead-walk, blobs, adk-closed or adk-open.",
        rich_help_panel="What to image",
    ),
]
Number: TypeAlias = Annotated[int, Option("--n", min=1, help="Images.")]
Side: TypeAlias = Annotated[
    int | None, Option("--box", help="Pixels along a side, even; that of --map by default.")
]
MadePixelSize: TypeAlias = Annotated[
    float | None, Option("--pixel-size", help="Angstrom; that of --map by default.")
]
Detail: TypeAlias = Annotated[
    float | None,
    Option("--resolution", help="Angstrom, of the map of --structure (default 4 pixels)."),
]
Snr: TypeAlias = Annotated[
    float, Option("--snr", help="Mean variance of the noiseless images over that of the noise.")
]
NoCtf: TypeAlias = Annotated[bool, Option("--no-ctf", help="Perfect optics.")]
Defocus: TypeAlias = Annotated[
    tuple[float, float], Option("--defocus", help="Least and greatest, Angstrom.")
]
Astigmatism: TypeAlias = Annotated[
    float, Option("--astigmatism", help="Greatest difference of the two defoci, Angstrom.")
]
Voltage: TypeAlias = Annotated[float, Option("--voltage", help="kV.")]
Cs: TypeAlias = Annotated[float, Option("--cs", help="Spherical aberration, mm.")]
AmplitudeContrast: TypeAlias = Annotated[
    float, Option("--amplitude-contrast", help="A fraction.")
]
ShiftSd: TypeAlias = Annotated[
    float | None, Option("--shift-sd", help="Of shifts along x and y, Angstrom (0.03 boxes).")
]

# evaluate
Run: TypeAlias = Annotated[Path, Argument(help="Folder that `cryoprob fit` wrote.")]
Truth: TypeAlias = Annotated[
    Path, Option("--truth", help="Folder with truth.mrc and truth.star, or a map.")
]
