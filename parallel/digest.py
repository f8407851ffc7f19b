"""Digests of tensors: whether two sets of named tensors are the same, bit by bit."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from parallel.ranks.host import read


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values, in hexadecimal; reads the tensor on the host."""
    host = read(tensor.detach()).contiguous()
    digest = hashlib.sha256(f"{host.dtype} {list(host.shape)}".encode())
    digest.update(host.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def joint_digest(digests: Mapping[str, str]) -> str:
    """One digest of named digests, whatever their order, in hexadecimal."""
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
