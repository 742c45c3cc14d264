"""The loaders of a run: made by its recipe for this process's share, ended together."""

from __future__ import annotations

from iformer.config.recipe import Recipe
from iformer.data.loader import BatchSource, Loader, build_loader
from iformer.training.workload import RankContext


class Loaders:
    """The loaders of a run, which end together."""

    def __init__(self, recipe: Recipe, place: RankContext) -> None:
        self.recipe, self.place = recipe, place
        self._made: list[Loader] = []

    def make(self, dataset: BatchSource, *, train: bool) -> Loader:
        """A loader of this process's share; see `build_loader`."""
        recipe = self.recipe
        loader = build_loader(
            dataset,
            batch_size=recipe.batch_size if train else recipe.eval_batch_size or recipe.batch_size,
            train=train,
            seed=recipe.seed,
            workers=None if recipe.workers == "auto" else recipe.workers,
            rank=self.place.rank,
            world_size=self.place.processes,
            pin_memory=self.place.device.type == "cuda",
        )
        self._made.append(loader)
        return loader

    def close(self) -> None:
        """End their worker processes."""
        for loader in self._made:
            loader.close()
