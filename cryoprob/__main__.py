"""The command line: ``cryoprob`` or ``python -m cryoprob``."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from cryoprob.app.cli import app

    app(prog_name="cryoprob")


if __name__ == "__main__":
    main()
