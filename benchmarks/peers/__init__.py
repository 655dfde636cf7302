"""The contestants of `benchmarks/train_step.py`, each a worker process: `python -m peers KIND ...` in `benchmarks/`.

A worker may run in another environment than the benchmark, so nothing but NumPy is shared between them; only
`peers.project` imports the project.
"""
