"""Whether a name is that of tars without a manifest."""

TARS = (".tar", ".tar.gz", ".tgz")


def names_tars(pattern: str) -> bool:
    """Whether `pattern` names tars rather than a split with its manifest, by its text alone.

    It does when it ends in .tar, or what its braces become does, or as a command without {} for the name of a
    file.
    """
    if pattern.startswith("pipe:"):
        return "{}" not in pattern
    path = pattern.partition("?")[0]
    return path.endswith(TARS) or (path.endswith("}") and ".tar" in path)
