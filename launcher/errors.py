"""The error that one rank has alone; every other user error belongs to the floor that finds it."""


class RankError(ValueError):
    """This rank could not go on; the others are stopped by whoever started them."""
