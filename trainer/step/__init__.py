"""One update of a network and what decides it: optimizer, schedule, mixing; and what judges it: evaluation."""
