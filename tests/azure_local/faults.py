"""What goes wrong on purpose? A status, a cut connection, a delay or a change, at the n-th request that matches."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Request


@dataclass
class Fault:
    """Happens to requests number `nth` … `nth + times - 1` whose method and URL (host, path, query) match.

    `drop` cuts the connection "before" the request was acted on, or "after". `delay` seconds pass before acting, and
    `meanwhile` is called: it may change what the request is about.
    `status` answers without acting; Retry-After goes with it where `retry_after` is given.
    """

    method: str
    pattern: str
    nth: int = 1
    times: int = 1
    status: int | None = None
    retry_after: float | None = None
    code: str = "InjectedFault"
    drop: str | None = None
    delay: float = 0
    meanwhile: Callable[[], object] = lambda: None
    matched: int = field(default=0, init=False)  # how many requests matched so far
    happened: int = field(default=0, init=False)  # how often it struck

    def __post_init__(self) -> None:
        if self.drop not in (None, "before", "after"):
            raise ValueError(f'drop is "before" or "after", not {self.drop!r}')

    def matches(self, request: Request) -> bool:
        url = f"{request.host}{request.path}" + (f"?{request.raw_query}" if request.raw_query else "")
        return re.fullmatch(self.method, request.method) is not None and re.search(self.pattern, url) is not None

    def strikes(self, request: Request) -> bool:
        """Counts the request, and says whether it is one of those."""
        if not self.matches(request):
            return False
        self.matched += 1
        if not self.nth <= self.matched < self.nth + self.times:
            return False
        self.happened += 1
        return True


class Faults:
    """All that were asked for; safe to use from several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def of(self, request: Request) -> Fault | None:
        """The first that strikes; every one counts the request."""
        with self._lock:
            striking = [fault for fault in self._faults if fault.strikes(request)]
        return striking[0] if striking else None
