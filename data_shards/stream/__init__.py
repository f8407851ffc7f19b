"""Streams of batches: order, state, reading, decoding, training and evaluation."""
