"""Rollouts: how a new version goes out step by step, and comes back at once where it does harm."""
