"""The keys and values of a batch, whose memory is taken once."""
import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pipeline.model.device import to_device

# layers that hold keys and values alone; a list of types, because a forgotten state would go unnoticed
ROWS_CAN_LEAVE = (DynamicLayer, DynamicSlidingWindowLayer)


def rows_can_leave(model: Any) -> bool:
    """Return whether a batch of this model can be padded, and rows be taken out of its cache.

    That is so where every layer holds keys and values, which the mask hides.  The state of a linear
    attention, a convolution or a state space has taken padding in, and cannot be cut; GPT-1 has no cache.
    """
    return ("past_key_values" in inspect.signature(model.forward).parameters
            and not getattr(model, "_is_stateful", False)
            and all(type(layer) in ROWS_CAN_LEAVE for layer in DynamicCache(config=model.config).layers))


class BatchLayer(DynamicLayer):
    """Keys and values of one layer of a model, (rows, heads, columns, size) each.

    Their memory has `columns` columns, of which the first `width` come from `layers`.
    """

    def __init__(self, layers: list[Any], width: int, columns: int):
        super().__init__()
        self.lazy_initialization(layers[0].keys, layers[0].values)
        self.memory = [self.joined([getattr(layer, name) for layer in layers], width, columns)
                       for name in ("keys", "values")]
        self.rows, self.begin, self.end = len(self.memory[0]), 0, width
        self.show()

    def joined(self, states: list[Any], width: int, columns: int) -> Any:
        rows, (_, heads, _, size) = sum(map(len, states)), states[0].shape
        # zeros: what is masked must be a number
        memory, row = states[0].new_zeros(rows, heads, columns, size), 0
        for part in states:
            memory[row:row + len(part), :, width - part.shape[2]:width] = part
            row += len(part)
        return memory

    def show(self) -> None:
        self.keys, self.values = (memory[:self.rows, :, self.begin:self.end] for memory in self.memory)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for memory, states in zip(self.memory, (key_states, value_states), strict=True):
            memory[:self.rows, :, self.end:self.end + states.shape[2]] = states
        self.end += key_states.shape[2]
        self.show()
        return self.keys, self.values

    def take_rows(self, number: int, gaps: Any, fillers: Any) -> None:
        """Keep `number` rows: the first ones, with the rows `fillers` in the places `gaps`."""
        for states in (self.keys, self.values):
            states[gaps] = states[fillers]
        self.rows = number
        self.show()


def batch_cache(parts: list[Any], columns: int) -> Any:
    """Return the caches of `parts`, one below the other, aligned on the right, as one of `columns` columns.

    Its memory is taken once: the library's own copies all keys and values at every step, to append a column,
    and whenever a row leaves.  Layers that hold something else (a sliding window, a state) stay the
    library's; then there is one part.
    """
    cache, width = parts[0], max(part.get_seq_length() for part in parts)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = BatchLayer([part.layers[i] for part in parts], width, columns)
            for part in parts[1:]:
                part.layers[i] = None  # frees its memory
    return cache


def select_rows(cache: Any, order: list[int], device: Any) -> Any:
    """Keep the rows `order` of a cache that `batch_cache` made, in this order, and return it as a tensor.

    What moves is known here: the device need not be queried once per layer.
    """
    gaps = [place for place, row in enumerate(order) if row != place]
    fillers = [order[place] for place in gaps]
    moved = to_device(torch.tensor([gaps, fillers], dtype=torch.int64), device)
    kept = to_device(torch.tensor(order), device)
    for layer in cache.layers:
        if isinstance(layer, BatchLayer):
            layer.take_rows(len(order), *moved)
        else:
            layer.batch_select_indices(kept)
    return kept


def drop_columns(cache: Any, begin: int) -> None:
    """Hide the first columns of a cache that `batch_cache` made, up to `begin`: padding in every row."""
    for layer in cache.layers:
        layer.begin = begin
        layer.show()
