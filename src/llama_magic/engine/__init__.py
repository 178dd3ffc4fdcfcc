"""The worker process and the client that talks to it.

`protocol`, `client`, `stream` and `process` are for the kernel; `engine` and `host` run in the worker.
"""
