"""Convert label images, masks and annotations of other formats to a COCO panoptic dataset."""
