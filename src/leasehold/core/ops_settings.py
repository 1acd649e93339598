"""Settings of the ops endpoint, apart from it: reading settings must not load a web server."""

from __future__ import annotations

from typing import Annotated

import msgspec


class OpsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: Annotated[str, msgspec.Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, msgspec.Meta(description="first port to try; 0 for any free one", ge=0, le=65535)
    ] = 29995
