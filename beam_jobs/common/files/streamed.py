"""An object read from begin to end, as archives without a table are: parts are fetched ahead."""

from __future__ import annotations

from concurrent.futures import Future

from beam_jobs.common.files.clients import in_pool, pool
from beam_jobs.common.files.objects import PART_BYTES, read

_AHEAD = 4


class StreamedBytes:
    """One version of an object, read in parts, of which the next ones are under way.

    Attributes:
      size: in bytes.
      modified: 0.
    """

    modified = 0

    def __init__(self, path: str, size: int, tag: str) -> None:
        self.size = size
        self._path = path
        self._tag = tag
        self._parts: dict[int, Future[bytes]] = {}
        self._last = -1

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(self.size, offset + length)
        parts = []
        while offset < end:
            number, begin = divmod(offset, PART_BYTES)
            part = self._part(number)[begin : begin + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _part(self, number: int) -> bytes:
        if number != self._last:
            follows = number == self._last + 1
            self._last = number
            wanted = range(number, number + (_AHEAD if follows and not in_pool() else 1))
            for gone in [other for other in self._parts if other not in wanted]:
                self._parts.pop(gone).cancel()
            for other in wanted:
                if other not in self._parts and other * PART_BYTES < self.size:
                    self._parts[other] = self._fetch(other)
        return self._parts[number].result()

    def _fetch(self, number: int) -> Future[bytes]:
        def request() -> bytes:
            return read(self._path, number * PART_BYTES, PART_BYTES, self._tag).data

        if not in_pool():
            return pool().submit(request)
        fetched: Future[bytes] = Future()
        fetched.set_result(request())
        return fetched

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._parts.clear()
