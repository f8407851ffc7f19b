"""Settings of a process that computes on a GPU: allocator, attention kernel, NCCL's records, cores, network.

A variable that the user has set stays as it is.
"""

import fcntl
import os
import re
import socket
import struct
from collections.abc import MutableMapping
from pathlib import Path

import torch

PCI_DEVICES = Path("/sys/bus/pci/devices")
DEFAULTS = {
    "TORCH_FR_BUFFER_SIZE": "2000",  # the last collectives, which NCCL's watchdog dumps at a time-out
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_GLOO_LAZY_INIT": "1",  # the saver's group connects only ranks that exchange something
}
DUMP_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")  # torch 2.11 knows the second
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch reads both; the second is older
SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


def set_variables(env: MutableMapping[str, str]) -> None:
    """Set the defaults of variables that torch reads when CUDA or NCCL starts; call it before that.

    Expandable segments keep memory from fragmenting: the rows of an expert change at every step.
    """
    for name, value in DEFAULTS.items():
        env.setdefault(name, value)
    if not any(name in env for name in ALLOCATOR):
        env.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def dump_collectives_to(directory: str, env: MutableMapping[str, str]) -> None:
    """Let NCCL's watchdog write a rank's last collectives to DIRECTORY/nccl_trace_rank_N at a time-out."""
    if not any(name in env for name in DUMP_FILE):
        env[DUMP_FILE[-1]] = str(Path(directory).absolute() / "nccl_trace_rank_")


def use(device: torch.device) -> None:
    """Make `device` the current one, with one attention kernel for training and evaluation.

    A relative position bias that needs a gradient rules out every fused kernel but the memory-efficient one.
    Without gradients torch would take cuDNN's, which rounds differently, refuses some strides of the bias
    after it was chosen, and in cuDNN 9.15 to 9.19 has open defects. Sums of bf16 products stay in fp32. The
    patch embedding in fp32 is no TF32, which torch allows in convolutions, though not in products.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False


def bind_to_cores_of(device: torch.device, devices: Path = PCI_DEVICES) -> None:
    """Run this thread, and those that it starts, on the cores beside the GPU.

    Nothing happens where somebody has bound the process already, or where the system does not say which
    cores those are.
    """
    allowed = os.sched_getaffinity(0)
    near = cores_beside(device, devices) & allowed
    if len(allowed) == os.cpu_count() and near:
        os.sched_setaffinity(0, near)


def cores_beside(device: torch.device, devices: Path = PCI_DEVICES) -> set[int]:
    """The cores of the GPU's NUMA node; empty where the system does not say."""
    properties = torch.cuda.get_device_properties(device)
    numbers = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    if None in numbers:  # an older torch
        return set()
    domain, bus, slot = numbers
    try:
        return cores((devices / f"{domain:04x}:{bus:02x}:{slot:02x}.0" / "local_cpulist").read_text())
    except OSError:
        return set()


def cores(text: str) -> set[int]:
    """The numbers of a list of the kernel's: "0-3,8" -> {0, 1, 2, 3, 8}; empty for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            return set()
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def choose_interface(host: str, env: MutableMapping[str, str]) -> None:
    """Let gloo listen where `host`, of rank 0, is reached from, and not where this host's name resolves to.

    On some systems a host's own name is 127.0.1.1, which no other node can reach.
    """
    if "GLOO_SOCKET_IFNAME" not in env and (name := interface_to(host)):
        env["GLOO_SOCKET_IFNAME"] = name


def interface_to(host: str) -> str | None:
    """The network interface with the address that this host reaches `host` from; None where it is not known.

    Nothing is sent: a datagram socket only chooses its own address when it connects.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            own = probe.getsockname()[0]
            names = [name for _, name in socket.if_nameindex()]
            return next((name for name in names if _address(probe, name) == own), None)
    except OSError:
        return None


def _address(probe: socket.socket, interface: str) -> str | None:
    """The IPv4 address of an interface."""
    try:
        answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
    except OSError:  # it has none
        return None
    return socket.inet_ntoa(answer[20:24])
