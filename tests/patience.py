"""How long tests wait for what takes a moment, before they take it for hung."""

# Seconds. A server's start was seen to take 20 on a shared machine, and what waits for four of them more than 60.
PATIENCE = 180
