"""Files, batches, and answers that are fetched later: work that no client waits for."""
