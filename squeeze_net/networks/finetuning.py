"""What `--finetune` trains every network with; each adds its rate, and what is frozen."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {'epoch': 15, 'batch': 8, 'schedule': 'cosine', 'warmup': 2}
