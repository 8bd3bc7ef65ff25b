"""Text files that a command line names: what is wrong with one is wrong usage, in one line."""

from __future__ import annotations

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files


def read_named(path: files.StrPath, *, flag: str = "") -> str:
    """The text of a file that the command line names, local or in a store.

    Args:
      path: the file.
      flag: the option that names it, for messages.

    Raises:
      UsageError: there is no such file, it is something else (a directory, a pipe), holds more
        than `files.MOST_BYTES`, or is not UTF-8 text.
      OSError: it cannot be read.
      CommandError: a store refuses or fails.
    """
    name = f"{flag}: {files.text(path)}" if flag else files.text(path)
    try:
        return files.read_text(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{name} does not exist") from error
    except IsADirectoryError as error:
        raise UsageError(f"{name} is a directory") from error
    except (files.SpecialFileError, files.TooLargeError) as error:
        raise UsageError(f"{name} {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: save it as UTF-8") from error
