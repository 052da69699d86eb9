"""OpenLTM's `run.py` for classification: the same flags, on llueve. See docs/training.md."""

from llueve.cli.main import main
from llueve.cli.openltm import run

if __name__ == "__main__":
    main(run)
