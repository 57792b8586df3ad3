"""A routing table from requests to functions, which the modules of the service fill with a decorator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from .hosts import MANAGEMENT
from .messages import Reply, Request, ServiceError

WORKSPACE = (
    "/subscriptions/{subscription}/resource[Gg]roups/{group}/providers/Microsoft.MachineLearningServices"
    "/workspaces/{workspace}"
)

Answer = Callable[..., Reply]


class Routes:
    """`(method, kind of host, path)` patterns in the order they were added; `{name}` matches one segment of a path."""

    def __init__(self) -> None:
        self._table: list[tuple[str, str, re.Pattern[str], Answer]] = []

    def add(self, method: str, path: str, host: str = MANAGEMENT) -> Callable[[Answer], Answer]:
        pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

        def keep(answer: Answer) -> Answer:
            self._table.append((method, host, pattern, answer))
            return answer

        return keep

    def find(self, request: Request, kind: str | None) -> tuple[Answer, dict[str, str]]:
        """The function and the named segments of the path. Raises ServiceError (501) if no route matches."""
        for method, host, pattern, answer in self._table:
            match = pattern.fullmatch(request.path)
            if method == request.method and host == kind and match:
                return answer, {name: unquote(part) for name, part in match.groupdict().items()}
        where = f"{request.method} https://{request.host}{request.path}"
        raise ServiceError(501, "NotImplementedHere", f"The local Azure does not know {where}")


def merged(tables: Iterable[Routes]) -> Routes:
    whole = Routes()
    for table in tables:
        whole._table.extend(table._table)
    return whole
