"""The list of finished months in a folder of ERA5 files, from which an interrupted download continues."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llueve.errors import DataError, UsageError
from llueve.files import make_folder
from llueve.sources.downloads.http import write_output

NAME = "manifest.json"
SUFFIXES = (".nc", ".zip")


class Manifest:
    """Finished months with their days, size and SHA-256; safe to use from several threads.

    A missing or damaged manifest lists no month, so that all months are downloaded.

    Args:
        folder: folder of the files; made if it does not exist.
        common: the part of the request that is the same for all months.

    Raises:
        UsageError: the folder holds months of another request. DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, common: dict[str, object]) -> None:
        self.folder, self._common = folder, common
        self._months: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        document = None
        try:
            make_folder(folder)
            with suppress(FileNotFoundError, ValueError, RecursionError):
                document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{folder}: cannot be used ({error.strerror or error}); choose another --output") from error
        if isinstance(document, dict) and isinstance(document.get("months"), dict):
            if (found := {key: document.get(key) for key in common}) != common:
                raise UsageError(f"{folder}: holds months of another request ({found}); choose another --output")
            self._months = document["months"]

    def path(self, name: str) -> Path:
        """The file of a finished month."""
        return self.folder / str(self._months[name]["file"])

    def holds(self, name: str, month: Mapping[str, object]) -> bool:
        """True if the file of the month is complete and holds the days of the request."""
        entry = self._months.get(name)
        if not isinstance(entry, dict) or entry.get("days") != month["day"]:
            return False
        if (file := entry.get("file")) not in {f"era5_{name}{suffix}" for suffix in SUFFIXES}:
            return False
        path = self.folder / file
        return path.is_file() and path.stat().st_size == entry.get("bytes") and _sha256(path) == entry.get("sha256")

    def add(self, name: str, month: Mapping[str, object], part: Path, file: str) -> None:
        """Move a downloaded file to its final name and list the month."""
        with part.open("rb+") as content:
            os.fsync(content.fileno())
        entry = {"file": file, "days": month["day"], "bytes": part.stat().st_size, "sha256": _sha256(part)}
        with self._lock:
            for suffix in SUFFIXES:  # an earlier file of this month would be read as well
                (self.folder / f"era5_{name}{suffix}").unlink(missing_ok=True)
            part.replace(self.folder / file)
            self._months[name] = entry
            document = {**self._common, "months": dict(sorted(self._months.items()))}
            write_output(self.folder / NAME, (json.dumps(document, indent=2) + "\n").encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
