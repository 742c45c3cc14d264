"""Readers of object annotations. Each returns `AnnotatedSplit`s, which use COCO's terms."""
