"""Makes music with exported audiovq models; needs numpy, onnxruntime and soundfile.

>>> from audiovq_player import Player
>>> waveform = Player("exported").sample(seconds=20, seed=0)  # float32 [channels, samples]
"""

from audiovq_player.piece import Piece
from audiovq_player.player import Player

__version__ = "0.2.0"
__all__ = ["Piece", "Player"]
