"""The bridge to PyTorch (extra "train"): any checkpoint as a model of Transformers."""
