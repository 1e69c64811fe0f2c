"""Features as steps over a call, one a file. A filter imports no other filter; the order is in `stack`."""
