"""`make run`: a mesh of simulated agents and sidecars under load, with a table of what happened."""
