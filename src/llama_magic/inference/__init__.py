"""From a request to text: sampling parameters, prompts, the decode loop, the prefix cache.

`params`, `results` and `conversation` may be imported in the kernel; the rest runs in the worker.
"""
