"""A process that psf shares with other plugins: `python -m tests.siblings psf,siblings` imports them in that order.

The siblings stand for Mask2Former, MaskDINO, OneFormer and Detectron2's own DeepLab projects: what they register, as
they do it (nothing looks whether a name is taken, so that a second owner of it is an AssertionError), and the config
functions of their train_net.py. Then psf's model is built, takes a step and predicts, for each order of the config
functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.utils.registry import Registry
from torch import nn

# Names in Detectron2's registries, of all three; two of them share some, and cannot be imported together.
PARTS = {
    META_ARCH_REGISTRY: ("MaskFormer", "VideoMaskFormer", "MaskDINO", "OneFormer"),
    BACKBONE_REGISTRY: ("D2SwinTransformer", "D2FocalNet", "D2ConvNeXt", "D2DiNAT"),
    SEM_SEG_HEADS_REGISTRY: (
        *("MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead", "MaskDINOHead", "OneFormerHead"),
        *("BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder", "MaskDINOEncoder"),
    ),
}
# Registries of their own, with the names that these have in log and error messages.
REGISTRIES = {
    "TRANSFORMER_MODULE": ("StandardTransformerDecoder", "MultiScaleMaskedTransformerDecoder", "MaskDINODecoder"),
}
DATASETS = tuple(
    f"{name}_{split}"
    for name in (
        *("ade20k_panoptic", "ade20k_instance", "ade20k_full_sem_seg", "coco_2017_stuff_10k_sem_seg"),
        *("mapillary_vistas_panoptic", "mapillary_vistas_sem_seg"),
    )
    for split in ("train", "val")
)


def import_siblings() -> None:
    for registry, names in PARTS.items():
        for name in names:
            registry.register(type(name, (nn.Module,), {}))
    for title, names in REGISTRIES.items():
        registry = Registry(title)
        for name in names:
            registry.register(type(name, (nn.Module,), {}))
    for name in DATASETS:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(thing_classes=["a"], stuff_classes=["a", "b"])
    for split in ("train", "val"):
        _register_coco_with_sem_seg(f"coco_2017_{split}_panoptic")
    import detectron2.projects.deeplab
    import detectron2.projects.panoptic_deeplab  # noqa: F401  (they register when imported)


def _register_coco_with_sem_seg(name: str) -> None:
    """They change Detectron2's own metadata, and list the things among the stuff of their own."""
    things = [one["name"] for one in COCO_CATEGORIES if one["isthing"]]
    own = MetadataCatalog.get(name)
    delattr(own, "thing_classes")
    own.set(thing_classes=things)
    DatasetCatalog.register(f"{name}_with_sem_seg", list)
    MetadataCatalog.get(f"{name}_with_sem_seg").set(
        thing_classes=things,
        stuff_classes=[one["name"] for one in COCO_CATEGORIES],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(COCO_CATEGORIES) if c["isthing"]},
        stuff_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(COCO_CATEGORIES)},
    )


def import_psf() -> None:
    import psf  # noqa: F401  (it registers when imported)


def add_psf_config(cfg: CfgNode) -> None:
    import psf

    psf.add_psf_config(cfg)


