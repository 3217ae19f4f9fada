"""Files that are whole or absent, errors, the screen, child processes with limits."""
