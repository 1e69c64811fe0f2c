"""The store: SQLite or PostgreSQL behind plain functions over a connection."""
