"""Data files of installed Python packages, `package:NAME/FILE`: found without importing the package.

A configuration may come from anyone, so only the packages and the kinds of file that are named here are read.
"""

import importlib.util
from pathlib import Path, PurePosixPath

from llueve.errors import DataError, listed, shortened

DATA_PACKAGES = ("llueve", "vega_datasets")
"""Packages that hold weather data and nothing private."""
DATA_SUFFIXES = (".csv", ".parquet", ".json", ".dly")


def package_file(path: str) -> Path:
    """The file on disk that `package:NAME/FILE` names.

    Raises:
        DataError: another package than those of `DATA_PACKAGES`, or one that is not installed; or a path that is no data
            file inside its folder.
    """
    name, _, inside = path.removeprefix("package:").partition("/")
    if not name or not inside:
        raise DataError(f"{path}: expected package:NAME/FILE, such as package:llueve/data/inmet_brazil.parquet")
    if name not in DATA_PACKAGES:
        raise DataError(
            f"{path}: the package {shortened(name)} is not read; packages with data are {listed(DATA_PACKAGES)}: give the path "
            "of the file itself in data.path"
        )
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders or not Path(folders[0]).is_dir():
        raise DataError(f"{path}: package {name!r} is not installed; run pip install {name}")
    folder = Path(folders[0]).resolve()
    parts = PurePosixPath(inside).parts
    file = folder.joinpath(*parts).resolve()
    if ".." in parts or "\\" in inside or not file.is_relative_to(folder):
        raise DataError(
            f"{path}: leads out of the package; give a path inside it, without '..' and without a first '/'"
        )
    if file.suffix.lower() not in DATA_SUFFIXES:
        raise DataError(f"{path}: is not a data file; expected a name that ends in {listed(DATA_SUFFIXES)}")
    if not file.is_file():
        raise DataError(
            f"{path}: package {name!r} is installed but has no file {shortened(inside)}; check the name, or get the version "
            f"that has it with pip install --upgrade {name}"
        )
    return file
