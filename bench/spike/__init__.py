"""A tenfold spike on a real mesh."""
