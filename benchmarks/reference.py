"""What accuracy is measured against: prompts, float32 answers and their logits, in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that returns the sum of a list of numbers.",
    "Explain in three sentences why the sky is blue.",
    "List five fruits, and for each one say what colour it is when it is ripe.",
    "A train travels 60 miles in 45 minutes. What is its speed in miles per hour?",
    "Write the first lines of a story about a lighthouse keeper who finds a letter.",
)
ANSWER_TOKENS = 48


def save(path: Path, sequences: list[tuple[list[int], int, Float32Array]]) -> None:
    """Sequences of (token ids, how many of them are the prompt, logits after each token)."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"count": np.array(len(sequences))}
    for i, (token_ids, prompt_length, logits) in enumerate(sequences):
        arrays[f"ids{i}"] = np.array(token_ids, np.int32)
        arrays[f"prompt{i}"] = np.array(prompt_length)
        arrays[f"logits{i}"] = logits
    np.savez(path, allow_pickle=False, **arrays)


def compare(path: Path, logits_of: Callable[[list[int]], Float32Array]) -> dict[str, float]:
    """Distance of an engine's logits from the saved ones.

    Errors are over all tokens and the whole vocabulary. Agreement is over the answers: given the
    reference's tokens so far, is the likeliest next token the same?
    """
    total, count, largest, spread, same, compared = 0.0, 0, 0.0, 0.0, 0, 0
    with np.load(path) as saved:
        for i in range(int(saved["count"])):
            expected = saved[f"logits{i}"]
            logits = logits_of(saved[f"ids{i}"].tolist())
            error = np.abs(logits - expected)
            total += float(error.sum(dtype=np.float64))
            count += error.size
            largest = max(largest, float(error.max()))
            spread += float(expected.std(axis=1, dtype=np.float64).sum()) * expected.shape[1]
            answer = slice(int(saved[f"prompt{i}"]) - 1, None)
            agrees = logits[answer].argmax(axis=1) == expected[answer].argmax(axis=1)
            same += int(agrees.sum())
            compared += len(agrees)
    return {
        "mean_error": total / count,
        "max_error": largest,
        "logit_std": spread / count,
        "agreement": same / compared,
        "num_compared": compared,
    }
