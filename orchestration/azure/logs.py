"""What has a job said so far, and what does it say from now on? Its log is read from where the last look ended.

No line is lost and none repeated: lines are cut from the bytes of one log, whose position is kept through refused
requests, cut connections and addresses that have expired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobClient

from orchestration.azure.blobs import retry_policy
from orchestration.azure.history import Details

JOB_LOG = re.compile(r"user_logs/std_log(?:_process_0+)?\.txt")
BUILD_LOG = re.compile(r"azureml-logs/\d*_?image_build_log\.txt")
RANGE_BEYOND_THE_END = 416
MOST_BYTES = 4 << 20  # at a time


def log_in(details: Details, which: re.Pattern[str]) -> str | None:
    """The address of a log, None where there is none yet. Of several processes the first one's."""
    names = sorted(name for name in details.logs if which.fullmatch(name))
    return details.logs[names[0]] if names else None


@dataclass
class LogReader:
    """Reads a log as it grows."""

    wait_factor_s: float
    position: int = 0
    is_cut: bool = False  # whether the last look was refused or cut, so that there may be more
    _rest: bytes = field(default=b"", repr=False)

    def lines(self, url: str, *, to_the_end: bool) -> Iterator[str]:
        """The whole lines that have come since the last look; to_the_end: also a last one that has no end yet.

        A log that cannot be read just now has no new lines: the next look finds them.
        """
        while content := self._read(url):
            self.position += len(content)
            *whole, self._rest = (self._rest + content).split(b"\n")
            yield from map(_as_line, whole)
        if to_the_end and self._rest:
            rest, self._rest = self._rest, b""
            yield _as_line(rest)

    def _read(self, url: str) -> bytes:
        self.is_cut = False
        try:
            with BlobClient.from_blob_url(url, retry_policy=retry_policy(self.wait_factor_s)) as blob:
                content: bytes = blob.download_blob(offset=self.position, length=MOST_BYTES).readall()
        except HttpResponseError as error:
            self.is_cut = error.status_code != RANGE_BEYOND_THE_END
            if not self.is_cut:
                self._begin_again_if_shorter(error)
            return b""
        except AzureError:
            self.is_cut = True
            return b""
        return content

    def _begin_again_if_shorter(self, error: HttpResponseError) -> None:
        """A node that was taken away may leave its log to a new one."""
        headers: Mapping[str, str] = getattr(error.response, "headers", {})
        told = headers.get("Content-Range", "").rpartition("/")[2]
        if told.isdigit() and int(told) < self.position:
            self.position, self._rest = 0, b""


def _as_line(content: bytes) -> str:
    """A line as text. Of a bar that was drawn over and over only what stood there last."""
    return content.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
