"""Generated scenes of coloured shapes, with panoptic ground truth."""

from psf.data.shapes.dataset import NUM_SCENES, load_written_split, register_shapes, training_dicts
from psf.data.shapes.scene import Scene, make_scene

__all__ = ["NUM_SCENES", "Scene", "load_written_split", "make_scene", "register_shapes", "training_dicts"]
