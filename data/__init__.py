"""Rows in, packs out. Nothing in here knows about models. docs/architecture.md lists the layers."""
