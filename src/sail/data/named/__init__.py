"""Public preference sets by name: one small function each, from the public columns to our rows."""
