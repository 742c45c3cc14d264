"""What the processes of a run tell each other about their shares of an evaluation."""

from __future__ import annotations

from typing import Any

import torch


def all_gather(share: Any) -> list[Any]:
    """Every process's share, on every process, in the order of their ranks; shares may be of any size."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [share]
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, share)
    return shares
