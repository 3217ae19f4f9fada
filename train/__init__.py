"""The commands and what composes `data/` and `models/` into a run. docs/architecture.md lists the layers."""
