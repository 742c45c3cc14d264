"""The loaders of a run: made by its recipe for this process's share, ended together."""

from __future__ import annotations

from iformer.config.recipe import Recipe
from iformer.data.loader import BatchSource, Loader, build_loader
from iformer.training.distributed import RankContext


class Loaders:
    """The loaders of a run, which end together."""

    def __init__(self, recipe: Recipe, context: RankContext) -> None:
        self.recipe, self.context = recipe, context
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
            rank=self.context.rank,
            world_size=self.context.world_size,
            pin_memory=self.context.device.type == "cuda",
        )
        self._made.append(loader)
        return loader

    def close(self) -> None:
        """End their worker processes."""
        for loader in self._made:
            loader.close()
