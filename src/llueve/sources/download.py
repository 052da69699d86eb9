"""Getting a file over HTTP from a server that is busy, slow, or breaks off; and putting files in place whole."""

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

import requests
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llueve.errors import DataError, UsageError

T = TypeVar("T")

CHUNK_BYTES = 2**16
BUSY = 429
PASSING = (408, BUSY, 500, 502, 503, 504)
"""Answers that another try may mend."""
BUSY_WAIT_S = 60.0
"""Where a busy server does not say how long to wait: its shortest limit is per minute."""
LONG_LIMITS = ("hour", "dai", "day", "month")
"""In the reason of a busy server: a limit that is not over soon."""
USER_AGENT = "llueve (weather data for rain classifiers)"


@dataclass(frozen=True)
class Patience:
    """How often and how long to try."""

    attempts: int = 6
    first_wait_s: float = 2.0
    """Doubles with every failure."""
    longest_wait_s: float = 120.0
    """A server that asks for more is left alone: the command ends, saying when to come back."""
    connect_s: float = 10.0
    silence_s: float = 120.0
    """Longest time without a byte."""
    attempt_s: float = 900.0
    """Longest time of one attempt."""
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int) -> float:
        """Exponential back-off, half of it by chance, so that many clients do not come back together."""
        return min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s) * random.uniform(0.5, 1.0)


class _PassingError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(
    session: requests.Session,
    url: str,
    parameters: Mapping[str, str],
    decode: Callable[[bytes], T],
    most_bytes: int,
    patience: Patience,
    tell: Callable[[str], None] = lambda _: None,
) -> T:
    """The decoded answer to one GET request.

    Args:
        session: keeps connections open between calls.
        url: http or https.
        parameters: of the query.
        decode: makes the answer of its bytes; its DataError means that they are torn, so that they are got again.
        most_bytes: longest answer, unpacked.
        patience: how often and how long to try.
        tell: is told, in a few words, what is being waited for.

    Raises:
        UsageError: the server refuses the request for what it asks; the message has its reason.
        DataError: the server cannot be reached, or answers wrongly to the last attempt.
    """
    for failures in range(1, patience.attempts + 1):
        try:
            content = _attempt(session, url, parameters, most_bytes, patience)
            try:
                return decode(content)
            except DataError as error:
                raise _PassingError(str(error)) from error
        except _PassingError as error:
            wait_s = patience.wait_s(failures) if error.wait_s is None else error.wait_s
            if wait_s > patience.longest_wait_s:
                raise DataError(
                    f"{url}: {error}, and asks to wait {wait_s:.0f} s; run the command again after that time: what it has got "
                    "is kept"
                ) from error
            if failures == patience.attempts:
                raise DataError(
                    f"{url}: failed {failures} times, the last time because: {error}; run the command again later: what it has "
                    "got is kept"
                ) from error
            tell(f"{error}; trying again in {wait_s:.0f} s")
            patience.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _attempt(
    session: requests.Session, url: str, parameters: Mapping[str, str], most_bytes: int, patience: Patience
) -> bytes:
    """One request."""
    timeout = (patience.connect_s, patience.silence_s)
    try:
        with session.get(
            url, params=parameters, stream=True, timeout=timeout, headers={"User-Agent": USER_AGENT}
        ) as answer:
            content = _body(answer, url, most_bytes, patience)
            if answer.status_code != 200:
                _refuse(answer, content, url)
            return content
    except requests.exceptions.SSLError as error:
        raise DataError(f"{url}: the server's certificate cannot be trusted ({error}); check the address") from error
    except (
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
    ) as error:
        raise _PassingError(f"the connection broke ({_innermost(error)})") from error
    except (requests.exceptions.RequestException, UnicodeError) as error:
        raise DataError(f"{url}: cannot be asked ({error}); check the address") from error


def _body(answer: requests.Response, url: str, most_bytes: int, patience: Patience) -> bytes:
    """The answer's bytes, unpacked, while they are neither too many nor too slow."""
    chunks, size, start = [], 0, time.monotonic()
    for chunk in answer.iter_content(CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > most_bytes:
            raise DataError(f"{url}: the answer is longer than {most_bytes:,} bytes; ask for fewer variables or points")
        if time.monotonic() - start > patience.attempt_s:
            raise _PassingError(f"the answer was not complete after {patience.attempt_s:.0f} s")
    return b"".join(chunks)


def _refuse(answer: requests.Response, content: bytes, url: str) -> None:
    """Raise for an answer other than 200: for good, or until the next attempt."""
    reason = _reason(content) or answer.reason or "no reason given"
    status = answer.status_code
    if status in PASSING:
        wait_s = _retry_after_s(answer)
        if status == BUSY and wait_s is None:
            if any(word in reason.lower() for word in LONG_LIMITS):
                raise DataError(f"{url}: {reason}; run the command again then: what it has got is kept")
            wait_s = BUSY_WAIT_S
        raise _PassingError(f"the server answers {status} ({reason})", wait_s)
    if 400 <= status < 500 and status not in (401, 403, 404):
        raise UsageError(f"{url}: refuses the request ({status}): {reason}; mend what is asked for")
    raise DataError(f"{url}: answers {status} ({reason}); check the address")


def _reason(content: bytes) -> str | None:
    """The reason that an error answer in JSON gives."""
    try:
        document = json.loads(content[:CHUNK_BYTES])
    except (ValueError, RecursionError):
        return None
    reason = document.get("reason") if isinstance(document, dict) else None
    return reason[:300] if isinstance(reason, str) and reason else None


def _retry_after_s(answer: requests.Response) -> float | None:
    """The header Retry-After, which holds seconds or a date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        moment = email.utils.parsedate_to_datetime(text)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (aware - datetime.now(UTC)).total_seconds())
    return None


def _innermost(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while (inner := error.__context__ or error.__cause__) is not None:
        error = inner
    return " ".join((str(error) or type(error).__name__).split())[:200]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then put it in its place, so that a torn one is never seen.

    Raises:
        DataError: the disk is full or read-only, or the folder does not exist.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); choose another --output, or free the disk"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class Bar:
    """A progress bar on a terminal, for what takes longer than two seconds."""

    DELAY_S = 2.0

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, note="")
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(self.DELAY_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            self._progress.stop()

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self._progress.update(self._task, advance=count, note="")

    def tell(self, note: str) -> None:
        """What is being waited for."""
        self._progress.update(self._task, note=note)

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._progress.start()
