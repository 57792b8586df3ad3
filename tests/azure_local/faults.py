"""Fault injection: an error status, a cut connection, a delay or a change at the n-th matching request."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Request


@dataclass
class Fault:
    """Affects requests number `nth` … `nth + times - 1` whose method and URL (host, path, query) match.

    `drop` cuts the connection "before" or "after" the request is processed. `delay` waits for that many seconds before
    processing it, then `meanwhile` is called, which may change what the request refers to.
    `status` responds without processing the request, with a Retry-After header if `retry_after` is given.
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
    count: int = field(default=0, init=False)  # how many requests it affected

    def __post_init__(self) -> None:
        if self.drop not in (None, "before", "after"):
            raise ValueError(f'drop is "before" or "after", not {self.drop!r}')

    def matches(self, request: Request) -> bool:
        url = f"{request.host}{request.path}" + (f"?{request.raw_query}" if request.raw_query else "")
        return re.fullmatch(self.method, request.method) is not None and re.search(self.pattern, url) is not None

    def affects(self, request: Request) -> bool:
        """Counts the request if it matches, and returns whether it is to fail."""
        if not self.matches(request):
            return False
        self.matched += 1
        if not self.nth <= self.matched < self.nth + self.times:
            return False
        self.count += 1
        return True


class Faults:
    """The injected faults; thread-safe."""

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
        """The first fault that affects the request; every matching fault counts it."""
        with self._lock:
            affecting = [fault for fault in self._faults if fault.affects(request)]
        return affecting[0] if affecting else None
