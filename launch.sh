#!/usr/bin/env bash
# Set up what is missing, then train or test:
#
#   ./launch.sh recipe=tiny [key=value ...]    train on all local GPUs (NUM_GPUS=n for n of them; on a machine without
#                                              GPUs: n processes, default 1), through `deepspeed train/main.py`
#   ./launch.sh test                           run the fast tests, in a process for each core
#   ./launch.sh test --all                     run all tests; slow ones are marked with the reason (--rest: only what
#                                              the fast run leaves out)
#   ./launch.sh test FILE [pytest options]     run the fast tests of a file, in one process (--all: its slow ones, too)
#   ./launch.sh setup                          only set up
#
# Everything lives in .venv; PYTHON=/path/to/python3 chooses the interpreter. Later runs find it done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

trap '' PIPE # `| head` and a `| tee` that has ended change nothing: what cannot be said is not said
say() { echo "launch: $*" >&2 || true; }
die() { say "error: $*"; exit 2; }

usage() { sed -n '2,12s/^# \{0,1\}//p' launch.sh; }
case "${1:-}" in "" | -h | --help) usage; exit 0 ;; esac

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found (set PYTHON=/path/to/python3)"
}

# What the environment was made from; when it changes, the environment is brought up to date.
fingerprint() { cat pyproject.toml constraints.txt launch.sh | cksum | cut -d' ' -f1; }

set_up() {
    local python extras=dev need_gib=4 free_gib started=$SECONDS
    [[ "$(cat .venv/.ready 2>/dev/null)" == "$(fingerprint) $PWD" ]] && return
    python=$(find_python) || exit 2
    command -v g++ >/dev/null || die "no C++ compiler found: install g++ (Debian, Ubuntu: apt-get install g++); DeepSpeed compiles an op with it"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || die "this Python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        die "this Python has no headers: install them (Debian, Ubuntu: apt-get install python3-dev); DeepSpeed compiles an op with them"
    if has_gpu; then extras=dev,gpu need_gib=14; fi
    free_gib=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    [[ -d .venv || "$free_gib" -ge "$need_gib" ]] || die "needs $need_gib GiB of free disk here, there are $free_gib"

    say "setting up .venv with $("$python" --version) (once; a few minutes)"
    [[ -x .venv/bin/python ]] || "$python" -m venv --clear .venv
    local pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt)
    say "1/3 torch"
    "${pip[@]}" setuptools wheel ninja torch || die "pip could not install torch (see above)"
    say "2/3 transformers, deepspeed and the rest"
    # DeepSpeed's own setup imports torch, hence no build isolation.
    "${pip[@]}" --no-build-isolation --editable ".[$extras]" || die "pip could not install the packages (see above)"
    if ! has_gpu; then
        say "3/3 compiling the op that DeepSpeed needs on CPU"
        mkdir -p "$TORCH_EXTENSIONS_DIR"
        rm -f "$TORCH_EXTENSIONS_DIR"/*/lock # of a set-up that was killed: torch would wait for it without an end
        DS_ACCELERATOR=cpu .venv/bin/python -W ignore -c \
            'from deepspeed.ops.op_builder import ShareMemCommBuilder as Builder; Builder().load(verbose=False)' >.venv/op.log 2>&1 ||
            { tail -n 5 .venv/op.log >&2; die "the op did not compile (log: .venv/op.log)"; }
    fi
    echo "$(fingerprint) $PWD" >.venv/.ready
    say "ready after $((SECONDS - started)) s"
}

export PATH="$PWD/.venv/bin:$PATH" # deepspeed compiles with the environment's ninja
# Compiled ops live in the environment: another one, with other flags, would compile them anew under our feet.
export TORCH_EXTENSIONS_DIR="$PWD/.venv/torch_extensions"
set_up

case "$1" in
setup) ;;
test)
    shift
    processes=()
    if [[ "$*" == "" || "$*" == --all || "$*" == --rest ]]; then
        # A file stays in one process, and the collected order holds: files whose tests train come first.
        processes=(--numprocesses "$(nproc 2>/dev/null || echo 2)" --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
    fi
    exec .venv/bin/python -m pytest "${processes[@]}" "$@"
    ;;
*)
    # Below the ports that outgoing connections take, and another one for every run of this machine.
    launcher=(.venv/bin/deepspeed --quiet --master_port $((20000 + ($$ * 7919 + RANDOM) % 12000)))
    if [[ "${DS_ACCELERATOR:-}" != cpu ]] && has_gpu; then
        launcher+=(${NUM_GPUS:+--num_gpus "$NUM_GPUS"})
    else
        export DS_ACCELERATOR=cpu
        launcher+=(--num_gpus "${NUM_GPUS:-1}")
    fi
    # Or the launcher, when nobody reads its last lines, would end with code 120 instead of the run's.
    export PYTHONUNBUFFERED=1
    exec "${launcher[@]}" train/main.py "$@"
    ;;
esac
