"""Answering texts with a host, with or without plugins: the Python API behind `kinject predict`.

host = kinject.Host.load("runs/quickstart/host")
host.plug("runs/quickstart/biology_plugin", knowledge="runs/quickstart/biology/knowledge", linker=True)
for prediction in host.predict(texts):
    print(prediction.label, prediction.score, prediction.entities)
with host.unplugged():
    print(next(host.predict("the otter is a kind of [MASK] .")).label)
"""

from kinject.plugins.map_files import export_map
from kinject.serving.host import Host
from kinject.serving.plugin import Plugin
from kinject.serving.queries import Contribution, Explanation, Label, Linked, Prediction, Refused

__all__ = [
    "Contribution",
    "Explanation",
    "Host",
    "Label",
    "Linked",
    "Plugin",
    "Prediction",
    "Refused",
    "export_map",
]
