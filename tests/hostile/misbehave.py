"""A command that does what none may do, for the tests of what catches it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time


def main() -> int:
    """Does what its argument names."""
    (what,) = sys.argv[1:]
    if what == "hang":
        time.sleep(1000)
    elif what == "hang beside a thread":
        threading.Thread(target=time.sleep, args=(1000,)).start()
    elif what == "hang as a child":
        subprocess.run(["sleep", "1000"], start_new_session=True, check=False)
    elif what == "leave a child":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    elif what == "eat":
        eaten = []
        while True:
            eaten.append(b"x" * (10 << 20))
    elif what == "eat as a child":
        subprocess.run([sys.executable, "-m", __spec__.name, "eat"], check=False)
    elif what == "raise":
        raise KeyError("what it was")
    elif what == "leave a file":
        os.close(tempfile.mkstemp()[0])
    elif what == "change a file":
        with open("neighbour/manifest.json", "a", encoding="utf-8") as stream:
            stream.write("and to me")
    elif what == "change a mode":
        os.chmod("../state/state.npz", 0o666)
    elif what == "write beside":
        with open(".output.part", "w", encoding="utf-8") as stream:
            stream.write("half of it")
    elif what == "clear the screen":
        print("\x1b[2J")
    elif what == "fail twice":
        print("python -m it: error: one\npython -m it: error: two", file=sys.stderr)
        return 1
    elif what == "fail in silence":
        return 1
    elif what == "call it done":
        os.mkdir("output")
        with open("output/manifest.json", "w", encoding="utf-8") as stream:
            stream.write("{}")
        print("python -m it: error: failed", file=sys.stderr)
        return 1
    elif what == "exit with 3":
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
