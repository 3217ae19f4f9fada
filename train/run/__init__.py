"""A recipe becomes a run: its inputs, where it begins or goes on, all that the loop needs."""
