"""How long tests wait for what takes a moment, before they take it for hung."""

# Seconds: three times as long as a server was once seen to take for its start, on a shared machine.
PATIENCE = 60.0
