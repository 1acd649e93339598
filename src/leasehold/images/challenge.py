"""Answering a registry's 401: bearer tokens from its token service, or Basic.

A token belongs to (registry, scope, who asks): one lease's token never serves another's request.
Tokens are kept until shortly before they expire. A token service that refuses the credentials is a
refusal of the registry (``auth``), not a passing failure.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import httpx
import msgspec

from leasehold.core.clock import Clock
from leasehold.images.ports import Credentials, FailureClass, OriginError

TOKEN_MARGIN = 30.0
"""Seconds before its end at which a token counts as expired."""

TOKEN_LEAST = 60.0
"""Seconds a token is used at least, whatever the service says."""

TOKEN_DEFAULT = 300.0
"""Seconds a token is used when its service does not say."""

TOKENS = 1024
"""Tokens kept; the oldest leaves."""

TOKEN_ANSWER = 64 * 1024
"""Bytes a token service may answer."""

_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",\s]+))')

Send = Callable[[httpx.URL, dict[str, str]], Awaitable[httpx.Response]]


class _Answer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


def basic(credentials: Credentials) -> str:
    """The ``Authorization`` value for Basic, or the ready one."""
    if credentials.header:
        return credentials.header
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """``Bearer realm="..",service=".."`` as (scheme in lower case, parameters)."""
    scheme, _, rest = header.strip().partition(" ")
    return scheme.lower(), {k.lower(): q or bare for k, q, bare in _PARAMETER.findall(rest[:4096])}


class Authorizer:
    """The tokens of one node."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._tokens: OrderedDict[tuple[str, str, Credentials | None], tuple[str, float]] = (
            OrderedDict()
        )

    def header(self, registry: str, scope: str, who: Credentials | None) -> str | None:
        """What to send at first: a live token, or nothing."""
        found = self._tokens.get((registry, scope, who))
        if found is None or found[1] <= self.clock.monotonic():
            return who.header if who is not None and who.header else None
        return found[0]

    def forget(self, registry: str, scope: str, who: Credentials | None) -> None:
        self._tokens.pop((registry, scope, who), None)

    async def answer(
        self,
        registry: str,
        scope: str,
        challenge: str,
        who: Credentials | None,
        send: Send,
    ) -> str | None:
        """The ``Authorization`` value that answers ``challenge``; None when there is none.

        ``send`` fetches from the token service (guarded: its address is the registry's choice).
        """
        scheme, parameters = parse_challenge(challenge)
        if scheme != "bearer" or not parameters.get("realm"):
            return basic(who) if who is not None else None
        headers = {"Authorization": basic(who)} if who is not None else {}
        query = {"scope": parameters.get("scope", scope)}
        if "service" in parameters:
            query["service"] = parameters["service"]
        try:
            realm = httpx.URL(parameters["realm"])
        except httpx.InvalidURL:
            raise OriginError(
                FailureClass.TRANSIENT, f"{registry} named a malformed token service"
            ) from None
        response = await send(realm.copy_merge_params(query), headers)
        if response.status_code in (400, 401, 403):
            raise OriginError(
                FailureClass.AUTH,
                f"the token service of {registry} refused the credentials ({response.status_code})",
            )
        if response.status_code == 429:
            raise OriginError(
                FailureClass.RATE_LIMITED, f"the token service of {registry} is rate limiting us"
            )
        if response.status_code != 200:
            raise OriginError(
                FailureClass.TRANSIENT,
                f"the token service of {registry} answered {response.status_code}",
            )
        try:
            answer = msgspec.json.decode(response.content[:TOKEN_ANSWER], type=_Answer)
        except msgspec.DecodeError:
            raise OriginError(
                FailureClass.TRANSIENT, f"the token service of {registry} sent no token"
            ) from None
        token = answer.token or answer.access_token
        if not token or "\n" in token or "\r" in token:
            raise OriginError(
                FailureClass.TRANSIENT, f"the token service of {registry} sent no token"
            )
        lifetime = TOKEN_DEFAULT
        if answer.expires_in is not None:
            lifetime = max(TOKEN_LEAST, answer.expires_in - TOKEN_MARGIN)
        self._tokens[registry, scope, who] = (
            f"Bearer {token}",
            self.clock.monotonic() + lifetime,
        )
        while len(self._tokens) > TOKENS:
            self._tokens.popitem(last=False)
        return f"Bearer {token}"
