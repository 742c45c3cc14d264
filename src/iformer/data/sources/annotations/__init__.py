"""Readers of object annotations. Each returns `AnnotatedSplit`s, which have the terms of COCO."""
