"""What compression saves, what it keeps, and what it costs."""
