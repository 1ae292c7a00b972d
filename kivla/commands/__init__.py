"""One file for each sub-command: its options and `run`."""
