"""The command `python -m beam_jobs.report`."""

from beam_jobs.common import cli
from beam_jobs.report.make import PROG, main

if __name__ == "__main__":
    cli.run(main, PROG)
