"""Pre-training by blank infilling: texts in, a network of ChatGLM-6B's kind out."""
