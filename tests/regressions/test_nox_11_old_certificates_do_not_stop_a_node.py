"""Defect 11: a fresh node could not start once the shipped certificates had expired.

Seen failing with every refusal of ``insert_cert`` raised in ``bundled/certificates.py``: the
package fails instead of being degraded.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from leasehold.node import trust
from leasehold.node.identity import peer_id
from leasehold.node.settings import SystemServices, TrustGraph
from leasehold.node.testing import node_in


async def test_the_node_starts_degraded_and_says_why(tmp_path: Path) -> None:
    root, old, good = (Ed25519PrivateKey.generate() for _ in range(3))
    ids = [peer_id(key.public_key()) for key in (root, old, good)]
    now = int(time.time())
    first = trust.issue(root, ids[0], issued_at=now - 10**7, expires_at=now + 10**7)
    expired = trust.issue(root, ids[1], issued_at=now - 10**7, expires_at=now - 10 * 86400)
    valid = trust.issue(root, ids[2], issued_at=now - 10**7, expires_at=now + 10**7)
    file = tmp_path / "certificates.json"
    chains = [[first, expired], [first, valid]]
    file.write_text(json.dumps({"roots": {ids[0]: 5}, "certificates": chains}))
    services = SystemServices(
        enable=("trust-graph",),
        trust_graph=TrustGraph(certificates=str(file), replace_bundle=True),
    )
    async with node_in(tmp_path / "node", system_services=services) as node:
        result = node.deployer.results["trust-graph"]
        assert result.status == "degraded"
        assert "1 of 2 certificates are too old" in result.warnings[0]
        assert "expired 10 days ago" in result.warnings[0]
        weights = (await node.call("trust-graph", "get_weights", []))["weights"]
        assert weights == {ids[0]: 32, ids[2]: 16}
