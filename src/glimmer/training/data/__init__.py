"""Training data: files in, token ids and loss masks out. Knows no torch."""
