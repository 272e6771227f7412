"""Readers of data sets, by the names that recipes use."""

from __future__ import annotations

from salticid.data.datasets.coco import CocoObjects
from salticid.data.datasets.daquar import Daquar
from salticid.data.datasets.flickr8k import Flickr8k

SOURCES: dict[str, type] = {"flickr8k": Flickr8k, "daquar": Daquar, "coco": CocoObjects}
