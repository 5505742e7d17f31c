"""Every family of word problems, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nap_trainer.words.families import clock, groups, money, motion, prices, shapes
from nap_trainer.words.family import Family

_MODULES = (prices, money, motion, clock, groups, shapes)
_ALL = tuple(family for module in _MODULES for family in module.FAMILIES)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})

if len(FAMILIES) != len(_ALL):
    raise ValueError("two families share a name")
