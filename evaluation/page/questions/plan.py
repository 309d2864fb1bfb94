"""The planner's question: which ways to make a model smaller fit into a memory."""

from __future__ import annotations

from compression.base import ModelUnavailable
from compression.bundle import Geometry, LayerGeometry
from evaluation.choosing import planner
from evaluation.page import cards, requests
from evaluation.page.questions.base import Panel
from evaluation.page.words import Words
from evaluation.running.estimate import geometry_for
from evaluation.running.public import named_only
from evaluation.spec import RunSpec


class Plan(Panel):
    """What can be said of a model before anything runs, also of one that isn't on this disk."""

    def plan(self, ask: requests.Plan) -> dict:
        """Which ways to make a model smaller fit into a memory, and what is known of each.

        "options": the recipes in the order of the table, which the page can take over.
        """
        words = Words(ask.lang)
        geometry = self._planned(ask)
        need = planner.Need(ask.memory_bytes, ask.context, ask.cache_bits, ask.bandwidth)
        name = "" if ask.sizes else ask.model
        found = planner.plan(geometry, need, name, [*self.store.shipped(), *self.store.own()])
        others = planner.largest(need)
        return {
            "html": cards.plan(words, name, geometry, need, found, others),
            "options": [option.recipe for option in found],
        }

    def _planned(self, ask: requests.Plan) -> Geometry:
        """The sizes of the model that is asked about: typed, from the catalogue, this disk, or the hub."""
        if ask.sizes:
            given = ask.sizes
            layer = LayerGeometry(given.heads, given.kv_heads, given.head_size, given.feed_forward)
            positions = ask.context
            return Geometry(
                given.architecture,
                given.hidden,
                given.vocabulary,
                positions,
                given.tied,
                (layer,) * given.layers,
            )
        if self.public:
            named_only(RunSpec(ask.model, (("none", {}),)))
        try:
            return geometry_for(ask.model)
        except ModelUnavailable as error:
            if error.code != "size_unknown":
                raise
            return self._scales.ask(ask.model).geometry
