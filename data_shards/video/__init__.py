"""Videos: exactly the frames that are asked for, facts that are counted, packing, and the choice of clips."""
