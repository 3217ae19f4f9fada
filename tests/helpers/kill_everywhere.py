"""Kill a piece of work before each change that it makes to files: one process imports, and forks a child for each kill.

The work is a function of a test module that takes a directory. The module should import all that it needs and compute
nothing.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).resolve().parent


def kill_everywhere(work: str, directory: Path, timeout: float = 120) -> list[str]:
    """Run `module:function` again and again, with SIGKILL before its first change, its second, and so on until it ends.

    Each run has a directory of its own, DIRECTORY/1 and so on, a copy of DIRECTORY/start where that is there; the last
    one is not killed.

    Returns:
        The changes before which it was killed.
    """
    done = subprocess.run(
        [sys.executable, __file__, work, str(directory)], stdout=subprocess.PIPE, text=True, timeout=timeout, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(work: str, directory: Path) -> None:
    sys.path[:0] = [str(path) for path in (HELPERS.parents[1], HELPERS)]
    module, name = work.split(":")
    function = getattr(importlib.import_module(module), name)
    from forked_runs import Killer

    log, code, count = directory / "changes", 1, 0
    while code:
        count += 1
        own = directory / str(count)
        if (directory / "start").exists():
            shutil.copytree(directory / "start", own)
        else:
            own.mkdir()
        log.write_text("")
        pid = os.fork()
        if pid == 0:
            sys.addaudithook(Killer(str(own), count, str(log)))
            function(own)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -9), code
    print(json.dumps(log.read_text().splitlines()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
