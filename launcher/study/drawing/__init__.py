"""Charts as SVG and PNG, by matplotlib: axes, ticks, looks of lines; nothing about studies."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it keeps its cache of fonts
