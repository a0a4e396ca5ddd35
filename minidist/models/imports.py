"""What transformers imports for functions that minidist never calls."""


def import_less() -> None:
    """Have transformers take scikit-learn and SciPy for missing, before its models are imported in this process.

    It imports them for speculative decoding and for losses of object detection; that costs a second of a core in each process.
    Whoever imports these packages elsewhere finds them.
    """
    import transformers.utils

    for package in ("sklearn", "scipy"):
        setattr(transformers.utils, f"is_{package}_available", _missing)


def _missing() -> bool:
    return False
