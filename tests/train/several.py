"""Several runs of `fastirv2.train` in one process, since starting one takes longer than many of them; arguments: JSON lists.

What each said and its exit code are printed as JSON.
"""

import contextlib
import json
import os
import sys
import tempfile

from fastirv2 import train


def run(arguments):
    """Run the command as a process of its own would; return its exit code."""
    sys.argv = ["train", *arguments]
    try:
        train.run_command(train.command, train.PROGRAM)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    raise AssertionError("a command ends its process")


@contextlib.contextmanager
def caught(descriptor):
    """Have what is written to a descriptor go to a file, which is given."""
    before = os.dup(descriptor)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), descriptor)
        yield file
        os.dup2(before, descriptor)
        os.close(before)


def text_of(file):
    file.seek(0)
    return file.read()


def main():
    results = []
    for words in sys.argv[1:]:
        with caught(1) as said, caught(2) as complained:
            code = run(json.loads(words))
            sys.stdout.flush()
            results.append({"returncode": code, "stdout": text_of(said), "stderr": text_of(complained)})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
