"""Panoptic SegFormer (Li et al., CVPR 2022, arXiv 2109.03814) as a Detectron2 plugin.

`import psf` registers the model, its parts, its data mappers and its data sets with Detectron2's registries and
catalogs; `psf.add_psf_config(cfg)` adds its config keys. Where torch or detectron2 are missing the import still works,
with nothing in it, so that `python -m psf.doctor` can say what to install.
"""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"
__all__ = ["__version__"]

# The doctor must run where these imports fail, too: it makes them itself.
_is_doctor = ("-m", "psf.doctor") in zip(sys.orig_argv, sys.orig_argv[1:])

if not _is_doctor and find_spec("torch") and find_spec("detectron2"):
    from psf import backbone, checkpoint, data, model_zoo
    from psf.config import add_psf_config
    from psf.meta_arch import PanopticSegFormer

    __all__ += ["PanopticSegFormer", "add_psf_config", "backbone", "checkpoint", "data", "model_zoo"]
