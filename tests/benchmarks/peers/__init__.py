"""minidist against TRL's trainers: the same models, prompts and seeds, loss parity first, then time and memory.

`python -m tests.benchmarks.peers`; README.md one folder up says what is measured and how.
"""