def add_deeplab_configs(cfg: CfgNode) -> None:
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    add_panoptic_deeplab_config(cfg)  # and that of DeepLab


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Sets what the three of them set, some of it to other values than theirs, and looks at nothing that is there."""
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 512, 0.5, 1.5
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    for name in ("MASK_FORMER", "MaskDINO", "ONE_FORMER", "SWIN", "TEST"):
        cfg.MODEL[name] = CfgNode({"NAME": name})
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    cfg.MODEL.SEM_SEG_HEAD.NUM_FEATURE_LEVELS = 3
    cfg.TEST.AUG.IS_SLIDE = False
    cfg.WANDB = CfgNode({"PROJECT": "OneFormer"})
    cfg.Default_loading = True


ORDERS: tuple[tuple[Callable[[CfgNode], None], ...], ...] = (
    (add_psf_config,),
    (add_psf_config, add_deeplab_configs, add_maskformer2_config),
    (add_deeplab_configs, add_maskformer2_config, add_psf_config),
    (add_deeplab_configs, add_psf_config, add_maskformer2_config, add_psf_config),
)


# DeepLab sets these for its own backbones and heads, which psf does not build.
OF_OTHERS = {"STEM_TYPE", "RES5_MULTI_GRID", "RES4_DILATION", "LOSS_TYPE"}
# Only some mappers read these; a config with such a mapper sets them.
OF_MAPPERS = {
    "psf_panoptic_lsj": {"IMAGE_SIZE", "MIN_SCALE", "MAX_SCALE", "COLOR_AUG_SSD"},
    "psf_panoptic_cityscapes": {"SINGLE_CATEGORY_MAX_AREA", "COLOR_AUG_SSD"},
}


def check_configs() -> None:
    """Every yaml says the same of psf's own keys and of the shared ones, whoever set defaults, and when."""
    from psf import model_zoo

    for name in (
        "coco/psf_R50_24ep.yaml",
        "ade20k/psf_R50.yaml",
        "shapes/psf_tiny.yaml",
        "coco/released/psf_R50_24ep.yaml",
    ):
        configs = []
        for functions in ORDERS:
            cfg = get_cfg()
            for add_config in functions:
                add_config(cfg)
            cfg.merge_from_file(model_zoo.get_config_file(name))
            configs.append(cfg)
        alone, *others = configs
        for cfg in others:
            read = OF_MAPPERS.get(alone.INPUT.DATASET_MAPPER_NAME, set())
            _check_same(alone, cfg, name, OF_OTHERS.union(*OF_MAPPERS.values()) - read)


def _check_same(alone: CfgNode, beside: CfgNode, path: str, unread: set[str]) -> None:
    for key, value in alone.items():
        if isinstance(value, CfgNode):
            _check_same(value, beside[key], f"{path}: {key}", unread)
        elif key not in unread:
            assert beside[key] == value, f"{path}.{key}: {beside[key]}, alone: {value}"


def check_model() -> None:
    from tests.models import check_result, make_input, tiny_config

    torch.manual_seed(0)
    model = build_model(tiny_config())
    losses = model([make_input(64, 96, things=2, stuff=1)])
    sum(losses.values()).backward()
    with torch.no_grad():
        [result] = model.eval()([make_input(64, 96, things=2, stuff=1)])
    check_result(result, model, 64, 96)


def check_coco() -> None:
    """80 things and 53 stuff classes, from whichever set, whatever has become of its metadata."""
    from psf.checkpoint import class_names_from_config
    from psf.meta_arch import classes_from_config

    names = []
    for dataset in ("coco_2017_val_panoptic", "coco_2017_val_panoptic_with_sem_seg"):
        if dataset not in DatasetCatalog:
            continue
        cfg = get_cfg()
        add_psf_config(cfg)
        cfg.DATASETS.TEST = (dataset,)
        assert [len(ids) for ids in classes_from_config(cfg)] == [80, 53], dataset
        names.append(class_names_from_config(cfg))
        assert names[-1] is not None and names[-1] == names[0], dataset
        assert names[-1].things[0] == "person" and names[-1].stuff[-1] == "rug-merged"


def check_names() -> None:
    """Every name that psf adds to what others share says whose it is."""
    for registry in PARTS:
        for name, one in registry:
            if getattr(one, "__module__", "").partition(".")[0] == "psf":
                assert name == "PanopticSegFormer" or name.startswith(("Psf", "build_psf_")), name
    for name in DatasetCatalog.list():
        load = DatasetCatalog[name]
        module = getattr(getattr(load, "func", load), "__module__", "")
        assert name.startswith("psf_") or module.partition(".")[0] != "psf", name


IMPORTS = {"psf": import_psf, "siblings": import_siblings}

if __name__ == "__main__":
    for whose in sys.argv[1].split(","):
        IMPORTS[whose]()
    check_names()
    check_configs()
    check_model()
    check_coco()
    print("together")
