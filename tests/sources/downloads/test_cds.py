"""`download_era5` with the real client of the store against a local stand-in of it."""

import io
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llueve.errors import DataError, LlueveError, UsageError
from llueve.sources.downloads import cds
from llueve.sources.downloads.cds import CdsRequest, Era5Download, download_era5

cdsapi = pytest.importorskip("cdsapi", reason="the extra cds is not installed")

Serve = Callable[[Callable[[Any], tuple[int, dict[str, str], bytes]]], str]
KEY = "3b0c-key"
PERU = (0.0, -82.0, -18.0, -68.0)
NETCDF = b"\x89HDF\r\n\x1a\n"


class Store:
    """The part of the store's API that a download needs: process, execution, job, results, file."""

    def __init__(self, serve: Serve) -> None:
        self.address = serve(self.answer)
        self.requests: list[dict[str, Any]] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.failing: set[str] = set()
        """Months whose jobs fail."""
        self.body: Callable[[dict[str, Any]], bytes] = lambda request: NETCDF + json.dumps(request).encode()
        self.cut: set[str] = set()
        """Months whose file breaks off once."""
        self._lock = threading.Lock()

    def answer(self, call: Any) -> tuple[int, dict[str, str], bytes]:
        status, document = self.reply(call)
        if isinstance(document, bytes):
            full = len(document)
            number = int(call.path.rpartition("/")[2])
            if call.method == "GET" and self.month(number) in self.cut:
                self.cut.discard(self.month(number))
                return status, {"Content-Length": str(full)}, document[: full // 2]
            return status, {}, document
        return status, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def month(self, number: int) -> str:
        inputs = self.requests[number]["inputs"]
        return f"{inputs['year'][0]}-{inputs['month'][0]}"

    def months(self) -> list[str]:
        return sorted(self.month(number) for number in range(len(self.requests)))

    def reply(self, call: Any) -> tuple[int, Any]:
        last = call.path.rpartition("/")[2]
        if call.path.endswith("/messages"):
            return 200, {"messages": []}
        if call.path.startswith("/file/"):
            return 200, self.body(self.requests[int(last)]["inputs"])
        headers = {name.lower(): value for name, value in call.headers.items()}
        if headers.get("private-token") != KEY:
            return 401, {"title": "unauthorized", "detail": "authentication failed"}
        if call.path.endswith("/execution"):
            if self.refusal is not None:
                return self.refusal
            with self._lock:
                self.requests.append(json.loads(call.body))
                return 201, {"links": [{"rel": "monitor", "href": f"{self.address}/jobs/{len(self.requests) - 1}"}]}
        if "/processes/" in call.path:
            return 200, {"id": last, "links": []}
        if call.path.endswith("/results"):
            number = call.path.split("/")[-2]
            if self.month(int(number)) in self.failing:
                return 400, {"title": "The job has failed", "detail": "", "traceback": "MARS has failed"}
            size = len(self.body(self.requests[int(number)]["inputs"]))
            asset = {"href": f"{self.address}/file/{number}", "file:size": size, "type": "application/netcdf"}
            return 200, {"asset": {"value": asset}}
        if call.path.startswith("/jobs/"):
            return 200, {"status": "failed" if self.month(int(last)) in self.failing else "successful", "links": []}
        return 404, {"title": "not found"}


@pytest.fixture
def store(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A store, and credentials for it in the environment alone."""
    store = Store(serve)
    monkeypatch.setenv("CDSAPI_URL", store.address)
    monkeypatch.setenv("CDSAPI_KEY", KEY)
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "none"))
    yield store
    for thread in threading.enumerate():  # months that were under way when another ended it all
        if thread.name == "era5":
            thread.join(30)


def request(start: str = "2023-11-15", end: str = "2024-02-10", **options: Any) -> CdsRequest:
    return CdsRequest(PERU, date.fromisoformat(start), date.fromisoformat(end), **options)


def get(folder: Path, wanted: CdsRequest | None = None, **options: Any) -> Era5Download:
    return download_era5(wanted or request(), folder / "era5", Console(quiet=True), **options)


# What is asked


def test_months_with_the_days_that_are_wanted() -> None:
    months = dict(request().months())
    assert list(months) == ["2023-11", "2023-12", "2024-01", "2024-02"]
    days = {name: (month["day"][0], month["day"][-1], len(month["day"])) for name, month in months.items()}  # type: ignore[index, arg-type]
    assert days == {
        "2023-11": ("15", "30", 16),
        "2023-12": ("01", "31", 31),
        "2024-01": ("01", "31", 31),
        "2024-02": ("01", "10", 10),
    }


def test_a_month_within_one_month() -> None:
    ((name, month),) = request("2024-02-28", "2024-02-29").months()
    assert name == "2024-02" and month["day"] == ["28", "29"]


def test_one_request_in_the_words_of_the_store() -> None:
    ((_, month),) = request("2024-02-01", "2024-02-01", variables=("tp", "surface_pressure")).months()
    assert month == {
        "product_type": ["reanalysis"],
        "variable": ["surface_pressure", "total_precipitation"],
        "year": ["2024"],
        "month": ["02"],
        "day": ["01"],
        "time": [f"{hour:02d}:00" for hour in range(24)],
        "area": [0.0, -82.0, -18.0, -68.0],
        "data_format": "netcdf",
        "download_format": "unarchived",
    }
    ((_, land),) = request("2024-02-01", "2024-02-01", dataset="reanalysis-era5-land").months()
    assert "product_type" not in land


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"area": (-18.0, -82.0, 0.0, -68.0)}, "expected N W S E with 90 ≥ N"),
        ({"area": (95.0, -82.0, 0.0, -68.0)}, "expected N W S E with 90 ≥ N"),
        ({"area": (0.0, -68.0, -18.0, -82.0)}, "-180 ≤ W ≤ E"),
        ({"area": (float("nan"),) * 4}, "expected N W S E"),
        ({"start": date(1939, 12, 31)}, "the archive begins on 1940-01-01"),
        ({"end": date(2022, 1, 1)}, "from --start 2023-11-15 on"),
        ({"end": timedelta(days=-5)}, "five days late; the newest whole day"),
        ({"dataset": "era5"}, "expected one of reanalysis-era5-single-levels"),
        ({"variables": ()}, "different names"),
        ({"variables": ("tp", "total_precipitation")}, "different names"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], part: str) -> None:
    fine = {"area": PERU, "start": date(2023, 11, 15), "end": date(2024, 2, 10)}
    today = datetime.now(UTC).date()  # a length of time counts from the day of this test
    options = {key: today + value if isinstance(value, timedelta) else value for key, value in options.items()}
    with pytest.raises(UsageError, match=part):
        CdsRequest(**{**fine, **options})


# What arrives


def test_every_month_arrives_and_is_noted(store: Store, tmp_path: Path) -> None:
    done = get(tmp_path)
    names = ["2023-11", "2023-12", "2024-01", "2024-02"]
    assert done.fresh == 4 and [path.name for path in done.files] == [f"era5_{name}.nc" for name in names]
    assert store.months() == names
    for path in done.files:
        inputs = json.loads(path.read_bytes().removeprefix(NETCDF))
        assert f"era5_{inputs['year'][0]}-{inputs['month'][0]}.nc" == path.name
        assert inputs["area"] == list(PERU)
    assert sorted(path.name for path in (tmp_path / "era5").iterdir()) == [path.name for path in done.files] + [
        "manifest.json"
    ]


def test_nothing_is_downloaded_twice(store: Store, tmp_path: Path) -> None:
    first = get(tmp_path)
    again = get(tmp_path)
    assert again == Era5Download(first.files, 0) and len(store.requests) == 4


def test_nothing_needs_the_store_where_all_is_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(tmp_path)
    monkeypatch.delenv("CDSAPI_KEY")
    assert get(tmp_path).fresh == 0


@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_a_file_that_is_not_as_noted_is_got_again(store: Store, tmp_path: Path, damage: str) -> None:
    path = get(tmp_path).files[1]
    content = path.read_bytes()
    if damage == "torn":
        path.write_bytes(content[:-1])
    elif damage == "changed":
        path.write_bytes(content[:-1] + b"?")
    else:
        path.unlink()
    assert get(tmp_path).fresh == 1
    assert path.read_bytes() == content and store.months()[1:3] == ["2023-12", "2023-12"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"months": 3}', '{"months": {"2023-11": 3}}', "[" * 100_000])
def test_a_damaged_manifest_means_that_nothing_is_known(store: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "era5").mkdir()
    (tmp_path / "era5" / "manifest.json").write_text(text)
    if text.startswith('{"months": {'):
        with pytest.raises(UsageError, match="another request"):
            get(tmp_path)
    else:
        assert get(tmp_path).fresh == 4


def test_a_manifest_cannot_point_elsewhere(store: Store, tmp_path: Path) -> None:
    get(tmp_path)
    manifest = tmp_path / "era5" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["months"]["2023-11"]["file"] = "../outside.nc"
    manifest.write_text(json.dumps(document))
    assert get(tmp_path).fresh == 1


def test_a_month_that_now_has_more_days_is_got_again(store: Store, tmp_path: Path) -> None:
    get(tmp_path)
    assert get(tmp_path, request(end="2024-02-20")).fresh == 1
    assert get(tmp_path, request(start="2023-12-01", end="2024-01-31")).fresh == 0


def test_months_of_another_request_are_not_mixed_in(store: Store, tmp_path: Path) -> None:
    get(tmp_path)
    with pytest.raises(UsageError, match=r"holds months of another request.*choose another --output"):
        get(tmp_path, request(variables=("tp",)))
    assert len(store.requests) == 4


def test_a_zip_has_its_own_name_and_replaces_what_was_there(store: Store, tmp_path: Path) -> None:
    wanted = request("2024-01-01", "2024-01-31")
    before = get(tmp_path, wanted).files[0]
    before.write_bytes(b"torn")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data_stream-oper_stepType-accum.nc", NETCDF)
    store.body = lambda _: packed.getvalue()
    (path,) = get(tmp_path, wanted).files
    assert path.name == "era5_2024-01.zip" and path.read_bytes() == packed.getvalue() and not before.exists()


def test_what_is_no_archive_is_refused(store: Store, tmp_path: Path) -> None:
    store.body = lambda _: b"<html>in maintenance</html>"
    with pytest.raises(DataError, match=r"4 of 4 months failed.*neither NetCDF nor a zip"):
        get(tmp_path)
    assert not list((tmp_path / "era5").glob("era5_*"))


def test_one_month_that_fails_does_not_cost_the_others(store: Store, tmp_path: Path) -> None:
    store.failing = {"2023-12"}
    with pytest.raises(DataError, match=r"1 of 4 months failed \(2023-12\).*MARS has failed.*are kept"):
        get(tmp_path)
    store.failing = set()
    assert get(tmp_path).fresh == 1


def test_a_download_that_breaks_off_is_resumed_by_the_next_command(store: Store, tmp_path: Path) -> None:
    store.cut = {"2024-01"}
    slow = cds.connect_cds

    def hasty() -> Any:
        client = slow()
        client.client.retry_after, client.client.maximum_tries = 0.01, 1
        return client

    with pytest.raises(DataError, match=r"1 of 4 months failed \(2024-01\)"):
        get(tmp_path, connect=hasty)
    assert get(tmp_path).fresh == 1


def test_months_are_got_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=30)

    class Client:
        def retrieve(self, dataset: str, month: dict[str, Any], target: str) -> None:
            together.wait()
            Path(target).write_bytes(NETCDF)

    done = get(tmp_path, request("2024-01-01", "2024-06-30"), connect=Client, parallel=3)
    assert done.fresh == 6


# What is missing


def test_no_credentials(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDSAPI_KEY")
    with pytest.raises(DataError) as caught:
        get(tmp_path)
    for part in (
        "no credentials",
        str(tmp_path / "none"),
        "https://cds.climate.copernicus.eu/profile",
        "url: https://",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(("url", "key"), [("https://x/api", "1234:abcd"), ("x", "abcd"), ("https://x/api", "")])
def test_credentials_of_the_old_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, key: str
) -> None:
    monkeypatch.delenv("CDSAPI_URL")
    monkeypatch.delenv("CDSAPI_KEY")
    (tmp_path / "none").write_text(f"url: {url}\nkey: {key}\n")
    with pytest.raises(DataError, match="credentials"):
        get(tmp_path)


def test_a_wrong_key(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDSAPI_KEY", "wrong")
    with pytest.raises(DataError, match=r"does not accept the key.*authentication failed.*copy it again"):
        get(tmp_path)


def test_a_licence_that_is_not_accepted(store: Store, tmp_path: Path) -> None:
    detail = "Not all the required licences have been accepted; please visit https://cds.example/licences"
    store.refusal = 403, {"title": "required licences not accepted", "detail": detail}
    with pytest.raises(DataError, match=r"licence of the data set is not accepted.*please visit https://cds.example"):
        get(tmp_path)


def test_a_request_that_the_store_refuses(store: Store, tmp_path: Path) -> None:
    store.refusal = 400, {"title": "invalid request", "detail": "no such variable"}
    with pytest.raises(UsageError, match=r"refuses the request: .*no such variable"):
        get(tmp_path)


def test_the_library_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cdsapi", None)
    with pytest.raises(DataError, match=r"cdsapi, which is not installed; run pip install 'llueve\[cds\]'"):
        get(tmp_path)


@pytest.mark.parametrize("name", [f"{cds.PARTS}", f"{cds.PARTS}/2024-01.part"])
def test_a_link_at_a_temporary_name_is_not_followed(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "kept").write_bytes(b"mine")
    place = tmp_path / "era5" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / ("outside" if name == cds.PARTS else "kept"))
    with pytest.raises(UsageError, match="is a link, which is not followed"):
        get(tmp_path, request("2024-01-01", "2024-01-31"))
    assert list((tmp_path / "outside").iterdir()) == [] and (tmp_path / "kept").read_bytes() == b"mine"


def test_a_folder_that_is_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "era5").write_text("mine")
    with pytest.raises(LlueveError, match="era5: cannot be used"):
        get(tmp_path)
