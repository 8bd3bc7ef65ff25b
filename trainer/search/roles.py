"""What a process is to a search: alone, the chief that hands out trials, or a worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from beam_jobs.common.cli import UsageError, require_utf8
from trainer.training.environment import cluster_of

_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """What this process is to the search.

    Attributes:
      tuner_id: its name among those that share the study.
      address: "host:port" of the chief; empty where the search is one process.
    """

    tuner_id: str = "tuner0"
    address: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether it hands out trials to others, and runs none itself."""
        return bool(self.address) and "chief" in self.tuner_id

    @property
    def is_worker(self) -> bool:
        """Whether it gets its trials from a chief."""
        return bool(self.address) and not self.is_chief

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Role:
        """The role that KerasTuner's variables give, or else TF_CONFIG or CLUSTER_SPEC.

        Raises:
          UsageError: KerasTuner's variables are not all there, or no UTF-8; TF_CONFIG is not a
        cluster's.
        """
        given = [environ.get(name, "") for name in _VARIABLES]
        if given[1] or given[2]:
            if missing := [n for n, value in zip(_VARIABLES, given, strict=True) if not value]:
                raise UsageError(
                    f"{', '.join(missing)}: missing, {' and '.join(_VARIABLES)} belong together"
                )
            for value in given:  # gRPC writes them
                require_utf8(value)
            return cls(tuner_id=given[0], address=f"{given[1]}:{given[2]}")
        cluster = cluster_of(environ)
        if len(cluster.workers) == 1:
            return cls()
        name = "chief" if cluster.is_chief else f"tuner{cluster.index}"
        return cls(tuner_id=given[0] or name, address=cluster.workers[0])

    def variables(self) -> dict[str, str]:
        """KerasTuner's environment variables for it; none for a search of one process."""
        if not self.address:
            return {}
        host, _, port = self.address.rpartition(":")
        return dict(zip(_VARIABLES, (self.tuner_id, host, port), strict=True))
