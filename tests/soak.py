"""Faults at random times in real runs, under every launcher, until each run ends as if nothing had been.

    python tests/soak.py out=DIR [runs=10] [seed=0] [launchers=python,deepspeed,torchrun]

Every run is started, hit (a signal, a kill, a STOP file, damage to its newest checkpoint), started again by the same
command, hit again, and so on, three times; then it may end, and all of its last checkpoint is compared with that of a
run that was left alone. Prints a table; the exit code is 1 if any run was lost, differed, or left a process behind.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).parent / "helpers"),
]

from paths import ROOT  # noqa: E402
from running import environment, launcher  # noqa: E402
from short_runs import RECIPE, fingerprint, metrics, newest  # noqa: E402
from tqdm import tqdm  # noqa: E402

LONG = [*RECIPE, "training.epochs=8", "training.max_steps=40", "checkpoint.every=4", "checkpoint.keep=3"]
HITS = 3
END_SECONDS = 90.0  # after a fault, until nothing of the run is left


@dataclass
class Tally:
    faults: Counter[str] = field(default_factory=Counter)
    damages: int = 0
    detected: int = 0
    equal: int = 0
    runs: int = 0
    orphans: int = 0
    wrong: list[str] = field(default_factory=list)


def processes_of(run_dir: Path) -> list[int]:
    """Processes with the run directory on their command line: launchers and ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"run_dir={run_dir}".encode() in command:
            found.append(int(path.name))
    return found


def ranks_of(run_dir: Path) -> list[int]:
    """Those of them that train: they have no child with the same run directory."""
    pids = processes_of(run_dir)
    parents = set()
    for pid in pids:
        try:
            parents.add(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
        except OSError:
            continue
    return [pid for pid in pids if pid not in parents]


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


Fault = Callable[[subprocess.Popen[bytes], Path, random.Random], None]
FAULTS: dict[str, Fault] = {
    "kill -9 one rank": lambda p, d, r: send(r.sample(ranks_of(d), 1) if ranks_of(d) else [], signal.SIGKILL),
    "kill -9 everything": lambda p, d, r: send(processes_of(d), signal.SIGKILL),
    "kill -9 the launcher": lambda p, d, r: send([p.pid], signal.SIGKILL),
    "SIGTERM to the launcher": lambda p, d, r: send([p.pid], signal.SIGTERM),
    "SIGTERM to one rank": lambda p, d, r: send(ranks_of(d)[-1:], signal.SIGTERM),
    "SIGUSR1 to one rank": lambda p, d, r: send(ranks_of(d)[:1], signal.SIGUSR1),
    "Ctrl-C": lambda p, d, r: os.killpg(p.pid, signal.SIGINT),
    "STOP": lambda p, d, r: (d / "STOP").touch(),
}


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damage(run_dir: Path, draw: random.Random) -> bool:
    """Damage the newest checkpoint, where there is an older one to go on from."""
    found = sorted((run_dir / "checkpoints").glob("step-*[0-9]"))
    if len(found) < 2 or not (run_dir / "checkpoints" / "latest").is_file():
        return False
    file = draw.choice(sorted(newest(run_dir).iterdir()))
    kind = draw.choice(["flip", "cut", "remove"])
    if kind == "flip":
        flip_a_bit(file, draw)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    return True


def start(kind: str, run_dir: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [*launcher(kind, 1 if kind == "python" else 2), "train/main.py", f"run_dir={run_dir}", *LONG]
    with open(out, "ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(out.parent / "cache"), stdout=file, stderr=file, start_new_session=True
        )


def wait_until_nothing_is_left(run_dir: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(run_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def one_run(kind: str, number: int, out: Path, draw: random.Random, reference: str, alone: list, tally: Tally) -> None:
    run_dir, log = out / f"{kind}-{number}", out / f"{kind}-{number}.log"
    tally.runs += 1
    for _ in range(HITS):
        process = start(kind, run_dir, log)
        steps = run_dir / "metrics.jsonl"
        before = steps.stat().st_size if steps.exists() else 0
        while process.poll() is None and not (steps.exists() and steps.stat().st_size > before):
            time.sleep(0.05)  # the start-up is the same for all; faults belong into the steps
        time.sleep(draw.uniform(0, 5))
        name = draw.choice(list(FAULTS))
        if process.poll() is None:
            FAULTS[name](process, run_dir, draw)
            tally.faults[name] += 1
        if not wait_until_nothing_is_left(run_dir, END_SECONDS):
            tally.orphans += 1
            tally.wrong.append(f"{run_dir}: {name}: processes were left after {END_SECONDS:.0f} s")
            send(processes_of(run_dir), signal.SIGKILL)
        process.wait()
        if draw.random() < 0.3 and not (run_dir / "finished.json").exists() and damage(run_dir, draw):
            tally.damages += 1
            said = log.stat().st_size
            process = start(kind, run_dir, log)
            while process.poll() is None and b"resumed from step" not in log.read_bytes()[said:]:
                time.sleep(0.05)
            tally.detected += b"is passed over: " in log.read_bytes()[said:]
            send(processes_of(run_dir), signal.SIGKILL)
            wait_until_nothing_is_left(run_dir, END_SECONDS)
            process.wait()
    if (code := start(kind, run_dir, log).wait()) != 0:
        tally.wrong.append(f"{run_dir}: the last start ended with code {code}; see {log}")
    elif fingerprint(run_dir) != reference or metrics(run_dir) != alone:
        tally.wrong.append(f"{run_dir}: differs from the run that was left alone")
    else:
        tally.equal += 1


def main(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "out" not in given or set(given) - {"out", "runs", "seed", "launchers"}:
        print(__doc__)
        return 2
    out = Path(given["out"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for kind in given.get("launchers", "python,deepspeed,torchrun").split(","):
        alone = out / f"{kind}-alone"
        code = start(kind, alone, out / f"{kind}-alone.log").wait()
        assert code == 0, f"see {out}/{kind}-alone.log"
        reference, lines = fingerprint(alone), metrics(alone)
        draw, tally = random.Random(f"{given.get('seed', 0)} {kind}"), Tally()
        for number in tqdm(range(int(given.get("runs", 10))), desc=kind, unit="run"):
            one_run(kind, number, out, draw, reference, lines, tally)
        print(
            f"{kind}: {tally.faults.total()} faults in {tally.runs} runs ({dict(tally.faults)}); {tally.equal} equal "
            f"to the bit; {tally.detected} of {tally.damages} damages found; {tally.orphans} with processes left"
        )
        for line in tally.wrong:
            print(f"  WRONG: {line}")
        failed = failed or bool(tally.wrong) or tally.detected != tally.damages
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
