"""Synthetic pairs for benchmarks."""

import numpy as np

from data_pipeline import layout, sensors, synthetic


def host_batch(config, batch_size: int) -> dict[str, np.ndarray]:
    """The fields of a batch in host memory, of the bands and size of a config."""
    size, known = config.data.size, sensors.SENSORS
    contract = {s: known[s].select(names) for s, names in config.bands.items()}
    fields = layout.native(size, contract).fields(contract)
    scenes = synthetic.Scenes(16, size=size, fields=fields)
    pairs = [scenes[i] for i in range(16)]
    places = np.arange(batch_size) % 16
    return {name: np.stack([pairs[i][name] for i in places]) for name in pairs[0]}
