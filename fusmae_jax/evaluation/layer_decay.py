"""Learning rates that fall from layer to layer, the deeper the lower."""

import re

import jax
import optax

from fusmae_jax import sharding


def layer(path: str, blocks: int) -> int:
    """The layer that a parameter belongs to, from 0 to blocks + 1.

    Layer 0 is all that stands before the `blocks`: both patch embeddings, the tokens,
    and the XAttnEncoder, which is what first sees the patches. The last is the final
    norm and whatever is learnt on top of the encoder.

    Args:
        path: as `sharding.leaf_path` writes it, from the `encoder` or `head` on.
        blocks: of the encoder, the XAttnEncoder not counted.

    Raises:
        ValueError: the path is none of an encoder or a head.
    """
    if re.match(r"encoder/((embed|absent|fuse)/|global_token$)", path):
        return 0
    if block := re.match(r"encoder/blocks/(\d+)/", path):
        return int(block[1]) + 1
    if re.match(r"(encoder/norm|head)/", path):
        return blocks + 1
    raise ValueError(f"No layer is known for {path}; add it to layer_decay.layer.")


def multipliers(params, blocks: int, decay: float):
    """What each parameter's rate is multiplied by: decay ** (blocks + 1 - layer)."""

    def one(path, _):
        return decay ** (blocks + 1 - layer(sharding.leaf_path(path), blocks))

    return jax.tree_util.tree_map_with_path(one, params)


def scale_by_layer(blocks: int, decay: float) -> optax.GradientTransformation:
    """Multiplies finished updates, weight decay included, as `multipliers` says."""

    def scale(updates, _):
        factors = multipliers(updates, blocks, decay)
        return jax.tree.map(lambda u, factor: u * factor, updates, factors)

    return optax.stateless(scale)
