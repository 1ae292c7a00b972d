"""How long a test waits for what should come, in seconds: what takes longer has hung, however busy the machine is."""

PATIENCE = 600
