"""From weights to devices."""
