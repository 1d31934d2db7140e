"""Validate a panoptic dataset."""
