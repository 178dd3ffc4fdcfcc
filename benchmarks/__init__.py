"""What llama_magic costs beyond llama.cpp itself, measured: ``python -m benchmarks``.

Speed on shared machines swings by a factor of two within minutes. So whatever is compared runs in
turns (A B, B A, A B …) in one run, every round gives one ratio, and the median of the rounds counts.
"""
