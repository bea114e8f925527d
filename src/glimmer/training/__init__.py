"""Fine-tuning and pre-training (extra "train"), on Transformers, PEFT, TRL and Accelerate."""
