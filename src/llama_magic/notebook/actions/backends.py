"""Subcommands about hardware: backends, devices, building, and other machines."""

from __future__ import annotations

from llama_magic.api import backends as hardware
from llama_magic.api.build import build_backend, build_wheel
from llama_magic.api.rpc import RpcServer, rpc_add, rpc_hosts, rpc_remove, rpc_serve, rpc_stop
from llama_magic.api.switching import Switched, reloading, switch_backend
from llama_magic.backends.rpc_check import DEFAULT_PORT
from llama_magic.backends.setup import selected
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.asking import agreed
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments
from llama_magic.suggest import did_you_mean
from llama_magic.units import format_seconds

_RPC = ("serve", "add", "remove", "list", "stop")


def backends(_context: Context, _arguments: Arguments) -> object:
    """``%llama backends``."""
    return hardware.backends()


def devices(_context: Context, _arguments: Arguments) -> object:
    """``%llama devices``."""
    return hardware.devices()


def backend(context: Context, arguments: Arguments) -> str:
    """``%llama backend [NAME[,NAME]]``."""
    if not arguments.words:
        names = ", ".join(device.name for device in hardware.devices())
        return f"Backends: {selected().name or 'default'}. Devices: {names}. %llama backends lists what else there is."
    return _switched(switch_backend(context.session, ",".join(arguments.words), context.on_progress))


def _switched(done: Switched) -> str:
    lines = [f"Backends: {done.names or 'default'} ({', '.join(device.name for device in done.devices)})."]
    lines += [f"Left out: {problem.what}: {problem.reason}." for problem in done.devices.problems]
    if done.info is not None:
        lines.append(
            f"{done.info.name} is loaded again, on {done.info.place}; worker and model took "
            f"{format_seconds(done.seconds)}."
        )
    return "\n".join(lines)


def build(context: Context, arguments: Arguments) -> object:
    """``%llama build NAME …``."""
    names = arguments.words
    if not names:
        raise InvalidRequestError("build needs a backend: %llama build blas; %llama backends lists them all")
    defines = arguments.get("define", ())
    if not arguments.get("wheel"):
        return build_backend(
            names,
            defines=defines,
            jobs=arguments.get("jobs"),
            debug=arguments.get("debug", False),
            progress=context.on_progress,
        )
    if "jobs" in arguments.values or "debug" in arguments.values:
        raise InvalidRequestError("--wheel takes -D only: pip decides the rest")
    question = (
        f"Build llama-cpp-python with {', '.join(names)} and install it in place of the present one? "
        "That takes ten minutes or more. [y/N] "
    )
    if not arguments.get("yes") and not agreed(question, "add --yes to build it without asking"):
        return "Nothing was built."
    return build_wheel(names, defines=defines, progress=context.on_progress)


def rpc(context: Context, arguments: Arguments) -> object:
    """``%llama rpc [serve | add | remove | list | stop]``."""
    what = arguments.word or "list"
    if what not in _RPC:
        raise InvalidRequestError(f"rpc takes {', '.join(_RPC)}; got {what!r}.{did_you_mean(what, _RPC)}")
    host = arguments.words[1] if len(arguments.words) > 1 else None
    if what != "serve" and arguments.values:
        raise InvalidRequestError(f"rpc {what} takes no flags; they belong to rpc serve")
    if what == "list":
        return rpc_hosts()
    if what == "serve":
        return _serve(arguments, host)
    if what == "stop":
        stopped = rpc_stop(host)
        return f"Stopped {', '.join(stopped)}." if stopped else "No host is served from this kernel."
    if host is None:
        raise InvalidRequestError(f"rpc {what} needs a host: %llama rpc {what} 192.168.1.5:{DEFAULT_PORT}")
    change = rpc_add if what == "add" else rpc_remove
    return _switched(reloading(context.session, lambda: change(host), context.on_progress))


def _serve(arguments: Arguments, extra: str | None) -> str:
    if extra is not None:
        raise InvalidRequestError(f"rpc serve takes flags only: --host ADDRESS --port N --device NAMES; got {extra!r}")
    server = rpc_serve(
        arguments.get("host", "127.0.0.1"),
        arguments.get("port"),
        devices=arguments.get("served", ()),
        threads=arguments.get("threads"),
        cache=arguments.get("cache", ""),
    )
    head = f"Serving {', '.join(server.devices)} at {server.endpoint}, as process {server.pid}."
    return "\n".join([head, *_how(server)])


def _how(server: RpcServer) -> list[str]:
    port = server.endpoint.rpartition(":")[2]
    tunnel = [
        f"  ssh -N -L {port}:127.0.0.1:{port} USER@THIS_MACHINE",
        f"  %llama rpc add 127.0.0.1:{port}",
    ]
    if server.is_open:
        return [
            "WARNING: the protocol has no authentication and no encryption.",
            "Whoever reaches this port can use the machine, read what is sent, and crash the host.",
            "Safer: %llama rpc stop, then %llama rpc serve without --host, and from the other machine through SSH:",
            *tunnel,
        ]
    return [
        "Only this machine reaches it. From another one, through SSH:",
        *tunnel,
        "It ends with this kernel, or with %llama rpc stop.",
    ]
