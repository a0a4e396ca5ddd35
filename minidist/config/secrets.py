"""Settings without what must not be shown: keys, tokens and passwords."""

from typing import Any

from minidist.text import without_secrets

HIDDEN = "(not shown)"

_NAMES = {"key", "token", "secret", "password", "authorization"}
_ENDS = ("_secret", "_password", "_key")


def without_secret_settings(settings: Any, name: str = "") -> Any:
    """The settings with each secret replaced, by the name of its field, and without passwords in addresses.

    >>> without_secret_settings({"api_key": "k-1", "url": "http://me:pw@host/", "max_tokens": 8, "key": None})
    {'api_key': '(not shown)', 'url': 'http://...@host/', 'max_tokens': 8, 'key': None}
    """
    if settings is not None and (name.lower() in _NAMES or name.lower().endswith(_ENDS)):
        return HIDDEN
    if isinstance(settings, dict):
        return {key: without_secret_settings(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_secret_settings(value) for value in settings]
    return without_secrets(settings) if isinstance(settings, str) else settings
