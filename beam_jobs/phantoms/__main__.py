"""The command `python -m beam_jobs.phantoms`."""

from beam_jobs.common import cli
from beam_jobs.phantoms.cohort import PROG, main

if __name__ == "__main__":
    cli.run(main, PROG)
