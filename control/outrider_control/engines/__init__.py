"""What starts and ends instances."""
