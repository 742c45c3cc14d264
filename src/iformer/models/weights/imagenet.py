"""The class names of ImageNet-1k, from timm."""

from __future__ import annotations

from collections import Counter
from typing import Any


def imagenet_class_names() -> tuple[str, ...]:
    """Return ImageNet-1k's 1000 class names in the order of the networks' outputs, all different.

    A name is the first synonym of its class. If two classes share the first synonym, all synonyms are used; if
    they share all synonyms (the two cranes), the WordNet id is added.
    """
    from timm.data.imagenet_info import ImageNetInfo  # deferred: importing timm takes a second

    info: Any = ImageNetInfo()  # timm has no types
    indices = range(len(info.label_names()))
    synonyms = [info.index_to_description(index) for index in indices]
    short = [text.partition(",")[0] for text in synonyms]
    short_count, full_count = Counter(short), Counter(synonyms)
    names = []
    for index in indices:
        if short_count[short[index]] == 1:
            names.append(short[index])
        elif full_count[synonyms[index]] == 1:
            names.append(synonyms[index])
        else:
            names.append(f"{synonyms[index]} ({info.index_to_label_name(index)})")
    return tuple(names)
