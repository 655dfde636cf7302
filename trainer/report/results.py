"""What a finished run prints."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config
from trainer.report.confusion import final_confusion, format_confusion
from trainer.run.progress import format_top5
from trainer.run.records import WATCHED, peers, read_run, watched_of


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
    if summary.get('confusion'):
        lines.append(format_confusion(summary['classes'], np.array(final_confusion(summary))))
    lines += [f'{name} epoch {summary[name]["epoch"]}: {_score(summary[name])}' for name in ('last', 'best')]
    if run.test:
        top5 = format_top5(run.test.get('top5'), len(summary['classes']))
        lines[-1] += f'; with its weights, test accuracy {run.test["accuracy"]:.2%}{top5}'
    images = Path(config.save_path) / 'img'
    lines.append(f'records: {folder}   plots: {images}')
    lines.append(f'report: {images / f"report_{run.name}.html"}')
    is_comparable = config.load_model is None and config.teacher is None
    if baselines and is_comparable and not any(other.model in baselines for other in [run, *peers(folder)]):
        name = next(iter(baselines))
        own_run = '' if config.run is None else f' --run {name}'
        lines.append(f'a baseline to plot beside it: the same command with --model {name}{own_run}')
    return '\n'.join(lines)


def _score(entry: dict[str, Any]) -> str:
    watched, n_class = watched_of(entry), len(entry['per_class_accuracy'])
    top5 = format_top5(entry.get(f'{watched}_top5'), n_class)
    return f'{WATCHED[watched]} accuracy {entry[f"{watched}_accuracy"]:.2%}{top5}'
