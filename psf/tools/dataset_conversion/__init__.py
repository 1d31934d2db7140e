"""Convert annotations of other formats to a COCO panoptic dataset."""
