"""Where things are: the repository, and real data beside it where there is some."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # real pairs, benchmarks and tokenizers; tests of them are skipped without it
