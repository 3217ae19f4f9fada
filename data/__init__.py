"""Rows in, packs out. Nothing in here knows about models; see docs/architecture.md for the order of the layers."""
