"""Pure algorithms, one a file: time, randomness and data are arguments. An engine imports no other engine."""
