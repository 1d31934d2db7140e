"""Layer-wise learning-rate decay: blocks that are further from the end of a backbone learn more slowly."""

from __future__ import annotations

from torch import nn

from psf.recompute import BACKBONE_BLOCKS

__all__ = ["block_positions", "layer_decay_factors"]

_BLOCKS = tuple(end for end in BACKBONE_BLOCKS if not end.endswith("Stem"))


def block_positions(backbone: nn.Module) -> dict[str, int]:
    """Parameter's name -> how many blocks have begun where it is: 0 in the stem, k in block k and between it and k + 1.

    Blocks are counted from 1, in the order in which the backbone holds them: those of Detectron2's ResNet, of
    SwinBackbone, and of timm's models, by the names of their classes. Of blocks in blocks the outermost counts.
    """
    positions: dict[str, int] = {}
    begun = 0

    def visit(module: nn.Module, prefix: str, in_block: bool) -> None:
        nonlocal begun
        if not in_block and type(module).__name__.endswith(_BLOCKS):
            in_block = True
            begun += 1
        positions.update({prefix + name: begun for name, _ in module.named_parameters(recurse=False)})
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.", in_block)

    visit(backbone, "", False)
    return positions


def layer_decay_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Parameter's name -> factor of its learning rate, for SOLVER.BACKBONE_LAYER_DECAY.

    With N blocks, `decay` ** (N + 1 - position): the last block and what follows it `decay`, the first `decay` ** N,
    the stem `decay` ** (N + 1).

    Raises:
        ValueError: if `decay` is not from above 0 to 1, or the backbone has no blocks that are known.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"SOLVER.BACKBONE_LAYER_DECAY is {decay}: expected a factor from above 0 to 1 (off)")
    positions = block_positions(backbone)
    num_blocks = max(positions.values(), default=0)
    if not num_blocks:
        raise ValueError(
            f"SOLVER.BACKBONE_LAYER_DECAY is {decay}, but {type(backbone).__name__} has no blocks that are known: set "
            "it to 1.0"
        )
    return {name: decay ** (num_blocks + 1 - position) for name, position in positions.items()}
