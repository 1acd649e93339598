"""A service in ten lines: functions, called one at a time over a Unix socket."""

from pathlib import Path

from leasehold.node.sdk import Refused, Service

service = Service()
greeting = Path(service.data, "greeting")


@service.function
def set_greeting(text: str) -> None:
    greeting.write_text(text)


@service.function
def greet(name: str) -> str:
    if not name:
        raise Refused("say who")
    return f"{greeting.read_text()} {name}"


service.serve()
