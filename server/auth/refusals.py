"""Why a request is not let in. The sentences are for the caller and the log: they hold nothing of the token."""

from __future__ import annotations


class TokenRefused(Exception):
    """It is not a token by which this server knows a user. Another token may do."""


class KeysUnavailable(Exception):
    """Whether the token is good cannot be told at present, as the issuer's keys cannot be had."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("the keys of the tokens' issuer cannot be had at present; try again shortly")
        self.retry_after_seconds = retry_after_seconds
