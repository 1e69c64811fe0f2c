"""Experiments that are made up, decided by the code that decides: errors, power, stopping times."""
