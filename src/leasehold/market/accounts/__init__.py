"""Accounts: keys, addresses, key files, and the tokens tenants sign.

``bech32``  the text form of an address
``keys``    secp256k1 and ed25519 keys, signatures, key files
``certificates``  self-signed client certificates for mTLS
``tokens``  the JWT by which a tenant proves its account to a provider
"""

from leasehold.market.accounts.keys import PREFIX, Algorithm, Key, PublicKey, is_address
from leasehold.market.accounts.tokens import TOKEN_LIFETIME, sign_token

__all__ = [
    "PREFIX",
    "TOKEN_LIFETIME",
    "Algorithm",
    "Key",
    "PublicKey",
    "is_address",
    "sign_token",
]
