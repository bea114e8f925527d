"""Speed, memory, start-up and accuracy of Glimmer beside llama.cpp: `python -m benchmarks`."""
