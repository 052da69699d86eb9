"""OpenLTM's `run.py` for classification: the same flags, on llueve. See docs/training.md."""

from llueve.cli import main
from llueve.compatibility import run

if __name__ == "__main__":
    main(run)
