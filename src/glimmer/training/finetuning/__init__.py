"""Fine-tuning: data and a model in, an adapter or a model out. Knows no family."""
