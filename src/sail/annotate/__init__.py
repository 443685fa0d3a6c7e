"""People label pairs: the file of labels, the local page, and what the labels agree on. No torch."""
