"""``leasehold demo``: see a deployment go from order to first answer on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    once: bool = typer.Option(False, help="Do it once, clean up, and end with 0 or 1."),
    folder: Path = typer.Option(None, help="An empty folder to work in; default: a temporary one."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object at the end."),
) -> None:
    """Build an image, push it to a local registry, deploy it, ask it, and clean up."""
    import asyncio

    raise typer.Exit(asyncio.run(_demo(once, folder, as_json)))


async def _demo(once: bool, folder: Path | None, as_json: bool) -> int:
    import asyncio
    import signal

    import msgspec

    from leasehold.app.demo.example import example
    from leasehold.app.demo.flow import Demo
    from leasehold.cli.state import print_json
    from leasehold.core import logs
    from leasehold.core.errors import LeaseholdError
    from leasehold.core.service import running

    logs.configure("error", json=False)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave.set)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.absolute()
    show = _Screen(quiet=as_json)
    played = Demo(example(), folder=folder, tell=show.step)
    async with running(played):
        playing = asyncio.ensure_future(played.play())
        leaving = asyncio.ensure_future(leave.wait())
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if playing.done():
                playing.result()
                show.timeline(played)
                if not once:
                    show.invite(played)
                    await leaving
            else:
                playing.cancel()
                await asyncio.wait({playing})
        except LeaseholdError as error:
            played.result.error = error.to_dict()
        finally:
            leaving.cancel()
            show.line("cleaning up …")
            try:
                await played.clean()
            except (LeaseholdError, TimeoutError) as error:
                played.result.ok = False
                played.result.left.append(str(error) or type(error).__name__)
        show.removed(played)
    if as_json:
        print_json(msgspec.to_builtins(played.result))
    elif played.result.error:
        from leasehold.cli.frame import show as show_error

        show_error(LeaseholdError(**_plain(played.result.error)), as_json=False)
    return 0 if played.result.ok else 1


class _Screen:
    """What a person sees."""

    def __init__(self, *, quiet: bool) -> None:
        import sys

        self.quiet = quiet
        on = sys.stdout.isatty()
        self.bold, self.dim, self.green, self.red, self.plain = (
            ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m") if on else ("",) * 5
        )

    def line(self, text: str = "") -> None:
        if not self.quiet:
            print(text, flush=True)

    def step(self, step: Any) -> None:
        mark = f"{self.green}✓{self.plain}" if step.ok else f"{self.red}✗{self.plain}"
        detail = f"{self.dim}{step.detail}{self.plain}" if step.detail else ""
        self.line(f"{mark} {step.name:18} {step.ms:8.0f} ms  {detail}")

    def timeline(self, demo: Any) -> None:
        self.line()
        self.line(f"{self.bold}from order to first answer{self.plain}")
        before = 0.0
        for entry in sorted(demo.result.timeline, key=lambda e: e["ms"]):
            self.line(f"  {entry['ms']:8.1f} ms  {entry['name']:20} (+{entry['ms'] - before:.1f})")
            before = entry["ms"]
        self.line()
        self.line(f"{self.bold}it says:{self.plain} {demo.result.answer}")

    def invite(self, demo: Any) -> None:
        import sys

        found = demo.running()
        if found is None:
            return
        typed = Path(sys.argv[0])
        leasehold = typed if typed.name == "leasehold" else f"{sys.executable} -m leasehold"
        state = demo.folder / "provider"
        self.line()
        self.line("try it:")
        self.line(f"  curl -H 'Host: hello.localhost' {demo.result.url}/")
        self.line(f"  {leasehold} lease explain hello --state {state}")
        self.line("kill the provider; the workload goes on answering, with the same start number:")
        self.line(f"  kill -9 {found.pid}")
        self.line(f"  curl -H 'Host: hello.localhost' {demo.result.url}/")
        self.line("start it again; it takes the running workload over:")
        self.line(f"  {leasehold} up --state {state}")
        self.line()
        self.line("Ctrl-C ends the demo and removes everything it made.")

    def removed(self, demo: Any) -> None:
        for what in demo.result.removed:
            self.line(f"  removed {what}")
        for what in demo.result.left:
            self.line(f"  {self.red}left behind{self.plain} {what}")


def _plain(error: dict[str, Any]) -> dict[str, Any]:
    return {k: error[k] for k in ("code", "message", "path", "expected", "got") if k in error}
