"""Preference data: reading rows (formats, sources), tokens (encode), tensors (collate)."""
