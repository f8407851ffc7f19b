"""The checks of gpu_run.py: one function a check, which yields a row for each thing that it measured."""
