"""Tokens that clients of the hosted platform sign with the secret of their key."""

from __future__ import annotations

import re
from typing import Any

import jwt

from glimmer.server.errors import ApiError

TOKEN_CLOCK_TOLERANCE_S = 300
"""How far a token's ``timestamp`` may lie ahead of this machine's clock."""
TOKEN_MAX_LIFETIME_S = 30 * 86400
"""A token that expires later than this from now is refused."""


_MAX_CREDENTIAL_LENGTH = 2048
_KEY_ID = re.compile(r"[0-9a-f]{32}")
# The platform's times are milliseconds, which no library checks.
_UNCHECKED = {f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub")}


class Token:
    """A JWT as the hosted platform's SDK makes it: claims that nobody has checked yet.

    Raises:
        ApiError: of kind "bad_key".
    """

    def __init__(self, text: str) -> None:
        self._text = text
        claims = self._decode("", verify_signature=False)
        key_id = None if claims is None else claims.get("api_key")
        if claims is None or not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise ApiError(
                "bad_key",
                "An API key must look like id.secret, or be a token that was signed with the "
                "secret (HS256, sign_type SIGN).",
            )
        self.key_id = key_id
        self._claims = claims

    def is_signed_with(self, secret: str) -> bool:
        return self._decode(secret, verify_signature=True) is not None

    def check_times(self, now_s: float) -> None:
        """Raises ApiError of kind "expired_key" or "bad_key"."""
        expires = self._time_ms("exp")
        signed = self._time_ms("timestamp")
        if expires <= now_s * 1000:
            raise ApiError(
                "expired_key", "This token has expired. Its exp is a time in milliseconds."
            )
        if expires > (now_s + TOKEN_MAX_LIFETIME_S) * 1000:
            raise ApiError(
                "bad_key",
                f"The token's exp, in milliseconds, lies more than "
                f"{TOKEN_MAX_LIFETIME_S // 86400} days ahead.",
            )
        if signed > (now_s + TOKEN_CLOCK_TOLERANCE_S) * 1000:
            raise ApiError(
                "bad_key",
                f"The token's timestamp lies more than {TOKEN_CLOCK_TOLERANCE_S} s ahead of the "
                "server's clock.",
            )

    def _time_ms(self, name: str) -> float:
        value = self._claims.get(name)
        # NaN is in no range, and true is no time.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e16:
            raise ApiError("bad_key", f"The token's {name} must be a time in milliseconds.")
        return value

    def _decode(self, secret: str, *, verify_signature: bool) -> dict[str, Any] | None:
        if len(self._text) > _MAX_CREDENTIAL_LENGTH:
            return None
        options: Any = {**_UNCHECKED, "verify_signature": verify_signature}
        try:
            token = jwt.decode_complete(self._text, secret, algorithms=["HS256"], options=options)
        # The text is a stranger's: JSON of any depth, numbers of any length, no JSON at all.
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        claims: dict[str, Any] = token["payload"]
        return claims if token["header"].get("sign_type") == "SIGN" else None
