"""What a finished run prints."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.report.confusion import format_confusion
from trainer.run.progress import format_top5
from trainer.run.records import peers, read_run

MAX_CLASSES_SHOWN = 20  # of more, the confusion matrix is only in summary.json


def format_results(folder: Path, config: Config, baselines: Collection[str] = ()) -> str:
    """The confusion matrix, the accuracy of the last and the best epoch, and where records and plots are.

    Args:
        folder: of the run.
        config: of the run.
        baselines: model names; if neither the run nor its peers are of these, a line says how to get one.
    """
    run = read_run(folder)
    summary = run.summary or {}
    lines = []
    if len(summary['classes']) <= MAX_CLASSES_SHOWN:
        lines.append(format_confusion(summary['classes'], np.array(summary['confusion'])))
    for name in ('last', 'best'):
        entry = summary[name]
        lines.append(f'{name} epoch {entry["epoch"]}: test accuracy {entry["test_accuracy"]:.2%}{format_top5(entry)}')
    lines.append(f'records: {folder}   plots: {Path(config.save_path) / "img"}')
    if baselines and not any(other.model in baselines for other in [run, *peers(folder)]):
        lines.append(f'a baseline to plot beside it: the same command with --model {next(iter(baselines))}')
    return '\n'.join(lines)
