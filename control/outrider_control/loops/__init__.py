"""Loops of observe -> decide -> act."""
