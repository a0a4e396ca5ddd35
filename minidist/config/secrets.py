"""Settings without what must not be shown: keys, tokens and passwords."""

from typing import Any

from minidist.text import secret_name, without_secrets

HIDDEN = "(not shown)"

_HARMLESS = {"key"}
"""Names of fields that only look like a secret's: `choose.key` of a comparison names a setting."""


def without_secret_settings(settings: Any, name: str = "") -> Any:
    """The settings with each secret replaced, by the name of its field, and without passwords in addresses.

    >>> without_secret_settings({"api_key": "k-1", "url": "http://me:pw@host/", "max_tokens": 8, "key": "learner.lr"})
    {'api_key': '(not shown)', 'url': 'http://...@host/', 'max_tokens': 8, 'key': 'learner.lr'}
    """
    if settings is not None and secret_name(name) and name not in _HARMLESS:
        return HIDDEN
    if isinstance(settings, dict):
        return {key: without_secret_settings(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_secret_settings(value) for value in settings]
    return without_secrets(settings) if isinstance(settings, str) else settings
