"""What a run writes, survives and shows: records, checkpoints, the request to stop, the progress line."""
