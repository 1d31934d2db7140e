"""A prediction's segments in the category ids of the data set's own files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog

__all__ = ["CategoryIds"]


class CategoryIds:
    """Contiguous ids of things and stuff -> the data set's own.

    Args:
        dataset_name: whose metadata have `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`;
            either may be left out or empty.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._own_ids = {
            is_thing: {new: old for old, new in (metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}).items()}
            for kind, is_thing in (("thing", True), ("stuff", False))
        }

    def convert(self, segments_info: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segments with `id` and the data set's `category_id` alone, as COCO's format has them.

        As in Detectron2, a segment without `isthing` has the data set's own category id already.

        Raises:
            ValueError: if a segment has a class that the metadata do not know.
        """
        return [
            {"id": int(segment["id"]), "category_id": self._own_id(segment["category_id"], segment.get("isthing"))}
            for segment in segments_info
        ]

    def _own_id(self, category: int, is_thing: bool | None) -> int:
        if is_thing is None:
            return category
        known = self._own_ids[bool(is_thing)]
        if category not in known:
            raise ValueError(
                f"a predicted segment has class {category} as a {'thing' if is_thing else 'stuff'}, the data set's "
                f"metadata know {sorted(known)}; the model was built for other classes"
            )
        return known[category]
