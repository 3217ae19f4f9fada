"""Ranks, signals and other stops, hangs, logs."""
