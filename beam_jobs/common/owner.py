"""Whose an output is: of several jobs that were begun on it the last one alone writes.

A lock ends with its process, and the workers of a cluster live on. Each job claims the output by a
file in it before it changes anything, and whoever writes for the job looks at that file right
before. On a disk nobody can claim the output between the look and the write; in a store a request
that is under way may still arrive.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError, json_object
from beam_jobs.common.files import interface as files


class LostOutputError(CommandError):
    """The output is another job's by now; the message says whose."""


def new_token() -> str:
    """What tells this job from every other: its process, and a random number."""
    return f"{files.owner()}, {uuid.uuid4().hex}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """A job that may write an output for as long as a file there has its token.

    Attributes:
      path: the file.
      output: how messages name the output.
      token: `new_token`'s.
    """

    path: str
    output: str
    token: str = dataclasses.field(default_factory=new_token)

    def take(self) -> None:
        """Makes the output this job's; from here on no other's worker writes."""
        files.claim(self.path, self._claim)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For one short block that writes, replaces or deletes.

        Raises:
          LostOutputError: another job took the output, or this one is finished.
        """
        with files.claimed(self.path) as said:
            if said != self._claim:
                why = (
                    f"another job{_who(said)} began to write {self.output} after this one"
                    if said
                    else f"another job finished {self.output}, or {self.path} is not seen from here"
                )
                raise LostOutputError(f"{why}; nothing of this one is written any more")
            yield

    def require(self) -> None:
        """Raises `writing`'s error before work that would be in vain."""
        with self.writing():
            pass

    @contextmanager
    def working(self) -> Iterator[None]:
        """For the work itself: what fails since another job deleted it is told as what it is.

        Raises:
          LostOutputError: as `writing`, before the block and where that fails.
        """
        self.require()
        try:
            yield
        except (OSError, ContractError):
            self.require()
            raise

    def leave(self) -> None:
        """Ends this job's right to write; the file goes, unless it is another's."""
        files.unclaim(self.path, self._claim)

    @property
    def _claim(self) -> bytes:
        return f"{json.dumps({'token': self.token})}\n".encode()


def _who(said: bytes) -> str:
    """The process of another's claim, where there is one."""
    try:
        token = str(json_object(said)["token"])
    except (ContractError, KeyError):
        return ""
    return f" ({token.rpartition(', ')[0]})"
