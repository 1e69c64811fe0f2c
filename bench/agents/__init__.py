"""Simulated agents: real gRPC servers whose timing, failures and replies follow seeded distributions."""
