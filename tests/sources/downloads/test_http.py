"""`fetch` against a local server that is busy, slow, broken or hostile; no test really waits."""

import gzip
import json
import random
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console

from llueve.errors import DataError, UsageError
from llueve.progress import ProgressBar
from llueve.sources.downloads.http import RetryPolicy, fetch, write_output

Serve = Callable[[Callable[[Any], tuple[int, dict[str, str], bytes]]], str]
FINE = (200, {}, b'{"fine": 1}')


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Waits(list[float]):
    """A clock that does not wait, and the waits it was asked for."""

    def policy(self, **options: Any) -> RetryPolicy:
        return RetryPolicy(**{"sleep": self.append, **options})


def decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError("is torn") from error


def after(*failures: tuple[int, dict[str, str], bytes]) -> Callable[[Any], tuple[int, dict[str, str], bytes]]:
    """Answers with each failure once, then finely."""
    left = list(failures)
    return lambda call: left.pop(0) if left else FINE


def get(session: requests.Session, url: str, waits: Waits, **options: Any) -> Any:
    return fetch(session, url, {"q": "a b"}, decoded, options.pop("most_bytes", 1000), waits.policy(**options))


def test_the_query_arrives_and_the_answer_is_decoded(serve: Serve, session: requests.Session) -> None:
    url = serve(lambda call: (200, {}, json.dumps([call.path, call.query]).encode()))
    assert get(session, f"{url}/v1/archive", Waits()) == ["/v1/archive", {"q": "a b"}]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again_with_longer_waits(
    serve: Serve, session: requests.Session, status: int
) -> None:
    waits = Waits()
    url = serve(after(*[(status, {}, b"busy")] * 3))
    assert get(session, url, waits, first_wait_s=2.0) == {"fine": 1}
    # After n failures 2 * 2^(n-1) seconds, of which at least half: 1 … 2, 2 … 4, 4 … 8.
    assert len(waits) == 3 and all(least <= wait <= 2 * least for least, wait in zip((1, 2, 4), waits, strict=True))


def test_waits_grow_to_the_longest_and_are_not_all_alike() -> None:
    policy = RetryPolicy(first_wait_s=2.0, longest_wait_s=10.0)
    random.seed(1)
    waits = [policy.wait_s(n) for n in range(1, 12)]
    assert max(waits) <= 10.0 and min(waits[3:]) >= 5.0 and len(set(waits[3:])) > 3


