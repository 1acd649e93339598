"""Signing in: the operator's token, a tenant's token, or the key file of an account.

What is given is tried on the gateway at once; what it does not accept is not kept. An account's key
lets the dashboard sign for the tenant (deploy, roll back, close), so it is for a provider of one's
own: it is asked for only where nobody can listen, which is this machine or TLS.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
from nicegui import Client
from nicegui.element import Element

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.dashboard import parts
from leasehold.dashboard.api import Api
from leasehold.dashboard.sessions import Credential, Sessions
from leasehold.dashboard.tree import Drawing, Handler, Node, h
from leasehold.market.accounts import Key

LONGEST = 16 * 1024
"""Bytes of a credential."""

log = get_logger(__name__)


def credential_of(given: str) -> Credential:
    """What kind of credential a text is; LeaseholdError when it can be none."""
    given = given.strip()
    if not given or len(given) > LONGEST:
        raise LeaseholdError(
            "no_credential", "paste the operator's token, a tenant's token, or a key file"
        )
    if given.startswith("{"):
        try:
            stored = msgspec.json.decode(given)
            key = Key.from_secret(stored["algorithm"], bytes.fromhex(stored["secret"]))
            if key.address != stored["address"]:
                raise ValueError("the address is not the secret's")
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise LeaseholdError("bad_key_file", f"this is no key file: {error}") from None
        return Credential(
            "account", key.secret.hex(), key.address, str(stored.get("name", "")), key.algorithm
        )
    if given.count(".") == 2:
        return Credential("token", given)
    return Credential("operator", given)


async def accepted(api: Path, ledger: str, credential: Credential) -> Credential:
    """The credential with its owner, once the gateway has let it in."""
    client = Api(api, ledger, credential)
    try:
        if credential.kind == "operator":
            await client.get("/v1/events/last")
            return credential
        await client.get("/leases")
        if credential.kind == "account":
            return credential
        part = credential.secret.split(".")[1]
        claims = msgspec.json.decode(_unbase64(part))
        return msgspec.structs.replace(credential, owner=str(claims["iss"]))
    except LeaseholdError as error:
        if error.kind in (Kind.UNAUTHENTICATED, Kind.MALFORMED):
            raise LeaseholdError(
                "refused", f"the provider refuses this: {error.message}", kind=error.kind
            ) from None
        raise
    finally:
        await client.close()


class SignIn:
    """The page that asks who you are."""

    def __init__(
        self, client: Client, root: Element, api: Path, ledger: str, sessions: Sessions,
        clock: Clock, path: str,
    ) -> None:  # fmt: skip
        self.client = client
        self.api = api
        self.ledger = ledger
        self.sessions = sessions
        self.clock = clock
        self.path = "/" if path.startswith("/ui/sign-in") else path
        self.problem = ""
        self._drawing = Drawing(root, self.act)
        self._gone = asyncio.Event()

    async def run(self) -> None:
        reason = await self.client.run_javascript("leasehold.reason()", timeout=10.0)
        self.problem = str(reason or "")
        self._drawing.show(*self.view())
        self.client.run_javascript('leasehold.arrived("Sign in · Leasehold", false)')
        await self._gone.wait()

    def end(self) -> None:
        self._gone.set()

    async def act(self, handler: Handler, value: Any) -> None:
        try:
            await handler(value)
        except LeaseholdError as error:
            self.problem = error.message
        except Exception as error:
            log.exception("dashboard.sign_in", error=repr(error))
            self.problem = f"that failed ({type(error).__name__}); it was logged"
        self._drawing.show(*self.view())

    async def submit(self, fields: dict[str, Any]) -> None:
        credential = await accepted(
            self.api, self.ledger, credential_of(str(fields.get("credential", "")))
        )
        key = self.sessions.open(credential, self.clock.now())
        self.problem = ""
        self.client.run_javascript(f"leasehold.enter({json.dumps(key)}, {json.dumps(self.path)})")

    def view(self) -> list[Node]:
        return [
            h(
                "main",
                h("p", h("span", "◧", aria_hidden="true", class_="logo"), "Leasehold",
                  class_="brand"),
                h("h1", "Sign in", id="main", tabindex="-1"),
                h(
                    "form",
                    h("div", h("label", "Token or account key", for_="f-credential"),
                      h("textarea", id="f-credential", name="credential", rows="4", required=True,
                        autocomplete="off", spellcheck="false", autocapitalize="off",
                        aria_describedby="f-credential-hint"),
                      class_="field"),
                    parts.notice(self.problem, parts.BAD, role="alert") if self.problem else None,
                    h("button", "Sign in", type="submit", class_="button main"),
                    on={"submit": self.submit},
                ),
                h(
                    "div",
                    h("h2", "What to paste"),
                    h("dl",
                      h("dt", "You run this provider"),
                      h("dd", "The operator's token: ", parts.command("leasehold dashboard"),
                        h("span", " signs you in without pasting; the token itself is in the file "
                          "operator.token of the state folder.")),
                      h("dt", "You are a tenant"),
                      h("dd", "A token of your account: ",
                        parts.command("leasehold dashboard --as NAME --token")),
                      h("dt", "You are a tenant on a provider of your own"),
                      h("dd", "The account's key file. It lets this page deploy, roll back and "
                        "close for you; it is kept sealed until you sign out. Do not give it to a "
                        "provider you do not trust.")),
                    id="f-credential-hint", class_="help",
                ),
                class_="signin",
            )
        ]  # fmt: skip


def _unbase64(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
