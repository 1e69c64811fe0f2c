"""Scalers side by side in a simulated fleet of agents."""
