"""The commands and what composes `data/` and `models/` into a run; see docs/architecture.md for the order of the layers."""
