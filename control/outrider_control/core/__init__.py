"""Pure: figures, samples, leases, decisions. Time comes in as an argument."""
