"""Masks of dropout that are a pure function of (seed, iteration, layer, row of the batch)."""

from __future__ import annotations

import numpy as np

from trainer.engine.maps import Array, Shape

DROPOUT = 0x64726F70  # second word of the key: keeps these streams apart from others of the same seed
N_ELEMENT_PER_COUNTER = 16  # a counter of Philox4x64 yields four words of 64 bits, an element takes 16 bits


class DropoutKey:
    """What the masks of one forward pass depend on; an updater puts it into `chainer.config.dropout_key`.

    The row in the key is the row in the whole batch, so that a batch computed in parts (`--train_batch_divide`) gets
    the masks of the undivided one, and so do the rows of a batch that several processes share, on whatever device.  The
    random words are those of NumPy's counter-based Philox4x64-10, one 16-bit word an element; of a map, the channels
    come first, then columns, rows and images.

    Args:
        seed: 0 .. 2**64 - 1.
        iteration: updates made before this one; on a GPU it may be (1,) uint64 of CuPy, which the kernel reads.
        first_row: position of the pass's first image in its batch.
        row_step: from one image of the pass to the next, in rows of the batch.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """

    def __init__(self, seed: int, iteration: int | Array, first_row: int = 0, row_step: int = 1) -> None:
        self.seed, self.iteration, self.first_row, self.row_step = seed, iteration, first_row, row_step
        self.layer = 0  # dropout calls made so far in this pass

    def next_layer(self) -> int:
        """The number of a dropout call, counted from 0 in each pass."""
        self.layer += 1
        return self.layer - 1

    def draw(self, shape: Shape, ratio: float) -> np.ndarray:
        """The next layer's mask: uint8, 0 with probability `ratio` (in steps of 2**-16), otherwise 1; (N, ...).

        The counter is (block, 0, layer, iteration). Row r of the batch has the blocks from r * blocks per row on: a row
        starts a new block, so that its words do not depend on the rows before it. `dropout` in elementwise.cu is the
        twin of this.
        """
        n_row, n_element = shape[0], int(np.prod(shape[1:]))
        n_block = -(-n_element // N_ELEMENT_PER_COUNTER)  # of a row
        # Rows that follow each other are one stream.
        n_stream, n_together = (1, n_row) if self.row_step == 1 else (n_row, 1)
        blocks = [(self.first_row + i * self.row_step) * n_block for i in range(n_stream)]
        rest, key = [0, self.next_layer(), int(self.iteration)], [self.seed, DROPOUT]
        streams = [np.random.Philox(counter=[block, *rest], key=key) for block in blocks]
        words = np.concatenate([stream.random_raw(n_together * n_block * 4) for stream in streams])
        kept = (words.view('<u2') >= threshold(ratio)).view(np.uint8)
        kept = kept.reshape(n_row, n_block * N_ELEMENT_PER_COUNTER)[:, :n_element]
        if len(shape) == 4:
            n, c, h, w = shape
            return kept.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return kept.reshape(shape)


def threshold(ratio: float) -> int:
    """The 16-bit words below it drop their element."""
    return min(round(ratio * 2**16), 2**16 - 1)


def draw_mask(shape: Shape, ratio: float, key: DropoutKey | None) -> np.ndarray:
    """A mask in memory: uint8, 0 or 1; without a key, that of Chainer's dropout, from NumPy's global generator."""
    return (np.random.rand(*shape) >= ratio).view(np.uint8) if key is None else key.draw(shape, ratio)