def test_a_failure_that_does_not_pass_ends_it(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    url = serve(lambda call: (503, {}, b'{"error": true, "reason": "being mended"}'))
    with pytest.raises(DataError, match=r"failed 4 times.*503 \(being mended\).*again later"):
        get(session, url, waits, attempts=4)
    assert len(waits) == 3


def test_a_busy_server_is_obeyed(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    busy = (429, {"Retry-After": "7"}, b""), (429, {"Retry-After": moment}, b""), (503, {"Retry-After": "3"}, b"")
    assert get(session, serve(after(*busy)), waits) == {"fine": 1}
    assert waits[0] == 7.0 and 80 < waits[1] <= 90 and waits[2] == 3.0


def test_a_limit_per_minute_is_waited_for(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    reason = b'{"error": true, "reason": "Minutely API request limit exceeded. Please try again in one minute."}'
    assert get(session, serve(after((429, {}, reason), (429, {}, b""))), waits) == {"fine": 1}
    assert waits == [60.0, 60.0]


@pytest.mark.parametrize("period", ["Hourly", "Daily", "Monthly"])
def test_a_longer_limit_is_told_at_once(serve: Serve, session: requests.Session, period: str) -> None:
    waits = Waits()
    reason = json.dumps({"error": True, "reason": f"{period} API request limit exceeded."}).encode()
    with pytest.raises(DataError, match=f"{period} API request limit exceeded.*are kept"):
        get(session, serve(lambda call: (429, {}, reason)), waits)
    assert waits == []


def test_a_wait_that_is_too_long_is_told_at_once(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    with pytest.raises(DataError, match="asks to wait 86400 s; run the command again then"):
        get(session, serve(lambda call: (429, {"Retry-After": "86400"}, b"")), waits)
    assert waits == []


@pytest.mark.parametrize("text", ["soon", "-5", "²", "", "Mon, 99 Foo"])
def test_a_wait_that_cannot_be_read_is_none(serve: Serve, session: requests.Session, text: str) -> None:
    waits = Waits()
    headers = {"Retry-After": text.encode().decode("latin-1")}
    assert get(session, serve(after((503, headers, b""))), waits) == {"fine": 1}
    assert 1 <= waits[0] <= 2


def test_a_refusal_is_not_tried_again(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    reason = b'{"error": true, "reason": "Parameter \'start_date\' is out of allowed range"}'
    with pytest.raises(
        UsageError, match=r"refuses the request \(400\): Parameter 'start_date' is out of allowed range"
    ):
        get(session, serve(lambda call: (400, {}, reason)), waits)
    with pytest.raises(DataError, match=r"answers 404 \(.*check the address"):
        get(session, serve(lambda call: (404, {}, b"<html>")), waits)
    assert waits == []


def test_a_connection_that_breaks_in_the_middle(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    torn = (200, {"Content-Length": "500"}, b'{"fine"')
    assert get(session, serve(after(torn, torn)), waits) == {"fine": 1}
    assert len(waits) == 2
    with pytest.raises(DataError, match="the connection broke"):
        get(session, serve(lambda call: torn), waits, attempts=2)


def test_an_answer_that_is_cut_off_though_the_connection_ended_well(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    assert get(session, serve(after((200, {}, b'{"fine":'))), waits) == {"fine": 1}
    assert len(waits) == 1
    with pytest.raises(DataError, match=r"failed 2 times.*is torn"):
        get(session, serve(lambda call: (200, {}, b"<html>sorry</html>")), waits, attempts=2)


def test_nobody_answers(session: requests.Session) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DataError, match=r"failed 2 times.*refused"):
            get(session, url, Waits(), attempts=2)


def test_a_server_that_says_nothing(session: requests.Session) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"failed 2 times.*timed out"):
            get(session, url, Waits(), attempts=2, silence_s=0.05)


def test_an_answer_without_end(serve: Serve, session: requests.Session) -> None:
    url = serve(lambda call: (200, {}, b" " * 5000))
    with pytest.raises(DataError, match="longer than 1,000 bytes"):
        get(session, url, Waits())


def test_a_small_answer_that_unpacks_to_a_large_one(serve: Serve, session: requests.Session) -> None:
    packed = gzip.compress(bytes(10_000_000))
    url = serve(lambda call: (200, {"Content-Encoding": "gzip"}, packed))
    with pytest.raises(DataError, match="longer than 1,000,000 bytes"):
        get(session, url, Waits(), most_bytes=1_000_000)


def test_what_is_packed_is_unpacked_or_got_again(serve: Serve, session: requests.Session) -> None:
    waits = Waits()
    packed = {"Content-Encoding": "gzip"}
    assert get(session, serve(lambda call: (200, packed, gzip.compress(b'{"a": 2}'))), waits) == {"a": 2}
    assert get(session, serve(after((200, packed, b"not gzip"))), waits) == {"fine": 1}
    assert len(waits) == 1


def test_an_attempt_that_takes_too_long(serve: Serve, session: requests.Session) -> None:
    with pytest.raises(DataError, match="not complete after 0 s"):
        get(session, serve(lambda call: FINE), Waits(), attempts=1, attempt_s=0.0)


def test_a_redirect_without_end(serve: Serve, session: requests.Session) -> None:
    url = serve(lambda call: (302, {"Location": call.path}, b""))
    with pytest.raises(DataError, match="cannot be sent"):
        get(session, url, Waits())


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/", "ftp://127.0.0.1/x", "nothing"])
def test_what_is_no_address(session: requests.Session, url: str) -> None:
    with pytest.raises(DataError, match="check the address"):
        get(session, url, Waits(), attempts=1)


# Files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    write_output(path, b"new")
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_output(tmp_path / "folder", b"new")
    with pytest.raises(DataError, match="cannot be written"):
        write_output(tmp_path / "no" / "a.csv", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


# The bar


@pytest.mark.parametrize(
    ("terminal", "delay", "shown"), [(True, 0.001, True), (True, 60.0, False), (False, 0.001, False)]
)
def test_the_bar_is_shown_on_a_terminal_after_its_delay(terminal: bool, delay: float, shown: bool) -> None:
    out = StringIO()
    with ProgressBar(Console(file=out, force_terminal=terminal, width=100), "years", 3, delay) as bar:
        bar._timer.join(0.2)
        bar.note("waiting")
        bar.advance()
    assert ("years" in out.getvalue()) is shown


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_long_note_is_cut_to_the_width_of_the_terminal(width: int) -> None:
    out = StringIO()
    with ProgressBar(Console(file=out, force_terminal=True, width=width, color_system=None), "years", 3) as bar:
        bar.note("the server answers 503 (" + "being repaired " * 20 + "); trying again in 60 s")
        (line,) = bar._progress.console.render_lines(bar._progress.get_renderable())
    text = "".join(part.text for part in line)
    assert "the server" in text and "…" in text and len(text.rstrip()) <= width
