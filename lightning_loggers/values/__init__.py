"""User objects made plain enough for a journal."""
