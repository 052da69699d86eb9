"""The list of finished months in a folder of ERA5 files, by which an interrupted download continues."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llueve.errors import DataError, UsageError
from llueve.sources.download import write_whole

NAME = "manifest.json"
SUFFIXES = (".nc", ".zip")
BLOCK_BYTES = 2**20


class Manifest:
    """Finished months with days, size and SHA-256; safe to use from several threads."""

    def __init__(self, folder: Path, common: dict[str, object], months: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._common = common
        self._months = months
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, common: dict[str, object]) -> "Manifest":
        """The manifest of a folder, new where there is none; `common` is what all its months have alike.

        Raises:
            UsageError: it is another request's. DataError: the folder cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(folder, common, {})
        except OSError as error:
            raise DataError(f"{folder}: cannot be used ({error.strerror or error}); choose another --output") from error
        except (ValueError, RecursionError):
            return cls(folder, common, {})  # damaged: all months are got again
        if not isinstance(document, dict) or not isinstance(document.get("months"), dict):
            return cls(folder, common, {})
        there = {key: document.get(key) for key in common}
        if there != common:
            raise UsageError(
                f"{folder}: holds months of another request ({there}), which together with these would make no one "
                "archive; choose another --output"
            )
        return cls(folder, common, document["months"])

    def path(self, name: str) -> Path:
        """The file of a finished month."""
        return self.folder / str(self._months[name]["file"])

    def holds(self, name: str, month: Mapping[str, object]) -> bool:
        """Whether the month is there, whole, and what is asked now."""
        entry = self._months.get(name)
        if not isinstance(entry, dict) or entry.get("days") != month["day"]:
            return False
        file = entry.get("file")
        if file not in {f"era5_{name}{suffix}" for suffix in SUFFIXES}:
            return False
        path = self.folder / file
        return path.is_file() and path.stat().st_size == entry.get("bytes") and _sha256(path) == entry.get("sha256")

    def add(self, name: str, month: Mapping[str, object], part: Path, file: str) -> None:
        """Put a downloaded file in its place and note it."""
        with part.open("rb+") as content:
            os.fsync(content.fileno())
        entry = {"file": file, "days": month["day"], "bytes": part.stat().st_size, "sha256": _sha256(part)}
        with self._lock:
            for suffix in SUFFIXES:  # an earlier form of this month would be read beside it
                (self.folder / f"era5_{name}{suffix}").unlink(missing_ok=True)
            part.replace(self.folder / file)
            self._months[name] = entry
            months = dict(sorted(self._months.items()))
            document = {**self._common, "months": months}
            write_whole(self.folder / NAME, (json.dumps(document, indent=2) + "\n").encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
