"""A local worker process of Beam's: quiet, one BLAS thread, and never outliving the command.

`local_runner` of `options` starts it in place of Beam's own `sdk_worker_main`, which prints a
page of INFO lines a worker and waits for ever when its parent was killed.
"""

from __future__ import annotations

import logging
import sys

from beam_jobs.common import interrupts
from beam_jobs.common.cli import log_level
from beam_jobs.common.imports import lasting
from beam_jobs.runners.options import end_stages_at_once, quiet_beam


def main() -> None:
    """Serves the runner whose address the environment names."""
    # Ctrl-C goes to the whole group; the command decides when workers end, by SIGTERM.
    interrupts.end_with_parent()
    interrupts.expect("")
    quiet_beam()
    if log_level() is None:
        logging.disable(logging.ERROR)
    with lasting("apache_beam"):
        from apache_beam.runners.worker import sdk_worker, sdk_worker_main
    if log_level() is None:
        # It prints a failure's traceback, beside logging it; the command reports it in one line.
        vars(sdk_worker)["print"] = lambda *_, **__: None
    end_stages_at_once()

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
