"""Training runs without their start-up: a process that has imported everything and forks a child for each rank.

`WarmParent.run` trains as `train/main.py` would, and can kill a child with SIGKILL at the n-th change that it makes to
files below a directory, or after some seconds. It never computes itself: a computation's threads do not survive a fork.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import ROOT

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


@dataclass
class Ended:
    """What became of the ranks of a run: exit codes, negative for a signal."""

    codes: list[int]
    output: str
    seconds: float
    changes: list[str]  # of rank 0, in order, where they were asked for
    port: int  # at which its ranks met


class WarmParent:
    def __init__(self, directory: Path, shared: Path):
        """Args: directory: this parent's own; shared: of all workers' parents, for runs that are made once."""
        from running import environment  # not above: it imports torch, and those who fork import this file first

        self.directory, self.shared = directory, shared
        for path in (directory, shared):
            path.mkdir(parents=True, exist_ok=True)
        env = environment(shared / "cache") | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._count = 0

    def run(self, arguments: list[str], ranks: int = 1, **options: Any) -> Ended:
        """Args: options of `serve` below."""
        self._count += 1
        out = self.directory / f"output-{self._count}"
        request = {"arguments": arguments, "ranks": ranks, "out": str(out), **options}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        texts = [Path(f"{out}-{rank}").read_text(errors="replace") for rank in range(ranks)]
        return Ended(reply["codes"], "\n".join(texts), reply["seconds"], reply["changes"], reply["port"])

    def close(self) -> None:
        self._process.communicate()


# --- in the process of its own ---------------------------------------------------------------------------------------


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork the ranks of one run and wait for them; like a launcher, end the others when one has failed.

    Request: arguments, ranks, out (file prefix), watch (directory whose changes are counted), kill_at (the change, from
    1, before which the rank dies), kill_rank, kill_after (seconds, all ranks), patch (a function of
    fault_patches.py that the child calls first: its name, or a list of name and arguments), timeout, grace
    (seconds between the first failure and the end of the others).
    """
    started = time.monotonic()
    port, log = random.randrange(20000, 32000), f"{request['out']}-changes"
    Path(log).write_text("")
    pids = []
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(request, rank, port, log)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    codes: dict[int, int] = {}
    deadline = request.get("kill_after", request.get("timeout", 120))
    while len(codes) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        age = time.monotonic() - started
        alive = [pid for rank, pid in enumerate(pids) if rank not in codes]
        if any(codes.values()):  # a launcher gives the others some time and then ends them
            deadline = min(deadline, age + request.get("grace", 1.0))
        if age >= deadline:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return {
        "codes": [codes[rank] for rank in range(len(pids))],
        "seconds": time.monotonic() - started,
        "changes": Path(log).read_text().splitlines(),
        "port": port,
    }


def child(request: dict[str, Any], rank: int, port: int, log: str) -> int:
    out = os.open(f"{request['out']}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if request["ranks"] > 1:
        world = {"WORLD_SIZE": request["ranks"], "LOCAL_SIZE": request["ranks"], "RANK": rank, "LOCAL_RANK": rank}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in world.items()})
    if "watch" in request and rank == request.get("kill_rank", 0):
        sys.addaudithook(Killer(request["watch"], request.get("kill_at"), log))
    if "patch" in request:
        import fault_patches as patches

        name, *values = request["patch"] if isinstance(request["patch"], list) else [request["patch"]]
        getattr(patches, name)(*values)
    from data.common import screen
    from train.main import main

    screen.guard()
    return main(request["arguments"])


class Killer:
    """An audit hook that counts changes below a directory and kills its process before one of them."""

    def __init__(self, directory: str, kill_at: int | None, log: str):
        self.directory, self.kill_at, self.count = directory, kill_at, 0
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(self.directory):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.count += 1
        name = os.path.relpath(str(arguments[0]), self.directory)
        os.write(self.log, f"{event} {name}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def warm_up() -> None:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    import deepspeed  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import train.loop
    import train.main  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    warm_up()
    for line in requests:
        replies.write(json.dumps(serve(json.loads(line))) + "\n")
        replies.flush()
